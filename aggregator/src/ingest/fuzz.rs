//! What a collector sends: its hello, and batches, as far as the rows that go to the database and to `/federate`.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use prost::Message as _;
use sonde_common::prom::Format;
use sonde_common::time::now_ns;
use sonde_mutate::Target;
use sonde_proto::{body, limits, v1};
use uuid::Uuid;

use super::newer::Newer;
use super::{check, hello};
use crate::live::LiveTable;
use crate::metrics::Metrics;
use crate::store::batch::{Batch, Room, Stream, StreamProbe};
use crate::store::catalogue::Definition;
use crate::store::fuzz::encode;

pub(crate) const TARGETS: [Target; 3] = [
    Target {
        name: "up",
        seeds: || {
            let hello = v1::up::Message::Hello(good_hello());
            let batch = v1::up::Message::Batch(v1::Batch {
                sequence: 1,
                body: body::encode(&good_body()).into(),
            });
            [hello, batch]
                .map(|message| v1::Up { message: Some(message) }.encode_to_vec())
                .into()
        },
        run: take_message,
    },
    Target {
        name: "hello",
        seeds: || vec![good_hello().encode_to_vec()],
        run: take_hello,
    },
    Target {
        name: "batch",
        seeds: || {
            let plain = good_body().encode_to_vec();
            vec![
                [&[0][..], &plain].concat(),
                [&[1][..], &body::encode(&good_body())].concat(),
            ]
        },
        run: take_batch,
    },
];

pub(crate) fn good_hello() -> v1::Hello {
    let column = |name: &str, kind: v1::Kind, bounds: &[f64]| v1::ColumnDef {
        name: name.into(),
        kind: kind.into(),
        unit: "seconds".into(),
        scale: 1e-9,
        bounds: bounds.to_vec(),
        ..Default::default()
    };
    let probe = v1::ProbeDef {
        name: "lat".into(),
        help: "Latencies".into(),
        labels: vec![v1::LabelDef {
            name: "device".into(),
            help: "Device".into(),
        }],
        columns: vec![
            column("busy_seconds", v1::Kind::Counter, &[]),
            column("wait_seconds", v1::Kind::Histogram, &[0.001, 0.1]),
        ],
        event_types: vec![v1::EventTypeDef {
            name: "PACKETLOSS".into(),
            help: "Lost".into(),
        }],
    };
    v1::Hello {
        node: "n1".into(),
        boot_id: vec![1; 16],
        epoch: vec![2; 16],
        version: "1".into(),
        kernel: "6.18.0".into(),
        interval_ns: 5_000_000_000,
        catalogue: Some(v1::Catalogue { probes: vec![probe] }),
    }
}

const TIME: u64 = 1_700_000_000_000_000_000;

pub(crate) fn good_body() -> v1::BatchBody {
    let strings = ["", "eth0", "lat", "PACKETLOSS", "ip_rcv+0x1"];
    let width = 2 + 2;
    v1::BatchBody {
        strings: strings.map(str::to_owned).into(),
        stacks: vec![v1::Stack { frames: vec![4] }],
        pods: vec![v1::Pod {
            sandbox: "s".into(),
            namespace: "shop".into(),
            name: "web".into(),
            ips: vec![vec![10, 0, 0, 1]],
            ..Default::default()
        }],
        rows: vec![v1::Rows {
            probe: "lat".into(),
            time_ns: TIME,
            subjects: vec![0, 1],
            labels: vec![1, 1],
            columns: vec![
                v1::Column {
                    values: vec![5, i64::MAX],
                },
                v1::Column {
                    values: vec![7; 2 * width],
                },
            ],
        }],
        events: vec![v1::Event {
            time_ns: TIME,
            subject: 1,
            probe: 2,
            r#type: 3,
            saddr: vec![10, 0, 0, 1],
            daddr: vec![0xfd; 16],
            dport: 443,
            direction: 2,
            stack: 1,
            attributes: vec![v1::Attribute { key: 1, value: 4 }],
            ..Default::default()
        }],
        gaps: vec![v1::Gap {
            cause: "rate_limited".into(),
            from_ns: TIME,
            to_ns: TIME + 1,
            count: 3,
            ..Default::default()
        }],
    }
}

/// As it comes from the transport.
fn take_message(input: &[u8]) {
    match v1::Up::decode(input).ok().and_then(|up| up.message) {
        Some(v1::up::Message::Hello(hello)) => take_hello(&hello.encode_to_vec()),
        Some(v1::up::Message::Batch(batch)) => take_batch(&[&[1], &batch.body[..]].concat()),
        None => {}
    }
}

/// What passes the check has no name that SQL or a metric could not have, and its probes can be shown.
fn take_hello(input: &[u8]) {
    let Ok(mut message) = v1::Hello::decode(input) else {
        return;
    };
    Newer::take_from(message.catalogue.get_or_insert_default());
    let Ok(newcomer) = hello::check(message) else { return };
    assert!((1..=limits::MAX_NODE_NAME).contains(&newcomer.node.len()));
    let live = LiveTable::new();
    live.hello(&newcomer.node, &newcomer.catalogue, newcomer.interval_ns);
    for probe in &newcomer.catalogue.probes {
        let said = Definition::from_proto(probe);
        let labels = said.labels.iter().map(|label| &label.name);
        let columns = said.columns.iter().map(|column| &column.name);
        for name in [&probe.name].into_iter().chain(labels).chain(columns) {
            assert!(
                sonde_proto::names::is_valid(name) && name.len() <= limits::MAX_NAME,
                "{name:?}"
            );
        }
        assert!(said.columns.iter().all(|column| column.width() <= 130));
    }
    show(&live);
    live.disconnected(&newcomer.node);
}

static STREAM: LazyLock<Arc<Stream>> = LazyLock::new(|| {
    let catalogue = good_hello().catalogue.unwrap_or_default();
    let probes: HashMap<String, StreamProbe> = catalogue
        .probes
        .iter()
        .map(|probe| {
            let said = Definition::from_proto(probe);
            let table = Arc::new(Definition::from_proto(probe));
            (probe.name.clone(), StreamProbe::new(Arc::new(said), table))
        })
        .collect();
    Stream::new("n1", 1, Uuid::from_u128(2), probes, 0)
});

static NEWER: LazyLock<Newer> = LazyLock::new(|| {
    let mut catalogue = good_hello().catalogue.unwrap_or_default();
    catalogue.probes[0].columns[0].kind = 17;
    Newer::take_from(&mut catalogue)
});

/// The first byte tells whether the rest is compressed already. What passes the check can be written and shown, whatever
/// its numbers refer to.
fn take_batch(input: &[u8]) {
    let Some((compressed, bytes)) = input.split_first() else {
        return;
    };
    let decoded = if *compressed == 1 {
        body::decode(bytes).ok()
    } else {
        v1::BatchBody::decode(bytes).ok().map(|plain| {
            let again = body::decode(&body::encode(&plain)).expect("what was just encoded");
            assert_eq!(again, plain);
            again
        })
    };
    let Some(mut decoded) = decoded else { return };
    // As of a stream that has columns which we do not know, and of one that has none.
    let mut less = decoded.clone();
    NEWER.leave_out(&mut less);
    let _ = check::check(&less, &STREAM.probes, now_ns());
    Newer::default().leave_out(&mut decoded);
    if check::check(&decoded, &STREAM.probes, now_ns()).is_err() {
        return;
    }
    let live = LiveTable::new();
    live.hello("n1", &good_hello().catalogue.unwrap_or_default(), 5_000_000_000);
    live.apply("n1", &decoded);
    show(&live);
    encode(&Batch {
        stream: Arc::clone(&STREAM),
        sequence: 1,
        body: decoded,
        size: 0,
        memory: Room::new(Vec::new(), 0, &Metrics::new()),
    });
}

/// All series, on a page that Prometheus could read.
fn show(live: &LiveTable) {
    let all = "{__name__=~\".+\"}".parse().expect("a selector");
    let mut page = String::new();
    let whole = live.federate(&[all], Format::Text, &mut |piece| {
        page.push_str(&piece);
        true
    });
    assert!(whole);
    for line in page.lines() {
        assert!(line.starts_with('#') || line.starts_with("sonde_"), "{line:?}");
    }
}
