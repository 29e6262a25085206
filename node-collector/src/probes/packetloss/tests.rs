//! Records made by hand, whole and broken.

use std::sync::Arc;

use sonde_ebpf_common::drop::{PACKET_BYTES, Record, Site, flag};
use sonde_ebpf_common::record::{Head, STACK_FRAMES, kind};
use zerocopy::IntoBytes as _;

use super::decode::{DecodeError, Names, Raw};
use super::*;
use crate::event::Direction;
use crate::kernel::record::RecordError;

struct TestNames;

impl Names for TestNames {
    fn reason(&self, reason: u32) -> Arc<str> {
        match reason {
            12 => "NETFILTER_DROP",
            71 => "CPU_BACKLOG",
            _ => "NOT_SPECIFIED",
        }
        .into()
    }
    fn symbol(&self, address: u64) -> Arc<str> {
        match address {
            1 => "bpf_prog_0123_drop_event_btf+0x9f",
            2 => "bpf_trace_run4+0x71",
            3 => "nft_do_chain+0x4f1",
            4 => "nf_hook_slow+0x43",
            5 => "__ip_local_out+0x104",
            6 => "__sys_sendto+0x1f0",
            7 => "ip_local_deliver+0xf6",
            8 => "do_softirq+0x44",
            9 => "ip_forward+0x0",
            10 => "ip_local_deliver+0x0",
            _ => "somewhere+0x0",
        }
        .into()
    }
}

const UDP_PACKET: [u8; 32] = [
    0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0x9c, 0x40, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4,
];

fn record() -> Record {
    let mut packet = [0xee; PACKET_BYTES];
    packet[..32].copy_from_slice(&UDP_PACKET);
    let mut device = [0; 16];
    device[..4].copy_from_slice(b"eth0");
    let mut comm = [0; 16];
    comm[..4].copy_from_slice(b"curl");
    Record {
        head: Head {
            kind: kind::DROP,
            size: size_of::<Record>() as u32,
            ktime_ns: 1_000,
            cookie: 77,
            netns: 4_026_532_001,
            cpu: 1,
            tgid: 4242,
            stack_bytes: 0,
        },
        site: Site {
            location: 3,
            reason: 12,
            detail: 0,
        },
        route_input: 0,
        ifindex: 2,
        iif: 2,
        len: 32,
        segments: 1,
        protocol: 0x0800u16.to_be(),
        mac_header: 100,
        network_header: 114,
        transport_header: 134,
        start: 114,
        captured: 32,
        flags: 2 << flag::FROM_SHIFT,
        pkt_type: 0,
        pad: 0,
        comm,
        device,
        packet,
    }
}

fn with_stack(mut record: Record, frames: &[u64]) -> Vec<u8> {
    record.head.size = (size_of::<Record>() + STACK_FRAMES * 8) as u32;
    record.head.stack_bytes = (frames.len() * 8) as i32;
    // What lies behind the frames is left over from an older record.
    let mut stack = [0xdead_beef; STACK_FRAMES];
    stack[..frames.len()].copy_from_slice(frames);
    [record.as_bytes(), stack.as_bytes()].concat()
}

fn observe(bytes: &[u8]) -> crate::event::Observation {
    Raw::parse(bytes).unwrap().observe(&TestNames)
}

#[test]
fn a_record_tells_where_why_and_between_whom() {
    let seen = observe(record().as_bytes());
    assert_eq!((seen.probe, seen.kind), ("packetloss", "PACKETLOSS"));
    assert_eq!(seen.netns.map(|n| (n.inode, n.cookie)), Some((4_026_532_001, 77)));
    assert_eq!(seen.reason.as_deref(), Some("NETFILTER_DROP"));
    assert_eq!(seen.protocol.as_deref(), Some("UDP"));
    assert_eq!((seen.sport, seen.dport), (Some(40_000), Some(53)));
    assert_eq!(seen.saddr, Some("10.0.0.1".parse().unwrap()));
    assert_eq!(seen.interface.as_deref(), Some("eth0"));
    assert_eq!(
        (seen.direction, seen.ifindex, seen.cpu),
        (Direction::Ingress, 2, Some(1))
    );
    assert_eq!(
        (seen.pid, seen.comm),
        (None, None),
        "who runs while a packet comes in is anybody"
    );
    let attributes: Vec<_> = seen.attributes.iter().map(|(name, value)| (*name, &**value)).collect();
    assert_eq!(
        attributes,
        [("location", "nft_do_chain+0x4f1"), ("length", "32"), ("ttl", "64")]
    );
}

#[test]
fn the_stack_begins_at_the_drop_and_ends_where_it_was_taken() {
    let unnamed_program = [99, 2, 3, 4, 7, 8];
    let seen = observe(&with_stack(record(), &unnamed_program));
    let frames: Vec<&str> = seen.stack.iter().map(|frame| &**frame).collect();
    assert_eq!(
        frames,
        [
            "nft_do_chain+0x4f1",
            "nf_hook_slow+0x43",
            "ip_local_deliver+0xf6",
            "do_softirq+0x44"
        ]
    );
    assert!(
        seen.attributes
            .iter()
            .any(|(name, value)| (*name, &**value) == ("hook", "input"))
    );
    let mut tail_call = record();
    tail_call.site.location = 1234;
    assert_eq!(
        observe(&with_stack(tail_call, &[99, 2, 3, 4])).stack.len(),
        2,
        "no frame is the place itself"
    );
    assert_eq!(observe(&with_stack(tail_call, &[7, 8])).stack.len(), 2);
}

#[test]
fn the_process_is_told_only_where_it_sends_the_packet_itself() {
    let egress = Record { iif: 0, ..record() };
    let seen = observe(&with_stack(egress, &[1, 2, 3, 4, 5, 6]));
    assert_eq!(
        (seen.direction, seen.pid, seen.comm.as_deref()),
        (Direction::Egress, Some(4242), Some("curl"))
    );
    // Over veth the receiver's drop runs inside the sender's call, but in a softirq.
    let seen = observe(&with_stack(egress, &[1, 2, 3, 4, 7, 8, 6]));
    assert_eq!((seen.pid, seen.comm), (None, None));
    let seen = observe(&with_stack(record(), &[1, 2, 3, 4, 5, 6]));
    assert_eq!(seen.pid, None, "not for a packet that came in");
    let seen = observe(egress.as_bytes());
    assert_eq!(seen.pid, None, "without a stack nobody knows");
}

#[test]
fn the_direction_follows_from_devices() {
    let direction = |change: fn(&mut Record)| {
        let mut record = record();
        change(&mut record);
        observe(record.as_bytes()).direction
    };
    assert_eq!(direction(|r| r.iif = 0), Direction::Egress);
    assert_eq!(direction(|r| r.iif = 5), Direction::Forward);
    assert_eq!(
        direction(|r| r.route_input = 9),
        Direction::Forward,
        "before it is handed to the next device"
    );
    assert_eq!(direction(|r| r.route_input = 10), Direction::Ingress);
    let no_device = |r: &mut Record, iif| {
        (r.ifindex, r.iif) = (0, iif);
        r.flags = flag::NO_DEVICE | 3 << flag::FROM_SHIFT;
    };
    let mut output = record();
    no_device(&mut output, 0);
    assert_eq!(observe(output.as_bytes()).direction, Direction::Egress);
    no_device(&mut output, 3);
    assert_eq!(observe(output.as_bytes()).direction, Direction::Ingress);
    assert_eq!(
        direction(|r| {
            r.iif = 0;
            r.site.reason = 71;
        }),
        Direction::Ingress,
        "a backlog belongs to a receiver"
    );
    assert_eq!(
        direction(|r| {
            (r.iif, r.ifindex) = (0, 0);
            r.flags = 0;
        }),
        Direction::Unknown,
        "a device pointer that was none"
    );
    assert_eq!(direction(|r| r.flags = 1 << flag::FROM_SHIFT), Direction::Ingress);
}

#[test]
fn what_was_not_captured_is_not_read() {
    let seen = observe(
        Record {
            captured: 21,
            ..record()
        }
        .as_bytes(),
    );
    assert_eq!((seen.saddr.is_some(), seen.sport), (true, None));
    let seen = observe(
        Record {
            captured: 0,
            ..record()
        }
        .as_bytes(),
    );
    assert_eq!(
        (seen.saddr, seen.protocol.as_deref()),
        (None, Some("IP")),
        "the packet's own field still says IP"
    );
}

#[test]
fn a_frame_without_a_network_header_is_read_from_its_own() {
    let mut record = Record {
        network_header: 0xffff,
        start: 100,
        captured: 46,
        protocol: 0,
        ..record()
    };
    record.packet[12..14].copy_from_slice(&[0x08, 0x00]);
    record.packet[14..46].copy_from_slice(&UDP_PACKET);
    assert_eq!(observe(record.as_bytes()).dport, Some(53));
}

#[test]
fn records_broken_in_any_way_are_refused() {
    let whole = with_stack(record(), &[1, 2, 3]);
    let parse = |bytes: &[u8]| Raw::parse(bytes).err();
    for len in 0..whole.len() {
        assert!(parse(&whole[..len]).is_some(), "{len} of {} bytes", whole.len());
    }
    let mut longer = [whole.as_slice(), &[0]].concat();
    let (said, have) = (whole.len() as u32, longer.len());
    assert_eq!(parse(&longer), Some(RecordError::SaidSize { said, have }.into()));
    longer[4..8].copy_from_slice(&(have as u32).to_ne_bytes());
    let want = size_of::<Record>();
    assert_eq!(parse(&longer), Some(RecordError::Size { have, want }.into()));
    let broken = |change: fn(&mut Record)| {
        let mut record = record();
        change(&mut record);
        parse(record.as_bytes())
    };
    assert_eq!(broken(|r| r.head.kind = 9), Some(DecodeError::Kind(9)));
    assert_eq!(
        broken(|r| r.head.size = 1),
        Some(RecordError::SaidSize { said: 1, have: 256 }.into())
    );
    assert_eq!(broken(|r| r.captured = 129), Some(DecodeError::Captured(129)));
    assert_eq!(
        broken(|r| r.head.stack_bytes = 8),
        Some(RecordError::Stack(8).into()),
        "no room for a stack at all"
    );
    assert_eq!(
        broken(|r| r.head.stack_bytes = -14),
        None,
        "a stack that could not be taken is no fault of the record"
    );
    let mut odd = with_stack(record(), &[1, 2, 3]);
    let at = std::mem::offset_of!(Record, head.stack_bytes);
    for bytes in [12i32, 520, i32::MAX] {
        odd[at..at + 4].copy_from_slice(&bytes.to_ne_bytes());
        assert_eq!(parse(&odd), Some(RecordError::Stack(bytes).into()));
    }
}

#[test]
fn any_bytes_of_the_right_size_do_no_harm() {
    let mut state = 1u64;
    for round in 0..2_000 {
        let mut bytes = with_stack(record(), &[1, 2, 3, 4]);
        for byte in &mut bytes[8..] {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            if round % 2 == 0 || state >> 60 == 0 {
                *byte = (state >> 33) as u8;
            }
        }
        if let Ok(raw) = Raw::parse(&bytes) {
            let _ = raw.observe(&TestNames);
        }
    }
}

#[test]
fn the_spec_has_the_names_that_others_rely_on() {
    let columns: Vec<_> = SPEC
        .columns
        .iter()
        .map(|c| sonde_proto::names::metric(SPEC.name, &c.to_proto()))
        .collect();
    assert_eq!(
        columns,
        ["sonde_packetloss_drops_total", "sonde_packetloss_segments_total"]
    );
    assert_eq!(
        SPEC.labels.iter().map(|l| l.name).collect::<Vec<_>>(),
        ["reason", "class"]
    );
    assert_eq!(SPEC.event_types[0].name, PACKETLOSS);
}
