//! How long people wait: the questions of a pod's page and of a table of pods, through the views.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use sonde_common::time::now_ns;
use sonde_fleet::{Options, Pace, Shape, Until};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Executor as _};

use crate::report::Report;
use crate::store::Store;

const PODS: usize = 50;
const INTERVAL: Duration = Duration::from_secs(5);
const LONG: Duration = Duration::from_secs(6 * 3600);
const SHORT: Duration = Duration::from_secs(300);
/// So many pods are compared: 20 nodes of 50.
const NODES: usize = 20;
const TRIES: usize = 9;

pub(crate) async fn run(report: &mut Report) -> anyhow::Result<()> {
    let store = Store::start()?;
    // One node has six hours of readings, all have five minutes.
    fill(&store, 1, LONG).await?;
    fill(&store, NODES, SHORT).await?;
    report.section(
        "Queries",
        &format!(
            "{NODES} nodes of {PODS} pods with a reading every 5 s, one of them for 6 h; all rows read, median of {TRIES} and the \
             least, from a warm cache.\n\"For comparison\": the same rows of that node from a table that has them as they are \
             shown, with an index by pod and time, which is\nwhat it costs to send them."
        ),
    );
    let mut database = store.database().await?;
    database.execute("vacuum analyze").await?;
    let (namespace, pod): (String, String) = sqlx::query_as(
        "select namespace, pod from sonde.pods where node = 'node-00000' and pod <> '' order by valid_from, pod limit 1",
    )
    .fetch_one(&mut database)
    .await
    .context("a pod of the first node")?;
    let mut asked = Vec::new();
    for probe in ["tcp", "netdev", "tcpext"] {
        let sql = format!(
            "select * from sonde.{probe} where namespace = '{namespace}' and pod = '{pod}' and time > now() - interval '7 hours'"
        );
        let (rows, time) = median(&store, &mut database, &sql).await?;
        if probe == "tcp" {
            plan(&mut database, "one pod, all columns, 6 h", &sql).await?;
        }
        // The pod may have ended and been followed by another.
        ensure!(rows > 100, "{rows} rows of {probe}");
        report.row(&format!("one pod, all columns of `{probe}`, 6 h: {rows} rows"), time);
        asked.push((probe, sql, rows));
    }
    let sql = "select namespace, pod, sum(increase) as increase from ( \
                   select namespace, pod, device, max(receive_bytes) - min(receive_bytes) as increase \
                   from sonde.netdev where time > now() - interval '5 minutes' and pod <> '' group by 1, 2, 3) devices \
               group by 1, 2 order by 3 desc limit 10";
    let (rows, time) = median(&store, &mut database, sql).await?;
    plan(&mut database, "top 10 of 1,000 pods, 5 minutes", sql).await?;
    ensure!(rows == 10, "{rows} rows");
    report.row("top 10 of 1,000 pods by increase of a counter over 5 minutes", time);
    // Last, as these tables are big and the server is busy with them for a while.
    for (probe, sql, rows) in asked {
        let (plain, time) = plain(&store, &mut database, probe, &sql).await?;
        ensure!(plain == rows, "{plain} rows of {probe} instead of {rows}");
        report.row(
            &format!("for comparison, one pod, all columns of `{probe}`, 6 h, a row for each reading: {rows} rows"),
            time,
        );
    }
    Ok(())
}

/// The same question to a table that has a row for each reading, in the order in which they came.
async fn plain(store: &Store, database: &mut PgConnection, probe: &str, sql: &str) -> anyhow::Result<(usize, String)> {
    let table =
        format!("create table plain_{probe} as select * from sonde.{probe} where node = 'node-00000' order by time");
    database.execute(AssertSqlSafe(table)).await?;
    database
        .execute(AssertSqlSafe(format!(
            "create index on plain_{probe} (namespace, pod, time)"
        )))
        .await?;
    database
        .execute(AssertSqlSafe(format!("vacuum analyze plain_{probe}")))
        .await?;
    database.execute("checkpoint").await?;
    let measured = median(store, database, &sql.replace("sonde.", "plain_")).await?;
    database
        .execute(AssertSqlSafe(format!("drop table plain_{probe}")))
        .await?;
    Ok(measured)
}

/// How the server does it, for docs/storage.md: with `SONDE_BENCH_PLANS` set, to standard error.
async fn plan(database: &mut PgConnection, what: &str, sql: &str) -> anyhow::Result<()> {
    if std::env::var_os("SONDE_BENCH_PLANS").is_some() {
        let explain = format!("explain (analyze, buffers, costs off) {sql}");
        let lines: Vec<String> = sqlx::query_scalar(AssertSqlSafe(explain)).fetch_all(database).await?;
        eprintln!("{what}\n{}\n", lines.join("\n"));
    }
    Ok(())
}

/// Readings of so many nodes over the last `span`.
async fn fill(store: &Store, nodes: usize, span: Duration) -> anyhow::Result<()> {
    let from_ns = now_ns() - span.as_nanos() as u64;
    let load = sonde_fleet::run(Options {
        url: store.grpc.clone(),
        nodes,
        shape: Shape {
            pods: PODS,
            // One pod is to be there all the time.
            churn: 0.0,
            // A run of its own has an epoch of its own.
            seed: span.as_secs(),
            ..Shape::default()
        },
        pace: Pace::Readings,
        until: Until::Batches(span.as_secs() / INTERVAL.as_secs()),
        window: 16,
        times: Some((from_ns, INTERVAL)),
        ..Options::default()
    })
    .await?;
    ensure!(load.reconnects == 0, "{} streams broke", load.reconnects);
    Ok(())
}

/// Rows, and the time of one query, beside the CPU time that the server took meanwhile.
async fn median(store: &Store, database: &mut PgConnection, sql: &str) -> anyhow::Result<(usize, String)> {
    let mut times = Vec::new();
    let mut rows = 0;
    let before = store.usage()?;
    for _ in 0..=TRIES {
        let started = Instant::now();
        rows = sqlx::query(AssertSqlSafe(sql.to_owned()))
            .fetch_all(&mut *database)
            .await?
            .len();
        times.push(started.elapsed());
    }
    // The first one fills the cache.
    times.remove(0);
    times.sort_unstable();
    let used = (store.usage()? - before).postgres / (TRIES as u32 + 1);
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let (median, least) = (ms(times[times.len() / 2]), ms(times[0]));
    let shown = format!("{median:.1} ms, least {least:.1} ms, {:.0} ms of CPU", ms(used));
    Ok((rows, shown))
}
