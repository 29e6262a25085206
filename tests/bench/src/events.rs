//! What an event costs the collector from the ring of the kernel side to the spool on disk, and whether all of them are
//! accounted for.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use sonde_collector::ship::spool::{Next, Spool};
use sonde_lab::{Family, Lab, sockets};
use sonde_proto::v1;

use crate::kernel::{PORT, flood};
use crate::programs::{self, Program};
use crate::report::{Report, thousands};

const PACKETS: u64 = 1_000_000;
/// A flood in parts: a burst that is longer than the ring is another thing to measure.
const PARTS: u64 = 50;
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) fn run(report: &mut Report) -> anyhow::Result<()> {
    let lab = Lab::new("bench-events")?;
    let (client, server) = (lab.pod("bench", "client")?, lab.pod("bench", "server")?);
    lab.link(&client, &server)?;
    // Its queue is full after the first datagrams, and then each one is dropped as SOCKET_RCVBUFF.
    let _sink = sockets::udp_small(&server, Family::V4, PORT)?;
    report.section(
        "Events, ring to spool",
        &format!(
            "{} UDP packets to a socket whose queue is full, each one an event without a stack. CPU time of the collector \
             alone, with its threads, programs of the kernel side not included; rounds and pages are in it.",
            thousands(PACKETS as f64)
        ),
    );
    let dir = tempfile::tempdir()?;
    let http = programs::free_address()?;
    let env = [
        ("SONDE_COLLECTOR_HTTP", http.to_string()),
        // Nobody is there: all stays in the spool.
        ("SONDE_COLLECTOR_AGGREGATOR", "http://127.0.0.1:9".into()),
        ("SONDE_COLLECTOR_DATA_DIR", dir.path().display().to_string()),
        ("SONDE_SPOOL_MAX_BYTES", (4u64 << 30).to_string()),
        ("SONDE_PODS_NETNS_INCLUDE", lab.glob()),
        ("SONDE_PODS_INCLUDE_HOST", "false".into()),
        ("SONDE_KERNEL_CPU_BUDGET_PERCENT", "0".into()),
        ("SONDE_PROBES", "{packetloss: {stacks: false}}".into()),
        ("SONDE_EVENTS_RATE", "10000000".into()),
        ("SONDE_EVENTS_BURST", "10000000".into()),
        ("SONDE_LOG_LEVEL", "warn".into()),
    ];
    let collector = Program::start("sonde-collector", "run", http, dir.path(), &env)?;
    // The first drops teach the collector the site.
    flood(&client, &server, 1000)?;
    settle(&collector)?;
    let before = Seen::of(&collector)?;
    let (cpu_before, threads_before) = (collector.cpu()?, collector.threads()?);
    for _ in 0..PARTS {
        flood(&client, &server, PACKETS / PARTS)?;
    }
    settle(&collector)?;
    let seen = Seen::of(&collector)?.since(&before);
    let cpu = collector.cpu()? - cpu_before;
    let threads = collector.threads()?;
    let each = cpu.as_nanos() as f64 / seen.told as f64;
    report.row("CPU time an event", format!("{each:.0} ns"));
    report.row("events a second of one core", thousands(1e9 / each));
    for (name, time) in threads {
        let time = time.saturating_sub(threads_before.get(&name).copied().unwrap_or_default());
        let each = time.as_nanos() as f64 / seen.told as f64;
        if each >= 50.0 {
            report.row(&format!("of that, thread `{name}`"), format!("{each:.0} ns"));
        }
    }
    let at_start = Seen::of(&collector)?;
    drop(collector);
    let stored = Stored::of(&dir.path().join("spool"))?;
    report.row("told", thousands(seen.told as f64));
    report.row("in gaps", thousands(seen.missing as f64));
    report.row(
        "bytes an event in the spool",
        format!("{:.1}", stored.bytes as f64 / stored.events as f64),
    );
    let accounted = seen.told + seen.missing;
    ensure!(
        (seen.dropped..=seen.dropped + stored.others).contains(&accounted),
        "{} dropped, but {} told and {} in gaps ({} events of other reasons)",
        seen.dropped,
        seen.told,
        seen.missing,
        stored.others
    );
    ensure!(
        stored.events + stored.missing >= at_start.told + at_start.missing,
        "{} events and {} in gaps reached the spool, of {} and {}",
        stored.events,
        stored.missing,
        at_start.told,
        at_start.missing
    );
    Ok(())
}

/// What the collector counts.
struct Seen {
    dropped: u64,
    told: u64,
    missing: u64,
}

impl Seen {
    fn of(collector: &Program) -> anyhow::Result<Self> {
        let page = crate::http::get(collector.http, "/metrics")?;
        let page = String::from_utf8(page.body)?;
        let sum = |name: &str, parts: &[&str]| -> u64 {
            let lines = page.lines().filter(|line| line.starts_with(name));
            let ours = lines.filter(|line| parts.iter().all(|part| line.contains(part)));
            ours.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
                .sum::<f64>() as u64
        };
        let lost = ["rate_limited", "ring_full", "spool_full", "bad_record"];
        Ok(Self {
            dropped: sum(
                "sonde_packetloss_drops_total{",
                &["k8s_pod=\"server\"", "SOCKET_RCVBUFF"],
            ),
            told: sum("sonde_collector_events_total{", &["PACKETLOSS", "outcome=\"known\""]),
            missing: lost
                .map(|cause| sum("sonde_collector_gap_missing_total{", &[&format!("cause=\"{cause}\"")]))
                .iter()
                .sum(),
        })
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            dropped: self.dropped - before.dropped,
            told: self.told - before.told,
            missing: self.missing - before.missing,
        }
    }
}

/// Until all that was dropped is told or in a gap: counts are read once a round.
fn settle(collector: &Program) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut last = (0, 0);
    loop {
        std::thread::sleep(Duration::from_secs(2));
        let seen = Seen::of(collector)?;
        // Something else may be dropped in these namespaces too.
        let all = (seen.dropped, seen.told + seen.missing);
        if seen.dropped > 0 && all == last && all.1 >= all.0 {
            return Ok(());
        }
        last = all;
        ensure!(
            began.elapsed() < PATIENCE,
            "{} dropped, {} told, {} in gaps",
            seen.dropped,
            seen.told,
            seen.missing
        );
    }
}

/// What is in the spool.
#[derive(Default)]
struct Stored {
    events: u64,
    /// Of these, with another reason than that of the flood.
    others: u64,
    missing: u64,
    bytes: u64,
}

impl Stored {
    fn of(dir: &std::path::Path) -> anyhow::Result<Self> {
        let (spool, _) = Spool::open(dir, 4 << 30, "bench")?;
        let mut reader = spool.reader(0);
        let mut stored = Self::default();
        loop {
            match reader.next(&spool)? {
                Next::Frame(frame) => {
                    let body = sonde_proto::body::decode(&frame.payload)?;
                    stored.events += body.events.len() as u64;
                    let reason = |event: &v1::Event| body.strings[event.reason as usize].as_str();
                    let others = body.events.iter().filter(|event| reason(event) != "SOCKET_RCVBUFF");
                    stored.others += others.count() as u64;
                    stored.missing += body.gaps.iter().map(|gap| gap.count).sum::<u64>();
                    if !body.events.is_empty() {
                        stored.bytes += frame.payload.len() as u64;
                    }
                }
                Next::Damaged(cut) => anyhow::bail!("damaged: {cut:?}"),
                Next::Nothing => return Ok(stored),
            }
        }
    }
}

impl Program {
    /// CPU time by the name of threads.
    fn threads(&self) -> anyhow::Result<BTreeMap<String, Duration>> {
        let mut all = BTreeMap::new();
        for task in std::fs::read_dir(format!("/proc/{}/task", self.pid()))? {
            let task = task?.path();
            let name = std::fs::read_to_string(task.join("comm"))?.trim().to_owned();
            let on_cpu = std::fs::read_to_string(task.join("schedstat"))?;
            let nanos = on_cpu.split(' ').next().context("schedstat")?.parse()?;
            *all.entry(name).or_insert(Duration::ZERO) += Duration::from_nanos(nanos);
        }
        Ok(all)
    }
}
