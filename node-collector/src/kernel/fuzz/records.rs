//! A record of a ring, all the way to the message that goes to the aggregator.

use std::path::Path;
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;
use sonde_ebpf_common::record::{Head, STACK_FRAMES, Start, kind};
use sonde_ebpf_common::{
    drop, kernellatency, netiftxlat, packet::Packet, reset, retransmit, socklat, softirq, virtcmd,
};
use sonde_mutate::Target;
use sonde_proto::{body, limits, v1};
use zerocopy::{FromZeros, Immutable, IntoBytes};

use crate::kernel::ring::{self, RingCounters};
use crate::kernel::{attribute, probes, symbols::Symbols};
use crate::pods::PodIndex;
use crate::ship::batch;

pub(super) const TARGET: Target = Target {
    name: "records",
    seeds,
    run,
};

/// Kinds of records and their sizes without a stack.
const KINDS: [(u32, usize); 10] = [
    (kind::DROP, size_of::<drop::Record>()),
    (kind::RETRANSMIT, size_of::<retransmit::Record>()),
    (kind::RESET, size_of::<reset::Record>()),
    (kind::NET_SOFTIRQ, size_of::<softirq::Record>()),
    (kind::SOCKET_LATENCY, size_of::<socklat::Record>()),
    (kind::VIRTCMD, size_of::<virtcmd::Record>()),
    (kind::NETIFTXLAT_QDISC, size_of::<netiftxlat::Record>()),
    (kind::NETIFTXLAT_XMIT, size_of::<netiftxlat::Record>()),
    (kind::RXKERNEL, size_of::<kernellatency::Record>()),
    (kind::TXKERNEL, size_of::<kernellatency::Record>()),
];
/// In the first byte of an input: the record carries a stack.
const WITH_STACK: u8 = 0x80;

struct Side {
    decoders: ring::Decoders,
    counters: RingCounters,
    index: PodIndex,
}

static SIDE: LazyLock<Mutex<Side>> = LazyLock::new(|| {
    let symbols = Arc::new(Symbols::new(Path::new("/nowhere")));
    let decoders: ring::Decoders = probes::decoders(&symbols)
        .into_iter()
        .map(|(kind, decoder)| (kind, ("", decoder)))
        .collect();
    assert_eq!(decoders.len(), KINDS.len());
    Mutex::new(Side {
        decoders,
        counters: RingCounters::new([]),
        index: PodIndex::default(),
    })
});

/// The first byte tells the kind, whose two words are then put right, so that the rest of the record is looked at; or
/// that the record is to be taken as it is.
fn run(input: &[u8]) {
    let Some((how, rest)) = input.split_first() else { return };
    let mut record = rest.to_vec();
    if let Some((kind, size)) = KINDS.get(usize::from(how & !WITH_STACK)) {
        let stack = if how & WITH_STACK != 0 { STACK_FRAMES * 8 } else { 0 };
        record.resize(size + stack, 0);
        let start = Start {
            kind: *kind,
            size: record.len() as u32,
        };
        record[..size_of::<Start>()].copy_from_slice(start.as_bytes());
    }
    let side = &mut *SIDE.lock();
    let bad = |counters: &RingCounters| counters.bad_records()[""];
    let before = bad(&side.counters);
    let decoded = ring::decode(&record, &mut side.decoders, &side.counters);
    let counted = bad(&side.counters) - before;
    let Some((bucket, seen)) = decoded else {
        assert!(counted <= 1, "once");
        return;
    };
    assert_eq!(counted, 0, "an event or a bad record, never both");
    assert!(bucket < sonde_ebpf_common::limit::TYPES);
    let ends = (seen.saddr, seen.sport, seen.daddr, seen.dport);
    let is_packet = |name: &str| {
        seen.attributes
            .iter()
            .any(|(key, value)| *key == name && **value == *"later")
    };
    assert!(
        !is_packet("fragment") || (seen.sport, seen.dport) == (None, None),
        "{seen:?}"
    );
    let event = attribute(seen, &side.index);
    let batches = batch::events(&[event], &[], &[], &side.index);
    assert_eq!(batches.len(), 1);
    let body = body::decode(&batches[0].payload).expect("what is shipped can be read");
    acceptable(&body, ends);
}

type Ends = (
    Option<std::net::IpAddr>,
    Option<u16>,
    Option<std::net::IpAddr>,
    Option<u16>,
);

/// The aggregator refuses a batch as a whole, so no record may make one that it does not take.
fn acceptable(body: &v1::BatchBody, (saddr, sport, daddr, dport): Ends) {
    let [event] = &body.events[..] else {
        panic!("one event: {body:?}")
    };
    let octets = |ip: Option<std::net::IpAddr>| match ip {
        None => Vec::new(),
        Some(std::net::IpAddr::V4(ip)) => ip.octets().to_vec(),
        Some(std::net::IpAddr::V6(ip)) => ip.octets().to_vec(),
    };
    assert_eq!((&event.saddr, &event.daddr), (&octets(saddr), &octets(daddr)));
    let port = |port: Option<u16>| u32::from(port.unwrap_or(0));
    assert_eq!((event.sport, event.dport), (port(sport), port(dport)));
    assert!(i32::try_from(event.pid).is_ok() && i32::try_from(event.cpu.unwrap_or(0)).is_ok());
    assert!(i64::try_from(event.latency_ns.unwrap_or(0)).is_ok());
    let latest = sonde_common::time::now_ns() + limits::MAX_FUTURE_NS;
    assert!(
        (limits::EARLIEST_NS..=latest).contains(&event.time_ns),
        "{}",
        event.time_ns
    );
    for text in &body.strings {
        assert!(text.len() <= limits::MAX_WORD && !text.contains('\0'), "{text:?}");
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let head = Head {
        netns: 0xf000_0001,
        ..Head::new_zeroed()
    };
    let drop = drop::Record {
        head,
        protocol: 0x0800u16.to_be(),
        mac_header: 64,
        network_header: 78,
        transport_header: 98,
        start: 78,
        captured: 28,
        ifindex: 2,
        comm: *b"curl\0\0\0\0\0\0\0\0\0\0\0\0",
        device: *b"eth0\0\0\0\0\0\0\0\0\0\0\0\0",
        packet: beginning(&super::packets::UDP_V4),
        ..drop::Record::new_zeroed()
    };
    let mut long = netiftxlat::Record::new_zeroed();
    long.packet = Packet {
        ethertype: 0x86ddu16.to_be(),
        captured: 128,
        pad: 0,
        bytes: beginning(&super::packets::TCP_V6),
    };
    let mut kernel = kernellatency::Record::new_zeroed();
    kernel.packet = long.packet;
    let mut reset = reset::Record::new_zeroed();
    reset.connection.family = 2;
    let mut socket = socklat::Record::new_zeroed();
    (socket.protocol, socket.connection.family) = (socklat::TCP, 10);
    let mut all: Vec<Vec<u8>> = Vec::new();
    let mut seed = |kinds: &[u8], record: &[u8]| {
        all.extend(kinds.iter().map(|how| [&[*how][..], record].concat()));
        all.extend(kinds.iter().map(|how| [&[*how | WITH_STACK][..], record].concat()));
    };
    seed(&[0, 1], bytes(&drop));
    seed(&[2], bytes(&reset));
    seed(
        &[3],
        bytes(&softirq::Record {
            vector: softirq::vector::NET_RX,
            ..softirq::Record::new_zeroed()
        }),
    );
    seed(&[4], bytes(&socket));
    seed(&[5], bytes(&virtcmd::Record::new_zeroed()));
    seed(&[6, 7], bytes(&long));
    seed(&[8, 9], bytes(&kernel));
    all.push([&[0x7f][..], bytes(&drop)].concat());
    all
}

fn bytes<T: IntoBytes + Immutable>(record: &T) -> &[u8] {
    record.as_bytes()
}

fn beginning(of: &[u8]) -> [u8; 128] {
    let mut bytes = [0; 128];
    bytes[..of.len()].copy_from_slice(of);
    bytes
}
