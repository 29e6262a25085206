//! What a reading of all procfs probes costs at 100 network namespaces, and the cost of the bare reads beside it.

use std::io::Read as _;
use std::time::Duration;

use anyhow::Context as _;
use sonde_lab::Lab;

use crate::programs::{self, Program};
use crate::report::{Report, mebibytes};

const PODS: usize = 100;
const ROUNDS: f64 = 20.0;
/// The files that the probes of a pod read.
const FILES: [&str; 6] = ["dev", "snmp", "snmp6", "netstat", "sockstat", "sockstat6"];

pub(crate) fn run(report: &mut Report) -> anyhow::Result<()> {
    let lab = Lab::new("bench")?;
    let pods = (0..PODS)
        .map(|i| lab.pod("bench", &format!("pod{i}")))
        .collect::<Result<Vec<_>, _>>()?;
    let dir = tempfile::tempdir()?;
    let http = programs::free_address()?;
    let env = [
        ("SONDE_COLLECTOR_HTTP", http.to_string()),
        ("SONDE_COLLECTOR_AGGREGATOR", String::new()),
        ("SONDE_COLLECTOR_DATA_DIR", dir.path().display().to_string()),
        ("SONDE_COLLECTOR_INTERVAL", "1s".into()),
        ("SONDE_PODS_NETNS_INCLUDE", lab.glob()),
        ("SONDE_LOG_LEVEL", "warn".into()),
    ];
    let collector = Program::start("sonde-collector", "run", http, dir.path(), &env)?;
    let (mut rounds, mut cpu) = (0.0, 0.0);
    let first = figures(&collector)?;
    while rounds < ROUNDS {
        std::thread::sleep(Duration::from_secs(1));
        let now = figures(&collector)?;
        (rounds, cpu) = (now.0 - first.0, now.1 - first.1);
    }
    report.section(
        "A round",
        &format!("All procfs probes of {PODS} network namespaces and the node, mean of {ROUNDS} rounds and more."),
    );
    report.row("CPU of a round", format!("{:.1} ms", cpu / rounds * 1e3));
    let bare = pods
        .iter()
        .map(|pod| pod.run(bare_reads))
        .collect::<Result<Vec<_>, _>>()?;
    let bare: Duration = bare.into_iter().collect::<anyhow::Result<Vec<_>>>()?.into_iter().sum();
    report.row(
        "CPU of reading the same files alone, kept open",
        format!("{:.1} ms", bare.as_secs_f64() * 1e3),
    );
    report.row(
        &format!("resident memory of the collector with {PODS} pods"),
        mebibytes(collector.resident()?),
    );
    Ok(())
}

/// Rounds done and CPU seconds they took, as the collector itself counts them.
fn figures(collector: &Program) -> anyhow::Result<(f64, f64)> {
    let page = String::from_utf8(crate::http::get(collector.http, "/metrics")?.body)?;
    let value = |name: &str| -> anyhow::Result<f64> {
        let line = page
            .lines()
            .find_map(|l| l.strip_prefix(name)?.strip_prefix(' '))
            .with_context(|| format!("no {name} on /metrics"))?;
        Ok(line.parse()?)
    };
    Ok((
        value("sonde_collector_rounds_total")?,
        value("sonde_collector_round_cpu_seconds_total")?,
    ))
}

/// CPU time of this thread for one reading of the files of its namespace, the mean of ten.
fn bare_reads() -> anyhow::Result<Duration> {
    use std::os::unix::fs::FileExt as _;
    let files = FILES
        .iter()
        .map(|f| std::fs::File::open(format!("/proc/thread-self/net/{f}")))
        .collect::<Result<Vec<_>, _>>()?;
    let mut buffer = vec![0; 64 << 10];
    for mut file in &files {
        let _ = file.read(&mut buffer)?;
    }
    let start = thread_cpu()?;
    for _ in 0..10 {
        for file in &files {
            let mut offset = 0;
            while let count @ 1.. = file.read_at(&mut buffer, offset)? {
                offset += count as u64;
            }
        }
    }
    Ok((thread_cpu()? - start) / 10)
}

fn thread_cpu() -> anyhow::Result<Duration> {
    Ok(nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}
