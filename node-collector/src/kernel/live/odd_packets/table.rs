//! What may come along a wire, and what is to be said of it: right or nothing, never garbage.

use std::net::IpAddr;

use super::frames::{V4, V6, ether, extension, ipv4, ipv6, syn, udp};

/// Inner packets of tunnels have other ends.
const INNER: [std::net::Ipv4Addr; 2] = [
    std::net::Ipv4Addr::new(198, 51, 100, 1),
    std::net::Ipv4Addr::new(198, 51, 100, 2),
];
const IP: u16 = 0x0800;
const IP6: u16 = 0x86dd;
const TCP: u8 = 6;
const UDP: u8 = 17;

pub(super) struct Odd {
    pub(super) name: &'static str,
    pub(super) frame: Vec<u8>,
    /// As events tell it.
    pub(super) protocol: Option<&'static str>,
    pub(super) ends: Option<[IpAddr; 2]>,
    pub(super) ports: [Option<u16>; 2],
    /// Those that are told, of `ip_protocol`, `fragment`, `icmp_type`, `tcp_flags` and `vlan`.
    pub(super) attributes: Vec<(&'static str, &'static str)>,
    /// Protocol as the traffic by address has it, and whether it has the ends and ports too. `None`: not told apart.
    pub(super) flow: Option<(&'static str, bool)>,
    /// The IP layer takes it as far as its first hook.
    pub(super) reaches_ip: bool,
}

impl Odd {
    fn new(name: &'static str, frame: Vec<u8>) -> Self {
        Self {
            name,
            frame,
            protocol: None,
            ends: None,
            ports: [None; 2],
            attributes: Vec::new(),
            flow: None,
            reaches_ip: false,
        }
    }

    /// Between the ends of its family, without ports.
    fn between(mut self, protocol: &'static str, flow: &'static str) -> Self {
        let types = self
            .frame
            .chunks(4)
            .map(|piece| u16::from_be_bytes([piece[0], piece[1]]));
        // The first that is no tag.
        let is_ipv6 = types.into_iter().find(|kind| !matches!(kind, 0x8100 | 0x88a8)) == Some(IP6);
        let ends = if is_ipv6 {
            V6.map(IpAddr::V6)
        } else {
            V4.map(IpAddr::V4)
        };
        (self.protocol, self.ends, self.flow) = (Some(protocol), Some(ends), Some((flow, false)));
        self.reaches_ip = true;
        self
    }

    fn with_ports(self, protocol: &'static str, [from, to]: [u16; 2]) -> Self {
        let mut odd = self.between(protocol, protocol);
        (odd.ports, odd.flow) = ([Some(from), Some(to)], Some((protocol, true)));
        if protocol == "TCP" {
            odd.attributes.push(("tcp_flags", "SYN"));
        }
        odd
    }

    fn saying(mut self, name: &'static str, value: &'static str) -> Self {
        self.attributes.push((name, value));
        self
    }

    fn stops_before_ip(mut self) -> Self {
        self.reaches_ip = false;
        self
    }
}

pub(super) fn all() -> Vec<Odd> {
    [others(), v4(), v6(), tunnels(), tagged()]
        .into_iter()
        .flatten()
        .collect()
}

/// A number for each frame, so that they are told apart by their ports.
fn ports(number: u16) -> [u16; 2] {
    [20_000 + number, 30_000 + number]
}

fn others() -> Vec<Odd> {
    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0x0d, 0xdd];
    arp.extend(V4[0].octets());
    arp.extend([0; 6]);
    arp.extend(V4[1].octets());
    let mut asks = Odd::new("ARP", ether(&[], 0x0806, &arp))
        .between("ARP", "")
        .stops_before_ip();
    asks.flow = None;
    let mut short_arp = Odd::new("an ARP request cut off", ether(&[], 0x0806, &arp[..20]));
    short_arp.protocol = Some("ARP");
    let mut lldp = Odd::new("LLDP", ether(&[], 0x88cc, &[2, 7, 4, 2, 0, 0, 0, 0, 1, 4, 2, 5, 48]));
    lldp.protocol = Some("0x88cc");
    let mut mpls = Odd::new(
        "MPLS",
        ether(
            &[],
            0x8847,
            &[&[0, 1, 1, 64][..], &ipv4(V4, 0, 0, UDP, &udp(ports(0), b"x"))].concat(),
        ),
    );
    mpls.protocol = Some("0x8847");
    // A frame that says its length: IEEE 802.2.
    let stp = Odd::new(
        "a spanning tree",
        ether(&[], 38, &[&[0x42, 0x42, 3][..], &[7; 35]].concat()),
    );
    vec![asks, short_arp, lldp, mpls, stp]
}

fn v4() -> Vec<Odd> {
    let whole = |number, options| ether(&[], IP, &ipv4(V4, options, 0, UDP, &udp(ports(number), b"x")));
    let fragment = |number, field| {
        ether(
            &[],
            IP,
            &ipv4(V4, 0, field, UDP, &udp(ports(number), b"0123456789abcdef")),
        )
    };
    let mut half = Odd::new(
        "half of its ports",
        ether(&[], IP, &ipv4(V4, 0, 0, UDP, &ports(4)[0].to_be_bytes())),
    )
    .between("UDP", "UDP");
    half.ports[0] = Some(ports(4)[0]);
    let mut version = whole(5, 0);
    version[2] = 0x55;
    let mut version = Odd::new("version 5", version);
    version.protocol = Some("IP");
    let mut short = whole(6, 0);
    short[2] = 0x44;
    let mut short = Odd::new("a header shorter than itself", short);
    // Traffic by address takes it by its addresses: where they are does not depend on the length.
    short = short.between("UDP", "UDP").stops_before_ip();
    (short.protocol, short.ends) = (Some("IP"), None);
    let mut cut = Odd::new("half an IPv4 header", whole(7, 0)[..12].to_vec());
    cut.protocol = Some("IP");
    let mut beyond = whole(8, 10);
    // The header speaks of 60 bytes, but the frame ends before.
    beyond.truncate(2 + 40);
    let beyond = Odd::new("options cut off", beyond)
        .between("UDP", "UDP")
        .stops_before_ip();
    vec![
        Odd::new("IPv4", whole(1, 0)).with_ports("UDP", ports(1)),
        Odd::new("options", whole(2, 10)).with_ports("UDP", ports(2)),
        Odd::new("the first fragment", fragment(3, 0x2000)).with_ports("UDP", ports(3)),
        Odd::new("a later fragment", fragment(9, 0x2002))
            .between("UDP", "UDP")
            .saying("fragment", "later"),
        Odd::new("the last fragment", fragment(9, 0x0004))
            .between("UDP", "UDP")
            .saying("fragment", "later"),
        half,
        version,
        short,
        cut,
        beyond,
        Odd::new(
            "TCP",
            ether(&[], IP, &ipv4(V4, 3, 0, TCP, &syn(ports(10), V4.map(IpAddr::V4)))),
        )
        .with_ports("TCP", ports(10)),
        Odd::new("SCTP", ether(&[], IP, &ipv4(V4, 0, 0, 132, &udp(ports(11), b"data")))).with_ports_as(
            "IP",
            "SCTP",
            ports(11),
            "132",
        ),
        Odd::new(
            "UDP-Lite",
            ether(&[], IP, &ipv4(V4, 0, 0, 136, &udp(ports(12), b"data"))),
        )
        .with_ports_as("IP", "136", ports(12), "136"),
        Odd::new("ping", ether(&[], IP, &ipv4(V4, 0, 0, 1, &[8, 0, 0, 0, 0, 1, 0, 1])))
            .between("ICMP", "ICMP")
            .saying("icmp_type", "8"),
        Odd::new("ESP", ether(&[], IP, &ipv4(V4, 0, 0, 50, &[9; 32])))
            .between("IP", "50")
            .saying("ip_protocol", "50"),
    ]
}

impl Odd {
    /// Of a protocol that events show by its number.
    fn with_ports_as(self, protocol: &'static str, flow: &'static str, at: [u16; 2], number: &'static str) -> Self {
        let mut odd = self.with_ports(protocol, at).saying("ip_protocol", number);
        odd.flow = Some((flow, true));
        odd
    }
}

fn v6() -> Vec<Odd> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const OPTIONS: u8 = 60;
    let frame = |next, payload: &[u8]| ether(&[], IP6, &ipv6(V6, next, payload));
    let datagram = |number| udp(ports(number), b"0123456789abcdef");
    let fragment = |number, offset: u16| {
        let header = [&[UDP, 0][..], &offset.to_be_bytes(), &[0, 0, 0, 7]].concat();
        [header, datagram(number)].concat()
    };
    // Type 0, no segments left: nothing is to be done.
    let mut routing = extension(TCP, 3, &syn(ports(22), V6.map(IpAddr::V6)));
    routing[2..4].copy_from_slice(&[0, 0]);
    let mut authentication = vec![UDP, 4];
    authentication.resize(24, 5);
    authentication.extend(datagram(25));
    let three = extension(
        OPTIONS,
        1,
        &extension(OPTIONS, 2, &extension(TCP, 1, &syn(ports(26), V6.map(IpAddr::V6)))),
    );
    let mut cut = Odd::new("a hop-by-hop header cut off", frame(HOP_BY_HOP, &[UDP, 9, 1, 4]));
    cut = cut.between("IP", "0").stops_before_ip();
    let mut half = Odd::new("half an IPv6 header", frame(UDP, &datagram(28))[..22].to_vec());
    half.protocol = Some("IP");
    vec![
        Odd::new("IPv6", frame(UDP, &datagram(20))).with_ports("UDP", ports(20)),
        Odd::new("hop-by-hop", frame(HOP_BY_HOP, &extension(UDP, 2, &datagram(21)))).with_ports("UDP", ports(21)),
        Odd::new("routing", frame(ROUTING, &routing)).with_ports("TCP", ports(22)),
        Odd::new("the first IPv6 fragment", frame(FRAGMENT, &fragment(23, 1))).with_ports("UDP", ports(23)),
        Odd::new("a later IPv6 fragment", frame(FRAGMENT, &fragment(24, 17)))
            .between("UDP", "UDP")
            .saying("fragment", "later"),
        Odd::new("authentication", frame(AUTHENTICATION, &authentication)).with_ports("UDP", ports(25)),
        Odd::new("three headers of options", frame(OPTIONS, &three)).with_ports("TCP", ports(26)),
        Odd::new("no next header", frame(59, b"rest"))
            .between("IP", "59")
            .saying("ip_protocol", "59"),
        Odd::new("MLD", frame(HOP_BY_HOP, &extension(58, 1, &[143, 0, 0, 0, 0, 0, 0, 0])))
            .between("ICMPv6", "ICMPv6")
            .saying("icmp_type", "143"),
        cut,
        half,
    ]
}

/// At the outer device a tunnel's packets are the tunnel's.
fn tunnels() -> Vec<Odd> {
    let inner = ipv4(INNER, 0, 0, UDP, &udp(ports(30), b"x"));
    let ethernet = ether(&[], IP, &inner);
    let vxlan = [&[8, 0, 0, 0, 0, 0, 8, 0][..], &[2; 12], &ethernet].concat();
    let gre = [&[0, 0, 8, 0][..], &inner].concat();
    let frame = |protocol, payload: &[u8]| ether(&[], IP, &ipv4(V4, 0, 0, protocol, payload));
    vec![
        Odd::new("IPIP", frame(4, &inner))
            .between("IP", "4")
            .saying("ip_protocol", "4"),
        Odd::new("6in4", frame(41, &ipv6(V6, UDP, &udp(ports(31), b"x"))))
            .between("IP", "41")
            .saying("ip_protocol", "41"),
        Odd::new("GRE", frame(47, &gre))
            .between("IP", "47")
            .saying("ip_protocol", "47"),
        Odd::new("VXLAN", frame(UDP, &udp([ports(32)[0], 4789], &vxlan))).with_ports("UDP", [ports(32)[0], 4789]),
        Odd::new("IPv4 in IPv6", ether(&[], IP6, &ipv6(V6, 4, &inner)))
            .between("IP", "4")
            .saying("ip_protocol", "4"),
    ]
}

fn tagged() -> Vec<Odd> {
    let v4 = |number| ipv4(V4, 0, 0, UDP, &udp(ports(number), b"0123456789"));
    let v6 = |number| ipv6(V6, TCP, &syn(ports(number), V6.map(IpAddr::V6)));
    let mut four = Odd::new(
        "four tags",
        ether(&[(0x88a8, 5), (0x8100, 6), (0x8100, 7), (0x8100, 8)], IP, &v4(44)),
    );
    four.protocol = Some("0x8100");
    // Tags that nobody on this machine takes off: the IP layer passes such a packet over.
    [
        Odd::new("802.1Q", ether(&[(0x8100, 7)], IP, &v4(40))).with_ports("UDP", ports(40)),
        Odd::new("802.1Q with priority", ether(&[(0x8100, 0xe007)], IP6, &v6(41))).with_ports("TCP", ports(41)),
        Odd::new("QinQ", ether(&[(0x88a8, 5), (0x8100, 7)], IP, &v4(42))).with_ports("UDP", ports(42)),
        Odd::new("QinQ of one kind", ether(&[(0x8100, 5), (0x8100, 7)], IP6, &v6(43))).with_ports("TCP", ports(43)),
        four,
    ]
    .map(Odd::stops_before_ip)
    .into()
}
