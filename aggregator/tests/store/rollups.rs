//! Rollups: what the views say is what a plain computation over all readings says.

use std::collections::BTreeMap;
use std::time::Duration;

use sonde_aggregator::metrics::Metrics;
use sonde_aggregator::store::{Rolled, Store};
use sonde_aggregator::testing::Database;
use sonde_common::config::Storage;
use sonde_common::time::{Span, now_ns};
use sonde_proto::{ABSENT, v1};
use sqlx::{AssertSqlSafe, PgPool, Row as _};

use crate::fixture::{Aggregator, Collector, batch, hello, pod};

const SECOND: u64 = 1_000_000_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const ROW: &str = "readings, receive_bytes, wait_seconds_min, wait_seconds_max, wait_seconds_avg, latency_seconds";

/// Node, pod, device.
type Series = (&'static str, &'static str, &'static str);

#[derive(Clone, Debug)]
struct Reading {
    time: u64,
    bytes: i64,
    wait: i64,
    latency: [i64; 4],
}

type Readings = BTreeMap<Series, Vec<Reading>>;

/// A span as a view shows it.
#[derive(Clone, Debug, Default, PartialEq)]
struct Shown {
    readings: i32,
    bytes: Option<i64>,
    wait: Option<(f64, f64, f64)>,
    latency: Option<Vec<i64>>,
}

/// How often the roller is ended in the middle before it may go on.
async fn roll(store: &Store, rng: &mut fastrand::Rng, ended: u32) {
    for _ in 0..ended {
        let patience = Duration::from_millis(rng.u64(1..60));
        let _ = tokio::time::timeout(patience, store.roll_up(now_ns())).await;
    }
    // The session of one that was ended holds the lock until the server notices.
    while store.roll_up(now_ns()).await.unwrap() == Rolled::Elsewhere {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn increase(before: &[i64], now: &[i64], counts: usize) -> Vec<i64> {
    let reset = before.iter().zip(now).take(counts).any(|(before, now)| now < before);
    let each = |(before, now): (&i64, &i64)| if reset { *now } else { now - before };
    before.iter().zip(now).map(each).collect()
}

/// All readings of a series, span by span, without any cleverness.
fn plain(readings: &[Reading], span: u64) -> BTreeMap<u64, Shown> {
    let mut spans: BTreeMap<u64, Shown> = BTreeMap::new();
    let mut waits: BTreeMap<u64, Vec<i64>> = BTreeMap::new();
    let (mut bytes, mut latency): (Option<i64>, Option<[i64; 4]>) = (None, None);
    for r in readings {
        let start = r.time / span * span;
        let shown = spans.entry(start).or_default();
        shown.readings += 1;
        if r.bytes != ABSENT
            && let Some(before) = bytes.replace(r.bytes)
        {
            *shown.bytes.get_or_insert(0) += increase(&[before], &[r.bytes], 1)[0];
        }
        if r.latency[0] != ABSENT
            && let Some(before) = latency.replace(r.latency)
        {
            let sums = shown.latency.get_or_insert_with(|| vec![0; 4]);
            let more = increase(&before, &r.latency, 3);
            sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
        }
        if r.wait != ABSENT {
            waits.entry(start).or_default().push(r.wait);
        }
    }
    for (start, waits) in waits {
        let seconds = |value: f64| value * 1e-9;
        let average = waits.iter().sum::<i64>() as f64 / waits.len() as f64;
        let (min, max) = (waits.iter().min().unwrap(), waits.iter().max().unwrap());
        spans.get_mut(&start).unwrap().wait = Some((seconds(*min as f64), seconds(*max as f64), seconds(average)));
    }
    spans
}

async fn view(db: &PgPool, view: &str) -> BTreeMap<(String, String, String, u64), Shown> {
    let sql = format!("select extract(epoch from time)::bigint, node, pod, device, {ROW} from sonde.{view}");
    let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(db).await.unwrap();
    let count = rows.len();
    let shown: BTreeMap<_, _> = rows
        .into_iter()
        .map(|row| {
            let wait = |at: usize| row.get::<Option<f64>, _>(at);
            let shown = Shown {
                readings: row.get(4),
                bytes: row.get(5),
                wait: wait(6).map(|min| (min, wait(7).unwrap(), wait(8).unwrap())),
                latency: row.get(9),
            };
            let time = row.get::<i64, _>(0) as u64 * SECOND;
            ((row.get(1), row.get(2), row.get(3), time), shown)
        })
        .collect();
    assert_eq!(shown.len(), count, "{view}: a span is there twice");
    shown
}

async fn compare(db: &PgPool, readings: &Readings, what: &str) {
    for (name, span) in [("netdev_1m", MINUTE), ("netdev_1h", HOUR)] {
        let mut found = view(db, name).await;
        for ((node, pod, device), readings) in readings {
            for (time, expected) in plain(readings, span) {
                let key = (node.to_string(), pod.to_string(), device.to_string(), time);
                let shown = found
                    .remove(&key)
                    .unwrap_or_else(|| panic!("{what}: {name} has no {key:?}, expected {expected:?}"));
                let (mut left, mut right) = (shown.clone(), expected.clone());
                if let (Some(left), Some(right)) = (left.wait.take(), right.wait.take()) {
                    assert!(
                        (left.2 - right.2).abs() <= 1e-12 * right.2.abs(),
                        "{what}: {name} {key:?}"
                    );
                    assert_eq!((left.0, left.1), (right.0, right.1), "{what}: {name} {key:?}");
                } else {
                    assert_eq!(shown.wait.is_some(), expected.wait.is_some(), "{what}: {name} {key:?}");
                }
                assert_eq!(left, right, "{what}: {name} {key:?}");
            }
        }
        assert!(found.is_empty(), "{what}: {name} has spans without readings: {found:?}");
    }
}

/// What one node sends, readings at the same time together.
fn bodies(node: &str, readings: &Readings) -> Vec<v1::BatchBody> {
    let mut times: BTreeMap<u64, Vec<(Series, Reading)>> = BTreeMap::new();
    for (series, readings) in readings.iter().filter(|(series, _)| series.0 == node) {
        for reading in readings {
            times.entry(reading.time).or_default().push((*series, reading.clone()));
        }
    }
    let pods = ["a", "b"].map(|name| pod(&format!("sandbox-{name}"), "demo", name, &[10, 0, 0, 2]));
    let body = |(time, rows): (u64, Vec<(Series, Reading)>)| v1::BatchBody {
        strings: ["", "eth0", "lo"].map(String::from).to_vec(),
        pods: pods.to_vec(),
        rows: vec![v1::Rows {
            probe: "netdev".into(),
            time_ns: time,
            subjects: rows
                .iter()
                .map(|((_, pod, _), _)| ["", "a", "b"].iter().position(|p| p == pod).unwrap() as u32)
                .collect(),
            labels: rows
                .iter()
                .map(|((.., device), _)| if *device == "eth0" { 1 } else { 2 })
                .collect(),
            columns: vec![
                v1::Column {
                    values: rows.iter().map(|(_, r)| r.bytes).collect(),
                },
                v1::Column {
                    values: rows.iter().map(|(_, r)| r.wait).collect(),
                },
                v1::Column {
                    values: rows.iter().flat_map(|(_, r)| r.latency).collect(),
                },
            ],
        }],
        ..Default::default()
    };
    times.into_iter().map(body).collect()
}

/// Some hours of readings, with everything that happens to readings.
fn random(rng: &mut fastrand::Rng, from: u64, to: u64) -> Readings {
    let mut all = Readings::new();
    for node in ["n1", "n2"] {
        for pod in ["", "a", "b"] {
            for device in ["eth0", "lo"] {
                // It comes and goes in the middle.
                let begin = from + rng.u64(0..2 * HOUR) * rng.u64(0..2);
                let end = to - rng.u64(0..2 * HOUR) * rng.u64(0..2);
                let idle = rng.u8(0..4) == 0;
                let mut last = Reading {
                    time: 0,
                    bytes: rng.i64(0..1000),
                    wait: 5,
                    latency: [1, 2, 3, 900],
                };
                let mut time = begin + rng.u64(0..MINUTE);
                let readings = all.entry((node, pod, device)).or_default();
                while time < end {
                    if !idle {
                        move_on(rng, &mut last);
                    }
                    let mut reading = Reading { time, ..last.clone() };
                    if rng.u8(0..6) == 0 {
                        reading.bytes = ABSENT;
                    }
                    if rng.u8(0..6) == 0 {
                        reading.wait = ABSENT;
                    }
                    if rng.u8(0..6) == 0 {
                        reading.latency = [ABSENT; 4];
                    }
                    readings.push(reading);
                    time += match rng.u8(0..40) {
                        0 => rng.u64(HOUR..2 * HOUR),
                        1..4 => rng.u64(4 * MINUTE..20 * MINUTE),
                        4..8 => rng.u64(SECOND..MINUTE),
                        _ => 45 * SECOND,
                    };
                }
            }
        }
    }
    all
}

fn move_on(rng: &mut fastrand::Rng, last: &mut Reading) {
    match rng.u8(0..20) {
        0 => last.bytes = rng.i64(0..50),
        1..8 => last.bytes += rng.i64(0..5_000_000_000),
        _ => {}
    }
    match rng.u8(0..20) {
        0 => last.latency = [0, rng.i64(0..2), 0, rng.i64(0..100)],
        1..6 => {
            last.latency[rng.usize(0..3)] += rng.i64(0..9);
            last.latency[3] += rng.i64(0..1_000_000_000);
        }
        _ => {}
    }
    if rng.u8(0..5) == 0 {
        last.wait = rng.i64(-5..5_000_000_000);
    }
}

/// Takes some readings away, to be sent later; of whole spans, as a spool would.
fn split(rng: &mut fastrand::Rng, all: &Readings, from: u64, to: u64) -> (Readings, Readings) {
    let spans: Vec<(&str, u64, u64)> = (0..3)
        .map(|_| {
            let begin = rng.u64(from..to);
            (["n1", "n2"][rng.usize(0..2)], begin, begin + rng.u64(MINUTE..HOUR))
        })
        .collect();
    let late = |node: &str, time: u64| {
        spans
            .iter()
            .any(|(n, begin, end)| *n == node && (*begin..*end).contains(&time))
    };
    let part = |want: bool| {
        let of = |(series, readings): (&Series, &Vec<Reading>)| {
            let some = readings
                .iter()
                .filter(|r| late(series.0, r.time) == want)
                .cloned()
                .collect();
            (*series, some)
        };
        all.iter().map(of).collect()
    };
    (part(false), part(true))
}

struct Fleet {
    collectors: BTreeMap<&'static str, (Collector, u64)>,
}

impl Fleet {
    async fn connect(aggregator: &Aggregator) -> Self {
        let mut collectors = BTreeMap::new();
        for (node, epoch) in [("n1", 1), ("n2", 2)] {
            let collector = Collector::connect(aggregator, hello(node, epoch)).await.unwrap();
            let durable = collector.durable;
            collectors.insert(node, (collector, durable));
        }
        Self { collectors }
    }

    async fn send(&mut self, readings: &Readings) {
        for (node, (collector, sequence)) in &mut self.collectors {
            let bodies = bodies(node, readings);
            for piece in bodies.chunks(32) {
                for body in piece {
                    *sequence += 1;
                    collector.send(*sequence, body).await;
                }
                collector.acked(*sequence).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_are_what_their_readings_come_to_whatever_happens() {
    for seed in [1, 2, 3] {
        let rng = &mut fastrand::Rng::with_seed(seed);
        let database = Database::migrated().await;
        let to = (now_ns() - 20 * MINUTE) / HOUR * HOUR;
        let from = to - 5 * HOUR;
        let all = random(rng, from, to);
        let (early, late) = split(rng, &all, from, to);

        let aggregator = Aggregator::on(&database, Storage::default()).await;
        let mut fleet = Fleet::connect(&aggregator).await;
        fleet.send(&early).await;
        roll(&aggregator.store, rng, 3).await;
        compare(&aggregator.db, &early, &format!("seed {seed}, early")).await;
        assert_eq!(aggregator.count("sonde_store.rollup_late").await, 0);
        assert_eq!(aggregator.metrics.rollup.hours_behind.get(), 0);
        drop(fleet);
        aggregator.stop().await;

        let aggregator = Aggregator::on(&database, Storage::default()).await;
        let mut fleet = Fleet::connect(&aggregator).await;
        fleet.send(&late).await;
        roll(&aggregator.store, rng, 3).await;
        compare(&aggregator.db, &all, &format!("seed {seed}, all")).await;
        assert_eq!(aggregator.count("sonde_store.rollup_late").await, 0);
        drop(fleet);
        aggregator.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_roll_up_at_once_do_it_once() {
    let aggregator = Aggregator::start().await;
    let mut fleet = Fleet::connect(&aggregator).await;
    let to = (now_ns() - 20 * MINUTE) / HOUR * HOUR;
    let all = random(&mut fastrand::Rng::with_seed(9), to - 3 * HOUR, to);
    fleet.send(&all).await;
    let store = &aggregator.store;
    let rolled = tokio::join!(
        store.roll_up(now_ns()),
        store.roll_up(now_ns()),
        store.roll_up(now_ns())
    );
    let rolled = [rolled.0.unwrap(), rolled.1.unwrap(), rolled.2.unwrap()];
    assert!(rolled.contains(&Rolled::Up), "{rolled:?}");
    compare(&aggregator.db, &all, "three at once").await;
    aggregator.stop().await;
}

/// What was there before this version is rolled up too, and columns that come later are absent before.
#[tokio::test(flavor = "multi_thread")]
async fn older_tables_are_widened_and_new_columns_are_absent_in_older_spans() {
    let aggregator = Aggregator::start().await;
    let mut fleet = Fleet::connect(&aggregator).await;
    let to = (now_ns() - 20 * MINUTE) / HOUR * HOUR;
    let all = random(&mut fastrand::Rng::with_seed(4), to - 2 * HOUR, to);
    fleet.send(&all).await;
    for drop in [
        "view sonde.netdev_1m",
        "view sonde.netdev_1h",
        "table sonde_store.r1m_netdev",
        "table sonde_store.r1h_netdev",
    ] {
        sqlx::query(AssertSqlSafe(format!("drop {drop}")))
            .execute(&aggregator.db)
            .await
            .unwrap();
    }
    roll(&aggregator.store, &mut fastrand::Rng::new(), 0).await;
    compare(&aggregator.db, &all, "made by the roller").await;

    let mut wider = hello("n3", 3);
    let probe = &mut wider.catalogue.as_mut().unwrap().probes[0];
    for (name, kind, bounds) in [
        ("more", v1::Kind::Counter, vec![]),
        ("level", v1::Kind::Gauge, vec![]),
        ("spread", v1::Kind::Histogram, vec![1.0]),
    ] {
        probe.columns.push(crate::fixture::column(name, kind, "", 0.0, &bounds));
    }
    let _collector = Collector::connect(&aggregator, wider).await.unwrap();
    compare(&aggregator.db, &all, "widened").await;
    for view in ["netdev_1m", "netdev_1h"] {
        let sql = format!("select count(*), count(more) + count(level_max) + count(spread) from sonde.{view}");
        let (rows, values): (i64, i64) = sqlx::query_as(AssertSqlSafe(sql))
            .fetch_one(&aggregator.db)
            .await
            .unwrap();
        assert!(rows > 0 && values == 0, "{view}: {rows} rows, {values} values");
    }
    aggregator.stop().await;
}

/// What readers may do, what is said of columns, and what retention does with each length.
#[tokio::test(flavor = "multi_thread")]
async fn views_are_documented_readable_and_kept_as_long_as_is_said() {
    let database = Database::migrated().await;
    let day = Span::from_secs(86_400);
    let storage = Storage {
        keep_rollups_1m: day,
        keep_rollups_1h: day,
        ..Default::default()
    };
    let aggregator = Aggregator::on(&database, storage).await;
    let mut collector = Collector::connect(&aggregator, hello("n1", 1)).await.unwrap();
    for (sequence, days) in [0, 9].into_iter().enumerate() {
        let mut body = batch(2, 0);
        body.rows[0].time_ns -= days * 24 * HOUR + 2 * HOUR;
        collector.send(sequence as u64 + 1, &body).await;
    }
    collector.acked(2).await;
    roll(&aggregator.store, &mut fastrand::Rng::new(), 0).await;
    assert_eq!(
        aggregator.count("sonde.netdev_1m").await,
        2,
        "what is too old to keep is not made"
    );
    assert_eq!(aggregator.count("sonde.netdev_1h").await, 2);
    let uncommented: Vec<String> = sqlx::query_scalar(
        "select c.relname || '.' || a.attname from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 \
         where c.relname in ('netdev_1m', 'netdev_1h') and col_description(c.oid, a.attnum) is null",
    )
    .fetch_all(&aggregator.db)
    .await
    .unwrap();
    assert_eq!(uncommented, Vec::<String>::new());
    let mut reader = aggregator.db.acquire().await.unwrap();
    sqlx::query("set role sonde_reader")
        .execute(&mut *reader)
        .await
        .unwrap();
    for view in ["netdev_1m", "netdev_1h"] {
        let sql = format!("select {ROW} from sonde.{view}");
        assert_eq!(
            sqlx::query(AssertSqlSafe(sql))
                .fetch_all(&mut *reader)
                .await
                .unwrap()
                .len(),
            2,
            "{view}"
        );
    }
    drop(reader);
    let page = page(&aggregator.metrics);
    for line in [
        "sonde_aggregator_rollup_rows_total 4",
        "sonde_aggregator_rollup_behind_seconds 0",
        "sonde_aggregator_rollup_failures_total 0",
    ] {
        assert!(page.lines().any(|l| l == line), "{line} in {page}");
    }
    aggregator.stop().await;
}

fn page(metrics: &Metrics) -> String {
    let mut page = sonde_common::prom::Page::new();
    metrics.render(&mut page);
    page.finish()
}
