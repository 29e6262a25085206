//! The collector's own metrics: `sonde_collector_*`.

use std::sync::atomic::Ordering;

use sonde_common::prom::{Page, Type};
use sonde_common::time::now_ns;
use sonde_push::Reason;

use super::State;
use crate::pipeline::Outcome;
use crate::procfs::ReadError;
use crate::reload;

pub(super) fn render(page: &mut Page, state: &State) {
    let version = env!("CARGO_PKG_VERSION");
    page.family(
        "sonde_collector_build_info",
        Type::Gauge,
        "Version of the collector, always 1",
    );
    page.sample(
        "sonde_collector_build_info",
        &[("version", version), ("k8s_node", &state.node)],
        1u8,
    );
    let uptime = state.started.elapsed().as_secs_f64();
    page.single(
        "sonde_collector_uptime_seconds",
        Type::Gauge,
        "Time since the start",
        uptime,
    );
    page.single(
        "sonde_collector_pods",
        Type::Gauge,
        "Pods that are there now",
        state.index.live().len(),
    );
    page.single(
        "sonde_collector_resident_memory_bytes",
        Type::Gauge,
        "Resident memory of the collector",
        resident_bytes(),
    );
    rounds(page, state);
    probes(page, state);
    events(page, state);
    netfilter(page, state);
    gaps(page, state);
    spool(page, state);
    link(page, state);
    sinks(page, state);
    reloads(page, state);
}

fn rounds(page: &mut Page, state: &State) {
    let (count, cpu_ns, busy_ns, last_ns) = state.rounds.totals();
    page.single(
        "sonde_collector_rounds_total",
        Type::Counter,
        "Rounds of reading all probes",
        count,
    );
    page.single(
        "sonde_collector_round_cpu_seconds_total",
        Type::Counter,
        "CPU time of the thread that reads the probes",
        seconds(cpu_ns),
    );
    page.single(
        "sonde_collector_round_seconds_total",
        Type::Counter,
        "Time that rounds took",
        seconds(busy_ns),
    );
    page.single(
        "sonde_collector_last_round_seconds",
        Type::Gauge,
        "Time that the last round took",
        seconds(last_ns),
    );
    page.single(
        "sonde_collector_page_renderings_total",
        Type::Counter,
        "Times that the series of a round were rendered; scrapes between share a rendering",
        state.renderings.load(Ordering::Relaxed),
    );
    let age = state
        .rounds
        .snapshot()
        .map_or(0, |s| now_ns().saturating_sub(s.time_ns));
    page.single(
        "sonde_collector_last_round_age_seconds",
        Type::Gauge,
        "Age of the metrics on this page",
        seconds(age),
    );
}

fn probes(page: &mut Page, state: &State) {
    let stats = state.probe_stats();
    page.family(
        "sonde_collector_probe_rows",
        Type::Gauge,
        "Rows that a probe read in the last round",
    );
    for probe in &stats {
        page.sample("sonde_collector_probe_rows", &[("probe", probe.name)], probe.rows);
    }
    page.family(
        "sonde_collector_probe_seconds_total",
        Type::Counter,
        "Time that a probe took",
    );
    for probe in &stats {
        page.sample(
            "sonde_collector_probe_seconds_total",
            &[("probe", probe.name)],
            seconds(probe.busy_ns),
        );
    }
    let name = "sonde_collector_probe_errors_total";
    page.family(name, Type::Counter, "Readings that failed, by kind");
    for probe in &stats {
        for (kind, count) in ReadError::KINDS.into_iter().zip(probe.errors) {
            page.sample(name, &[("probe", probe.name), ("kind", kind)], count);
        }
    }
}

fn events(page: &mut Page, state: &State) {
    let name = "sonde_collector_events_total";
    page.family(name, Type::Counter, "Events by type and by what became of them");
    for (probe, kind, outcomes) in state.events.all() {
        for (outcome, count) in Outcome::ALL.into_iter().zip(outcomes) {
            page.sample(
                name,
                &[("probe", probe), ("type", kind), ("outcome", outcome.name())],
                count,
            );
        }
    }
}

fn netfilter(page: &mut Page, state: &State) {
    let stats = &state.netfilter;
    for (name, help, count) in [
        (
            "sonde_collector_nft_rulesets_read_total",
            "Rulesets of nftables read, as something was dropped that one of their rules can have dropped",
            &stats.rulesets,
        ),
        (
            "sonde_collector_nft_traces_total",
            "Traces of nftables begun (probes.packetloss.nft_trace)",
            &stats.traces,
        ),
        (
            "sonde_collector_netfilter_unexplained_total",
            "Events of netfilter's drops that went on without what the ruleset says",
            &stats.unexplained,
        ),
    ] {
        page.single(name, Type::Counter, help, count.load(Ordering::Relaxed));
    }
    page.single(
        "sonde_collector_netfilter_waiting_events",
        Type::Gauge,
        "Events of netfilter's drops that wait for the ruleset now",
        stats.waiting.load(Ordering::Relaxed),
    );
}

fn gaps(page: &mut Page, state: &State) {
    let counts = state.gaps.counts();
    page.family("sonde_collector_gaps_total", Type::Counter, "Gaps by cause");
    for (cause, gaps, _) in &counts {
        page.sample("sonde_collector_gaps_total", &[("cause", cause)], *gaps);
    }
    let name = "sonde_collector_gap_missing_total";
    page.family(name, Type::Counter, "Events, rows or hits missing in gaps, by cause");
    for (cause, _, missing) in &counts {
        page.sample(name, &[("cause", cause)], *missing);
    }
}

fn spool(page: &mut Page, state: &State) {
    let stats = state.spool.stats();
    page.single(
        "sonde_collector_spool_bytes",
        Type::Gauge,
        "Size of the spool on disk",
        stats.bytes,
    );
    page.single(
        "sonde_collector_spool_frames",
        Type::Gauge,
        "Batches in the spool",
        stats.frames,
    );
    let oldest = if stats.oldest_ns == 0 {
        0
    } else {
        now_ns().saturating_sub(stats.oldest_ns)
    };
    page.single(
        "sonde_collector_spool_oldest_seconds",
        Type::Gauge,
        "Age of the oldest data that the aggregator has not stored",
        seconds(oldest),
    );
    page.single(
        "sonde_collector_spool_next_sequence",
        Type::Gauge,
        "Sequence that the next batch will have",
        stats.next_sequence,
    );
    page.single(
        "sonde_collector_acked_sequence",
        Type::Gauge,
        "Sequence up to which the aggregator has stored everything",
        stats.acked,
    );
    page.single(
        "sonde_collector_spool_failing",
        Type::Gauge,
        "Whether the last batch could not be written, or what was written not be brought to the disk",
        stats.failing,
    );
    page.single(
        "sonde_collector_spool_write_errors_total",
        Type::Counter,
        "Batches that could not be written; what was in them counts as missing by `spool_full`",
        stats.write_errors,
    );
    page.single(
        "sonde_collector_spool_upkeep_errors_total",
        Type::Counter,
        "Times that batches could not be brought to the disk, or those that are stored not be deleted",
        stats.upkeep_errors,
    );
}

fn link(page: &mut Page, state: &State) {
    let link = &state.link;
    let connected = link.connected.load(Ordering::Relaxed);
    page.single(
        "sonde_collector_connected",
        Type::Gauge,
        "Whether there is a stream to the aggregator",
        connected,
    );
    for (name, help, value) in [
        (
            "sonde_collector_connects_total",
            "Streams to the aggregator that were begun",
            &link.connects,
        ),
        (
            "sonde_collector_sent_batches_total",
            "Batches sent, those sent again included",
            &link.sent_batches,
        ),
        (
            "sonde_collector_sent_bytes_total",
            "Bytes of batches sent, those sent again included",
            &link.sent_bytes,
        ),
        (
            "sonde_collector_poison_batches_total",
            "Batches that the aggregator refused for their content",
            &link.poison,
        ),
    ] {
        page.single(name, Type::Counter, help, value.load(Ordering::Relaxed));
    }
}

fn reloads(page: &mut Page, state: &State) {
    let name = "sonde_collector_config_reloads_total";
    page.family(
        name,
        Type::Counter,
        "Times that the configuration was read anew, by what became of it",
    );
    for (outcome, count) in reload::Outcome::ALL.into_iter().zip(state.settings.outcomes()) {
        page.sample(name, &[("result", outcome.name())], count);
    }
}

fn sinks(page: &mut Page, state: &State) {
    let sinks = state.sinks.status();
    let name = "sonde_collector_sink_sent_total";
    page.family(name, Type::Counter, "Events that a sink delivered");
    for sink in &sinks {
        page.sample(name, &[("sink", sink.name)], sink.state.sent);
    }
    let name = "sonde_collector_sink_dropped_total";
    page.family(name, Type::Counter, "Events that a sink could not deliver, by reason");
    for sink in &sinks {
        for (reason, count) in Reason::ALL.into_iter().zip(sink.state.dropped) {
            page.sample(name, &[("sink", sink.name), ("reason", reason.name())], count);
        }
    }
    let name = "sonde_collector_sink_retries_total";
    page.family(name, Type::Counter, "Times that a sink tried a batch again");
    for sink in &sinks {
        page.sample(name, &[("sink", sink.name)], sink.state.retries);
    }
    let name = "sonde_collector_sink_queued";
    page.family(name, Type::Gauge, "Events that wait for a sink");
    for sink in sinks.iter().filter(|sink| sink.on) {
        page.sample(name, &[("sink", sink.name)], sink.queued);
    }
    let name = "sonde_collector_sink_failing";
    page.family(name, Type::Gauge, "Whether the last try of a sink failed");
    for sink in sinks.iter().filter(|sink| sink.on) {
        page.sample(name, &[("sink", sink.name)], sink.state.failing);
    }
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// 0 where it cannot be read.
fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    let pages = pages.and_then(|text| text.split(' ').nth(1)?.parse::<u64>().ok());
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
    pages.unwrap_or(0) * page.map_or(4096, |p| p as u64)
}
