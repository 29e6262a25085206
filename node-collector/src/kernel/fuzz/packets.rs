//! The beginning of a packet.

use sonde_ebpf_common::packet::PACKET_BYTES;
use sonde_mutate::Target;

use crate::probes::packetloss::headers::{self, Headers};

pub(super) const TARGET: Target = Target {
    name: "packets",
    seeds,
    run,
};

/// From 10.0.0.1 port 4660 to 10.0.0.2 port 443.
pub(super) const UDP_V4: [u8; 28] = [
    0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0x12, 0x34, 1, 0xbb, 0, 8, 0, 0,
];
/// Behind a hop-by-hop and a fragment header (the first one), port 1 to 2, SYN.
pub(super) const TCP_V6: [u8; 76] = {
    let mut packet = [0; 76];
    (packet[0], packet[6], packet[7]) = (0x60, 0, 64);
    (packet[8], packet[23], packet[24], packet[39]) = (0xfd, 1, 0xfd, 2);
    (packet[40], packet[48], packet[51]) = (44, 6, 1);
    (packet[57], packet[59], packet[69]) = (1, 2, 2);
    packet
};

/// EtherType, a length, bytes. Whatever is told of a packet of which less was seen is told of the whole one too.
fn run(input: &[u8]) {
    let Some(([high, low, cut], bytes)) = input.split_first_chunk::<3>() else {
        return;
    };
    let ethertype = u16::from_be_bytes([*high, *low]);
    let bytes = &bytes[..bytes.len().min(PACKET_BYTES)];
    let beginning = &bytes[..bytes.len().min(usize::from(*cut))];
    for parse in [headers::parse, |_, bytes: &[u8]| headers::parse_frame(bytes)] {
        let (whole, part) = (parse(ethertype, bytes), parse(ethertype, beginning));
        consistent(&whole);
        consistent(&part);
        agrees(&part, &whole);
    }
}

fn consistent(headers: &Headers) {
    let has_ports = matches!(headers.protocol, Some(6 | 17 | 132 | 136)) && !headers.later_fragment;
    assert!(
        has_ports || (headers.sport, headers.dport) == (None, None),
        "{headers:?}"
    );
    assert!(headers.sport.is_some() || headers.dport.is_none(), "{headers:?}");
    assert!(
        headers.tcp_flags.is_none() || headers.protocol == Some(6),
        "{headers:?}"
    );
    assert!(
        headers.icmp.is_none() || matches!(headers.protocol, Some(1 | 58)),
        "{headers:?}"
    );
    assert_eq!(headers.saddr.is_some(), headers.daddr.is_some(), "{headers:?}");
}

fn agrees(part: &Headers, whole: &Headers) {
    fn same<T: PartialEq>(part: Option<T>, whole: Option<T>) -> bool {
        part.is_none() || part == whole
    }
    let all = [
        same(part.vlan, whole.vlan),
        same(part.saddr, whole.saddr),
        same(part.daddr, whole.daddr),
        same(part.protocol, whole.protocol),
        same(part.ttl, whole.ttl),
        same(part.sport, whole.sport),
        same(part.dport, whole.dport),
        same(part.icmp, whole.icmp),
        same(part.tcp_flags, whole.tcp_flags),
    ];
    assert_eq!(all, [true; 9], "{part:?} of {whole:?}");
}

fn seeds() -> Vec<Vec<u8>> {
    let tagged = [&[0, 100, 0x81, 0, 0, 7, 8, 0][..], &UDP_V4].concat();
    let frame = [&[0xff; 12][..], &[0x86, 0xdd], &TCP_V6].concat();
    let arp = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &[7; 20]].concat();
    let seed = |ethertype: u16, bytes: &[u8]| [&ethertype.to_be_bytes()[..], &[30], bytes].concat();
    vec![
        seed(0x0800, &UDP_V4),
        seed(0x86dd, &TCP_V6),
        seed(0x88a8, &tagged),
        seed(0, &frame),
        seed(0x0806, &arp),
    ]
}
