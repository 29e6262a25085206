//! Broken input ends one stream, counted, and nothing of it is stored.

use std::collections::BTreeSet;

use prost::Message as _;
use sonde_common::time::now_ns;
use sonde_proto::v1::ingest_client::IngestClient;
use sonde_proto::{poison, v1};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::fixture::{Aggregator, Collector, batch, hello};
use crate::hellos::HELLO_SPOILERS;

/// A change that spoils a good batch, and what the refusal says of it.
type Spoiler = (&'static str, fn(&mut v1::BatchBody));

const SPOILERS: &[Spoiler] = &[
    ("strings[0]: expected \"\"", |b| b.strings[0] = "x".into()),
    ("strings[3]: contains a NUL", |b| b.strings[3] = "a\0b".into()),
    ("strings[3]: 5000 bytes, expected at most 4096", |b| {
        b.strings[3] = "x".repeat(5000)
    }),
    ("events[0].reason: a string of 2000 bytes, expected at most 1024", |b| {
        b.strings[3] = "x".repeat(2000)
    }),
    ("stacks[0].frames: string 99, but there are 6", |b| {
        b.stacks.push(v1::Stack { frames: vec![99] })
    }),
    ("pods[0].sandbox: empty", |b| b.pods[0].sandbox.clear()),
    ("pods[0].ips: an address of 3 bytes", |b| {
        b.pods[0].ips.push(vec![1, 2, 3])
    }),
    ("pods[0].name: contains a NUL", |b| b.pods[0].name.push('\0')),
    ("pods[0].valid_to_ns: 5 is before valid_from_ns", |b| {
        b.pods[0].valid_to_ns = 5
    }),
    ("pods[0].valid_from_ns: 18446744073709551615 is", |b| {
        b.pods[0].valid_from_ns = u64::MAX
    }),
    ("pods[0].netns_inode: 18446744073709551615", |b| {
        b.pods[0].netns_inode = u64::MAX
    }),
    ("pods[1].sandbox: \"sandbox-1\" is there twice", |b| {
        b.pods.push(b.pods[0].clone())
    }),
    ("rows[0].probe: \"nope\" is not in the catalogue", |b| {
        b.rows[0].probe = "nope".into()
    }),
    ("rows[0].time_ns: 5 is before 2020", |b| b.rows[0].time_ns = 5),
    ("rows[0].time_ns: ", |b| {
        b.rows[0].time_ns = now_ns() + 3_600_000_000_000
    }),
    ("rows[0].subjects: subject 2, but there are 1 pods", |b| {
        b.rows[0].subjects[0] = 2
    }),
    ("rows[0].labels: 1, expected 2 (2 rows of 1)", |b| {
        b.rows[0].labels.truncate(1)
    }),
    ("rows[0].labels: string 6, but there are 6", |b| b.rows[0].labels[1] = 6),
    ("rows[0].columns: 4, expected at most the 3", |b| {
        b.rows[0].columns.push(v1::Column::default())
    }),
    (
        "rows[0].columns.receive_bytes: 1 values, expected 2 (2 rows of 1)",
        |b| b.rows[0].columns[0].values.truncate(1),
    ),
    (
        "rows[0].columns.latency_seconds: 7 values, expected 8 (2 rows of 4)",
        |b| b.rows[0].columns[2].values.truncate(7),
    ),
    ("events[1].time_ns: 0 is before 2020", |b| b.events[1].time_ns = 0),
    ("events[0].subject: subject 7", |b| b.events[0].subject = 7),
    ("events[0].peer: subject 7", |b| b.events[0].peer = 8),
    ("events[0].probe: \"TCP\" is not in the catalogue", |b| {
        b.events[0].probe = 4
    }),
    ("events[0].type: empty", |b| b.events[0].r#type = 0),
    ("events[0].interface: string 4294967295", |b| {
        b.events[0].interface = u32::MAX
    }),
    ("events[0].saddr: an address of 5 bytes", |b| {
        b.events[0].saddr = vec![0; 5]
    }),
    ("events[0].dport: 70000 is not a port", |b| b.events[0].dport = 70_000),
    ("events[0].latency_ns: 18446744073709551615", |b| {
        b.events[0].latency_ns = Some(u64::MAX)
    }),
    ("events[0].suppressed: 18446744073709551615", |b| {
        b.events[0].suppressed = u64::MAX
    }),
    ("events[0].cpu: 4294967295", |b| b.events[0].cpu = Some(u32::MAX)),
    ("events[0].pid: 4294967295", |b| b.events[0].pid = u32::MAX),
    ("events[0].stack: 1, but there are 0", |b| b.events[0].stack = 1),
    ("events[0].attributes: string 77", |b| {
        b.events[0].attributes.push(v1::Attribute { key: 1, value: 77 })
    }),
    ("events[0].attributes: a key is empty", |b| {
        b.events[0].attributes.push(v1::Attribute { key: 0, value: 1 })
    }),
    ("strings: empty, expected \"\" at index 0", |b| b.strings.clear()),
    ("stacks[0]: 300 frames, expected at most 256", |b| {
        b.stacks.push(v1::Stack { frames: vec![0; 300] })
    }),
    ("pods[0].uid: contains a NUL", |b| b.pods[0].uid = "\0".into()),
    ("pods[0].namespace: 2000 bytes, expected at most 1024", |b| {
        b.pods[0].namespace = "x".repeat(2000)
    }),
    ("pods[0].workload_kind: contains a NUL", |b| {
        b.pods[0].workload_kind = "\0".into()
    }),
    ("pods[0].workload: contains a NUL", |b| b.pods[0].workload = "\0".into()),
    ("pods[0].ips: 65, expected at most 64", |b| {
        b.pods[0].ips = vec![vec![0; 4]; 65]
    }),
    ("pods[0].labels: 300, expected at most 256", |b| {
        b.pods[0].labels = (0..300).map(|n| (n.to_string(), String::new())).collect()
    }),
    ("pods[0].labels: contains a NUL", |b| {
        b.pods[0].labels.insert("a".into(), "\0".into());
    }),
    ("events[0].type: string 99, but there are 6", |b| {
        b.events[0].r#type = 99
    }),
    ("events[0].reason: string 99", |b| b.events[0].reason = 99),
    ("events[0].protocol: string 99", |b| b.events[0].protocol = 99),
    ("events[0].comm: string 99", |b| b.events[0].comm = 99),
    ("events[0].state: string 99", |b| b.events[0].state = 99),
    ("events[0].daddr: an address of 17 bytes", |b| {
        b.events[0].daddr = vec![0; 17]
    }),
    ("events[0].sport: 65536 is not a port", |b| b.events[0].sport = 65_536),
    ("events[0].attributes: 65, expected at most 64", |b| {
        b.events[0].attributes = vec![v1::Attribute { key: 1, value: 1 }; 65]
    }),
    ("gaps[0].probe: \"nope\" is not in the catalogue", |b| {
        b.gaps.push(v1::Gap {
            probe: "nope".into(),
            ..gap("ring_full", 1, 1)
        })
    }),
    ("gaps[0].from_ns: 7 is before 2020", |b| {
        b.gaps.push(v1::Gap {
            from_ns: 7,
            ..gap("ring_full", 1, 1)
        })
    }),
    ("gaps[0].to_ns: 18446744073709551615 is", |b| {
        b.gaps.push(v1::Gap {
            to_ns: u64::MAX,
            ..gap("ring_full", 1, 1)
        })
    }),
    ("gaps[0].count: 18446744073709551615, expected at most", |b| {
        b.gaps.push(v1::Gap {
            count: u64::MAX,
            ..gap("ring_full", 1, 1)
        })
    }),
    ("gaps[0].detail: contains a NUL", |b| {
        b.gaps.push(v1::Gap {
            detail: "\0".into(),
            ..gap("ring_full", 1, 1)
        })
    }),
    ("gaps[0].cause: \"Bad Cause\" is not a word", |b| {
        b.gaps.push(gap("Bad Cause", 1, 2))
    }),
    ("gaps[0].to_ns: ", |b| b.gaps.push(gap("ring_full", 2, 1))),
    ("gaps[0].subject: subject 3", |b| {
        b.gaps.push(v1::Gap {
            subject: 3,
            ..gap("ring_full", 1, 1)
        })
    }),
];

/// Fields of which every value means something.
const ANYTHING: &[(&str, &str)] = &[
    ("Batch.sequence", "see what comes after a hello, below"),
    ("Batch.body", "see bytes that are no batch, below"),
    ("Pod.netns_cookie", "64 bits that the kernel counts"),
    ("Pod.host_network", "a bit"),
    ("Event.subject_unknown", "a bit"),
    (
        "Event.direction",
        "one of a newer version is not known here, and stored so",
    ),
    ("Gap.subject_unknown", "a bit"),
];

#[test]
fn every_field_of_the_wire_is_refused_when_it_is_absurd() {
    // What a refusal names, as the contract has it.
    let field = |expected: &&str| -> Vec<String> {
        let (list, rest) = expected.split_once(['[', ':']).unwrap();
        let inner = rest
            .split_once("].")
            .map(|(_, r)| r.split([':', '.', ' ']).next().unwrap());
        let message = ["stacks", "pods", "rows", "events", "gaps"]
            .iter()
            .position(|l| *l == list);
        let message = message.map(|at| ["Stack", "Pod", "Rows", "Event", "Gap"][at]);
        let mut fields = vec![format!("BatchBody.{list}")];
        if let (Some(message), Some(inner)) = (message, inner) {
            fields.push(format!("{message}.{inner}"));
        }
        match *expected {
            e if e.starts_with("rows[0].columns.") => fields.push("Column.values".into()),
            e if e.contains("attributes: a key") => fields.push("Attribute.key".into()),
            e if e.contains("attributes: string") => fields.push("Attribute.value".into()),
            _ => {}
        }
        fields
    };
    let covered: BTreeSet<String> = SPOILERS
        .iter()
        .flat_map(|(expected, _)| field(expected))
        .chain(HELLO_SPOILERS.iter().map(|(field, ..)| (*field).to_owned()))
        .chain(ANYTHING.iter().map(|(field, _)| (*field).to_owned()))
        .collect();
    let contract = prost_types::FileDescriptorSet::decode(sonde_proto::DESCRIPTION).unwrap();
    let messages = contract.file.iter().flat_map(|f| &f.message_type);
    // The others are what frames these, and what goes down.
    let up = messages.filter(|m| !["Up", "Down", "HelloAck", "Ack"].contains(&m.name()));
    let fields = up.flat_map(|m| m.field.iter().map(|f| format!("{}.{}", m.name(), f.name())));
    let missing: Vec<_> = fields.filter(|f| !covered.contains(f)).collect();
    assert_eq!(
        missing,
        Vec::<String>::new(),
        "each needs a bad value here, or a reason why it has none"
    );
}

pub(crate) fn gap(cause: &str, from: u64, to: u64) -> v1::Gap {
    let base = now_ns() - 1_000_000_000;
    v1::Gap {
        cause: cause.into(),
        from_ns: base + from,
        to_ns: base + to,
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_batch_is_named_and_nothing_of_it_is_stored() {
    let aggregator = Aggregator::start().await;
    let mut healthy = Collector::connect(&aggregator, hello("healthy", 1)).await.unwrap();
    for (number, (expected, spoil)) in SPOILERS.iter().enumerate() {
        let mut collector = Collector::connect(&aggregator, hello("broken", 1)).await.unwrap();
        let sequence = number as u64 + 1;
        let mut body = batch(2, 2);
        spoil(&mut body);
        collector.send(sequence, &body).await;
        let status = collector.refused().await;
        assert_eq!(poison::sequence(&status), Some(sequence), "{status}");
        let expected = format!("batch {sequence}: {expected}");
        assert!(
            status.message().starts_with(&expected),
            "{:?}, expected {expected:?}",
            status.message()
        );
    }
    healthy.send(1, &batch(2, 2)).await;
    healthy.acked(1).await;
    assert_eq!(aggregator.count("sonde.events where node <> 'healthy'").await, 0);
    assert_eq!(aggregator.count("sonde.events").await, 2);
    assert_eq!(aggregator.count("sonde.netdev").await, 2);
    let mut page = sonde_common::prom::Page::new();
    aggregator.metrics.render(&mut page);
    let line = format!(
        "sonde_aggregator_refused_batches_total{{k8s_node=\"broken\"}} {}",
        SPOILERS.len()
    );
    assert!(page.finish().lines().any(|l| l == line), "expected {line}");
    aggregator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_clock_is_ahead_can_tell_that_this_is_why() {
    const HOUR_NS: u64 = 3_600_000_000_000;
    let aggregator = Aggregator::start().await;
    let mut collector = Collector::connect(&aggregator, hello("ahead", 1)).await.unwrap();
    let mut body = batch(1, 0);
    body.rows[0].time_ns += HOUR_NS;
    collector.send(1, &body).await;
    let why = collector.refused().await.message().to_owned();
    assert!(why.contains("ahead of the aggregator's clock"), "{why}");
    // As its collector then says it, by the same clock.
    let now = now_ns();
    let told = v1::Gap {
        cause: "poison_batch".into(),
        from_ns: now + HOUR_NS,
        to_ns: now + HOUR_NS + 1,
        count: 1,
        detail: why.clone(),
        ..Default::default()
    };
    let gaps = v1::BatchBody {
        gaps: vec![told],
        ..Default::default()
    };
    let mut collector = Collector::connect(&aggregator, hello("ahead", 1)).await.unwrap();
    collector.send(2, &gaps).await;
    collector.acked(2).await;
    let gap = "select detail from sonde.gaps where node = 'ahead' and cause = 'poison_batch' and end_time <= now()";
    let detail: String = sqlx::query_scalar(gap).fetch_one(&aggregator.db).await.unwrap();
    assert_eq!(detail, why);
    aggregator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_batch_are_refused_as_poison() {
    let aggregator = Aggregator::start().await;
    for (sequence, bytes) in [(1, b"junk".to_vec()), (2, Vec::new()), (3, vec![0; 9 << 20])] {
        let mut collector = Collector::connect(&aggregator, hello("n1", 1)).await.unwrap();
        collector.send_bytes(sequence, bytes).await;
        let status = collector.refused().await;
        // What is too long for any batch is stopped by the transport, which knows no sequence.
        if sequence == 3 {
            assert_eq!(status.code(), Code::OutOfRange, "{status}");
        } else {
            assert_eq!(poison::sequence(&status), Some(sequence), "{status}");
        }
    }
    let line = "sonde_aggregator_refused_batches_total{k8s_node=\"n1\"} 3";
    assert!(aggregator.page().lines().any(|l| l == line), "{}", aggregator.page());
    aggregator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_begins_with_a_hello_and_then_has_batches_in_order() {
    let aggregator = Aggregator::start().await;
    let mut client = IngestClient::connect(format!("http://{}", aggregator.address))
        .await
        .unwrap();
    let (up, outgoing) = tokio::sync::mpsc::channel(1);
    up.send(v1::Up {
        message: Some(v1::up::Message::Batch(v1::Batch::default())),
    })
    .await
    .unwrap();
    let mut down = client.stream(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
    let status = down.message().await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::InvalidArgument, "expected a hello as the first message")
    );

    let mut collector = Collector::connect(&aggregator, hello("n1", 1)).await.unwrap();
    collector.send(0, &batch(0, 1)).await;
    let status = collector.refused().await;
    assert_eq!(
        (status.code(), poison::sequence(&status)),
        (Code::InvalidArgument, None)
    );
    assert!(
        status.message().starts_with("sequence 0 after 0: expected ascending"),
        "{status}"
    );

    let Err(status) = Collector::connect(&aggregator, hello("not a name", 1)).await else {
        panic!("a bad hello is taken");
    };
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().starts_with("hello: node: \"not a name\""), "{status}");

    let collector = Collector::connect(&aggregator, hello("n2", 1)).await.unwrap();
    collector
        .send_message(v1::Up {
            message: Some(v1::up::Message::Hello(hello("n2", 1))),
        })
        .await;
    let mut collector = collector;
    let status = collector.refused().await;
    assert_eq!(status.message(), "a second hello: expected a batch");
    aggregator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_only_the_database_refuses_blocks_nobody() {
    let aggregator = Aggregator::start().await;
    let mut good = Collector::connect(&aggregator, hello("good", 1)).await.unwrap();
    let mut bad = Collector::connect(&aggregator, hello("bad", 1)).await.unwrap();
    sqlx::query("alter table sonde_store.key_netdev add check (receive_bytes <> 666)")
        .execute(&aggregator.db)
        .await
        .unwrap();
    let mut poisoned = batch(2, 1);
    poisoned.rows[0].columns[0].values[1] = 666;
    for sequence in 1..=10 {
        let plain = batch(1, 1);
        good.send(sequence, &plain).await;
        bad.send(sequence, if sequence == 5 { &poisoned } else { &plain }).await;
    }
    good.acked(10).await;
    let status = bad.refused().await;
    assert_eq!(poison::sequence(&status), Some(5), "{status}");
    assert!(
        status
            .message()
            .contains("the database refuses it: new row for relation"),
        "{status}"
    );

    // What came behind it on that stream was not stored: its ack would have covered the refused batch.
    let mut bad = Collector::connect(&aggregator, hello("bad", 1)).await.unwrap();
    assert_eq!(bad.durable, 4);
    for sequence in 6..=10 {
        bad.send(sequence, &batch(1, 1)).await;
    }
    bad.acked(10).await;
    assert_eq!(aggregator.count("sonde.events where node = 'good'").await, 10);
    assert_eq!(aggregator.count("sonde.events where node = 'bad'").await, 9);
    assert_eq!(aggregator.count("sonde.netdev where node = 'bad'").await, 9);
    aggregator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_label_that_was_a_column_is_refused_for_that_collector_only() {
    let aggregator = Aggregator::start().await;
    let mut old = Collector::connect(&aggregator, hello("old", 1)).await.unwrap();
    let mut changed = hello("new", 1);
    let probes = &mut changed.catalogue.as_mut().unwrap().probes;
    probes[0].columns.remove(0);
    probes[0].labels[0].name = "receive_bytes".into();
    // Not made either: a collector is taken as a whole or not at all.
    probes.insert(
        0,
        v1::ProbeDef {
            name: "fresh".into(),
            ..Default::default()
        },
    );
    let Err(status) = Collector::connect(&aggregator, changed).await else {
        panic!("a changed role is taken");
    };
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(
        status
            .message()
            .starts_with("probe netdev: receive_bytes is stored as a column, and this collector says it is a label"),
        "{status}"
    );
    old.send(1, &batch(1, 1)).await;
    old.acked(1).await;
    assert_eq!(
        aggregator
            .count("pg_views where schemaname = 'sonde' and viewname = 'fresh'")
            .await,
        0
    );
    aggregator.stop().await;
}
