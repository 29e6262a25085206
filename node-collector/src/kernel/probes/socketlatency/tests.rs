use sonde_ebpf_common::connection::{AF_INET, AF_INET6, Connection};
use sonde_ebpf_common::limit;
use sonde_ebpf_common::record::{Head, kind};
use sonde_ebpf_common::socklat::{Mark, Reads, Record, TCP, UDP, limited, operation};
use zerocopy::{FromZeros as _, IntoBytes as _};

use super::decode::observe;
use super::unread::{Told, find};
use crate::event::Direction;
use crate::kernel::record;

const MS: u64 = 1_000_000;

fn connection(family: u16) -> Connection {
    let mut connection = Connection {
        saddr: [0; 16],
        daddr: [0; 16],
        sport: 6379,
        dport: 40_001,
        family,
        state: 1,
        pad: 0,
    };
    connection.saddr[..4].copy_from_slice(&[10, 0, 0, 1]);
    connection.daddr[..4].copy_from_slice(&[10, 0, 0, 2]);
    connection
}

fn record(operation: u16, protocol: u16) -> Record {
    Record {
        head: Head {
            kind: kind::SOCKET_LATENCY,
            size: size_of::<Record>() as u32,
            ktime_ns: 77,
            cookie: 5,
            netns: 0xf000_0001,
            cpu: 1,
            tgid: 9999,
            stack_bytes: 0,
        },
        connection: connection(AF_INET),
        latency_ns: 150 * MS,
        tgid: 4711,
        waiting: 12,
        operation,
        protocol,
        limited: 0,
        comm: *b"redis-server\0\0\0\0",
    }
}

#[test]
fn a_slow_read_names_the_socket_its_own_end_first_and_its_reader() {
    let (bucket, seen) = observe(&record(operation::READ, TCP)).unwrap();
    assert_eq!((bucket, seen.kind), (limit::SOCKETLAT_READSLOW, "SOCKETLAT_READSLOW"));
    assert_eq!((seen.saddr, seen.sport), (Some([10, 0, 0, 1].into()), Some(6379)));
    assert_eq!((seen.daddr, seen.dport), (Some([10, 0, 0, 2].into()), Some(40_001)));
    assert_eq!((seen.direction, seen.latency_ns), (Direction::Ingress, Some(150 * MS)));
    assert_eq!((seen.pid, seen.comm.as_deref()), (Some(4711), Some("redis-server")));
    assert_eq!(seen.state.as_deref(), Some("TCP_ESTABLISHED"));
    assert_eq!(seen.attributes, [("waiting_bytes", "12".into())]);

    let nobody = Record {
        tgid: 0,
        ..record(operation::READ, TCP)
    };
    let (_, seen) = observe(&nobody).unwrap();
    assert_eq!((seen.pid, seen.comm), (None, None), "the running task is a stranger");
}

#[test]
fn a_slow_send_says_what_held_it_back() {
    let by = |limited| {
        let (bucket, seen) = observe(&Record {
            limited,
            ..record(operation::SEND, TCP)
        })
        .unwrap();
        assert_eq!((bucket, seen.kind), (limit::SOCKETLAT_SENDSLOW, "SOCKETLAT_SENDSLOW"));
        assert_eq!(seen.direction, Direction::Egress);
        seen.attributes
            .iter()
            .find(|(name, _)| *name == "limited_by")
            .map(|(_, by)| by.to_string())
    };
    assert_eq!(by(limited::RWND).as_deref(), Some("rwnd"));
    assert_eq!(by(limited::SNDBUF).as_deref(), Some("sndbuf"));
    assert_eq!(by(limited::BUSY).as_deref(), Some("busy"));
    assert_eq!(by(0), None);
}

#[test]
fn an_unconnected_datagram_socket_has_no_peer_and_no_state() {
    let mut record = record(operation::READ, UDP);
    record.connection = Connection {
        dport: 0,
        saddr: [0; 16],
        daddr: [0; 16],
        ..connection(AF_INET6)
    };
    let (_, seen) = observe(&record).unwrap();
    assert_eq!(seen.protocol.as_deref(), Some("UDP"));
    assert_eq!(
        (seen.saddr, seen.daddr, seen.dport, seen.state),
        (None, None, None, None)
    );
    assert_eq!(seen.sport, Some(6379));
    assert_eq!(seen.attributes, [("waiting_datagrams", "12".into())]);
}

#[test]
fn a_datagram_that_waited_for_its_neighbour_has_its_ends_and_nothing_behind_it() {
    let (bucket, seen) = observe(&Record {
        limited: limited::NEIGHBOUR,
        ..record(operation::SEND, UDP)
    })
    .unwrap();
    assert_eq!((bucket, seen.kind), (limit::SOCKETLAT_SENDSLOW, "SOCKETLAT_SENDSLOW"));
    assert_eq!(
        (seen.protocol.as_deref(), seen.state, seen.direction),
        (Some("UDP"), None, Direction::Egress)
    );
    assert_eq!((seen.daddr, seen.dport), (Some([10, 0, 0, 2].into()), Some(40_001)));
    assert_eq!(seen.attributes, [("limited_by", "neighbour".into())]);
}

#[test]
fn records_of_another_version_and_cut_off_ones_are_refused() {
    let good = record(operation::READ, TCP);
    for len in 0..size_of::<Record>() {
        let cut = &good.as_bytes()[..len];
        assert!(record::parse::<Record>(cut, |r| &r.head).is_err(), "{len}");
    }
    let longer = [good.as_bytes(), &[0; 8]].concat();
    assert!(record::parse::<Record>(&longer, |r| &r.head).is_err());
    assert!(observe(&record(2, TCP)).is_err());
    assert!(observe(&record(operation::READ, 132)).is_err());
}

fn reads(netns: u32, came_ns: u64) -> Reads {
    let mut reads = Reads::new_zeroed();
    (reads.netns, reads.count, reads.copied) = (netns, 2, u32::MAX - 9);
    reads.connection = connection(AF_INET);
    reads.marks[0] = Mark {
        ktime_ns: came_ns,
        seq: 10,
        pad: 0,
    };
    reads.marks[1] = Mark {
        ktime_ns: came_ns + MS,
        seq: 90,
        pad: 0,
    };
    reads
}

#[test]
fn data_that_nobody_reads_is_told_once_for_each_mark_that_comes_to_be_the_oldest() {
    let mut told = Told::new();
    let limit = 1000 * MS;
    let at = |ms: u64| ms * MS;
    let first = [(1, reads(7, at(5)))];
    assert!(find(&first, &mut told, at(1005), limit).is_empty(), "not yet");
    let found = find(&first, &mut told, at(1006), limit);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].latency_ns, Some(at(1001)));
    assert_eq!(
        found[0].attributes,
        [("unread", "100".into())],
        "sequence numbers go round"
    );
    assert_eq!((found[0].sport, found[0].state.as_deref()), (Some(6379), None));
    assert!(find(&first, &mut told, at(9000), limit).is_empty(), "told already");
    let second = [(1, reads(7, at(6000)))];
    assert_eq!(find(&second, &mut told, at(9000), limit).len(), 1, "another mark");
    assert!(find(&[], &mut told, at(9000), limit).is_empty());
    assert!(told.is_empty(), "nothing is kept of sockets that are gone");
}

#[test]
fn many_sockets_of_one_namespace_are_told_of_in_turns_and_none_is_forgotten() {
    let sockets: Vec<_> = (0..100)
        .map(|socket| (socket, reads(7, MS)))
        .chain([(200, reads(8, MS))])
        .collect();
    let mut told = Told::new();
    let counts = [0, 1, 2].map(|_| find(&sockets, &mut told, 5000 * MS, 1000 * MS).len());
    assert_eq!(counts, [65, 36, 0]);
}
