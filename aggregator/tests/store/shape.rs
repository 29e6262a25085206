//! Whatever the shape of the tables: the views give each reading as it was sent, once.

use std::collections::BTreeMap;

use fastrand::Rng;
use sonde_aggregator::testing::Database;
use sonde_common::config::Storage;
use sonde_common::time::now_ns;
use sonde_proto::{ABSENT, v1};
use sqlx::Row as _;

use crate::fixture::{Aggregator, Collector, column, hello, pod};

const PODS: usize = 30;
const DEVICES: [&str; 3] = ["eth0", "eth1", "lo"];
/// Buckets of the histogram, the one beyond its bounds, and its sum.
const WIDTH: usize = 4;
const COLUMNS: usize = 5;

/// A reading as a row of its own: time, node, pod, device, and the numbers of all columns.
type Naive = (i64, String, String, String, [Vec<Option<i64>>; COLUMNS]);

/// What one node has now.
struct Node {
    name: String,
    rng: Rng,
    /// By pod (0: the node itself) and device.
    series: BTreeMap<(usize, usize), [Vec<i64>; COLUMNS]>,
    time_ns: u64,
    sequence: u64,
    wide: bool,
}

fn catalogue(wide: bool) -> v1::Catalogue {
    let mut columns = vec![
        column("counts", v1::Kind::Counter, "", 0.0, &[]),
        column("bytes", v1::Kind::Counter, "bytes", 0.0, &[]),
        column("level", v1::Kind::Gauge, "", 0.0, &[]),
        column("wait", v1::Kind::Histogram, "seconds", 1e-9, &[0.001, 0.01]),
    ];
    if wide {
        columns.insert(1, column("later", v1::Kind::Gauge, "", 0.0, &[]));
    }
    v1::Catalogue {
        probes: vec![v1::ProbeDef {
            name: "shape".into(),
            help: "h".into(),
            labels: vec![v1::LabelDef {
                name: "device".into(),
                help: "d".into(),
            }],
            columns,
            event_types: vec![],
        }],
    }
}

impl Node {
    fn new(name: &str, seed: u64) -> Self {
        let mut node = Self {
            name: name.into(),
            rng: Rng::with_seed(seed),
            series: BTreeMap::new(),
            // Whole microseconds: what the tables keep.
            time_ns: now_ns() / 1000 * 1000 - 3_600_000_000_000,
            sequence: 0,
            wide: false,
        };
        for _ in 0..20 {
            node.comes();
        }
        node
    }

    fn comes(&mut self) {
        let key = (self.rng.usize(0..=PODS), self.rng.usize(0..DEVICES.len()));
        let absent = |rng: &mut Rng, value: i64| if rng.u8(0..6) == 0 { ABSENT } else { value };
        let scalar = |rng: &mut Rng| {
            let value = rng.i64(0..1000);
            vec![absent(rng, value)]
        };
        let rng = &mut self.rng;
        let mut values = [scalar(rng), scalar(rng), scalar(rng), vec![0; WIDTH], vec![ABSENT]];
        if rng.u8(0..5) == 0 {
            values[3] = vec![ABSENT; WIDTH];
        }
        self.series.insert(key, values);
    }

    /// Most series stand still, some move, a few do what is hard to store.
    fn moves(&mut self) {
        let rng = &mut self.rng;
        for values in self.series.values_mut() {
            if rng.u8(0..3) > 0 {
                continue;
            }
            for (at, column) in values.iter_mut().enumerate() {
                let element = rng.usize(0..column.len());
                let value = &mut column[element];
                let known = if *value == ABSENT { 0 } else { *value };
                *value = match rng.u8(0..40) {
                    0 => ABSENT,
                    1 => 0,
                    2 => known.saturating_add(5_000_000_000),
                    3 => known.saturating_sub(rng.i64(0..4_000_000_000)),
                    4 if at == 2 => i64::MAX - rng.i64(0..3),
                    5 if at == 2 => i64::MIN + 1 + rng.i64(0..3),
                    6 => known.saturating_add(i64::from(i32::MAX) + rng.i64(-2..3)),
                    7 => known.saturating_sub(i64::from(i32::MAX) + rng.i64(-2..3)),
                    8..20 => known.saturating_add(rng.i64(0..100_000)),
                    _ => *value,
                };
                if rng.u8(0..60) == 0 {
                    column.fill(ABSENT);
                }
            }
            if !self.wide {
                values[4] = vec![ABSENT];
            }
        }
    }

    fn reading(&mut self, naive: &mut Vec<Naive>) -> v1::BatchBody {
        for _ in 0..self.rng.usize(0..2) {
            self.comes();
        }
        if self.rng.u8(0..6) == 0 {
            let keys: Vec<_> = self.series.keys().copied().collect();
            let few = self.rng.usize(0..keys.len() / 2 + 1);
            for key in keys.iter().take(if self.rng.u8(0..10) == 0 { few } else { 1 }) {
                self.series.remove(key);
            }
        }
        self.moves();
        self.time_ns += 5_000_000_000;
        // A spool that was held up: readings of another day, or older than the ones before.
        let time_ns = match self.rng.u8(0..20) {
            0 => self.time_ns - 86_400_000_000_000,
            1 => self.time_ns - 600_000_000_000,
            _ => self.time_ns,
        };
        let mut order: Vec<_> = self.series.keys().copied().collect();
        if self.rng.u8(0..8) == 0 {
            self.rng.shuffle(&mut order);
        }
        if self.rng.u8(0..30) == 0 && !order.is_empty() {
            order.push(order[0]);
        }
        // A reading may come in parts, and without its last columns.
        let parts = self.rng.usize(1..3);
        let left_out = usize::from(self.rng.u8(0..15) == 0);
        let mut strings = vec![String::new()];
        strings.extend(DEVICES.map(String::from));
        let pods = (1..=PODS)
            .map(|n| {
                pod(
                    &format!("{}-{n}", self.name),
                    "demo",
                    &format!("p{n}"),
                    &[10, 0, 1, n as u8],
                )
            })
            .collect();
        let rows = order.chunks(order.len().div_ceil(parts).max(1));
        let rows = rows.map(|rows| self.rows(time_ns, rows, left_out, naive)).collect();
        v1::BatchBody {
            strings,
            pods,
            rows,
            ..Default::default()
        }
    }

    fn rows(&self, time_ns: u64, rows: &[(usize, usize)], left_out: usize, naive: &mut Vec<Naive>) -> v1::Rows {
        // Places of the columns in the catalogue.
        let order: &[usize] = if self.wide { &[0, 4, 1, 2, 3] } else { &[0, 1, 2, 3] };
        let sent = &order[..order.len() - left_out];
        let columns = sent.iter().map(|at| v1::Column {
            values: rows.iter().flat_map(|key| self.series[key][*at].clone()).collect(),
        });
        for key in rows {
            let shown = |at: usize| -> Vec<Option<i64>> {
                let values = &self.series[key][at];
                if !sent.contains(&at) || values.iter().all(|v| *v == ABSENT) {
                    return vec![];
                }
                values.iter().map(|v| (*v != ABSENT).then_some(*v)).collect()
            };
            let pod = if key.0 == 0 {
                String::new()
            } else {
                format!("p{}", key.0)
            };
            naive.push((
                (time_ns / 1000) as i64,
                self.name.clone(),
                pod,
                DEVICES[key.1].into(),
                std::array::from_fn(shown),
            ));
        }
        v1::Rows {
            probe: "shape".into(),
            time_ns,
            subjects: rows.iter().map(|key| key.0 as u32).collect(),
            labels: rows.iter().map(|key| key.1 as u32 + 1).collect(),
            columns: columns.collect(),
        }
    }

    async fn connect(&self, aggregator: &Aggregator) -> Collector {
        let mut hello = hello(&self.name, 1);
        hello.catalogue = Some(catalogue(self.wide));
        Collector::connect(aggregator, hello).await.unwrap()
    }
}

/// What the view shows, in the form of the naive rows.
async fn shown(aggregator: &Aggregator, wide: bool) -> Vec<Naive> {
    let later = if wide { "later" } else { "null::bigint" };
    let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
        "select (extract(epoch from time) * 1000000)::bigint, node, pod, device, counts, bytes, level, wait, {later} \
         from sonde.shape"
    )))
    .fetch_all(&aggregator.db)
    .await
    .unwrap();
    let scalar = |value: Option<i64>| value.map_or(vec![], |v| vec![Some(v)]);
    let mut shown: Vec<Naive> = rows
        .iter()
        .map(|row| {
            let wait: Option<Vec<Option<i64>>> = row.get(7);
            let values = [
                scalar(row.get(4)),
                scalar(row.get(5)),
                scalar(row.get(6)),
                wait.unwrap_or_default(),
                scalar(row.get(8)),
            ];
            (row.get(0), row.get(1), row.get(2), row.get(3), values)
        })
        .collect();
    shown.sort();
    shown
}

async fn run(seed: u64) {
    let database = Database::migrated().await;
    let mut aggregator = Aggregator::on(&database, Storage::default()).await;
    let mut rng = Rng::with_seed(seed);
    let mut nodes = [Node::new("a", rng.u64(..)), Node::new("b", rng.u64(..))];
    let mut naive = Vec::new();
    let mut any_wide = false;
    for _ in 0..12 {
        for node in &mut nodes {
            node.wide |= rng.u8(0..6) == 0;
            any_wide |= node.wide;
            let mut collector = node.connect(&aggregator).await;
            for _ in 0..rng.u64(1..40) {
                let body = node.reading(&mut naive);
                node.sequence += 1;
                collector.send(node.sequence, &body).await;
            }
            collector.acked(node.sequence).await;
        }
        match rng.u8(0..4) {
            0 => {
                aggregator.stop().await;
                aggregator = Aggregator::on(&database, Storage::default()).await;
            }
            1 => {
                // What the writer remembers is not to be relied on after it lost its connection.
                let others = "pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() \
                              and application_name = 'sonde-aggregator writer'";
                sqlx::raw_sql(sqlx::AssertSqlSafe(format!("select {others}")))
                    .execute(&aggregator.db)
                    .await
                    .unwrap();
            }
            _ => {}
        }
    }
    naive.sort();
    let shown = shown(&aggregator, any_wide).await;
    if let Some((expected, got)) = naive.iter().zip(&shown).find(|(a, b)| a != b) {
        panic!("seed {seed}: expected {expected:?}, the view has {got:?}");
    }
    assert_eq!(naive.len(), shown.len(), "seed {seed}");
    aggregator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_views_have_each_reading_as_it_was_sent() {
    for seed in 1..=4 {
        run(seed).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn differences_lie_in_their_row() {
    let aggregator = Aggregator::start().await;
    Collector::connect(&aggregator, hello("n1", 1)).await.unwrap();
    let delta = "pg_class where relname like 'delta\\_netdev\\_2%' and relkind = 'r'";
    let there = "pg_class where relname like 'delta\\_netdev\\_2%' and relkind = 'r' and 'toast_tuple_target=8160' = any (reloptions)";
    assert_eq!(aggregator.count(delta).await, 2, "of today and tomorrow");
    assert_eq!(aggregator.count(there).await, 2);
    aggregator.stop().await;
}
