//! The beginning of a packet, from a record to an observation.

use std::sync::Arc;

use sonde_ebpf_common::packet::{PACKET_BYTES, Packet};

use super::record::RecordError;
use crate::event::Observation;
use crate::probes::packetloss::headers::{self, Headers};
use crate::probes::packetloss::protocol;

/// Fills in protocol, addresses and ports, and what else the headers tell. What is not there is not told.
pub(super) fn fill(seen: &mut Observation, packet: &Packet) -> Result<(), RecordError> {
    let captured = usize::from(packet.captured);
    if captured > PACKET_BYTES {
        return Err(RecordError::Value {
            what: "the length of a packet's beginning",
            value: captured as u64,
        });
    }
    let headers = headers::parse(u16::from_be(packet.ethertype), &packet.bytes[..captured]);
    seen.protocol = protocol(&headers);
    (seen.saddr, seen.sport) = (headers.saddr, headers.sport);
    (seen.daddr, seen.dport) = (headers.daddr, headers.dport);
    attributes(&mut seen.attributes, &headers);
    Ok(())
}

fn attributes(out: &mut Vec<(&'static str, Arc<str>)>, headers: &Headers) {
    let mut put = |name, value: Option<String>| out.extend(value.map(|value| (name, value.into())));
    put("tcp_flags", headers.tcp_flags.map(headers::tcp_flags));
    put("icmp_type", headers.icmp.map(|(kind, _)| kind.to_string()));
    put("icmp_code", headers.icmp.map(|(_, code)| code.to_string()));
    let named = [headers::TCP, headers::UDP, headers::ICMP, headers::ICMPV6];
    put(
        "ip_protocol",
        headers.protocol.filter(|p| !named.contains(p)).map(|p| p.to_string()),
    );
    put("fragment", headers.later_fragment.then(|| "later".to_owned()));
}

/// Says that the packet was one of a sample.
pub(super) fn sampled(seen: &mut Observation, sample: u32) {
    if sample > 1 {
        seen.attributes.push(("sample", sample.to_string().into()));
    }
}

/// The name of a device as keys have it.
pub(super) fn label(words: [u64; 2]) -> Arc<str> {
    let [first, second] = words.map(u64::to_ne_bytes);
    let mut name = [0; 16];
    name[..8].copy_from_slice(&first);
    name[8..].copy_from_slice(&second);
    device(&name).unwrap_or_default()
}

/// The name of a device: up to the first NUL.
pub(super) fn device(name: &[u8; 16]) -> Option<Arc<str>> {
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    (end > 0).then(|| String::from_utf8_lossy(&name[..end]).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(ethertype: u16, bytes: &[u8], captured: usize) -> Packet {
        let mut packet = Packet {
            ethertype: ethertype.to_be(),
            captured: captured as u16,
            pad: 0,
            bytes: [0x11; PACKET_BYTES],
        };
        packet.bytes[..bytes.len()].copy_from_slice(bytes);
        packet
    }

    fn seen(packet: &Packet) -> Result<Observation, RecordError> {
        let mut seen = Observation::default();
        fill(&mut seen, packet).map(|()| seen)
    }

    /// From 10.0.0.1 port 4660 to 10.0.0.2 port 443.
    const UDP: [u8; 28] = [
        0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0x12, 0x34, 1, 0xbb, 0, 8, 0, 0,
    ];

    #[test]
    fn ports_and_addresses_are_in_the_right_order() {
        let seen = seen(&packet(0x0800, &UDP, 28)).unwrap();
        assert_eq!((seen.sport, seen.dport), (Some(4660), Some(443)));
        assert_eq!(seen.saddr, Some("10.0.0.1".parse().unwrap()));
        assert_eq!(seen.daddr, Some("10.0.0.2".parse().unwrap()));
        assert_eq!(seen.protocol.as_deref(), Some("UDP"));
    }

    #[test]
    fn what_lies_behind_the_captured_bytes_is_not_read() {
        for captured in 0..28 {
            let seen = seen(&packet(0x0800, &UDP, captured)).unwrap();
            assert_eq!(seen.saddr.is_some(), captured >= 20, "{captured}");
            assert_eq!(seen.dport.is_some(), captured >= 24, "{captured}");
        }
        assert_eq!(
            seen(&packet(0x0800, &UDP, 129)).unwrap_err(),
            RecordError::Value {
                what: "the length of a packet's beginning",
                value: 129
            }
        );
    }

    #[test]
    fn a_packet_of_another_kind_has_no_ports() {
        let arp = seen(&packet(0x0806, &UDP, 28)).unwrap();
        assert_eq!((arp.protocol.as_deref(), arp.sport), (Some("ARP"), None));
        let unknown = seen(&packet(0, &UDP, 28)).unwrap();
        assert_eq!((unknown.protocol, unknown.saddr), (None, None));
        let mut later = UDP;
        later[7] = 1;
        let later = seen(&packet(0x0800, &later, 28)).unwrap();
        assert_eq!((later.sport, later.dport), (None, None));
        assert!(later.attributes.contains(&("fragment", "later".into())));
    }

    #[test]
    fn a_name_ends_at_its_first_nul() {
        assert_eq!(device(b"eth0\0garbage\0\0\0\0").as_deref(), Some("eth0"));
        assert_eq!(device(&[b'x'; 16]).map(|name| name.len()), Some(16));
        assert_eq!(device(&[0; 16]), None);
    }
}
