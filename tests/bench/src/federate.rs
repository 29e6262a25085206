//! `/federate` with a million series, and a real Prometheus' own `/federate` with the same ones.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sonde_collector::catalogue::Kind;
use sonde_fleet::{Mix, Options, Pace, Shape, Until};

use crate::programs::{self, Program};
use crate::report::{Report, mebibytes, thousands};
use crate::store::Store;

const NODES: usize = 100;
const SERIES: usize = 1_000_000;
const SCRAPES: u32 = 5;
/// What Prometheus asks for.
const AS_PROMETHEUS: [(&str, &str); 2] = [
    ("Accept", "application/openmetrics-text;version=1.0.0,*/*;q=0.1"),
    ("Accept-Encoding", "gzip"),
];

pub(crate) async fn run(report: &mut Report) -> anyhow::Result<()> {
    let store = Store::start()?;
    let mix = Arc::new(Mix::real());
    let pods = (1..)
        .find(|pods| series(&mix, *pods) * NODES >= SERIES)
        .unwrap_or_default();
    let expected = series(&mix, pods) * NODES;
    sonde_fleet::run(Options {
        url: store.grpc.clone(),
        nodes: NODES,
        shape: Shape {
            pods,
            ..Shape::default()
        },
        pace: Pace::Readings,
        until: Until::Batches(1),
        ..Options::default()
    })
    .await?;
    report.section(
        "Federation",
        &format!(
            "`/federate?match[]={{__name__=~\"sonde_.+\"}}` with {} series of the collector's probes, of {NODES} nodes with {pods} pods; \
             mean of {SCRAPES}. Prometheus (Debian's) has scraped the same page and is asked for the same at its own `/federate`. \
             Memory is the highest while the page was written, less what was resident before.",
            thousands(expected as f64)
        ),
    );
    let aggregator = &store.aggregator;
    let all = path("{__name__=~\"sonde_.+\"}");
    let scrape = |path: &str, headers: &[(&str, &str)]| measure(aggregator, path, headers, SCRAPES);
    let plain = scrape(&all, &[])?;
    ensure!(
        plain.samples == expected,
        "{} series came back, {expected} were sent",
        plain.samples
    );
    plain.rows(report, "Sonde, text");
    let packed = scrape(&all, &AS_PROMETHEUS)?;
    packed.rows(report, "Sonde, OpenMetrics, packed with gzip");
    let packed = scrape(&all, &[("Accept-Encoding", "zstd")])?;
    packed.rows(report, "Sonde, text, packed with zstd");
    let pod = scrape(
        &path("{k8s_node=~\"node-.*\",k8s_namespace!~\"kube-.*\",k8s_pod=~\".+7.*-.+\"}"),
        &[],
    )?;
    pod.rows(
        report,
        &format!(
            "Sonde, {} series picked out by three expressions",
            thousands(pod.samples as f64)
        ),
    );
    report.row(
        "resident memory of the aggregator then",
        mebibytes(aggregator.resident()?),
    );

    let dir = tempfile::tempdir()?;
    let prometheus = Prometheus::start(aggregator.http, dir.path())?;
    prometheus.fill(expected)?;
    let theirs = measure(&prometheus.0, &all, &[], 1)?;
    ensure!(
        theirs.samples == expected,
        "Prometheus has {} series of {expected}",
        theirs.samples
    );
    theirs.rows(report, "Prometheus, text");
    Ok(())
}

/// As Prometheus counts them: a histogram has one for each bucket, one for the sum and one for the count.
fn series(mix: &Mix, pods: usize) -> usize {
    let of = |spec: &sonde_collector::catalogue::ColumnSpec| spec.width() + usize::from(spec.kind == Kind::Histogram);
    mix.probes
        .iter()
        .map(|probe| probe.rows(pods) * probe.spec.columns.iter().map(of).sum::<usize>())
        .sum()
}

fn path(selector: &str) -> String {
    let escaped: String = selector.bytes().map(|byte| format!("%{byte:02X}")).collect();
    format!("/federate?match[]={escaped}")
}

struct Scrape {
    /// Of a page that is not packed.
    samples: usize,
    bytes: usize,
    wall: Duration,
    cpu: Duration,
    memory: u64,
}

impl Scrape {
    fn rows(&self, report: &mut Report, what: &str) {
        report.row(&format!("{what}: answer"), mebibytes(self.bytes as u64));
        report.row(
            &format!("{what}: wall time"),
            format!("{:.0} ms", self.wall.as_secs_f64() * 1e3),
        );
        report.row(
            &format!("{what}: CPU"),
            format!("{:.0} ms", self.cpu.as_secs_f64() * 1e3),
        );
        report.row(&format!("{what}: memory"), mebibytes(self.memory));
    }
}

fn measure(program: &Program, path: &str, headers: &[(&str, &str)], times: u32) -> anyhow::Result<Scrape> {
    let (mut samples, mut bytes) = (0, 0);
    program.forget_highest()?;
    let (resident, cpu, started) = (program.resident()?, program.cpu()?, Instant::now());
    for _ in 0..times {
        (samples, bytes) = (0, 0);
        let mut begins = true;
        let status = crate::http::read(program.http, path, headers, |piece| {
            bytes += piece.len();
            // A sample is a line that does not begin with `#`; a piece may end within one.
            for line in piece.split_inclusive(|byte| *byte == b'\n') {
                samples += usize::from(begins && line[0] != b'#');
                begins = line.ends_with(b"\n");
            }
        })?;
        ensure!(status == 200, "status {status}");
    }
    Ok(Scrape {
        samples,
        bytes,
        wall: started.elapsed() / times,
        cpu: (program.cpu()? - cpu) / times,
        memory: program.highest()?.saturating_sub(resident),
    })
}

struct Prometheus(Program, std::path::PathBuf);

impl Prometheus {
    fn start(target: SocketAddr, dir: &std::path::Path) -> anyhow::Result<Self> {
        let config = dir.join("prometheus.yml");
        std::fs::write(
            &config,
            format!(
                "global: {{scrape_interval: 30s, scrape_timeout: 30s}}\n\
                 scrape_configs:\n- job_name: sonde\n  honor_labels: true\n  metrics_path: /federate\n\
                 \x20 params: {{'match[]': ['{{__name__=~\"sonde_.+\"}}']}}\n\
                 \x20 static_configs: [{{targets: ['{target}']}}]\n"
            ),
        )?;
        let listen = programs::free_address()?;
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", dir.join("data").display()))
            .arg(format!("--web.listen-address={listen}"));
        let program = Program::run("prometheus", command, listen, dir).context("Debian's package prometheus")?;
        Ok(Self(program, config))
    }

    /// Until one scrape is in it; then it scrapes no more.
    fn fill(&self, expected: usize) -> anyhow::Result<()> {
        let query = "/api/v1/query?query=scrape_samples_post_metric_relabeling";
        for _ in 0..1200 {
            std::thread::sleep(Duration::from_millis(100));
            let answer = crate::http::get(self.0.http, query)?;
            let answer: serde_json::Value = serde_json::from_slice(&answer.body)?;
            let Some(scraped) = answer["data"]["result"][0]["value"][1].as_str() else {
                continue;
            };
            ensure!(
                scraped == expected.to_string(),
                "Prometheus took {scraped} samples of {expected}"
            );
            std::fs::write(&self.1, "scrape_configs: []\n")?;
            kill(Pid::from_raw(self.0.pid().cast_signed()), Signal::SIGHUP)?;
            return Ok(());
        }
        anyhow::bail!("Prometheus scraped nothing within two minutes")
    }
}
