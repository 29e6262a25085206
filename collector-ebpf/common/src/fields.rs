//! Kernel fields and tracepoint arguments that programs read, each declared once.
//!
//! A field is a `static` in the object's `.rodata` under its name here. Before loading, the collector finds the member
//! in the running kernel's BTF and writes the place there; [`Field::ABSENT`] where the kernel has no such member. The
//! verifier knows the value as a constant: a program's branch for a kernel of another shape is never looked at.

/// Where a member lies in its struct.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Field {
    /// Bytes from the start of the struct to the word that holds the member.
    pub offset: u32,
    /// Of a bit field within that word, from its least significant bit.
    pub shift: u8,
    /// Bits of a bit field; 0: the member is a whole word.
    pub width: u8,
    pub pad: u16,
}

impl Field {
    pub const ABSENT: Self = Self {
        offset: u32::MAX,
        shift: 0,
        width: 0,
        pad: 0,
    };

    pub const fn at(offset: u32) -> Self {
        Self {
            offset,
            shift: 0,
            width: 0,
            pad: 0,
        }
    }
}

/// An argument that this kernel's tracepoint or function does not have. Else its number, counted from 0.
pub const NO_ARGUMENT: u32 = u32::MAX;

/// Hands every field to a macro as `NAME: type = "struct" ["path", "path on other kernels", ...];`. A path goes
/// through named members with dots, through anonymous structs and unions by itself.
#[macro_export]
macro_rules! for_each_field {
    ($callback:ident) => {
        $callback! {
            SKB_DEV: u64 = "sk_buff" ["dev"];
            SKB_SK: u64 = "sk_buff" ["sk"];
            SKB_DST: u64 = "sk_buff" ["_skb_refdst"];
            SKB_LEN: u32 = "sk_buff" ["len"];
            SKB_DATA_LEN: u32 = "sk_buff" ["data_len"];
            SKB_IIF: u32 = "sk_buff" ["skb_iif"];
            SKB_PROTOCOL: u16 = "sk_buff" ["protocol"];
            SKB_PKT_TYPE: u8 = "sk_buff" ["pkt_type"];
            SKB_MAC_HEADER: u16 = "sk_buff" ["mac_header"];
            SKB_NETWORK_HEADER: u16 = "sk_buff" ["network_header"];
            SKB_TRANSPORT_HEADER: u16 = "sk_buff" ["transport_header"];
            SKB_HEAD: u64 = "sk_buff" ["head"];
            SKB_DATA: u64 = "sk_buff" ["data"];
            SKB_TAIL: u32 = "sk_buff" ["tail"];
            SKB_END: u32 = "sk_buff" ["end"];
            SKB_TSTAMP: u64 = "sk_buff" ["tstamp"];
            SKB_TSTAMP_TYPE: u8 = "sk_buff" ["tstamp_type", "mono_delivery_time"];
            SKB_ENCAPSULATION: u8 = "sk_buff" ["encapsulation"];
            SKB_INNER_TRANSPORT: u16 = "sk_buff" ["inner_transport_header"];
            SHARED_GSO_SIZE: u16 = "skb_shared_info" ["gso_size"];
            SHARED_GSO_TYPE: u32 = "skb_shared_info" ["gso_type"];
            SKB_TRUESIZE: u32 = "sk_buff" ["truesize"];
            SOCK_PROTOCOL: u16 = "sock" ["sk_protocol"];
            SHARED_GSO_SEGS: u16 = "skb_shared_info" ["gso_segs"];
            DEV_NET: u64 = "net_device" ["nd_net.net"];
            DEV_IFINDEX: u32 = "net_device" ["ifindex"];
            DEV_NAME: [u8; 16] = "net_device" ["name"];
            DST_DEV: u64 = "dst_entry" ["dev"];
            DST_INPUT: u64 = "dst_entry" ["input"];
            SKB_CB: [u8; 48] = "sk_buff" ["cb"];
            TCP_CB_SEGMENTS: u16 = "tcp_skb_cb" ["tcp_gso_segs"];
            TCP_CB_SEQ: u32 = "tcp_skb_cb" ["seq"];
            SOCK_DST: u64 = "sock" ["sk_dst_cache"];
            SOCK_NET: u64 = "sock" ["__sk_common.skc_net.net"];
            SOCK_FAMILY: u16 = "sock" ["__sk_common.skc_family"];
            SOCK_STATE: u8 = "sock" ["__sk_common.skc_state"];
            SOCK_PORT: u16 = "sock" ["__sk_common.skc_num"];
            SOCK_PEER_PORT: u16 = "sock" ["__sk_common.skc_dport"];
            SOCK_ADDRESS: u32 = "sock" ["__sk_common.skc_rcv_saddr"];
            SOCK_PEER_ADDRESS: u32 = "sock" ["__sk_common.skc_daddr"];
            SOCK_ADDRESS6: [u8; 16] = "sock" ["__sk_common.skc_v6_rcv_saddr"];
            SOCK_PEER_ADDRESS6: [u8; 16] = "sock" ["__sk_common.skc_v6_daddr"];
            SOCK_SHUTDOWN: u8 = "sock" ["sk_shutdown"];
            SOCK_ERROR: u32 = "sock" ["sk_err"];
            SOCK_SOFT_ERROR: u32 = "sock" ["sk_err_soft"];
            SOCK_FLAGS: u64 = "sock" ["__sk_common.skc_flags"];
            SOCK_OWNED: u32 = "sock" ["sk_lock.owned"];
            SOCK_QUEUED: u32 = "sock" ["sk_receive_queue.qlen"];
            UDP_QUEUED: u32 = "udp_sock" ["reader_queue.qlen"];
            UDP_PENDING: u32 = "udp_sock" ["pending"];
            NEIGHBOUR_QUEUED: u32 = "neighbour" ["arp_queue.qlen"];
            NEIGHBOUR_LAST: u64 = "neighbour" ["arp_queue.prev"];
            TCP_RCV_NXT: u32 = "tcp_sock" ["rcv_nxt"];
            TCP_COPIED: u32 = "tcp_sock" ["copied_seq"];
            TCP_WRITE_SEQ: u32 = "tcp_sock" ["write_seq"];
            TCP_SND_NXT: u32 = "tcp_sock" ["snd_nxt"];
            TCP_CHRONO: u8 = "tcp_sock" ["chrono_type"];
            TCP_CHRONO_START: u32 = "tcp_sock" ["chrono_start"];
            TCP_CHRONO_STATS: [u32; 3] = "tcp_sock" ["chrono_stat"];
            INET_PORT: u16 = "inet_sock" ["inet_sport"];
            ICSK_CA_STATE: u8 = "inet_connection_sock" ["icsk_ca_state"];
            ICSK_PENDING: u8 = "inet_connection_sock" ["icsk_pending"];
            NET_INODE: u32 = "net" ["ns.inum"];
            NET_COOKIE: u64 = "net" ["net_cookie", "net_cookie.counter"];
        }
    };
}

/// Hands every argument that programs read to a macro as `NAME: "tracepoint" "argument" "type";`, those of functions as
/// `NAME: "function()" "argument" "type";`. The name finds it where the kernel's BTF has names, else the type.
#[macro_export]
macro_rules! for_each_argument {
    ($callback:ident) => {
        $callback! {
            KFREE_SKB_SKB: "kfree_skb" "skb" "*sk_buff";
            KFREE_SKB_LOCATION: "kfree_skb" "location" "*void";
            KFREE_SKB_REASON: "kfree_skb" "reason" "skb_drop_reason";
            KFREE_SKB_RX_SK: "kfree_skb" "rx_sk" "*sock";
            RETRANSMIT_SKB_SK: "tcp_retransmit_skb" "sk" "*sock";
            RETRANSMIT_SKB_SKB: "tcp_retransmit_skb" "skb" "*sk_buff";
            RETRANSMIT_SKB_ERR: "tcp_retransmit_skb" "err" "int";
            RETRANSMIT_SYNACK_REQ: "tcp_retransmit_synack" "req" "*request_sock";
            SEND_RESET_SK: "tcp_send_reset" "sk" "*sock";
            SEND_RESET_SKB: "tcp_send_reset" "skb" "*sk_buff";
            SEND_RESET_REASON: "tcp_send_reset" "reason" "sk_rst_reason";
            V4_SEND_RESET_SK: "tcp_v4_send_reset()" "sk" "*sock";
            V4_SEND_RESET_SKB: "tcp_v4_send_reset()" "skb" "*sk_buff";
            V6_SEND_RESET_SK: "tcp_v6_send_reset()" "sk" "*sock";
            V6_SEND_RESET_SKB: "tcp_v6_send_reset()" "skb" "*sk_buff";
            RECEIVE_RESET_SK: "tcp_receive_reset" "sk" "*sock";
            SET_STATE_SK: "inet_sock_set_state" "sk" "*sock";
            SET_STATE_OLD: "inet_sock_set_state" "oldstate" "int";
            SET_STATE_NEW: "inet_sock_set_state" "newstate" "int";
            SOFTIRQ_RAISE_VECTOR: "softirq_raise" "vec_nr" "unsigned int";
            SOFTIRQ_ENTRY_VECTOR: "softirq_entry" "vec_nr" "unsigned int";
            SOFTIRQ_EXIT_VECTOR: "softirq_exit" "vec_nr" "unsigned int";
            DATA_READY_SK: "sk_data_ready" "sk" "*sock";
            SPACE_ADJUST_SK: "tcp_rcv_space_adjust" "sk" "*sock";
            RECV_LENGTH_SK: "sock_recv_length" "sk" "*sock";
            RECV_LENGTH_RET: "sock_recv_length" "ret" "int";
            RECV_LENGTH_FLAGS: "sock_recv_length" "flags" "int";
            SEND_LENGTH_SK: "sock_send_length" "sk" "*sock";
            SEND_LENGTH_RET: "sock_send_length" "ret" "int";
            DESTROY_SOCK_SK: "tcp_destroy_sock" "sk" "*sock";
            TCP_PROBE_SK: "tcp_probe" "sk" "*sock";
            TCP_PROBE_SKB: "tcp_probe" "skb" "*sk_buff";
            NET_DEV_QUEUE_SKB: "net_dev_queue" "skb" "*sk_buff";
            NEIGHBOUR_SEND_NEIGH: "neigh_event_send_done" "neigh" "*neighbour";
            NEIGHBOUR_SEND_ERR: "neigh_event_send_done" "err" "int";
            SENDMSG_SK: "tcp_sendmsg_locked()" "sk" "*sock";
            START_XMIT_SKB: "net_dev_start_xmit" "skb" "*sk_buff";
            START_XMIT_DEV: "net_dev_start_xmit" "dev" "*net_device";
            NET_DEV_XMIT_SKB: "net_dev_xmit" "skb" "*sk_buff";
            NET_DEV_XMIT_DEV: "net_dev_xmit" "dev" "*net_device";
            NETIF_RX_SKB: "netif_rx" "skb" "*sk_buff";
            RECEIVE_SKB: "netif_receive_skb" "skb" "*sk_buff";
            IP_RCV_CORE_SKB: "ip_rcv_core()" "skb" "*sk_buff";
            IP6_RCV_CORE_SKB: "ip6_rcv_core()" "skb" "*sk_buff";
            IP_DELIVER_SKB: "ip_local_deliver_finish()" "skb" "*sk_buff";
            IP6_DELIVER_SKB: "ip6_protocol_deliver_rcu()" "skb" "*sk_buff";
            IP_LOCAL_OUT_SKB: "__ip_local_out()" "skb" "*sk_buff";
            IP6_LOCAL_OUT_SKB: "__ip6_local_out()" "skb" "*sk_buff";
            IP6_XMIT_SKB: "ip6_xmit()" "skb" "*sk_buff";
            HOOK_SLOW_SKB: "nf_hook_slow()" "skb" "*sk_buff";
            UDP_ENQUEUE_SK: "__udp_enqueue_schedule_skb()" "sk" "*sock";
            UDP_ENQUEUE_SKB: "__udp_enqueue_schedule_skb()" "skb" "*sk_buff";
        }
    };
}

/// A field as the collector looks for it.
#[derive(Clone, Copy, Debug)]
pub struct FieldDecl {
    /// Name of the `static`.
    pub symbol: &'static str,
    pub structure: &'static str,
    pub paths: &'static [&'static str],
    /// Bytes of the type the program reads.
    pub size: u32,
}

/// An argument as the collector looks for it.
#[derive(Clone, Copy, Debug)]
pub struct ArgumentDecl {
    pub symbol: &'static str,
    /// Name of a tracepoint, or of a function with `()` behind it.
    pub of: &'static str,
    pub name: &'static str,
    /// Name of the struct behind a pointer (`*sock`), `*void`, or of an enum.
    pub type_name: &'static str,
}

macro_rules! field_table {
    ($($name:ident: $type:ty = $structure:literal [$($path:literal),+];)*) => {
        pub const FIELDS: &[FieldDecl] = &[$(FieldDecl {
            symbol: stringify!($name),
            structure: $structure,
            paths: &[$($path),+],
            size: size_of::<$type>() as u32,
        }),*];
    };
}
for_each_field!(field_table);

macro_rules! argument_table {
    ($($name:ident: $of:literal $argument:literal $type:literal;)*) => {
        pub const ARGUMENTS: &[ArgumentDecl] = &[$(ArgumentDecl {
            symbol: stringify!($name),
            of: $of,
            name: $argument,
            type_name: $type,
        }),*];
    };
}
for_each_argument!(argument_table);
