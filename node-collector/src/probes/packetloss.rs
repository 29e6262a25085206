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
