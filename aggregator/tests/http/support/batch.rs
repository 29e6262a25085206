//! A collector as the store sees it, and what it sends.

use std::net::IpAddr;
use std::sync::Arc;

use sonde_aggregator::metrics::Metrics;
use sonde_aggregator::store::batch;
use sonde_aggregator::store::{Newcomer, Store};
use sonde_proto::v1;
use uuid::Uuid;

use super::App;

/// Two probes: `netdev` (label device; counter, gauge and a scaled counter) and `lat` (a histogram); events of type
/// PACKETLOSS and TCPRETRANS.
pub(crate) fn catalogue() -> v1::Catalogue {
    let column = |name: &str, kind: v1::Kind, unit: &str, scale: f64, bounds: &[f64]| v1::ColumnDef {
        name: name.into(),
        help: format!("Help of {name}"),
        kind: kind.into(),
        unit: unit.into(),
        scale,
        bounds: bounds.to_vec(),
    };
    let event_type = |name: &str| v1::EventTypeDef {
        name: name.into(),
        help: format!("Help of {name}"),
    };
    let netdev = v1::ProbeDef {
        name: "netdev".into(),
        help: "Devices".into(),
        labels: vec![v1::LabelDef {
            name: "device".into(),
            help: "Device".into(),
        }],
        columns: vec![
            column("receive_bytes", v1::Kind::Counter, "bytes", 1.0, &[]),
            column("carrier", v1::Kind::Gauge, "", 1.0, &[]),
            column("busy_seconds", v1::Kind::Counter, "seconds", 1e-9, &[]),
        ],
        event_types: vec![event_type("PACKETLOSS"), event_type("TCPRETRANS")],
    };
    let lat = v1::ProbeDef {
        name: "lat".into(),
        help: "Latencies".into(),
        columns: vec![column(
            "wait_seconds",
            v1::Kind::Histogram,
            "seconds",
            1e-9,
            &[0.001, 0.1],
        )],
        ..Default::default()
    };
    v1::Catalogue {
        probes: vec![netdev, lat],
    }
}

/// A connected collector.
pub(crate) struct Collector {
    store: Store,
    live: Arc<sonde_aggregator::live::LiveTable>,
    node: String,
    stream: Arc<batch::Stream>,
    sequence: u64,
}

impl Collector {
    pub(crate) async fn connect(app: &App, node: &str) -> Self {
        let newcomer = Newcomer {
            node: node.into(),
            boot_id: Uuid::from_u128(7),
            epoch: Uuid::new_v4(),
            version: "1.2.3".into(),
            kernel: "6.18.0".into(),
            interval_ns: 5 * super::SECOND,
            catalogue: catalogue(),
        };
        let registered = app.store.register(&newcomer).await.expect("the collector is taken");
        app.live.hello(node, &newcomer.catalogue, newcomer.interval_ns);
        Self {
            store: app.store.clone(),
            live: app.live.clone(),
            node: node.into(),
            stream: registered.stream,
            sequence: 0,
        }
    }

    /// Until the batch is stored.
    pub(crate) async fn send(&mut self, body: Batch) {
        self.sequence += 1;
        let sequence = self.sequence;
        let (stream, size) = (self.stream.clone(), 1000);
        self.store.submit(batch::Batch {
            stream,
            sequence,
            body: body.0,
            size,
            memory: batch::Room::new(Vec::new(), 0, &Metrics::new()),
        });
        let mut progress = self.stream.progress();
        let progress = progress
            .wait_for(|p| p.durable >= sequence || p.ended.is_some())
            .await
            .unwrap();
        assert_eq!(progress.ended, None);
    }

    pub(crate) fn disconnect(self) {
        self.live.disconnected(&self.node);
    }
}

/// A batch in the making.
pub(crate) struct Batch(pub(crate) v1::BatchBody);

/// One event; what is empty or none is not known.
#[derive(Clone, Debug, Default)]
pub(crate) struct EventSpec<'a> {
    pub(crate) time_ns: u64,
    /// As [`Batch::pod`] gave it; 0: the node itself.
    pub(crate) subject: u32,
    pub(crate) unknown: bool,
    pub(crate) kind: &'a str,
    pub(crate) reason: &'a str,
    pub(crate) protocol: &'a str,
    pub(crate) from: Option<(&'a str, u32)>,
    pub(crate) to: Option<(&'a str, u32)>,
    /// As [`Batch::pod`] gave it.
    pub(crate) peer: Option<u32>,
    pub(crate) direction: v1::Direction,
    pub(crate) latency_ns: Option<u64>,
    pub(crate) comm: &'a str,
    pub(crate) stack: &'a [&'a str],
    pub(crate) attributes: &'a [(&'a str, &'a str)],
}

impl Batch {
    pub(crate) fn new() -> Self {
        Self(v1::BatchBody {
            strings: vec![String::new()],
            ..Default::default()
        })
    }

    pub(crate) fn string(&mut self, text: &str) -> u32 {
        let strings = &mut self.0.strings;
        let at = strings.iter().position(|s| s == text).unwrap_or_else(|| {
            strings.push(text.into());
            strings.len() - 1
        });
        at as u32
    }

    /// A pod `name` of namespace `shop`, and of workload `<name>-app`, there since `from_ns`.
    pub(crate) fn pod(&mut self, name: &str, ip: &str, from_ns: u64) -> u32 {
        self.pod_of("shop", name, ip, from_ns, 0)
    }

    pub(crate) fn pod_of(&mut self, namespace: &str, name: &str, ip: &str, from_ns: u64, to_ns: u64) -> u32 {
        self.0.pods.push(v1::Pod {
            sandbox: format!("sandbox-{namespace}-{name}-{from_ns}"),
            uid: format!("uid-{name}"),
            namespace: namespace.into(),
            name: name.into(),
            workload_kind: "Deployment".into(),
            workload: format!("{name}-app"),
            ips: vec![bytes(ip)],
            labels: [("app".to_owned(), name.to_owned())].into(),
            netns_inode: 4_026_531_840,
            netns_cookie: 9,
            valid_from_ns: from_ns,
            valid_to_ns: to_ns,
            host_network: false,
        });
        self.0.pods.len() as u32
    }

    pub(crate) fn event(&mut self, spec: &EventSpec) -> &mut Self {
        let stack = if spec.stack.is_empty() {
            0
        } else {
            let frames = spec.stack.iter().map(|f| self.string(f)).collect();
            self.0.stacks.push(v1::Stack { frames });
            self.0.stacks.len() as u32
        };
        let kind = if spec.kind.is_empty() { "PACKETLOSS" } else { spec.kind };
        let event = v1::Event {
            time_ns: spec.time_ns,
            subject: spec.subject,
            subject_unknown: spec.unknown,
            probe: self.string("netdev"),
            r#type: self.string(kind),
            reason: self.string(spec.reason),
            protocol: self.string(spec.protocol),
            saddr: spec.from.map(|(ip, _)| bytes(ip)).unwrap_or_default(),
            sport: spec.from.map_or(0, |(_, port)| port),
            daddr: spec.to.map(|(ip, _)| bytes(ip)).unwrap_or_default(),
            dport: spec.to.map_or(0, |(_, port)| port),
            peer: spec.peer.map_or(0, |subject| subject + 1),
            direction: spec.direction.into(),
            latency_ns: spec.latency_ns,
            comm: self.string(spec.comm),
            stack,
            attributes: spec
                .attributes
                .iter()
                .map(|(k, v)| v1::Attribute {
                    key: self.string(k),
                    value: self.string(v),
                })
                .collect(),
            ..Default::default()
        };
        self.0.events.push(event);
        self
    }

    /// Rows of `netdev`: subject, device, receive_bytes, carrier, busy_seconds in nanoseconds.
    pub(crate) fn netdev(&mut self, time_ns: u64, rows: &[(u32, &str, [i64; 3])]) -> &mut Self {
        let mut out = v1::Rows {
            probe: "netdev".into(),
            time_ns,
            ..Default::default()
        };
        out.columns = vec![v1::Column::default(); 3];
        for (subject, device, values) in rows {
            out.subjects.push(*subject);
            out.labels.push(self.string(device));
            for (column, value) in out.columns.iter_mut().zip(values) {
                column.values.push(*value);
            }
        }
        self.0.rows.push(out);
        self
    }

    /// A row of `lat` for one subject: counts up to 1 ms, up to 100 ms, beyond; sum in nanoseconds.
    pub(crate) fn lat(&mut self, time_ns: u64, subject: u32, values: [i64; 4]) -> &mut Self {
        let columns = vec![v1::Column {
            values: values.to_vec(),
        }];
        self.0.rows.push(v1::Rows {
            probe: "lat".into(),
            time_ns,
            subjects: vec![subject],
            labels: vec![],
            columns,
        });
        self
    }

    pub(crate) fn gap(&mut self, probe: &str, cause: &str, from_ns: u64, to_ns: u64, subject: u32) -> &mut Self {
        self.0.gaps.push(v1::Gap {
            probe: probe.into(),
            cause: cause.into(),
            from_ns,
            to_ns,
            count: 3,
            subject,
            subject_unknown: false,
            detail: "why".into(),
        });
        self
    }
}

fn bytes(ip: &str) -> Vec<u8> {
    match ip.parse().expect("an address") {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}
