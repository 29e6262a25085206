//! What TCP did beyond the ordinary: group `TcpExt` of `/proc/net/netstat`. A counter that the running kernel does not
//! have is absent, never 0.

use std::sync::Arc;

use super::{Probe, Registration, columns};
use crate::catalogue::ProbeSpec;
use crate::event::Subject;
use crate::handles::Readings;
use crate::procfs::pairs::Group;
use crate::procfs::{NetFile, ReadError};
use crate::table::Table;

pub(super) const PROBE: Registration = Registration {
    spec: &SPEC,
    files: &[NetFile::Netstat],
    netlink: &[],
    node_only: false,
    make: || Box::new(TcpExt(Group::new("TcpExt:", NAMES))),
};

static SPEC: ProbeSpec = ProbeSpec {
    name: "tcpext",
    help: "Losses, time-outs, resets and other unusual turns of TCP, from group TcpExt of /proc/net/netstat",
    source: "/proc/net/netstat, group TcpExt (Linux net/ipv4/proc.c, netstat_seq_show)",
    labels: &[],
    columns: COLUMNS,
    event_types: &[],
};

columns! {
    // Connections that could not begin
    "ListenOverflows" => counter "listen_overflows" "connections": "Connections refused because a listening socket's accept queue was full";
    "ListenDrops" => counter "listen_drops" "connections": "Connection requests that listening sockets dropped, for whatever reason";
    "TCPReqQFullDrop" => counter "request_queue_full_drops" "connections": "SYNs dropped because the queue of half-open connections was full";
    "TCPReqQFullDoCookies" => counter "request_queue_full_cookies" "connections": "SYNs answered with a cookie because the queue of half-open connections was full";
    "SyncookiesSent" => counter "syncookies_sent" "segments": "SYN cookies sent";
    "SyncookiesRecv" => counter "syncookies_received" "segments": "Valid SYN cookies that came back";
    "SyncookiesFailed" => counter "syncookies_failed" "segments": "Invalid SYN cookies that came back";
    "EmbryonicRsts" => counter "embryonic_resets" "connections": "Half-open connections ended by a reset";
    "TCPDeferAcceptDrop" => counter "defer_accept_drops" "segments": "Bare ACKs of handshakes ignored by TCP_DEFER_ACCEPT";
    "TCPFastOpenListenOverflow" => counter "fast_open_listen_overflows" "connections": "Fast open requests refused because the queue was full";
    "TCPFastOpenActiveFail" => counter "fast_open_active_fails" "connections": "Fast open attempts of this side that failed";
    "TCPFastOpenPassiveFail" => counter "fast_open_passive_fails" "connections": "Fast open attempts of the other side that failed";
    "TCPFastOpenBlackhole" => counter "fast_open_blackholes" "": "Times that fast open was switched off because something on the way swallows it";
    "TCPMigrateReqFailure" => counter "migrate_request_failures" "connections": "Half-open connections that could not move to another listening socket (Linux 5.14)";

    // Lost and repeated
    "TCPSynRetrans" => counter "syn_retransmits" "segments": "SYN and SYN-ACK sent again";
    "TCPFastRetrans" => counter "fast_retransmits" "segments": "Segments sent again on duplicate acknowledgements";
    "TCPSlowStartRetrans" => counter "slow_start_retransmits" "segments": "Segments sent again in slow start after a time-out";
    "TCPRetransFail" => counter "retransmit_failures" "segments": "Segments that could not be sent again";
    "TCPLostRetransmit" => counter "lost_retransmits" "segments": "Segments sent again and lost again";
    "TCPTimeouts" => counter "timeouts" "": "Retransmission time-outs";
    "TCPSpuriousRTOs" => counter "spurious_timeouts" "": "Retransmission time-outs that proved needless";
    "TCPSpuriousRtxHostQueues" => counter "spurious_retransmits_in_host" "segments": "Retransmits skipped because the first one still waits on this host";
    "TCPLossProbes" => counter "loss_probes" "segments": "Tail loss probes sent";
    "TCPLossProbeRecovery" => counter "loss_probe_recoveries" "": "Losses repaired by a tail loss probe";
    "TCPRenoRecovery" => counter "reno_recoveries" "": "Times that fast recovery began without selective acknowledgements";
    "TCPSackRecovery" => counter "sack_recoveries" "": "Times that fast recovery began with selective acknowledgements";
    "TCPSackFailures" => counter "sack_failures" "": "Time-outs in fast recovery with selective acknowledgements";
    "TCPLossFailures" => counter "loss_failures" "": "Time-outs in recovery from a time-out";
    "TCPSACKReneging" => counter "sack_reneging" "": "Receivers that dropped data they had acknowledged selectively";
    "TCPSACKReorder" => counter "sack_reorders" "": "Reordering seen by selective acknowledgements";
    "TCPTSReorder" => counter "timestamp_reorders" "": "Reordering seen by time stamps";
    "TCPDSACKRecv" => counter "dsacks_received" "segments": "Duplicates that the other side reported";
    "TCPDSACKOldSent" => counter "dsacks_sent" "segments": "Duplicates reported to the other side";
    "TCPDSACKRecvSegs" => counter "dsack_segments_received" "segments": "Segments that the other side reported as duplicates (Linux 5.10)";
    "TcpTimeoutRehash" => counter "timeout_rehashes" "": "Times that a time-out made a connection choose another path (Linux 5.7)";
    "TcpDuplicateDataRehash" => counter "duplicate_data_rehashes" "": "Times that repeated data made a connection choose another path (Linux 5.7)";

    // Ended early
    "TCPAbortOnData" => counter "aborts_on_data" "connections": "Connections reset because data came after the socket was closed, or was unread";
    "TCPAbortOnClose" => counter "aborts_on_close" "connections": "Connections reset because they were closed with data unread";
    "TCPAbortOnMemory" => counter "aborts_on_memory" "connections": "Connections reset for want of memory or too many orphans";
    "TCPAbortOnTimeout" => counter "aborts_on_timeout" "connections": "Connections given up after time-outs";
    "TCPAbortOnLinger" => counter "aborts_on_linger" "connections": "Connections reset because the linger time ended";
    "TCPAbortFailed" => counter "abort_failures" "segments": "Resets that could not be sent for want of memory";
    "TCPTimeWaitOverflow" => counter "time_wait_overflows" "connections": "Connections that skipped TIME_WAIT because there were too many";
    "TW" => counter "time_wait_ends" "connections": "Connections whose TIME_WAIT ended by its timer";
    "TWRecycled" => counter "time_wait_recycled" "connections": "Connections in TIME_WAIT replaced by a new one";
    "TCPKeepAlive" => counter "keepalives" "segments": "Keep-alive probes sent";

    // Buffers and windows
    "PruneCalled" => counter "prune_calls" "": "Times that a receive buffer was full and had to be tidied";
    "RcvPruned" => counter "receive_pruned" "segments": "Segments dropped because tidying the receive buffer was not enough";
    "OfoPruned" => counter "out_of_order_pruned" "": "Times that segments received out of order were dropped for want of buffer";
    "TCPRcvCollapsed" => counter "receive_collapsed" "segments": "Segments merged in a full receive buffer";
    "TCPOFOQueue" => counter "out_of_order_queued" "segments": "Segments received out of order and queued";
    "TCPOFODrop" => counter "out_of_order_drops" "segments": "Segments received out of order and dropped for want of buffer";
    "TCPOFOMerge" => counter "out_of_order_merged" "segments": "Segments received out of order that overlap others";
    "TCPRcvQDrop" => counter "receive_queue_drops" "segments": "Segments dropped because the receive queue was full (Linux 4.20)";
    "TCPBacklogDrop" => counter "backlog_drops" "segments": "Segments dropped because the socket's backlog was full";
    "PFMemallocDrop" => counter "memory_reserve_drops" "segments": "Segments dropped because they came from the memory reserve";
    "TCPZeroWindowDrop" => counter "zero_window_drops" "segments": "Segments dropped because the window was closed (Linux 4.20)";
    "TCPWantZeroWindowAdv" => counter "zero_window_wanted" "segments": "Times that a window of 0 should have been announced and was not";
    "TCPToZeroWindowAdv" => counter "zero_window_begun" "": "Times that the announced window fell to 0";
    "TCPFromZeroWindowAdv" => counter "zero_window_ended" "": "Times that the announced window rose from 0";
    "TCPWinProbe" => counter "window_probes" "segments": "Probes sent into a closed window";
    "TCPWqueueTooBig" => counter "write_queue_too_big" "": "Times that splitting a segment failed because the write queue was too big (Linux 4.20)";
    "TCPMemoryPressures" => counter "memory_pressures" "": "Times that TCP came under memory pressure";
    "TCPMemoryPressuresChrono" => counter_ms "memory_pressure_seconds" "seconds": "Time that TCP was under memory pressure";

    // Refused segments
    "PAWSActive" => counter "paws_active" "segments": "SYN-ACKs dropped for an old time stamp, on a connection begun by this side";
    "PAWSEstab" => counter "paws_established" "segments": "Segments dropped for an old time stamp, on an established connection";
    "PAWSOldAck" => counter "paws_old_acks" "segments": "Old acknowledgements ignored for their time stamp";
    "PAWSTimewait" => counter "paws_time_wait" "segments": "SYNs dropped for an old time stamp, in TIME_WAIT";
    "BeyondWindow" => counter "beyond_window" "segments": "Segments dropped because they lie beyond the window";
    "TSEcrRejected" => counter "timestamp_echo_rejected" "segments": "Segments dropped for an impossible time stamp echo";
    "TCPChallengeACK" => counter "challenge_acks" "segments": "Challenge acknowledgements sent";
    "TCPSYNChallenge" => counter "syn_challenges" "segments": "Challenge acknowledgements sent because of a SYN on a connection";
    "TCPACKSkippedSynRecv" => counter "acks_skipped_syn_received" "segments": "Acknowledgements not sent, to limit their rate, in SYN_RECV";
    "TCPACKSkippedPAWS" => counter "acks_skipped_paws" "segments": "Acknowledgements not sent, to limit their rate, for old time stamps";
    "TCPACKSkippedSeq" => counter "acks_skipped_sequence" "segments": "Acknowledgements not sent, to limit their rate, for sequence numbers out of window";
    "TCPACKSkippedFinWait2" => counter "acks_skipped_fin_wait2" "segments": "Acknowledgements not sent, to limit their rate, in FIN_WAIT2";
    "TCPACKSkippedTimeWait" => counter "acks_skipped_time_wait" "segments": "Acknowledgements not sent, to limit their rate, in TIME_WAIT";
    "TCPACKSkippedChallenge" => counter "acks_skipped_challenge" "segments": "Challenge acknowledgements not sent, to limit their rate";
    "TCPMinTTLDrop" => counter "min_ttl_drops" "segments": "Segments dropped for a time to live below the socket's minimum";
    "TCPMD5NotFound" => counter "md5_not_found" "segments": "Segments dropped because they lack the MD5 signature expected";
    "TCPMD5Unexpected" => counter "md5_unexpected" "segments": "Segments dropped because they have an MD5 signature and none was expected";
    "TCPMD5Failure" => counter "md5_failures" "segments": "Segments dropped for a wrong MD5 signature";
    "TCPAOBad" => counter "ao_bad" "segments": "Segments dropped for a wrong TCP-AO signature (Linux 6.7)";
    "TCPAORequired" => counter "ao_required" "segments": "Segments dropped because they lack the TCP-AO signature expected (Linux 6.7)";
    "TCPAOKeyNotFound" => counter "ao_key_not_found" "segments": "Segments dropped for an unknown TCP-AO key (Linux 6.7)";

    // Path and network
    "TCPMTUPFail" => counter "mtu_probe_failures" "": "MTU probes that failed";
    "TCPMTUPSuccess" => counter "mtu_probe_successes" "": "MTU probes that succeeded";
    "TCPDelivered" => counter "delivered_segments" "segments": "Segments sent and known to have arrived";
    "TCPDeliveredCE" => counter "delivered_congestion_segments" "segments": "Segments sent that arrived with a congestion mark";
    "TCPOrigDataSent" => counter "original_data_segments" "segments": "Segments of data sent for the first time";
    "IPReversePathFilter" => counter "reverse_path_filter_drops" "packets": "Packets dropped by the reverse path filter";
    "ArpFilter" => counter "arp_filtered" "packets": "ARP requests ignored by the ARP filter";
    "OutOfWindowIcmps" => counter "icmps_out_of_window" "packets": "ICMP errors ignored because they do not fit the connection";
    "LockDroppedIcmps" => counter "icmps_lock_dropped" "packets": "ICMP errors ignored because the socket was in use";
}

#[derive(Debug)]
struct TcpExt(Group);

impl Probe for TcpExt {
    fn read(
        &mut self,
        readings: &mut Readings<'_>,
        subject: &Subject,
        table: &mut Table,
    ) -> Result<(), Arc<ReadError>> {
        let mut values = [0; COLUMNS.len()];
        if readings.parse(NetFile::Netstat, |text| self.0.parse(text, &mut values))? == Some(true) {
            table.push(subject.clone(), [], &values);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::NAMES;

    #[test]
    fn every_counter_that_kubeskoop_has_is_here_and_each_once() {
        const THERE: [&str; 32] = [
            "listendrops",
            "listenoverflows",
            "tcpsynretrans",
            "tcpfastretrans",
            "tcpretransfail",
            "tcptimeouts",
            "tcpabortonclose",
            "tcpabortonmemory",
            "tcpabortontimeout",
            "tcpabortonlinger",
            "tcpabortondata",
            "tcpabortfailed",
            "tcpackskippedsynrecv",
            "tcpackskippedpaws",
            "tcpackskippedseq",
            "tcpackskippedfinwait2",
            "tcpackskippedtimewait",
            "tcpackskippedchallenge",
            "tcprcvqdrop",
            "tcpmemorypressures",
            "tcpmemorypressureschrono",
            "pawsactive",
            "pawsestab",
            "embryonicrsts",
            "tcpwinprobe",
            "tcpkeepalive",
            "tcpmtupfail",
            "tcpmtupsuccess",
            "tcpzerowindowdrop",
            "tcpbacklogdrop",
            "pfmemallocdrop",
            "tcpwqueuetoobig",
        ];
        for name in THERE {
            let count = NAMES.iter().filter(|n| n.eq_ignore_ascii_case(name)).count();
            assert_eq!(count, 1, "{name}");
        }
    }
}
