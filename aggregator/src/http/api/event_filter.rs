//! The filters that `/events`, `/events/stats` and `/events/stream` have in common.

use utoipa::IntoParams;

use crate::http::params::Params;
use crate::http::problem::Problem;
use crate::store::query::filter::EventFilter;

/// Each key can be given more than once: its values are alternatives. A leading `!` rules a value out. An empty value
/// means that the event has none; an empty namespace and pod are the node itself.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "documents what `read` takes")]
pub(crate) struct EventFilterParams {
    /// Probe that saw it, such as `packetloss`.
    probe: Option<Vec<String>>,
    /// What it was, such as `PACKETLOSS`.
    r#type: Option<Vec<String>>,
    /// Why, such as `NETFILTER_DROP`.
    reason: Option<Vec<String>>,
    /// Node that saw it.
    node: Option<Vec<String>>,
    /// Namespace of the pod.
    namespace: Option<Vec<String>>,
    /// Name of the pod.
    pod: Option<Vec<String>>,
    /// Workload of the pod.
    workload: Option<Vec<String>>,
    /// Address of either end, `10.1.2.3`, or a network, `10.0.0.0/8`.
    ip: Option<Vec<String>>,
    /// Port of either end.
    port: Option<Vec<String>>,
    /// `TCP`, `UDP`, `ICMP`, ...
    protocol: Option<Vec<String>>,
    /// At least this long: `10ms`, or a number of nanoseconds.
    min_latency: Option<String>,
    /// Text in reason, process name, stack or attributes, without regard to case.
    q: Option<Vec<String>>,
}

pub(crate) fn read(params: &Params) -> Result<EventFilter, Problem> {
    let q = params.words("q");
    if q.any.iter().chain(&q.none).any(String::is_empty) {
        return Err(Problem::bad("q", "`q`: expected a text to look for"));
    }
    Ok(EventFilter {
        probe: params.words("probe"),
        kind: params.words("type"),
        reason: params.words("reason"),
        protocol: params.words("protocol"),
        node: params.words("node"),
        namespace: params.words("namespace"),
        pod: params.words("pod"),
        workload: params.words("workload"),
        ip: params.networks("ip")?,
        port: params.ports("port")?,
        min_latency_ns: params.nanoseconds("min_latency")?,
        q,
    })
}
