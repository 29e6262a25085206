//! The kernel side's own metrics.

use sonde_common::prom::{Number, Page, Type};

use super::{KernelStatus, ProbeReport, SignalReport};

type Family = (&'static str, &'static str, fn(&SignalReport) -> Number);

type ProbeFamily = (&'static str, Type, &'static str, fn(&ProbeReport) -> u64);

const SIGNAL_FAMILIES: [Family; 6] = [
    (
        "sonde_collector_ebpf_events_total",
        "Events that the kernel side gave to the collector",
        |s| s.events.into(),
    ),
    (
        "sonde_collector_ebpf_suppressed_events_total",
        "Events held back by token buckets",
        |s| s.suppressed.into(),
    ),
    (
        "sonde_collector_ebpf_ring_lost_total",
        "Events for which the ring had no room",
        |s| s.ring_lost.into(),
    ),
    (
        "sonde_collector_ebpf_bad_records_total",
        "Records that could not be read",
        |s| s.bad_records.into(),
    ),
    (
        "sonde_collector_ebpf_missed_runs_total",
        "Runs of the program that the kernel skipped",
        |s| s.misses.into(),
    ),
    (
        "sonde_collector_ebpf_runs_total",
        "Runs of the program, 0 unless kernel.bpf_stats_enabled",
        |s| s.runs.into(),
    ),
];

pub(super) fn write(status: &KernelStatus, page: &mut Page) {
    let up = "sonde_collector_ebpf_signal_up";
    page.family(
        up,
        Type::Gauge,
        "Whether the signal runs, and on which rung of its ladder",
    );
    for report in &status.signals {
        let rung = report.signal.rung.unwrap_or("off");
        page.sample(
            up,
            &[("signal", report.signal.name), ("rung", rung)],
            report.signal.rung.is_some(),
        );
    }
    for (name, help, value) in SIGNAL_FAMILIES {
        page.family(name, Type::Counter, help);
        for report in &status.signals {
            page.sample(name, &[("signal", report.signal.name)], value(report));
        }
    }
    let time = "sonde_collector_ebpf_run_time_seconds_total";
    page.family(
        time,
        Type::Counter,
        "CPU time of the program, 0 unless kernel.bpf_stats_enabled",
    );
    for report in &status.signals {
        page.sample(time, &[("signal", report.signal.name)], report.run_time_ns as f64 / 1e9);
    }
    let gauges = [
        (
            "sonde_collector_ebpf_namespaces",
            "Network namespaces that the kernel side knows",
            status.namespaces as u64,
        ),
        (
            "sonde_collector_ebpf_map_bytes",
            "Memory of all maps of the kernel side",
            status.map_bytes,
        ),
    ];
    for (name, help, value) in gauges {
        page.single(name, Type::Gauge, help, value);
    }
    let percent = [
        (
            "sonde_collector_ebpf_cpu_budget_ratio",
            "Part of the node's CPU time that programs may take, 0: no budget",
            Some(status.governor.budget_percent),
        ),
        (
            "sonde_collector_ebpf_cpu_ratio",
            "Part of the node's CPU time that programs took when the governor looked last",
            status.governor.cost_percent,
        ),
    ];
    for (name, help, value) in percent {
        if let Some(value) = value {
            page.single(name, Type::Gauge, help, value / 100.0);
        }
    }
    let down = "sonde_collector_ebpf_stepped_down";
    page.family(
        down,
        Type::Gauge,
        "Whether the governor leaves something out of the probe, and what is left",
    );
    for (probe, left) in &status.governor.stepped_down {
        page.sample(down, &[("probe", probe), ("left", left)], true);
    }
    page.single(
        "sonde_collector_ebpf_unknown_records_total",
        Type::Counter,
        "Records of no known kind, or not as long as they say",
        status.unknown_records,
    );
    for gauge in status.probes.iter().flat_map(|report| &report.gauges) {
        page.single(gauge.name, Type::Gauge, gauge.help, gauge.value);
    }
    let families: [ProbeFamily; 3] = [
        (
            "sonde_collector_ebpf_count_keys",
            Type::Gauge,
            "Keys in the probe's maps of counts",
            |report| report.keys as u64,
        ),
        (
            "sonde_collector_ebpf_unknown_total",
            Type::Counter,
            "Counted in network namespaces that belong to no pod",
            |report| report.unknown,
        ),
        (
            "sonde_collector_ebpf_uncounted_total",
            Type::Counter,
            "Counted under no key as the probe's map of counts was full",
            |report| report.uncounted,
        ),
    ];
    for (name, kind, help, value) in families {
        page.family(name, kind, help);
        for report in &status.probes {
            page.sample(name, &[("probe", report.probe)], value(report));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::SignalStatus;

    #[test]
    fn every_family_is_described_before_its_samples() {
        let signal = SignalStatus {
            name: "packetloss.count",
            rung: Some("tp_btf"),
            reason: String::new(),
            chosen: false,
        };
        let report = SignalReport {
            signal,
            events: 1,
            suppressed: 2,
            ring_lost: 3,
            bad_records: 4,
            misses: 5,
            runs: 6,
            run_time_ns: 1_500_000_000,
        };
        let mut page = Page::new();
        write(
            &KernelStatus {
                signals: vec![report],
                unknown_records: 7,
                ..KernelStatus::default()
            },
            &mut page,
        );
        let text = page.finish();
        assert!(
            text.contains("sonde_collector_ebpf_signal_up{signal=\"packetloss.count\",rung=\"tp_btf\"} 1\n"),
            "{text}"
        );
        assert!(text.contains("sonde_collector_ebpf_run_time_seconds_total{signal=\"packetloss.count\"} 1.5\n"));
        assert!(text.contains("sonde_collector_ebpf_bad_records_total{signal=\"packetloss.count\"} 4\n"));
        assert!(text.contains("sonde_collector_ebpf_unknown_records_total 7\n"));
        let mut described = None;
        for line in text.lines() {
            match line.strip_prefix("# TYPE ") {
                Some(rest) => described = rest.split(' ').next().map(str::to_owned),
                None if line.starts_with('#') => {}
                None => assert!(line.starts_with(described.as_deref().unwrap()), "{line}"),
            }
        }
    }
}
