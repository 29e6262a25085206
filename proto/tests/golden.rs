//! Messages as they were sent by each version of the contract: `golden/N/*.bin`, every field in them set.
//!
//! They are read and written again to the byte. When the contract has grown, a new directory gets the messages with the
//! new fields (`SONDE_WRITE_GOLDEN=1 cargo test -p sonde-proto --test golden`); those that are there are never changed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FileDescriptorSet};
use sonde_proto::{ABSENT, body, v1};

const NEWEST: u32 = 1;

fn directory(version: u32) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{version}"))
}

fn hello() -> v1::Up {
    let column = |name: &str, kind: v1::Kind, bounds: &[f64]| v1::ColumnDef {
        name: name.into(),
        help: "how long".into(),
        kind: kind.into(),
        unit: "seconds".into(),
        scale: 1e-9,
        bounds: bounds.to_vec(),
    };
    let probe = v1::ProbeDef {
        name: "netdev".into(),
        help: "devices".into(),
        labels: vec![v1::LabelDef {
            name: "device".into(),
            help: "the device".into(),
        }],
        columns: vec![
            column("busy_seconds", v1::Kind::Counter, &[]),
            column("wait_seconds", v1::Kind::Histogram, &[0.001, 0.01]),
        ],
        event_types: vec![v1::EventTypeDef {
            name: "PACKETLOSS".into(),
            help: "a loss".into(),
        }],
    };
    let hello = v1::Hello {
        node: "node-1".into(),
        boot_id: (1..=16).collect(),
        epoch: (17..=32).collect(),
        version: "1.2.3".into(),
        kernel: "6.18.0".into(),
        interval_ns: 5_000_000_000,
        catalogue: Some(v1::Catalogue { probes: vec![probe] }),
    };
    v1::Up {
        message: Some(v1::up::Message::Hello(hello)),
    }
}

fn batch() -> v1::Up {
    let batch = v1::Batch {
        sequence: 42,
        body: vec![0x28, 0xb5, 0x2f, 0xfd].into(),
    };
    v1::Up {
        message: Some(v1::up::Message::Batch(batch)),
    }
}

fn batch_body() -> v1::BatchBody {
    const TIME: u64 = 1_795_344_717_123_456_789;
    let words = [
        "",
        "netdev",
        "PACKETLOSS",
        "NETFILTER_DROP",
        "TCP",
        "eth0",
        "nft_do_chain+0x4f1",
        "curl",
        "ESTABLISHED",
    ];
    v1::BatchBody {
        strings: words.map(String::from).into(),
        stacks: vec![v1::Stack { frames: vec![6] }],
        pods: vec![v1::Pod {
            sandbox: "sandbox-1".into(),
            uid: "uid-1".into(),
            namespace: "shop".into(),
            name: "web-0".into(),
            workload_kind: "StatefulSet".into(),
            workload: "web".into(),
            ips: vec![vec![10, 0, 0, 1], vec![0xfd; 16]],
            labels: [("app".to_owned(), "web".to_owned())].into(),
            netns_inode: 4_026_532_000,
            netns_cookie: u64::MAX,
            valid_from_ns: TIME - 1,
            valid_to_ns: TIME,
            host_network: true,
        }],
        rows: vec![v1::Rows {
            probe: "netdev".into(),
            time_ns: TIME,
            subjects: vec![0, 1],
            labels: vec![5, 5],
            columns: vec![
                v1::Column {
                    values: vec![ABSENT, i64::MAX],
                },
                v1::Column {
                    values: vec![0, 1, -1, 2, 3, 4, 5, 6],
                },
            ],
        }],
        events: vec![v1::Event {
            time_ns: TIME,
            subject: 1,
            subject_unknown: true,
            probe: 1,
            r#type: 2,
            reason: 3,
            protocol: 4,
            saddr: vec![10, 0, 0, 1],
            sport: 65_535,
            daddr: vec![0xfd; 16],
            dport: 443,
            peer: 2,
            direction: v1::Direction::Forward.into(),
            latency_ns: Some(0),
            cpu: Some(0),
            pid: 4711,
            comm: 7,
            state: 8,
            interface: 5,
            suppressed: 9,
            stack: 1,
            attributes: vec![v1::Attribute { key: 4, value: 7 }],
        }],
        gaps: vec![v1::Gap {
            probe: "netdev".into(),
            cause: "ring_full".into(),
            from_ns: TIME - 5,
            to_ns: TIME,
            count: 12,
            subject: 1,
            subject_unknown: true,
            detail: "in words".into(),
        }],
    }
}

fn hello_ack() -> v1::Down {
    v1::Down {
        message: Some(v1::down::Message::HelloAck(v1::HelloAck { durable_sequence: 41 })),
    }
}

fn ack() -> v1::Down {
    v1::Down {
        message: Some(v1::down::Message::Ack(v1::Ack { sequence: 42 })),
    }
}

/// What is in each directory: file, type, what this version has in it.
fn files() -> [(&'static str, &'static str, Vec<u8>); 5] {
    [
        ("hello.bin", "Up", hello().encode_to_vec()),
        ("batch.bin", "Up", batch().encode_to_vec()),
        ("body.bin", "BatchBody", batch_body().encode_to_vec()),
        ("hello_ack.bin", "Down", hello_ack().encode_to_vec()),
        ("ack.bin", "Down", ack().encode_to_vec()),
    ]
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn again<M: Message + Default>(bytes: &[u8]) -> Vec<u8> {
    M::decode(bytes).unwrap().encode_to_vec()
}

#[test]
fn messages_of_this_and_all_earlier_versions_are_read_and_written_to_the_byte() {
    if std::env::var_os("SONDE_WRITE_GOLDEN").is_some() && !directory(NEWEST).exists() {
        fs::create_dir_all(directory(NEWEST)).unwrap();
        for (file, _, bytes) in files() {
            fs::write(directory(NEWEST).join(file), bytes).unwrap();
        }
        fs::write(directory(NEWEST).join("body.zst"), body::encode(&batch_body())).unwrap();
    }
    for version in 1..=NEWEST {
        for (file, kind, newest) in files() {
            let path = directory(version).join(file);
            let bytes = read(&path);
            let written = match kind {
                "Up" => again::<v1::Up>(&bytes),
                "Down" => again::<v1::Down>(&bytes),
                _ => again::<v1::BatchBody>(&bytes),
            };
            assert_eq!(written, bytes, "{}", path.display());
            if version == NEWEST {
                assert_eq!(newest, bytes, "{}: what is read means what it meant", path.display());
            }
        }
        let compressed = read(&directory(version).join("body.zst"));
        let plain = read(&directory(version).join("body.bin"));
        assert_eq!(
            body::decode(&compressed).unwrap(),
            v1::BatchBody::decode(&*plain).unwrap()
        );
    }
}

/// `Message.number` of every field of the contract.
fn all_fields(set: &FileDescriptorSet) -> BTreeSet<String> {
    let messages = set.file.iter().flat_map(|f| &f.message_type);
    let fields = messages.flat_map(|m| m.field.iter().map(|f| format!("{}.{}", m.name(), f.number())));
    fields.collect()
}

/// `Message.number` of every field in these bytes.
fn fields_of(set: &FileDescriptorSet, kind: &str, mut bytes: &[u8], into: &mut BTreeSet<String>) {
    let messages = || set.file.iter().flat_map(|f| &f.message_type);
    let message: Option<&DescriptorProto> = messages().find(|m| kind.ends_with(&format!(".{}", m.name())));
    let Some(message) = message else { return };
    while !bytes.is_empty() {
        let (tag, wire_type) = decode_key(&mut bytes).unwrap();
        let before = bytes;
        skip_field(wire_type, tag, &mut bytes, DecodeContext::default()).unwrap();
        into.insert(format!("{}.{tag}", message.name()));
        let field = message.field.iter().find(|f| f.number() == tag as i32).unwrap();
        if field.r#type() == Type::Message && wire_type == WireType::LengthDelimited {
            let mut inner = &before[..before.len() - bytes.len()];
            decode_varint(&mut inner).unwrap();
            fields_of(set, field.type_name(), inner, into);
        }
    }
}

#[test]
fn the_newest_messages_have_every_field_of_the_contract() {
    let set = FileDescriptorSet::decode(sonde_proto::DESCRIPTION).unwrap();
    let mut seen = BTreeSet::new();
    for (file, kind, _) in files() {
        let bytes = read(&directory(NEWEST).join(file));
        fields_of(&set, &format!(".sonde.v1.{kind}"), &bytes, &mut seen);
    }
    let missing: Vec<_> = all_fields(&set).difference(&seen).cloned().collect();
    assert_eq!(
        missing,
        Vec::<String>::new(),
        "raise NEWEST and set these in a new directory"
    );
}

#[test]
fn fields_that_a_newer_version_added_are_passed_over() {
    // A varint, a text and a group of numbers that nobody knows yet, in a message and in one inside it.
    let unknown = [0xf8, 0x3f, 7, 0xfa, 0x3f, 3, b'n', b'e', b'w', 0xf2, 0x3f, 2, 1, 2];
    let newer = |bytes: Vec<u8>| [&bytes[..], &unknown[..]].concat();
    assert_eq!(
        v1::BatchBody::decode(&*newer(batch_body().encode_to_vec())).unwrap(),
        batch_body()
    );
    assert_eq!(v1::Up::decode(&*newer(hello().encode_to_vec())).unwrap(), hello());
    assert_eq!(v1::Down::decode(&*newer(ack().encode_to_vec())).unwrap(), ack());
    let event = batch_body().events[0].clone();
    assert_eq!(v1::Event::decode(&*newer(event.encode_to_vec())).unwrap(), event);
}
