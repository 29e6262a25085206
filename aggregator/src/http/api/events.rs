//! `GET /api/v1/events`: events of a span of time, a page at a time.

use std::borrow::Cow;

use axum::Json;
use axum::extract::{RawQuery, State};
use serde::Serialize;
use serde_json::{Map, Value};
use sonde_common::time::Span;
use utoipa::{IntoParams, ToSchema};

use super::{cursor, event_filter};
use crate::http::AppState;
use crate::http::params::Params;
use crate::http::problem::{ApiResult, Problem};
use crate::store::query::events::{EventRow, Order, Position};
use crate::store::query::filter::Window;
use crate::store::query::rfc3339;

pub(crate) const DEFAULT_RANGE: Span = Span::from_secs(3600);

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "documents what the handler takes")]
struct PageParams {
    /// Beginning, inclusive: RFC 3339, `now`, or a time ago such as `-15m`. Default: an hour before the end.
    from: Option<String>,
    /// End, exclusive. Default: now.
    to: Option<String>,
    /// `desc`: newest first, the default; `asc`: oldest first.
    order: Option<String>,
    /// Events in a page, 1 to 1000, by default 100.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
    /// `next_cursor` of the page before, with all other parameters as they were.
    cursor: Option<String>,
}

/// One abnormal thing at one time. What is not known is left out.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Event {
    pub(crate) id: i64,
    /// UTC, with microseconds.
    #[schema(format = DateTime)]
    time: String,
    node: String,
    /// Empty: the node itself. Left out: a network namespace of no known pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    workload: Option<String>,
    probe: String,
    r#type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    saddr: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sport: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    daddr: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dport: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<Peer>,
    /// `ingress`, `egress` or `forward`.
    #[serde(skip_serializing_if = "Option::is_none")]
    direction: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_ns: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<i32>,
    /// Only where it is known to be the owner's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    comm: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    interface: Option<String>,
    /// How many more of this pod and type were held back since the one before.
    #[serde(skip_serializing_if = "is_zero")]
    suppressed: i64,
    /// Innermost first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    stack: Vec<String>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    #[schema(value_type = std::collections::HashMap<String, String>)]
    attributes: Map<String, Value>,
}

/// What is at the other end: a pod, a node itself, or a service by its own address.
#[derive(Debug, Default, Serialize, ToSchema)]
struct Peer {
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    /// Empty: a node itself.
    namespace: String,
    /// Empty: a node itself. Left out: a service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<String>,
    /// The service that had the address at the time of the event.
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    workload: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EventPage {
    events: Vec<Event>,
    /// Null: this was the last page.
    next_cursor: Option<String>,
}

/// Events of a span of time
///
/// In order of time; events that arrive while pages are read make no event come twice and none be left out.
#[utoipa::path(
    get,
    path = "/api/v1/events",
    tag = "events",
    params(PageParams, event_filter::EventFilterParams),
    responses((status = 200, body = EventPage), (status = "4XX", body = Problem), (status = "5XX", body = Problem))
)]
pub(crate) async fn list(State(state): State<AppState>, RawQuery(query): RawQuery) -> ApiResult<EventPage> {
    let params = Params::read_both::<PageParams, event_filter::EventFilterParams>(query.as_deref())?;
    let filter = event_filter::read(&params)?;
    let order = params.choice("order", &[("desc", Order::Desc), ("asc", Order::Asc)])?;
    let limit = params.number("limit", 100, 1000)?;
    let digest = cursor::digest("events", &params);
    // The span of the first page is the span of all: `-1h` and `now` must not move from page to page.
    let mut range = params.range(DEFAULT_RANGE)?;
    let mut after = None;
    if let Some(fields) = cursor::read::<4>(digest, &params)? {
        let [from, to, time, id] = cursor::numbers(&fields).ok_or_else(cursor::unreadable)?;
        range = (from, to);
        after = Some(Position { time, id });
    }
    let window = Window {
        from: Some(range.0),
        to: Some(range.1),
    };
    let mut rows = state.store.events(&filter, window, order, after, limit + 1).await?;
    let more = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    let next_cursor = rows.last().filter(|_| more).map(|last| {
        let fields = [range.0, range.1, last.time, last.id].map(|n| n.to_string());
        cursor::write(digest, &fields.each_ref().map(String::as_str))
    });
    Ok(Json(EventPage {
        events: rows.into_iter().map(Event::from).collect(),
        next_cursor,
    }))
}

impl From<EventRow> for Event {
    fn from(row: EventRow) -> Self {
        let known = row.peer_pod.is_some() || row.peer_service.is_some();
        let peer = known.then(|| Peer {
            node: row.peer_node,
            namespace: row.peer_namespace.unwrap_or_default(),
            pod: row.peer_pod,
            service: row.peer_service,
            workload: given(row.peer_workload),
        });
        Self {
            id: row.id,
            time: rfc3339(row.time),
            node: row.node,
            namespace: row.namespace,
            pod: row.pod,
            workload: given(row.workload),
            probe: row.probe,
            r#type: row.kind,
            reason: given(row.reason),
            protocol: given(row.protocol),
            saddr: row.saddr,
            sport: row.sport,
            daddr: row.daddr,
            dport: row.dport,
            peer,
            direction: match row.direction {
                1 => Some("ingress"),
                2 => Some("egress"),
                3 => Some("forward"),
                _ => None,
            },
            latency_ns: row.latency_ns,
            cpu: row.cpu,
            pid: row.pid,
            comm: given(row.comm),
            state: given(row.state),
            interface: given(row.interface),
            suppressed: row.suppressed,
            stack: row.stack.unwrap_or_default(),
            attributes: row.attributes.map(|json| json.0).unwrap_or_default(),
        }
    }
}

impl Event {
    pub(crate) const CSV_TITLES: [&str; 29] = [
        "id",
        "time",
        "node",
        "namespace",
        "pod",
        "workload",
        "probe",
        "type",
        "reason",
        "protocol",
        "saddr",
        "sport",
        "daddr",
        "dport",
        "peer_node",
        "peer_namespace",
        "peer_pod",
        "peer_service",
        "peer_workload",
        "direction",
        "latency_ns",
        "cpu",
        "pid",
        "comm",
        "state",
        "interface",
        "suppressed",
        "stack",
        "attributes",
    ];

    /// In the order of [`Event::CSV_TITLES`]; what is not known is empty.
    pub(crate) fn csv_fields(self) -> [Cow<'static, str>; 29] {
        let text = |text: Option<String>| text.map_or(Cow::Borrowed(""), Cow::Owned);
        let number = |number: Option<i64>| number.map_or(Cow::Borrowed(""), |n| n.to_string().into());
        let peer = self.peer.unwrap_or_default();
        let attributes = (!self.attributes.is_empty()).then(|| Value::Object(self.attributes).to_string());
        [
            self.id.to_string().into(),
            self.time.into(),
            self.node.into(),
            text(self.namespace),
            text(self.pod),
            text(self.workload),
            self.probe.into(),
            self.r#type.into(),
            text(self.reason),
            text(self.protocol),
            text(self.saddr),
            number(self.sport.map(i64::from)),
            text(self.daddr),
            number(self.dport.map(i64::from)),
            text(peer.node),
            peer.namespace.into(),
            text(peer.pod),
            text(peer.service),
            text(peer.workload),
            self.direction.unwrap_or_default().into(),
            number(self.latency_ns),
            number(self.cpu.map(i64::from)),
            number(self.pid.map(i64::from)),
            text(self.comm),
            text(self.state),
            text(self.interface),
            self.suppressed.to_string().into(),
            self.stack.join("\n").into(),
            text(attributes),
        ]
    }
}

/// The empty word stands for none.
fn given(word: Option<String>) -> Option<String> {
    word.filter(|w| !w.is_empty())
}

fn is_zero(number: &i64) -> bool {
    *number == 0
}
