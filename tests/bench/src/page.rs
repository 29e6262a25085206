//! The collector's page with 100,000 series, rendered in this process from tables of the real probes' shapes.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use flate2::Compression;
use flate2::write::GzEncoder;
use sonde_collector::catalogue::ProbeSpec;
use sonde_collector::event::Subject;
use sonde_collector::pods::Pod;
use sonde_collector::probes;
use sonde_collector::serve::metrics::Exposition;
use sonde_collector::table::Table;
use sonde_common::config::{MaxSeries, MetricNames, Metrics};
use sonde_common::prom::Format;

use crate::report::{Report, mebibytes, thousands};

const SERIES: usize = 100_000;
const ROUNDS: u32 = 20;

pub(crate) fn run(report: &mut Report) -> anyhow::Result<()> {
    let tables = tables();
    report.section(
        "Collector page",
        &format!(
            "A page of {} series and more, all probes of pods, rendered in one thread; CPU time of one page, mean of {ROUNDS}. \
             Between two rounds all scrapers of one format and packing share a rendering.",
            thousands(SERIES as f64)
        ),
    );
    let sonde = exposition(&[MetricNames::Sonde])?;
    let (series, bytes) = page(&sonde, &tables);
    ensure!(series >= SERIES, "{series} series");
    report.row("series", thousands(series as f64));
    report.row("text", mebibytes(bytes as u64));
    let each = |time: Duration| format!("{:.0} ns a series", time.as_nanos() as f64 / series as f64);
    for (what, format) in [("Prometheus text", Format::Text), ("OpenMetrics", Format::OpenMetrics)] {
        let time = cpu(|| sonde.write(&tables, format, &mut |piece| _ = std::hint::black_box(piece)))?;
        report.row(what, each(time));
    }
    let mut packed = 0;
    let time = cpu(|| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        sonde.write(&tables, Format::Text, &mut |piece| {
            encoder.write_all(piece.as_bytes()).expect("memory takes everything");
        });
        packed = encoder.finish().map_or(0, |bytes| bytes.len());
    })?;
    report.row("Prometheus text, packed", each(time));
    report.row("packed", mebibytes(packed as u64));
    let both = exposition(&[MetricNames::Sonde, MetricNames::Kubeskoop])?;
    let (with_theirs, _) = page(&both, &tables);
    let time = cpu(|| both.write(&tables, Format::Text, &mut |piece| _ = std::hint::black_box(piece)))?;
    report.row(
        &format!(
            "Prometheus text with KubeSkoop's names, {} series",
            thousands(with_theirs as f64)
        ),
        format!("{:.0} ns a series", time.as_nanos() as f64 / with_theirs as f64),
    );
    Ok(())
}

fn exposition(names: &[MetricNames]) -> anyhow::Result<Exposition> {
    let config = Metrics {
        names: names.to_vec(),
        labels: [("team".to_owned(), "${labels:team}".to_owned())].into(),
        max_series: MaxSeries {
            per_probe: usize::MAX,
            per_namespace: usize::MAX,
        },
        ..Metrics::default()
    };
    Ok(Exposition::new("node-1.example.com", &config)?)
}

/// Series and bytes.
fn page(exposition: &Exposition, tables: &[Table]) -> (usize, usize) {
    let mut text = String::new();
    exposition.write(tables, Format::Text, &mut |piece| text.push_str(piece));
    (text.lines().filter(|line| !line.starts_with('#')).count(), text.len())
}

/// As many pods as it takes, one row of each probe for each.
fn tables() -> Vec<Table> {
    let specs: Vec<&'static ProbeSpec> = probes::PROBES
        .iter()
        .filter(|probe| !probe.node_only)
        .map(|probe| probe.spec)
        .collect();
    let each: usize = specs.iter().map(|spec| spec.columns.len()).sum();
    let mut tables: Vec<Table> = specs.iter().map(|spec| Table::new(spec, 1)).collect();
    for number in 0..SERIES.div_ceil(each) {
        let pod = Arc::new(Pod {
            sandbox: format!("sandbox-{number}"),
            namespace: format!("namespace-{}", number % 20),
            name: format!("deployment-{}-5d4f8c7b9-{number:05}", number % 100),
            labels: [("team".to_owned(), "payments".to_owned())].into(),
            valid_from_ns: 1,
            ..Pod::default()
        });
        for (spec, table) in specs.iter().zip(&mut tables) {
            let width: usize = spec.columns.iter().map(|column| column.width()).sum();
            let values: Vec<i64> = (0..width as i64).map(|i| (i + 1) * 7919 * number as i64).collect();
            let labels = spec.labels.iter().map(|_| Arc::from("eth0"));
            table.push(Subject::Pod(Arc::clone(&pod)), labels, &values);
        }
    }
    tables
}

fn cpu(mut work: impl FnMut()) -> anyhow::Result<Duration> {
    let now = || -> anyhow::Result<Duration> {
        Ok(nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
    };
    work();
    let begun = now()?;
    for _ in 0..ROUNDS {
        work();
    }
    Ok((now()? - begun) / ROUNDS)
}
