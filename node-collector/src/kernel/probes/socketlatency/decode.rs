//! Records of slow reads and sends.

use std::error::Error;
use std::sync::Arc;

use sonde_ebpf_common::limit;
use sonde_ebpf_common::socklat::{Record, TCP, UDP, limited, operation};

use super::{READSLOW, SENDSLOW, SPEC};
use crate::event::{Direction, Observation};
use crate::kernel::connection;
use crate::kernel::probe::{Decoded, Decoder};
use crate::kernel::record::{self, RecordError};
use crate::kernel::symbols::Symbols;

pub(super) struct Slow {
    pub(super) symbols: Arc<Symbols>,
}

impl Decoder for Slow {
    fn decode(&mut self, bytes: &[u8]) -> Result<Decoded, Box<dyn Error>> {
        let (record, stack) = record::parse::<Record>(bytes, |record| &record.head)?;
        let (bucket, mut seen) = observe(&record)?;
        seen.stack = self.symbols.stack(&stack);
        Ok(Decoded::Event(bucket, Box::new(seen)))
    }
}

/// All but the stack.
pub(super) fn observe(record: &Record) -> Result<(usize, Observation), RecordError> {
    let (bucket, kind, direction) = match record.operation {
        operation::READ => (limit::SOCKETLAT_READSLOW, READSLOW, Direction::Ingress),
        operation::SEND => (limit::SOCKETLAT_SENDSLOW, SENDSLOW, Direction::Egress),
        other => {
            return Err(RecordError::Value {
                what: "the operation of a socket",
                value: other.into(),
            });
        }
    };
    let mut seen = Observation {
        ktime_ns: record.head.ktime_ns,
        probe: SPEC.name,
        kind,
        netns: record::netns(&record.head),
        of_socket: true,
        direction,
        latency_ns: Some(record.latency_ns),
        cpu: Some(record.head.cpu),
        // Not the running task's: that of the head may be anybody.
        pid: (record.tgid != 0).then_some(record.tgid),
        ..Observation::default()
    };
    if seen.pid.is_some() {
        seen.comm = record::comm(&record.comm);
    }
    connection::fill(&mut seen, &record.connection);
    match record.protocol {
        TCP => {}
        UDP => of_udp(&mut seen),
        other => {
            return Err(RecordError::Value {
                what: "the protocol of a socket",
                value: other.into(),
            });
        }
    }
    let waiting = match (record.operation, record.protocol) {
        // Each is told by itself.
        (operation::SEND, UDP) => None,
        (_, UDP) => Some("waiting_datagrams"),
        _ => Some("waiting_bytes"),
    };
    seen.attributes
        .extend(waiting.map(|name| (name, record.waiting.to_string().into())));
    if let Some(by) = limited_by(record) {
        seen.attributes.push(("limited_by", by.into()));
    }
    Ok((bucket, seen))
}

/// An unconnected socket has no peer, and its own address may be any; states are TCP's.
fn of_udp(seen: &mut Observation) {
    seen.protocol = Some("UDP".into());
    seen.state = None;
    for address in [&mut seen.saddr, &mut seen.daddr] {
        *address = address.filter(|address| !address.is_unspecified());
    }
}

/// What kept the socket from sending: the peer's window, its own buffer, or its business (congestion window, Nagle,
/// pacing); and a datagram from going out: that the address of the next hop was not known.
fn limited_by(record: &Record) -> Option<&'static str> {
    match record.limited {
        limited::BUSY => Some("busy"),
        limited::RWND => Some("rwnd"),
        limited::SNDBUF => Some("sndbuf"),
        limited::NEIGHBOUR => Some("neighbour"),
        _ => None,
    }
}
