//! What the first bytes of a packet say. Anything may be in them, cut off anywhere: what is not there is not told.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// EtherTypes.
pub(crate) const IPV4: u16 = 0x0800;
pub(crate) const ARP: u16 = 0x0806;
pub(crate) const IPV6: u16 = 0x86dd;
pub(crate) const VLAN: [u16; 2] = [0x8100, 0x88a8];
pub(crate) const ETHERNET_HEADER: usize = 14;

/// IP protocol numbers.
pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMPV6: u8 = 58;
const SCTP: u8 = 132;
const UDPLITE: u8 = 136;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Headers {
    /// What the frame carries, VLAN tags removed. 0: not known.
    pub ethertype: u16,
    pub vlan: Option<u16>,
    pub saddr: Option<IpAddr>,
    pub daddr: Option<IpAddr>,
    /// IPv4's protocol, or what follows IPv6's extension headers.
    pub protocol: Option<u8>,
    /// Any but the first fragment of an IP packet: there is no transport header in it.
    pub later_fragment: bool,
    /// TTL or hop limit.
    pub ttl: Option<u8>,
    pub sport: Option<u16>,
    pub dport: Option<u16>,
    /// Type and code.
    pub icmp: Option<(u8, u8)>,
    pub tcp_flags: Option<u8>,
}

/// `bytes` begin with an Ethernet header.
pub(crate) fn parse_frame(bytes: &[u8]) -> Headers {
    match be16(bytes, 12) {
        Some(ethertype) => parse(ethertype, &bytes[ETHERNET_HEADER..]),
        None => Headers::default(),
    }
}

/// `bytes` begin with the header that `ethertype` names.
pub(crate) fn parse(ethertype: u16, bytes: &[u8]) -> Headers {
    let mut headers = Headers {
        ethertype,
        ..Headers::default()
    };
    let mut rest = bytes;
    // The hardware may have left up to two tags in the packet.
    for _ in 0..2 {
        if !VLAN.contains(&headers.ethertype) {
            break;
        }
        let (Some(tag), Some(inner)) = (be16(rest, 0), be16(rest, 2)) else {
            return headers;
        };
        headers.vlan.get_or_insert(tag & 0xfff);
        headers.ethertype = inner;
        rest = &rest[4..];
    }
    match headers.ethertype {
        IPV4 => ipv4(&mut headers, rest),
        IPV6 => ipv6(&mut headers, rest),
        ARP => arp(&mut headers, rest),
        _ => {}
    }
    headers
}

fn ipv4(headers: &mut Headers, bytes: &[u8]) {
    let Some(fixed) = bytes.first_chunk::<20>() else { return };
    let length = usize::from(fixed[0] & 0xf) * 4;
    if fixed[0] >> 4 != 4 || length < 20 {
        return;
    }
    let address = |at: usize| IpAddr::V4(Ipv4Addr::new(fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]));
    (headers.saddr, headers.daddr) = (Some(address(12)), Some(address(16)));
    headers.ttl = Some(fixed[8]);
    headers.protocol = Some(fixed[9]);
    headers.later_fragment = u16::from_be_bytes([fixed[6], fixed[7]]) & 0x1fff != 0;
    if !headers.later_fragment {
        transport(headers, fixed[9], bytes.get(length..).unwrap_or_default());
    }
}

fn ipv6(headers: &mut Headers, bytes: &[u8]) {
    let Some(fixed) = bytes.first_chunk::<40>() else { return };
    if fixed[0] >> 4 != 6 {
        return;
    }
    let address = |at: usize| {
        let octets = fixed[at..].first_chunk::<16>().copied().unwrap_or_default();
        IpAddr::V6(Ipv6Addr::from(octets))
    };
    (headers.saddr, headers.daddr) = (Some(address(8)), Some(address(24)));
    headers.ttl = Some(fixed[7]);
    let (mut next, mut rest) = (fixed[6], &bytes[40..]);
    // A packet may have each extension header once, two of them twice.
    for _ in 0..10 {
        let length = match next {
            // Hop-by-hop, routing, destination options, mobility, host identity, shim6: in units of 8 bytes.
            0 | 43 | 60 | 135 | 139 | 140 => rest.get(1).map(|n| (usize::from(*n) + 1) * 8),
            // Authentication header: in units of 4 bytes.
            51 => rest.get(1).map(|n| (usize::from(*n) + 2) * 4),
            44 => {
                headers.later_fragment = be16(rest, 2).is_some_and(|word| word >> 3 != 0);
                (rest.len() >= 8).then_some(8)
            }
            _ => break,
        };
        let Some(after) = length.and_then(|length| rest.get(length..)) else {
            return;
        };
        next = rest[0];
        rest = after;
        if headers.later_fragment {
            headers.protocol = Some(next);
            return;
        }
    }
    headers.protocol = Some(next);
    transport(headers, next, rest);
}

fn transport(headers: &mut Headers, protocol: u8, bytes: &[u8]) {
    match protocol {
        TCP | UDP | SCTP | UDPLITE => {
            headers.sport = be16(bytes, 0);
            headers.dport = headers.sport.and(be16(bytes, 2));
            headers.tcp_flags = bytes.get(13).copied().filter(|_| protocol == TCP);
        }
        ICMP | ICMPV6 => {
            headers.icmp = bytes.first_chunk::<2>().map(|[kind, code]| (*kind, *code));
        }
        _ => {}
    }
}

/// Sender and target of IPv4 over Ethernet; of others nothing.
fn arp(headers: &mut Headers, bytes: &[u8]) {
    let Some(fixed) = bytes.first_chunk::<28>() else { return };
    if be16(fixed, 2) != Some(IPV4) || (fixed[4], fixed[5]) != (6, 4) {
        return;
    }
    let address = |at: usize| IpAddr::V4(Ipv4Addr::new(fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]));
    (headers.saddr, headers.daddr) = (Some(address(14)), Some(address(24)));
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

/// `SYN,ACK`.
pub(crate) fn tcp_flags(flags: u8) -> String {
    let names = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
    let set = names.iter().enumerate().filter(|(bit, _)| flags >> bit & 1 != 0);
    set.map(|(_, name)| *name).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(protocol: u8, options: usize, fragment: u16, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x40 | (5 + options as u8), 0, 0, 0, 0, 1];
        packet.extend_from_slice(&fragment.to_be_bytes());
        packet.extend_from_slice(&[64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        packet.extend(std::iter::repeat_n(1, options * 4));
        packet.extend_from_slice(payload);
        packet
    }

    fn v6(next: u8, rest: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, next, 63];
        packet.extend_from_slice(&"2001:db8::1".parse::<Ipv6Addr>().unwrap().octets());
        packet.extend_from_slice(&"2001:db8::2".parse::<Ipv6Addr>().unwrap().octets());
        packet.extend_from_slice(rest);
        packet
    }

    /// Ports 4660 and 443, flags SYN.
    const TCP_SYN: [u8; 20] = [
        0x12, 0x34, 1, 0xbb, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x02, 0, 0, 0, 0, 0, 0,
    ];

    #[test]
    fn ipv4_with_options_has_its_ports_in_the_right_order() {
        for options in [0, 3, 10] {
            let headers = parse(IPV4, &v4(TCP, options, 0x4000, &TCP_SYN));
            assert_eq!(
                (headers.sport, headers.dport),
                (Some(4660), Some(443)),
                "{options} words of options"
            );
            assert_eq!(headers.saddr, Some("10.0.0.1".parse().unwrap()));
            assert_eq!(headers.daddr, Some("10.0.0.2".parse().unwrap()));
            assert_eq!(
                (headers.tcp_flags, headers.ttl, headers.protocol),
                (Some(2), Some(64), Some(TCP))
            );
        }
    }

    #[test]
    fn only_the_first_fragment_has_ports() {
        let first = parse(IPV4, &v4(UDP, 0, 0x2000, &TCP_SYN));
        assert_eq!((first.dport, first.later_fragment), (Some(443), false));
        let later = parse(IPV4, &v4(UDP, 0, 0x0010, &TCP_SYN));
        assert_eq!(
            (later.dport, later.later_fragment, later.protocol),
            (None, true, Some(UDP))
        );

        let fragment = |offset: u16| [&[UDP, 0], &offset.to_be_bytes()[..], &[0; 4], &TCP_SYN].concat();
        let first = parse(IPV6, &v6(44, &fragment(1)));
        assert_eq!(
            (first.dport, first.later_fragment),
            (Some(443), false),
            "offset 0, more to come"
        );
        let later = parse(IPV6, &v6(44, &fragment(8)));
        assert_eq!(
            (later.dport, later.later_fragment, later.protocol),
            (None, true, Some(UDP))
        );
    }

    #[test]
    fn ipv6_extension_headers_are_walked() {
        let hop_by_hop = [&[60u8, 0][..], &[0; 6], &[TCP, 1], &[0; 14], &TCP_SYN].concat();
        let headers = parse(IPV6, &v6(0, &hop_by_hop));
        assert_eq!(
            (headers.sport, headers.dport, headers.protocol),
            (Some(4660), Some(443), Some(TCP))
        );
        assert_eq!(headers.saddr, Some("2001:db8::1".parse().unwrap()));
        let report = [&[ICMPV6, 0][..], &[5, 2, 0, 0, 0, 0], &[143, 0, 0, 0]].concat();
        assert_eq!(parse(IPV6, &v6(0, &report)).icmp, Some((143, 0)));
        let authenticated = [&[UDP, 1][..], &[0; 10], &[0, 53, 0, 99]].concat();
        assert_eq!(parse(IPV6, &v6(51, &authenticated)).sport, Some(53));
    }

    #[test]
    fn tags_arp_and_frames_are_seen_through() {
        let tagged = [&[0x00, 0x64, 0x08, 0x00][..], &v4(ICMP, 0, 0, &[8, 0])].concat();
        let headers = parse(0x8100, &tagged);
        assert_eq!(
            (headers.vlan, headers.ethertype, headers.icmp),
            (Some(100), IPV4, Some((8, 0)))
        );

        let frame = [&[0xff; 12][..], &[0x86, 0xdd], &v6(UDP, &[0, 1, 0, 2])].concat();
        assert_eq!(parse_frame(&frame).dport, Some(2));

        let mut request = vec![0, 1, 8, 0, 6, 4, 0, 1];
        request.extend_from_slice(&[2, 0, 0, 0, 0, 1, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 9]);
        let headers = parse(ARP, &request);
        assert_eq!(
            (headers.saddr, headers.daddr),
            (Some("10.0.0.1".parse().unwrap()), Some("10.0.0.9".parse().unwrap()))
        );
    }

    #[test]
    fn a_packet_cut_off_anywhere_tells_what_is_there_and_no_more() {
        let whole = v4(TCP, 2, 0, &TCP_SYN);
        for len in 0..=whole.len() {
            let headers = parse(IPV4, &whole[..len]);
            assert_eq!(headers.saddr.is_some(), len >= 20, "{len}");
            assert_eq!(headers.dport.is_some(), len >= 28 + 4, "{len}");
            assert_eq!(headers.tcp_flags.is_some(), len >= 28 + 14, "{len}");
        }
        let whole = v6(0, &[&[TCP, 0][..], &[0; 6], &TCP_SYN].concat());
        for len in 0..=whole.len() {
            assert_eq!(parse(IPV6, &whole[..len]).dport.is_some(), len >= 48 + 4, "{len}");
        }
        for len in 0..14 {
            assert_eq!(parse_frame(&[0; 14][..len]), Headers::default());
        }
    }

    #[test]
    fn headers_that_cannot_be_are_not_read() {
        let mut short = v4(TCP, 0, 0, &TCP_SYN);
        short[0] = 0x44;
        assert_eq!(parse(IPV4, &short).saddr, None, "a header shorter than itself");
        assert_eq!(parse(IPV4, &v6(TCP, &TCP_SYN)).saddr, None, "another version");
        assert_eq!(parse(IPV6, &v4(TCP, 10, 0, &TCP_SYN)).saddr, None);
        let endless = v6(0, &[0; 88]);
        assert_eq!(parse(IPV6, &endless).sport, None, "options without end");
    }

    #[test]
    fn flags_have_names() {
        assert_eq!(tcp_flags(0x12), "SYN,ACK");
        assert_eq!(tcp_flags(0), "");
    }
}
