//! Counters of RDMA devices, under the names that their drivers have for them, and what is made of a device.
//!
//! A device's type is its name up to the first `_`. A counter is told where KubeSkoop knows it for that type.

use super::entry::{Entry, Labels, Rows};

pub(super) fn entries() -> impl Iterator<Item = Entry> {
    RESOURCES.iter().chain(MLX5).chain(ERDMA).copied()
}

const PORT: Labels = Labels::Rdma { port: true };
const DEVICE: Labels = Labels::Rdma { port: false };

macro_rules! counters {
    ($driver:literal: $($name:literal),* $(,)?) => {
        &[$(Entry::counter(
            concat!("kubeskoop_rdma_", $driver, "_", $name),
            "rdma",
            &["value"],
            concat!("Counter ", $name, " of an RDMA port of driver ", $driver),
        )
        .rows(Rows::Of("counter", &[$name]))
        .labels(PORT)
        .of_driver($driver)
        .of_node()),*]
    };
}

macro_rules! resources {
    ($($name:literal: $help:literal),* $(,)?) => {
        &[$(Entry::gauge(concat!("kubeskoop_rdma_", $name), "rdma_resources", &["value"], $help)
            .rows(Rows::Of("resource", &[$name]))
            .labels(DEVICE)
            .of_node()),*]
    };
}

const RESOURCES: &[Entry] = resources! {
    "cm_id": "Connection identifiers of an RDMA device",
    "cq": "Completion queues of an RDMA device",
    "ctx": "Contexts of an RDMA device",
    "mr": "Memory regions of an RDMA device",
    "pd": "Protection domains of an RDMA device",
    "qp": "Queue pairs of an RDMA device",
    "srq": "Shared receive queues of an RDMA device",
};

#[rustfmt::skip]
const MLX5: &[Entry] = counters! {
    "mlx5":
    "port_rcv_data",
    "port_rcv_packets",
    "multicast_rcv_packets",
    "unicast_rcv_packets",
    "port_xmit_data",
    "port_xmit_packets",
    "port_xmit_packets_64",
    "port_rcv_switch_relay_errors",
    "port_rcv_errors",
    "port_rcv_constraint_errors",
    "local_link_integrity_errors",
    "port_xmit_wait",
    "multicast_xmit_packets",
    "unicast_xmit_packets",
    "port_xmit_discards",
    "port_xmit_constraint_errors",
    "port_rcv_remote_physical_errors",
    "symbol_error",
    "VL15_dropped",
    "link_error_recovery",
    "link_downed",
    "rx_write_requests",
    "rx_read_requests",
    "rx_atomic_requests",
    "out_of_buffer",
    "out_of_sequence",
    "duplicate_request",
    "rnr_nak_retry_err",
    "packet_seq_err",
    "implied_nak_seq_err",
    "local_ack_timeout_err",
    "rx_dct_connect",
    "resp_local_length_error",
    "resp_cqe_error",
    "req_cqe_error",
    "req_remote_invalid_request",
    "req_remote_access_errors",
    "resp_remote_access_errors",
    "resp_cqe_flush_error",
    "req_cqe_flush_error",
    "roce_adp_retrans",
    "roce_adp_retrans_to",
    "roce_slow_restart",
    "roce_slow_restart_cnps",
    "roce_slow_restart_trans",
    "rp_cnp_ignored",
    "rp_cnp_handled",
    "np_ecn_marked_roce_packets",
    "np_cnp_sent",
    "rx_icrc_encapsulated",
};

#[rustfmt::skip]
const ERDMA: &[Entry] = counters! {
    "erdma":
    "accept_failed_cnt",
    "accept_success_cnt",
    "accept_total_cnt",
    "cmdq_comp_cnt",
    "cmdq_cq_armed_cnt",
    "cmdq_eq_event_cnt",
    "cmdq_eq_notify_cnt",
    "cmdq_submitted_cnt",
    "connect_failed_cnt",
    "connect_reset_cnt",
    "connect_success_cnt",
    "connect_timeout_cnt",
    "connect_total_cnt",
    "erdma_aeq_event_cnt",
    "erdma_aeq_notify_cnt",
    "hw_bps_limit_drop_cnt",
    "hw_disable_drop_cnt",
    "hw_pps_limit_drop_cnt",
    "hw_rx_bps_limit_drop_cnt",
    "hw_rx_bytes_cnt",
    "hw_rx_disable_drop_cnt",
    "hw_rx_packets_cnt",
    "hw_rx_pps_limit_drop_cnt",
    "hw_tx_bytes_cnt",
    "hw_tx_packets_cnt",
    "hw_tx_reqs_cnt",
    "listen_create_cnt",
    "listen_destroy_cnt",
    "listen_failed_cnt",
    "listen_ipv6_cnt",
    "listen_success_cnt",
    "reject_cnt",
    "reject_failed_cnt",
    "verbs_alloc_mr_cnt",
    "verbs_alloc_mr_failed_cnt",
    "verbs_alloc_pd_cnt",
    "verbs_alloc_pd_failed_cnt",
    "verbs_alloc_uctx_cnt",
    "verbs_alloc_uctx_failed_cnt",
    "verbs_create_cq_cnt",
    "verbs_create_cq_failed_cnt",
    "verbs_create_qp_cnt",
    "verbs_create_qp_failed_cnt",
    "verbs_destroy_cq_cnt",
    "verbs_destroy_cq_failed_cnt",
    "verbs_destroy_qp_cnt",
    "verbs_destroy_qp_failed_cnt",
    "verbs_dealloc_pd_cnt",
    "verbs_dealloc_uctx_cnt",
    "verbs_dereg_mr_cnt",
    "verbs_dereg_mr_failed_cnt",
    "verbs_get_dma_mr_cnt",
    "verbs_get_dma_mr_failed_cnt",
    "verbs_reg_usr_mr_cnt",
    "verbs_reg_usr_mr_failed_cnt",
};
