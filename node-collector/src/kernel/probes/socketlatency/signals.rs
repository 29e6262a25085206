//! The ways to both signals.

use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use sonde_ebpf_common::limit;

use super::SPEC;
use crate::kernel::plan::{Attach, Bucket, Hook, Rung, Signal, Step};

const HELD: &str = "events beyond events.rate";

pub(super) const READ: Signal = Signal {
    name: "socketlatency.read",
    probe: SPEC.name,
    rows: true,
    buckets: &[Bucket {
        position: limit::SOCKETLAT_READSLOW,
        held: HELD,
    }],
    steps: &[
        Step {
            needs: READY,
            ..Step::new(
                Rung::TpBtf,
                &[
                    Hook("socklat_forget_btf", Attach::TpBtf("tcp_destroy_sock")),
                    Hook("socklat_taken_btf", Attach::TpBtf("tcp_rcv_space_adjust")),
                    Hook("socklat_received_btf", Attach::TpBtf("sock_recv_length")),
                    Hook("socklat_ready_btf", Attach::TpBtf("sk_data_ready")),
                ],
            )
        },
        Step {
            needs: READY,
            ..Step::new(
                Rung::RawTracepoint,
                &[
                    Hook("socklat_forget_raw", Attach::RawTracepoint("tcp_destroy_sock")),
                    Hook("socklat_taken_raw", Attach::RawTracepoint("tcp_rcv_space_adjust")),
                    Hook("socklat_received_raw", Attach::RawTracepoint("sock_recv_length")),
                    Hook("socklat_ready_raw", Attach::RawTracepoint("sk_data_ready")),
                ],
            )
        },
        // Below 6.3: TCP alone, by the segments of established connections.
        Step {
            needs: SEGMENT,
            ..Step::new(
                Rung::TpBtf,
                &[
                    Hook("socklat_forget_btf", Attach::TpBtf("tcp_destroy_sock")),
                    Hook("socklat_taken_btf", Attach::TpBtf("tcp_rcv_space_adjust")),
                    Hook("socklat_segment_btf", Attach::TpBtf("tcp_probe")),
                ],
            )
        },
        Step {
            needs: SEGMENT,
            ..Step::new(
                Rung::RawTracepoint,
                &[
                    Hook("socklat_forget_raw", Attach::RawTracepoint("tcp_destroy_sock")),
                    Hook("socklat_taken_raw", Attach::RawTracepoint("tcp_rcv_space_adjust")),
                    Hook("socklat_segment_raw", Attach::RawTracepoint("tcp_probe")),
                ],
            )
        },
    ],
    needs: &[
        "SPACE_ADJUST_SK",
        "DESTROY_SOCK_SK",
        "SOCK_FAMILY",
        "SOCK_STATE",
        "SOCK_FLAGS",
        "SOCK_PORT",
        "SOCK_PEER_PORT",
        "SOCK_ADDRESS",
        "SOCK_PEER_ADDRESS",
        "SOCK_NET",
        "NET_INODE",
        "TCP_RCV_NXT",
        "TCP_COPIED",
    ],
    missed: "reads whose time was not counted",
    provoke: Some(send_and_receive),
    ..Signal::PLAIN
};

const READY: &[&str] = &[
    "DATA_READY_SK",
    "RECV_LENGTH_SK",
    "RECV_LENGTH_RET",
    "RECV_LENGTH_FLAGS",
    "SOCK_PROTOCOL",
    "SOCK_QUEUED",
];

const SEGMENT: &[&str] = &[
    "TCP_PROBE_SK",
    "TCP_PROBE_SKB",
    "SKB_CB",
    "SKB_LEN",
    "SKB_DATA",
    "TCP_CB_SEQ",
];

pub(super) const SEND: Signal = Signal {
    name: "socketlatency.send",
    probe: SPEC.name,
    rows: true,
    buckets: &[Bucket {
        position: limit::SOCKETLAT_SENDSLOW,
        held: HELD,
    }],
    steps: &[
        Step {
            needs: LENGTH,
            ..Step::new(
                Rung::TpBtf,
                &[
                    Hook("socklat_unsent_btf", Attach::TpBtf("tcp_destroy_sock")),
                    Hook("socklat_lost_btf", Attach::TpBtf("kfree_skb")),
                    Hook("socklat_out_btf", Attach::TpBtf("net_dev_queue")),
                    Hook("socklat_held_btf", Attach::TpBtf("neigh_event_send_done")),
                    Hook("socklat_sent_btf", Attach::TpBtf("sock_send_length")),
                ],
            )
        },
        Step {
            needs: LENGTH,
            ..Step::new(
                Rung::RawTracepoint,
                &[
                    Hook("socklat_unsent_raw", Attach::RawTracepoint("tcp_destroy_sock")),
                    Hook("socklat_lost_raw", Attach::RawTracepoint("kfree_skb")),
                    Hook("socklat_out_raw", Attach::RawTracepoint("net_dev_queue")),
                    Hook("socklat_held_raw", Attach::RawTracepoint("neigh_event_send_done")),
                    Hook("socklat_sent_raw", Attach::RawTracepoint("sock_send_length")),
                ],
            )
        },
        // Below 6.3: TCP alone.
        Step {
            needs: &["SENDMSG_SK"],
            ..Step::new(
                Rung::Fentry,
                &[
                    Hook("socklat_unsent_btf", Attach::TpBtf("tcp_destroy_sock")),
                    Hook("socklat_out_btf", Attach::TpBtf("net_dev_queue")),
                    Hook("socklat_sent_fexit", Attach::Fexit(&["tcp_sendmsg_locked"])),
                ],
            )
        },
        Step::new(
            Rung::Kprobe,
            &[
                Hook("socklat_unsent_raw", Attach::RawTracepoint("tcp_destroy_sock")),
                Hook("socklat_out_raw", Attach::RawTracepoint("net_dev_queue")),
                Hook("socklat_sent_kprobe", Attach::Kretprobe(&["tcp_sendmsg_locked"])),
                Hook("socklat_call_kprobe", Attach::Kprobe(&["tcp_sendmsg_locked"])),
            ],
        ),
    ],
    needs: &[
        "DESTROY_SOCK_SK",
        "NET_DEV_QUEUE_SKB",
        "SKB_SK",
        "SKB_HEAD",
        "SKB_DATA",
        "SKB_LEN",
        "SKB_TRANSPORT_HEADER",
        "SOCK_FAMILY",
        "SOCK_PROTOCOL",
        "SOCK_PORT",
        "SOCK_PEER_PORT",
        "SOCK_ADDRESS",
        "SOCK_PEER_ADDRESS",
        "SOCK_NET",
        "NET_INODE",
        "TCP_WRITE_SEQ",
        "TCP_SND_NXT",
    ],
    missed: "sends whose time was not counted",
    provoke: Some(send_and_receive),
    ..Signal::PLAIN
};

const LENGTH: &[&str] = &[
    "SEND_LENGTH_SK",
    "SEND_LENGTH_RET",
    "NEIGHBOUR_SEND_NEIGH",
    "NEIGHBOUR_SEND_ERR",
    "NEIGHBOUR_QUEUED",
    "NEIGHBOUR_LAST",
    "KFREE_SKB_SKB",
];

fn send_and_receive() -> io::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let mut client = TcpStream::connect(listener.local_addr()?)?;
    let (mut server, _) = listener.accept()?;
    // A connection's first segment is taken up by other ways than the following ones.
    for _ in 0..2 {
        client.write_all(b"sonde")?;
        server.read_exact(&mut [0; 5])?;
        server.write_all(b"sonde")?;
        client.read_exact(&mut [0; 5])?;
    }
    Ok(())
}
