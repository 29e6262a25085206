//! A record of the ring into an observation: bytes in, no map, no program, no clock.

use std::sync::Arc;

use sonde_ebpf_common::drop::{Record, Site, flag};
use sonde_ebpf_common::record::kind;

use super::headers::{self, Headers};
use crate::event::{Direction, NetnsKey, Observation};
use crate::kernel::record::{self, RecordError};
use crate::kernel::symbols::tracing_frames;

/// What the kernel's numbers are called. A test has its own.
pub trait Names {
    fn reason(&self, reason: u32) -> Arc<str>;
    /// `symbol+0x1f`, or the number.
    fn symbol(&self, address: u64) -> Arc<str>;
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("record of unknown kind {0}")]
    Kind(u32),
    #[error("record says it captured {0} bytes")]
    Captured(u16),
}

/// A record as the kernel wrote it, checked.
pub struct Raw {
    pub record: Record,
    stack: Vec<u64>,
}

impl Raw {
    pub fn parse(bytes: &[u8]) -> Result<Self, DecodeError> {
        match record::kind(bytes)? {
            kind::DROP => {}
            other => return Err(DecodeError::Kind(other)),
        }
        let (record, stack) = record::parse::<Record>(bytes, |record| &record.head)?;
        if usize::from(record.captured) > record.packet.len() {
            return Err(DecodeError::Captured(record.captured));
        }
        Ok(Self { record, stack })
    }

    pub fn site(&self) -> Site {
        self.record.site
    }

    pub fn is_new_site(&self) -> bool {
        self.record.flags & flag::NEW_SITE != 0
    }

    /// Everything the record tells; `suppressed` and the subject are for others to add.
    pub fn observe(&self, names: &impl Names) -> Observation {
        let record = &self.record;
        let headers = self.headers();
        let reason = names.reason(record.site.reason);
        let direction = direction(record, &reason, names);
        let stack = stack(&self.stack, record.site.location, names);
        let sender = direction == Direction::Egress && runs_in_sender(&stack);
        let location = names.symbol(record.site.location);
        Observation {
            ktime_ns: record.head.ktime_ns,
            probe: super::SPEC.name,
            kind: super::PACKETLOSS,
            netns: (record.head.netns != 0).then_some(NetnsKey {
                inode: record.head.netns,
                cookie: record.head.cookie,
            }),
            of_socket: false,
            ifindex: if record.ifindex != 0 {
                record.ifindex
            } else {
                record.iif
            },
            interface: text(&record.device),
            protocol: protocol(&headers),
            saddr: headers.saddr,
            sport: headers.sport,
            daddr: headers.daddr,
            dport: headers.dport,
            direction,
            latency_ns: None,
            cpu: Some(record.head.cpu),
            pid: (sender && record.head.tgid != 0).then_some(record.head.tgid),
            comm: if sender { text(&record.comm) } else { None },
            state: None,
            suppressed: 0,
            attributes: attributes(record, &headers, &stack, location),
            reason: Some(reason),
            stack,
        }
    }

    fn headers(&self) -> Headers {
        let record = &self.record;
        let bytes = &record.packet[..usize::from(record.captured)];
        let ethertype = u16::from_be(record.protocol);
        // Tags in the packet begin behind the addresses of its frame, wherever the network header is marked.
        if headers::VLAN.contains(&ethertype) {
            let tags = record.mac_header.checked_add(headers::ETHERNET_HEADER as u16);
            let there = if tags == Some(record.start) { bytes } else { &[] };
            return headers::parse(ethertype, there);
        }
        if record.start == record.network_header {
            return headers::parse(ethertype, bytes);
        }
        if record.start == record.mac_header {
            return headers::parse_frame(bytes);
        }
        // No header is marked; what a packet begins with shows by its version alone.
        headers::parse(ethertype, bytes)
    }
}

/// From where to where. `skb_iif` is the device the packet came in by, 0 for packets made here.
fn direction(record: &Record, reason: &str, names: &impl Names) -> Direction {
    const RECEIVER: u16 = 1;
    const DEVICE: u16 = 2;
    let from = record.flags >> flag::FROM_SHIFT & 7;
    let no_device = record.flags & flag::NO_DEVICE != 0;
    match (record.iif, record.ifindex) {
        _ if from == RECEIVER => Direction::Ingress,
        // A receiving CPU's queue was full: the packet has just left a device and carries no mark of it yet.
        _ if reason == "CPU_BACKLOG" => Direction::Ingress,
        (0, _) if no_device || from == DEVICE => Direction::Egress,
        // `skb->dev` was something else than a device.
        (0, _) => Direction::Unknown,
        (_, 0) => Direction::Ingress,
        // A forwarded packet stays on the device that it came by until it is handed to the next.
        (iif, ifindex) if iif == ifindex && !is_forwarded(record, names) => Direction::Ingress,
        _ => Direction::Forward,
    }
}

fn is_forwarded(record: &Record, names: &impl Names) -> bool {
    record.route_input != 0
        && matches!(
            function(&names.symbol(record.route_input)),
            "ip_forward" | "ip6_forward" | "ip_mr_input" | "ip6_mr_input"
        )
}

pub(crate) fn protocol(headers: &Headers) -> Option<Arc<str>> {
    let name = match (headers.ethertype, headers.protocol) {
        (_, Some(headers::TCP)) => "TCP",
        (_, Some(headers::UDP)) => "UDP",
        (_, Some(headers::ICMP)) => "ICMP",
        (_, Some(headers::ICMPV6)) => "ICMPv6",
        (headers::IPV4 | headers::IPV6, _) => "IP",
        (headers::ARP, _) => "ARP",
        // 0: not known. Below 0x600 it is no EtherType but a length, or a mark that the kernel makes of one.
        (0..0x600, _) => return None,
        (other, _) => return Some(format!("0x{other:04x}").into()),
    };
    Some(name.into())
}

fn attributes(
    record: &Record,
    headers: &Headers,
    stack: &[Arc<str>],
    location: Arc<str>,
) -> Vec<(&'static str, Arc<str>)> {
    let mut out = vec![("location", location), ("length", record.len.to_string().into())];
    let mut put = |name, value: Option<String>| out.extend(value.map(|value| (name, value.into())));
    put("segments", (record.segments > 1).then(|| record.segments.to_string()));
    put("hook", hook(stack).map(str::to_owned));
    put("tcp_flags", headers.tcp_flags.map(headers::tcp_flags));
    put("icmp_type", headers.icmp.map(|(kind, _)| kind.to_string()));
    put("icmp_code", headers.icmp.map(|(_, code)| code.to_string()));
    let named = [headers::TCP, headers::UDP, headers::ICMP, headers::ICMPV6];
    put(
        "ip_protocol",
        headers.protocol.filter(|p| !named.contains(p)).map(|p| p.to_string()),
    );
    put("ttl", headers.ttl.map(|ttl| ttl.to_string()));
    put("fragment", headers.later_fragment.then(|| "later".to_owned()));
    put("vlan", headers.vlan.map(|vlan| vlan.to_string()));
    out
}

/// From the function that dropped the packet on. The frames before it are the tracepoint's own.
fn stack(addresses: &[u64], location: u64, names: &impl Names) -> Vec<Arc<str>> {
    let frames: Vec<Arc<str>> = addresses.iter().map(|address| names.symbol(*address)).collect();
    let first = addresses
        .iter()
        .position(|address| *address == location)
        // The compiler may have made a tail call of the function's last act: then its frame is not there.
        .unwrap_or_else(|| tracing_frames(&frames));
    frames[first..].to_vec()
}

/// The name of a frame without its offset, and without what the compiler adds (`do_softirq.part.0`).
fn function(frame: &str) -> &str {
    frame.split(['+', '.']).next().unwrap_or(frame)
}

/// Whether the running task is the one whose packet this is: it is in a call that sends, and no softirq lies between,
/// in which anybody's packets are worked on.
fn runs_in_sender(stack: &[Arc<str>]) -> bool {
    let mut sends = false;
    for frame in stack {
        let name = function(frame);
        if SOFTIRQ.contains(&name) {
            return false;
        }
        sends |= SENDS.contains(&name);
    }
    sends
}

const SOFTIRQ: [&str; 7] = [
    "do_softirq",
    "__do_softirq",
    "handle_softirqs",
    "do_softirq_own_stack",
    "__local_bh_enable_ip",
    "irq_exit_rcu",
    "net_rx_action",
];

const SENDS: [&str; 18] = [
    "__sys_sendto",
    "__sys_sendmsg",
    "___sys_sendmsg",
    "____sys_sendmsg",
    "__sys_sendmmsg",
    "__x64_sys_sendto",
    "__x64_sys_sendmsg",
    "__arm64_sys_sendto",
    "__arm64_sys_sendmsg",
    "__sys_connect",
    "__x64_sys_connect",
    "__arm64_sys_connect",
    "sock_sendmsg",
    "__sock_sendmsg",
    "sock_write_iter",
    "sock_sendpage",
    "splice_to_socket",
    "io_send",
];

/// Where in its way through the stack a netfilter rule caught the packet.
fn hook(stack: &[Arc<str>]) -> Option<&'static str> {
    let at = stack
        .iter()
        .position(|frame| matches!(function(frame), "nf_hook_slow" | "nf_hook_slow_list"))?;
    let caller = stack.get(at + 1)?;
    Some(match function(caller) {
        "ip_rcv" | "ipv6_rcv" | "ip_sublist_rcv" | "ip6_sublist_rcv" | "nf_hook" => "prerouting",
        "ip_local_deliver" | "ip6_input" => "input",
        "ip_forward" | "ip6_forward" => "forward",
        // A bridge that hands its packets to the hooks of IP (br_netfilter).
        "br_nf_pre_routing" | "br_nf_pre_routing_ipv6" => "prerouting",
        "br_nf_forward_ip" | "br_nf_forward" => "forward",
        "br_nf_post_routing" => "postrouting",
        "__ip_local_out" | "__ip6_local_out" | "ip6_xmit" | "rawv6_send_hdrinc" | "raw_send_hdrinc" => "output",
        "ip_output" | "ip6_output" | "ip_mc_output" => "postrouting",
        "__netif_receive_skb_core" => "ingress",
        "__dev_queue_xmit" => "egress",
        _ => return None,
    })
}

/// Up to the first NUL; what is no text is shown as best it can.
fn text(bytes: &[u8]) -> Option<Arc<str>> {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    (end > 0).then(|| String::from_utf8_lossy(&bytes[..end]).into())
}
