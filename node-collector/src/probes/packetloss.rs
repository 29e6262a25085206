//! Packets the kernel dropped, and why: tracepoint skb:kfree_skb (all kernels; its `reason` since Linux 5.17).

mod classify;
mod decode;
pub(crate) mod headers;
#[cfg(test)]
mod tests;

pub use classify::{Class, classify, verdict_of_reason};
pub(crate) use decode::protocol;
pub use decode::{DecodeError, Names, Raw};

use crate::catalogue::{ColumnSpec, EventTypeSpec, LabelSpec, ProbeSpec};

/// Type of its events.
pub const PACKETLOSS: &str = "PACKETLOSS";

pub const SPEC: ProbeSpec = ProbeSpec {
    name: "packetloss",
    help: "Packets the kernel dropped, by reason",
    source: "eBPF on tracepoint skb:kfree_skb (Linux net/core/skbuff.c, sk_skb_reason_drop; its reason since 5.17)",
    labels: &[
        LabelSpec {
            name: "reason",
            help: "Drop reason by the running kernel's name for it, such as NETFILTER_DROP",
        },
        LabelSpec {
            name: "class",
            help: "suspect: a loss; protocol: ordinary work of a protocol; benign: buffers freed on close",
        },
    ],
    columns: &[
        ColumnSpec::counter(
            "drops",
            "",
            "Packet buffers dropped; one that stands for several segments (GSO) counts once",
        ),
        ColumnSpec::counter(
            "segments",
            "",
            "Packets dropped as they would be on the wire: segments of a GSO buffer count each",
        ),
    ],
    event_types: &[EventTypeSpec {
        name: PACKETLOSS,
        help: "The kernel dropped a packet for a reason that ordinary traffic does not give",
    }],
};

/// What its events carry beside what all have.
pub const ATTRIBUTES: &[LabelSpec] = &[
    LabelSpec {
        name: "location",
        help: "Kernel function that dropped the packet",
    },
    LabelSpec {
        name: "length",
        help: "Bytes of the packet from the header on that the layer at work looks at",
    },
    LabelSpec {
        name: "segments",
        help: "Packets on the wire that the buffer stands for, where they are several",
    },
    LabelSpec {
        name: "tcp_flags",
        help: "Flags of the TCP header",
    },
    LabelSpec {
        name: "icmp_type",
        help: "Type of an ICMP or ICMPv6 message; icmp_code: its code",
    },
    LabelSpec {
        name: "ip_protocol",
        help: "Number of the protocol above IP, where it is none of TCP, UDP, ICMP and ICMPv6",
    },
    LabelSpec {
        name: "ttl",
        help: "Time to live, or the hop limit of IPv6",
    },
    LabelSpec {
        name: "fragment",
        help: "later: a fragment that is not the first, and so without ports",
    },
    LabelSpec {
        name: "vlan",
        help: "VLAN of the frame",
    },
    LabelSpec {
        name: "hook",
        help: "Of netfilter's drops: ingress, prerouting, input, forward, output, postrouting or egress. By the stack: absent with stacks: false",
    },
    LabelSpec {
        name: "netfilter",
        help: "Of netfilter's drops: who it can have been. Below Linux 6.7 nftables cannot be told from the others, and it reads: nft, iptables-legacy, conntrack or other",
    },
    LabelSpec {
        name: "nft",
        help: "Rules and policies of nftables (iptables-nft included) that can have dropped the packet, as FAMILY/TABLE CHAIN rule HANDLE VERDICT \"COMMENT\", with the chains on the way from the base chain; at most five. Those of the hook, family and device (without a hook, of all hooks on the way) that drop or reject, but for those whose protocol, addresses or ports are not the packet's; what else a rule demands is not looked at. What drops only when it fails, such as NAT without a free port, is not among them",
    },
    LabelSpec {
        name: "nft_candidates",
        help: "How many of them there are. 1: in the ruleset of nft_ruleset it is the only one; 0: nothing there says drop to such a packet",
    },
    LabelSpec {
        name: "nft_ruleset",
        help: "Whether that is the ruleset by which the packet was dropped: 'unchanged since before the drop'; or how long after the drop it was read, and so may have changed in between; or, where a large ruleset changes all the time, how long before",
    },
    LabelSpec {
        name: "nft_rule",
        help: "Rule or policy that the kernel itself named when it dropped a packet of the same addresses, ports and direction in the last minute, if it is among the candidates still. Only with probes.packetloss.nft_trace; from the second event of a connection on; not for drops at ingress or egress, nor where NAT changed the packet before",
    },
    LabelSpec {
        name: "conntrack_table_full",
        help: "Of drops at prerouting or output that can be conntrack's: connection tracking of the namespace could not track packets around the drop (its counter `drop` moved, between the times that are told), and its table was full right after it. That it was this packet is not certain",
    },
    LabelSpec {
        name: "conntrack_drops",
        help: "The same where the table was not full right after the drop: it may have been for a moment, or memory was short",
    },
];
