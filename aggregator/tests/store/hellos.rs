//! Hellos that are refused, for what is in them or for who says it.

use sonde_proto::v1;
use tonic::{Code, Status};

use crate::fixture::{Aggregator, Collector, batch, column, hello};

/// A change that spoils a good hello: the field, and what the refusal says.
type HelloSpoiler = (&'static str, &'static str, fn(&mut v1::Hello));

pub(crate) const HELLO_SPOILERS: &[HelloSpoiler] = &[
    (
        "Hello.node",
        "node: \"a/b\" is not a node name: expected 1 to 253 letters",
        |h| h.node = "a/b".into(),
    ),
    ("Hello.node", "node: \"\" is not a node name", |h| h.node.clear()),
    ("Hello.boot_id", "boot_id: 0 bytes, expected the 16 of a UUID", |h| {
        h.boot_id.clear()
    }),
    ("Hello.epoch", "epoch: 17 bytes, expected the 16 of a UUID", |h| {
        h.epoch.push(0)
    }),
    (
        "Hello.version",
        "version: a text of 300 bytes, expected at most 256",
        |h| h.version = "1".repeat(300),
    ),
    (
        "Hello.kernel",
        "kernel: a text of 1 bytes, expected at most 256 and no NUL",
        |h| h.kernel = "\0".into(),
    ),
    ("Hello.interval_ns", "interval_ns: 0 is not between 1 ns and 1 h", |h| {
        h.interval_ns = 0
    }),
    ("Hello.interval_ns", "interval_ns: 18446744073709551615 is not", |h| {
        h.interval_ns = u64::MAX
    }),
    ("Hello.catalogue", "catalogue: 300 probes, expected at most 256", |h| {
        let probes = (0..300).map(|n| v1::ProbeDef {
            name: format!("p{n}"),
            ..Default::default()
        });
        h.catalogue = Some(v1::Catalogue {
            probes: probes.collect(),
        });
    }),
    ("Catalogue.probes", "probe netdev: is there twice", |h| {
        let again = probe(h).clone();
        h.catalogue.as_mut().unwrap().probes.push(again);
    }),
    (
        "ProbeDef.name",
        "probe: \"Net\" is not a name: expected [a-z][a-z0-9_]*",
        |h| probe(h).name = "Net".into(),
    ),
    ("ProbeDef.name", "probe: `incidents` is reserved", |h| {
        probe(h).name = "incidents".into()
    }),
    ("ProbeDef.help", "probe netdev: help: a text of 5000 bytes", |h| {
        probe(h).help = "x".repeat(5000)
    }),
    (
        "ProbeDef.labels",
        "probe netdev: labels: 17, expected at most 16",
        |h| {
            let label = |n| v1::LabelDef {
                name: format!("l{n}"),
                ..Default::default()
            };
            probe(h).labels = (0..17).map(label).collect();
        },
    ),
    // A million of them does not get so far: it is more than a hello may have.
    ("ProbeDef.columns", " bytes, expected at most 1048576", |h| {
        probe(h).columns = vec![v1::ColumnDef::default(); 1_000_000];
    }),
    (
        "ProbeDef.event_types",
        "probe netdev: event_types: 300, expected at most 256",
        |h| {
            probe(h).event_types = vec![v1::EventTypeDef::default(); 300];
        },
    ),
    ("LabelDef.name", "probe netdev: label: `pod` is reserved", |h| {
        probe(h).labels[0].name = "pod".into()
    }),
    ("LabelDef.help", "probe netdev: device: a text of", |h| {
        probe(h).labels[0].help = "\0".into()
    }),
    ("ColumnDef.name", "probe netdev: column: \"\" is not a name", |h| {
        probe(h).columns[0].name.clear()
    }),
    ("ColumnDef.help", "probe netdev: receive_bytes: a text of", |h| {
        probe(h).columns[0].help = "\0".into()
    }),
    (
        "ColumnDef.kind",
        "probe netdev: receive_bytes: kind 0 is none of",
        |h| probe(h).columns[0].kind = 0,
    ),
    (
        "ColumnDef.unit",
        "probe netdev: receive_bytes: a text of 33 bytes",
        |h| probe(h).columns[0].unit = "b".repeat(33),
    ),
    (
        "ColumnDef.scale",
        "probe netdev: receive_bytes: scale inf is not",
        |h| probe(h).columns[0].scale = f64::INFINITY,
    ),
    (
        "ColumnDef.bounds",
        "probe netdev: latency_seconds: expected 1 to 128 ascending bounds",
        |h| probe(h).columns[2].bounds.reverse(),
    ),
    (
        "EventTypeDef.name",
        "probe netdev: event_types: \"lost\" is not an event type",
        |h| probe(h).event_types[0].name = "lost".into(),
    ),
    ("EventTypeDef.help", "probe netdev: PACKETLOSS: a text of", |h| {
        probe(h).event_types[0].help = "\0".into()
    }),
];

pub(crate) fn probe(hello: &mut v1::Hello) -> &mut v1::ProbeDef {
    &mut hello.catalogue.as_mut().unwrap().probes[0]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_hello_is_named_counted_by_its_node_and_makes_nothing() {
    let aggregator = Aggregator::start().await;
    let mut by_node = 0;
    for (field, expected, spoil) in HELLO_SPOILERS {
        let mut broken = hello("broken", 1);
        spoil(&mut broken);
        by_node += u32::from(broken.node == "broken" && !expected.contains("1048576"));
        let Err(status) = Collector::connect(&aggregator, broken).await else {
            panic!("{field}: it is taken");
        };
        assert_eq!(status.code(), Code::InvalidArgument, "{field}: {status}");
        let message = status.message();
        assert!(
            message.starts_with("hello: ") && message.contains(expected),
            "{field}: {message:?}, expected {expected:?}"
        );
    }
    let nameless = HELLO_SPOILERS.len() as u32 - by_node;
    for (node, count) in [("broken", by_node), ("", nameless)] {
        let line = format!("sonde_aggregator_refused_batches_total{{k8s_node=\"{node}\"}} {count}");
        assert!(aggregator.page().lines().any(|l| l == line), "expected {line}");
    }
    assert_eq!(aggregator.count("sonde.nodes").await, 0);
    assert_eq!(aggregator.count("sonde_store.probes").await, 0);
    aggregator.stop().await;
}

/// Where making so many columns takes longer than a collector waits, they are there when it asks again.
async fn connect(aggregator: &Aggregator, hello: v1::Hello) -> Result<Collector, Status> {
    let mut answer = Collector::connect(aggregator, hello.clone()).await;
    for _ in 0..20 {
        if !matches!(&answer, Err(status) if status.code() == Code::Unavailable) {
            break;
        }
        answer = Collector::connect(aggregator, hello.clone()).await;
    }
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn what_collectors_say_together_is_bounded_too() {
    let aggregator = Aggregator::start().await;
    let crowd = |node: &str, from: usize| {
        let mut hello = hello(node, 1);
        let column = |n| column(&format!("c{n}"), v1::Kind::Gauge, "", 0.0, &[]);
        probe(&mut hello).columns = (from..from + 400).map(column).collect();
        hello
    };
    connect(&aggregator, crowd("n1", 0)).await.unwrap();
    let Err(status) = connect(&aggregator, crowd("n2", 400)).await else {
        panic!("800 columns are taken");
    };
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(
        status.message(),
        "probe netdev: 800 numbers in a row with those of other collectors, expected at most 480"
    );
    connect(&aggregator, crowd("n3", 80)).await.unwrap();
    aggregator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_stores_through_another_aggregator_is_taken() {
    let database = sonde_aggregator::testing::Database::migrated().await;
    let storage = sonde_common::config::Storage::default;
    let (a, b) = (
        Aggregator::on(&database, storage()).await,
        Aggregator::on(&database, storage()).await,
    );
    let mut first = Collector::connect(&a, hello("n1", 1)).await.unwrap();
    first.send(1, &batch(0, 1)).await;
    first.acked(1).await;
    let mut impostor = hello("n1", 2);
    impostor.boot_id = vec![7; 16];
    let Err(status) = Collector::connect(&b, impostor.clone()).await else {
        panic!("two machines of one name are let in");
    };
    assert_eq!(status.code(), Code::AlreadyExists, "{status}");
    for part in [
        "node n1 stored",
        "through another aggregator",
        "another boot id",
        "needs a name of its own",
    ] {
        assert!(status.message().contains(part), "{status}");
    }
    let line = "sonde_aggregator_refused_batches_total{k8s_node=\"n1\"} 1";
    assert!(b.page().lines().any(|l| l == line));
    // The spool itself moves freely, and who has it is not disturbed.
    first.send(2, &batch(0, 1)).await;
    first.acked(2).await;
    let mut moved = Collector::connect(&b, hello("n1", 1)).await.unwrap();
    assert_eq!(moved.durable, 2);
    moved.send(3, &batch(0, 1)).await;
    moved.acked(3).await;
    // Long silent, as when that collector is gone for good.
    drop((first, moved));
    a.execute("update sonde_store.cursors set updated = now() - interval '1 minute'")
        .await;
    let free = Collector::connect(&b, impostor).await;
    assert_eq!(free.map(|c| c.durable).map_err(|e| e.to_string()), Ok(0));
    a.stop().await;
    b.stop().await;
}
