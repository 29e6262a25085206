//! Which drops are a loss. Most frees that the tracepoint shows are not: buffers of closed sockets, segments that TCP
//! had already, multicast nobody joined.
//!
//! Where the reason is not enough, the function that dropped the packet and a look into the packet decide. Functions
//! are those seen on Linux 5.10 to 7.3. An unknown reason is suspect: a false alarm is better than a loss that is not
//! told.

use sonde_ebpf_common::drop::{detail, verdict};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// A packet that somebody will miss.
    Suspect,
    /// Ordinary work of a protocol: a duplicate, a probe, a reply nobody waits for.
    Protocol,
    /// Buffers freed where nothing was to be delivered any more.
    Benign,
}

impl Class {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Suspect => "suspect",
            Self::Protocol => "protocol",
            Self::Benign => "benign",
        }
    }

    pub const fn verdict(self) -> u8 {
        match self {
            Self::Suspect => verdict::SUSPECT,
            Self::Protocol => verdict::PROTOCOL,
            Self::Benign => verdict::BENIGN,
        }
    }
}

/// What the kernel side may decide by the reason alone: `verdict::*`.
pub fn verdict_of_reason(reason: &str) -> u8 {
    match by_reason(reason) {
        Rule::Always(class) => class.verdict(),
        Rule::Site => verdict::BY_SITE,
        Rule::Look => verdict::BY_SITE | verdict::DETAIL,
    }
}

/// The class of a site. `function` is the one that dropped the packet, `None` where names are not to be had; `detail`
/// is what `sonde_ebpf_common::drop::detail` describes.
pub fn classify(reason: &str, function: Option<&str>, detail: u32) -> Class {
    if let Rule::Always(class) = by_reason(reason) {
        return class;
    }
    // `tcp_v4_rcv.cold`, `br_flood.isra.0`: parts of the function that the compiler moved out.
    let function = function.map(|name| name.split('.').next().unwrap_or(name));
    let seen = Seen::from_detail(detail);
    match reason {
        "NO_SOCKET" => no_socket(function.unwrap_or_default(), seen),
        // Multicast that a neighbour sends before this end of the link has its addresses.
        "IP_INNOROUTES" if seen.frame == detail::MULTICAST => Class::Protocol,
        // A new device has no queue for a moment; what the kernel announces to its multicast groups is said again.
        "QDISC_DROP" if seen.announces_groups() => Class::Protocol,
        "SOCKET_FILTER" if matches!(function, Some("packet_rcv" | "tpacket_rcv")) => Class::Benign,
        // A bridge with one port has nowhere to flood a broadcast to; a tunnel without a peer loses a packet.
        "NO_TX_TARGET" if function.is_some_and(|name| name.starts_with("br_")) => Class::Protocol,
        "NOT_SPECIFIED" => match function {
            Some(function) => not_specified(function, seen),
            // Cannot be told from healthy frees, of which there are many: counted, not reported.
            None => Class::Protocol,
        },
        _ => Class::Suspect,
    }
}

enum Rule {
    Always(Class),
    /// The function decides.
    Site,
    /// The function and a look into the packet decide.
    Look,
}

fn by_reason(reason: &str) -> Rule {
    match reason {
        "NOT_SPECIFIED" | "NO_SOCKET" | "IP_INNOROUTES" | "QDISC_DROP" => Rule::Look,
        "SOCKET_FILTER" | "NO_TX_TARGET" => Rule::Site,
        // Freed with the socket or queue that held them, or handed over; nothing was to come of them any more.
        "CONSUMED"
        | "SKB_CONSUMED"
        | "SOCKET_CLOSE"
        | "SOCKET_DESTROYED"
        | "QUEUE_PURGE"
        | "SOCKET_RCV_SHUTDOWN"
        | "UNIX_DISCONNECT"
        | "UNIX_SKIP_OOB" => Rule::Always(Class::Benign),
        // A packet socket (tcpdump) that does not keep up: the packet itself goes on.
        "PACKET_SOCK_ERROR" => Rule::Always(Class::Benign),
        // TCP had the data already, or answers with an ACK: retransmissions, zero window probes, late duplicates.
        "TCP_OLD_DATA"
        | "TCP_OFOMERGE"
        | "TCP_OLD_SEQUENCE"
        | "TCP_INVALID_SEQUENCE"
        | "TCP_INVALID_END_SEQUENCE"
        | "TCP_OVERWINDOW"
        | "TCP_ZEROWINDOW"
        | "TCP_OLD_ACK"
        | "TCP_TOO_OLD_ACK"
        | "TCP_ACK_UNSENT_DATA"
        | "TCP_RFC7323_PAWS_ACK"
        | "TCP_FASTOPEN"
        | "DUP_FRAG" => Rule::Always(Class::Protocol),
        // An RST that was obeyed, and what still comes for the socket after it: probe `tcpreset` tells of those.
        "TCP_RESET" | "TCP_CLOSE" => Rule::Always(Class::Protocol),
        // Not meant for this host, or for nobody here.
        "OTHERHOST"
        | "UNHANDLED_PROTO"
        | "IPV6DISABLED"
        | "IPV6_NDISC_NS_OTHERHOST"
        | "TAP_TXFILTER"
        | "ARP_PVLAN_DISABLE"
        | "MAC_IEEE_MAC_CONTROL" => Rule::Always(Class::Protocol),
        _ => Rule::Always(Class::Suspect),
    }
}

/// A look into the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    frame: u32,
    packet: Packet,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packet {
    Tcp { flags: u8 },
    Udp,
    Igmp,
    Icmp { kind: u8 },
    Icmpv6 { kind: u8 },
    Other,
}

const RST: u8 = 0x04;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const ECHO_REPLY: u8 = 0;
const ECHO_REPLY_V6: u8 = 129;

impl Seen {
    fn from_detail(value: u32) -> Self {
        let low = (value & 0xff) as u8;
        let packet = match (value >> detail::PROTOCOL_SHIFT & 0xff) as u8 {
            detail::TCP => Packet::Tcp { flags: low },
            detail::UDP => Packet::Udp,
            detail::IGMP => Packet::Igmp,
            detail::ICMP => Packet::Icmp { kind: low },
            detail::ICMPV6 => Packet::Icmpv6 { kind: low },
            _ => Packet::Other,
        };
        Self {
            frame: value >> detail::PKT_TYPE_SHIFT & detail::PKT_TYPE,
            packet,
        }
    }

    fn opens_connection(self) -> bool {
        matches!(self.packet, Packet::Tcp { flags } if flags & (SYN | ACK | RST) == SYN)
    }

    fn announces_groups(self) -> bool {
        matches!(self.packet, Packet::Igmp | Packet::Icmpv6 { kind: 131 | 132 | 143 })
    }

    fn is_ip(self) -> bool {
        self.packet != Packet::Other
    }
}

fn no_socket(function: &str, seen: Seen) -> Class {
    match seen.packet {
        // An RST for a connection that is gone needs no answer.
        Packet::Tcp { flags } if flags & RST != 0 => Class::Protocol,
        // `ping` with a raw socket gets its reply there; the ICMP layer knows of none.
        Packet::Icmp { kind: ECHO_REPLY } | Packet::Icmpv6 { kind: ECHO_REPLY_V6 } => Class::Protocol,
        _ if matches!(function, "icmp_rcv" | "icmpv6_rcv" | "ping_rcv") => Class::Protocol,
        _ => Class::Suspect,
    }
}

/// Frees that no reason was given for: below 5.17 all of them, later those whose author found none worth giving.
fn not_specified(function: &str, seen: Seen) -> Class {
    match function {
        // Queues and sockets that go away with what is in them; `skb_release_data` frees the parts of a packet that is
        // itself consumed or told of.
        "udp_destruct_common"
        | "udp_destruct_sock"
        | "udpv6_destruct_sock"
        | "inet_sock_destruct"
        | "skb_rbtree_purge"
        | "skb_release_data"
        | "sk_stream_kill_queues"
        | "inet_csk_destroy_sock"
        | "skb_queue_purge"
        | "skb_queue_purge_reason"
        | "packet_release"
        | "packet_sock_destruct"
        | "packet_rcv"
        | "tpacket_rcv"
        | "__sk_defer_free_flush"
        | "skb_attempt_defer_free" => Class::Benign,
        // Not packets of a network.
        _ if ["unix_", "netlink_", "nlmsg_", "nfnetlink_"]
            .iter()
            .any(|prefix| function.starts_with(prefix)) =>
        {
            Class::Benign
        }
        // A segment for a TIME_WAIT socket. Below 5.17 also one for no socket, of which the SYN is the telling one: a
        // live listener would have taken it.
        "tcp_v4_rcv" | "tcp_v6_rcv" if !seen.opens_connection() => Class::Protocol,
        // The last ACKs and FINs of a connection, after they did their work.
        "tcp_rcv_state_process"
        | "tcp_rcv_established"
        | "tcp_data_queue"
        | "tcp_v4_do_rcv"
        | "tcp_v6_do_rcv"
        | "tcp_child_process"
        | "tcp_check_req" => Class::Protocol,
        "icmp_rcv" | "ping_rcv" if matches!(seen.packet, Packet::Icmp { kind: ECHO_REPLY }) => Class::Protocol,
        // Neighbour discovery, MLD and multicast end here after they were looked at.
        "icmpv6_rcv" | "ip6_mc_input" | "igmp_rcv" | "igmp6_event_query" | "ndisc_rcv" | "arp_rcv" | "arp_process"
        | "ip_mr_input" | "ip6_mr_input" => Class::Protocol,
        // What a new device announces before it has a queue, and what a neighbour announces to one without addresses: see
        // QDISC_DROP and IP_INNOROUTES, which 5.10 does not tell.
        "kfree_skb_list" if seen.announces_groups() => Class::Protocol,
        "ip6_pkt_drop" | "ip6_pkt_discard" if seen.frame == detail::MULTICAST => Class::Protocol,
        // Frames nobody here asked for: of other hosts on a shared link, and of protocols that are not spoken.
        "ip_rcv_core" | "ip_rcv" | "ip6_rcv_core" | "ipv6_rcv" if seen.frame == detail::OTHERHOST => Class::Protocol,
        // A group that nobody here joined.
        "ip_rcv_finish_core" | "ip_rcv_finish" if matches!(seen.frame, detail::MULTICAST | detail::BROADCAST) => {
            Class::Protocol
        }
        "__netif_receive_skb_core" | "__netif_receive_skb_one_core" | "__netif_receive_skb" if !seen.is_ip() => {
            Class::Protocol
        }
        // A bridge that floods a frame frees the original, and does not send one back where it came from.
        "br_flood" | "br_multicast_flood" | "br_forward" | "br_handle_frame" | "br_handle_frame_finish" => {
            Class::Protocol
        }
        // Many drivers free what they have sent in this way.
        "net_tx_action" | "dev_kfree_skb_any_reason" | "__dev_kfree_skb_any" => Class::Protocol,
        _ => Class::Suspect,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn tcp(flags: u8) -> u32 {
        (detail::TCP as u32) << detail::PROTOCOL_SHIFT | flags as u32
    }
    const fn icmp(kind: u8) -> u32 {
        (detail::ICMP as u32) << detail::PROTOCOL_SHIFT | kind as u32
    }
    const fn icmpv6(kind: u8) -> u32 {
        (detail::ICMPV6 as u32) << detail::PROTOCOL_SHIFT | kind as u32
    }
    const UDP: u32 = (detail::UDP as u32) << detail::PROTOCOL_SHIFT;
    const FIN: u8 = 0x01;

    #[test]
    fn healthy_traffic_is_never_suspect() {
        // Seen on 5.10 to 7.3: kernel-signals.md, packetloss.
        for (reason, function, look) in [
            ("NOT_SPECIFIED", "ip6_mc_input", icmpv6(143)),
            ("NOT_SPECIFIED", "icmpv6_rcv", icmpv6(135)),
            ("NOT_SPECIFIED", "tcp_rcv_state_process", tcp(ACK)),
            ("NOT_SPECIFIED", "tcp_v4_rcv", tcp(ACK | FIN)),
            ("NOT_SPECIFIED", "tcp_v6_rcv", tcp(ACK)),
            ("NOT_SPECIFIED", "udp_destruct_common", detail::OTHER),
            ("NOT_SPECIFIED", "skb_rbtree_purge", tcp(ACK)),
            ("NOT_SPECIFIED", "skb_release_data", detail::OTHER),
            ("QUEUE_PURGE", "sk_stream_kill_queues", 0),
            ("NO_SOCKET", "icmp_rcv", icmp(ECHO_REPLY)),
            ("NO_SOCKET", "ping_rcv", icmp(ECHO_REPLY)),
            ("NO_SOCKET", "icmpv6_rcv", icmpv6(ECHO_REPLY_V6)),
            ("SOCKET_CLOSE", "unix_release_sock", 0),
            ("TCP_OLD_DATA", "tcp_data_queue", 0),
            ("TCP_OVERWINDOW", "tcp_validate_incoming", 0),
            ("TCP_OLD_SEQUENCE", "tcp_validate_incoming", 0),
            ("TCP_INVALID_SEQUENCE", "tcp_validate_incoming", 0),
            ("NO_SOCKET", "tcp_v4_rcv", tcp(RST)),
            ("NO_SOCKET", "tcp_v6_rcv", tcp(RST | ACK)),
            ("NOT_SPECIFIED", "icmp_rcv", icmp(ECHO_REPLY)),
            ("QDISC_DROP", "__dev_queue_xmit", icmpv6(143)),
            (
                "QDISC_DROP",
                "__dev_queue_xmit",
                (detail::IGMP as u32) << detail::PROTOCOL_SHIFT,
            ),
            ("NOT_SPECIFIED", "nfnetlink_rcv_batch", detail::OTHER),
            ("NOT_SPECIFIED", "kfree_skb_list", icmpv6(143)),
            (
                "NOT_SPECIFIED",
                "ip6_pkt_drop",
                icmpv6(143) | detail::MULTICAST << detail::PKT_TYPE_SHIFT,
            ),
            (
                "IP_INNOROUTES",
                "ip6_pkt_discard",
                icmpv6(143) | detail::MULTICAST << detail::PKT_TYPE_SHIFT,
            ),
            (
                "NOT_SPECIFIED",
                "ip_rcv_finish_core",
                UDP | detail::MULTICAST << detail::PKT_TYPE_SHIFT,
            ),
            (
                "NOT_SPECIFIED",
                "ip_rcv_finish_core",
                detail::OTHER | detail::MULTICAST << detail::PKT_TYPE_SHIFT,
            ),
        ] {
            assert_ne!(
                classify(reason, Some(function), look),
                Class::Suspect,
                "{reason} {function} {look:#x}"
            );
        }
    }

    #[test]
    fn a_loss_is_suspect_wherever_it_happens() {
        for (reason, function, look) in [
            ("NO_SOCKET", "tcp_v4_rcv", tcp(SYN)),
            ("NO_SOCKET", "tcp_v6_rcv", tcp(SYN)),
            ("NO_SOCKET", "tcp_v4_rcv", tcp(ACK)),
            ("NO_SOCKET", "__udp4_lib_rcv", UDP),
            ("NO_SOCKET", "__udp6_lib_rcv", UDP),
            ("NETFILTER_DROP", "nft_do_chain", 0),
            ("SOCKET_RCVBUFF", "udp_queue_rcv_one_skb", 0),
            ("IP_INNOROUTES", "ip_error", UDP),
            ("IP_INNOROUTES", "ip6_pkt_discard", UDP),
            ("IP_INHDR", "ip_forward", 0),
            ("QDISC_DROP", "__dev_queue_xmit", UDP),
            ("QDISC_DROP", "__dev_queue_xmit", icmpv6(135)),
            ("QDISC_OVERLIMIT", "__dev_queue_xmit", 0),
            ("CPU_BACKLOG", "enqueue_to_backlog", 0),
            ("TCP_LISTEN_OVERFLOW", "tcp_conn_request", 0),
            ("A_REASON_OF_TOMORROW", "somewhere", 0),
            ("REASON_200", "somewhere", 0),
            // Linux 5.10 gives no reasons.
            ("NOT_SPECIFIED", "nf_hook_slow", 0),
            ("NOT_SPECIFIED", "tcp_v4_rcv", tcp(SYN)),
            ("NOT_SPECIFIED", "__udp4_lib_rcv", UDP),
            ("NOT_SPECIFIED", "udp_queue_rcv_one_skb", UDP),
            ("NOT_SPECIFIED", "ip_forward", UDP),
            ("NOT_SPECIFIED", "ip_rcv_core", UDP),
            ("NOT_SPECIFIED", "ip_rcv_finish_core", UDP),
            ("NOT_SPECIFIED", "__netif_receive_skb_core", UDP),
            ("NOT_SPECIFIED", "veth_xmit", UDP),
            ("NOT_SPECIFIED", "kfree_skb_list", UDP),
            ("NOT_SPECIFIED", "ip6_pkt_drop", UDP),
        ] {
            assert_eq!(
                classify(reason, Some(function), look),
                Class::Suspect,
                "{reason} {function} {look:#x}"
            );
        }
    }

    #[test]
    fn parts_that_the_compiler_split_off_count_as_the_function() {
        assert_eq!(
            classify("NOT_SPECIFIED", Some("udp_destruct_common.part.0"), 0),
            Class::Benign
        );
        assert_eq!(classify("NO_TX_TARGET", Some("br_flood.isra.0"), 0), Class::Protocol);
        assert_eq!(classify("NO_TX_TARGET", Some("vxlan_xmit"), 0), Class::Suspect);
    }

    #[test]
    fn frames_for_other_hosts_are_no_loss() {
        let look = UDP | detail::OTHERHOST << detail::PKT_TYPE_SHIFT;
        assert_eq!(classify("NOT_SPECIFIED", Some("ip_rcv_core"), look), Class::Protocol);
        assert_eq!(classify("OTHERHOST", Some("ip_rcv_core"), 0), Class::Protocol);
        assert_eq!(
            classify("NOT_SPECIFIED", Some("__netif_receive_skb_core"), detail::OTHER),
            Class::Protocol
        );
    }

    #[test]
    fn without_names_only_drops_with_a_reason_are_reported() {
        assert_eq!(classify("NOT_SPECIFIED", None, UDP), Class::Protocol);
        assert_eq!(classify("NETFILTER_DROP", None, 0), Class::Suspect);
        assert_eq!(classify("NO_SOCKET", None, UDP), Class::Suspect);
    }

    #[test]
    fn the_kernel_side_decides_by_reason_exactly_where_the_site_does_not_matter() {
        assert_eq!(verdict_of_reason("NETFILTER_DROP"), verdict::SUSPECT);
        assert_eq!(verdict_of_reason("TCP_OLD_DATA"), verdict::PROTOCOL);
        assert_eq!(verdict_of_reason("QUEUE_PURGE"), verdict::BENIGN);
        assert_eq!(verdict_of_reason("NO_SOCKET"), verdict::BY_SITE | verdict::DETAIL);
        assert_eq!(verdict_of_reason("SOCKET_FILTER"), verdict::BY_SITE);
        for reason in ["NETFILTER_DROP", "TCP_OLD_DATA", "QUEUE_PURGE", "X"] {
            let anywhere = classify(reason, Some("anywhere"), 0);
            assert_eq!(anywhere.verdict(), verdict_of_reason(reason), "{reason}");
        }
    }
}
