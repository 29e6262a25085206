//! How long searches of events take with many stored, while 5,000 a second arrive: every filter over a day, statistics, a walk by
//! cursor, and two hundred streams.

mod streams;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use sonde_fleet::{Options, Pace, Shape, Until};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Executor as _};

use crate::report::{Report, thousands};
use crate::store::Store;

/// Searches aim at this, statistics at the other, at the 99th percentile.
const SEARCH_GOAL: f64 = 50.0;
const STATS_GOAL: f64 = 300.0;

/// Events that are stored before: `SONDE_BENCH_EVENTS`; 50,000,000 are what the goals are for, and take 11 GB.
fn events() -> u64 {
    number("SONDE_BENCH_EVENTS", 5_000_000)
}

/// How often each question is asked: `SONDE_BENCH_TRIES`.
fn tries() -> u64 {
    number("SONDE_BENCH_TRIES", 50)
}

fn number(name: &str, default: u64) -> u64 {
    let given = std::env::var(name).ok().and_then(|text| text.parse().ok());
    given.unwrap_or(default)
}

/// What is asked, `N` being another number each time.
const FILTERS: [(&str, &str, u64); 22] = [
    ("none", "", 1),
    ("type", "type=FAR_TYPE_1N", 18),
    ("type, negated", "type=!FAR_TYPE_1N", 18),
    ("reason", "reason=FAR_REASON_2N", 100),
    ("probe", "probe=far-probe-N", 8),
    ("node", "node=far-N", 200),
    ("pod, frequent", "pod=pod-N", 10),
    ("pod, middle", "pod=pod-1N", 90),
    ("pod, rare", "pod=pod-4N", 900),
    ("namespace", "namespace=ns-N", 10),
    ("workload", "workload=work-N", 250),
    ("protocol, none such", "protocol=FAR", 1),
    ("address", "ip=10.64.7.N", 250),
    ("network of 16 addresses", "ip=10.64.N.0/28", 70),
    ("network of 16,384 addresses", "ip=10.64.64.0/18", 1),
    ("port, rare", "port=4N", 900),
    ("port, frequent", "port=443", 1),
    ("latency, rare", "min_latency=8s", 1),
    ("latency, frequent", "min_latency=N00ms", 9),
    ("text in a process name", "q=far-comm-19N", 90),
    ("text in a stack", "q=far_function_3N", 900),
    ("text in an attribute", "q=FORWARD%20rule%204N", 90),
];

const STATS: [(&str, &str, u64); 10] = [
    ("by type", "by=type", 1),
    ("by reason, of a type", "by=reason&type=FAR_TYPE_1N", 18),
    ("by pod", "by=pod", 1),
    ("by namespace, of a type", "by=namespace&type=FAR_TYPE_1N", 18),
    ("by type, of a pod", "by=type&pod=pod-N", 5000),
    ("by pod, of a namespace", "by=pod&namespace=ns-N", 10),
    ("by node", "by=node&step=1h", 1),
    ("by reason, of a rare pod", "by=reason&pod=pod-4N", 900),
    ("by destination", "by=daddr", 1),
    ("by source port", "by=sport", 1),
];

pub(crate) async fn run(report: &mut Report) -> anyhow::Result<()> {
    let store = match std::env::var_os("SONDE_BENCH_DATA") {
        Some(folder) => Store::start_in(folder.into())?,
        None => Store::start()?,
    };
    let mut database = store.database().await?;
    let day = fill(&mut database).await?;
    // Of a database that was kept also what arrived then.
    let bytes = store.bytes().await? as f64 / last(&mut database).await? as f64;
    store.warm()?;
    report.section(
        "Event search",
        &format!(
            "{} events of one day stored (200 nodes, 5,000 pods, most of everything rare), 5,000 a second arriving, {} tries of each \
             question with other values, 100 events a page, over that day, and over the last 24 hours, in which they are hours away from now. \
             Times are of the whole answer over HTTP, with all of it in memory. \
             `SONDE_BENCH_EVENTS` and `SONDE_BENCH_TRIES` set the numbers; `SONDE_BENCH_DATA` names a folder in which they are \
             kept for the next time.",
            thousands(events() as f64),
            tries()
        ),
    );
    report.row("bytes an event, indexes and digest included", format!("{bytes:.0}"));
    let (began, before) = (Instant::now(), last(&mut database).await?);
    let load = tokio::spawn(arrivals(store.grpc.clone(), 5000.0, Duration::from_secs(3600)));
    let http = store.aggregator.http;
    let (search, stats) = ("/api/v1/events", "/api/v1/events/stats");
    // Events that arrive are not like the stored ones: what is asked for is hours away from now.
    for (kind, questions, goal, path, span) in [
        ("filter", &FILTERS[..], SEARCH_GOAL, search, &*day),
        ("filter, last 24 hours", &FILTERS[..], SEARCH_GOAL, search, "from=-24h"),
        ("statistics", &STATS[..], STATS_GOAL, stats, &*day),
        ("statistics, last 24 hours", &STATS[..], STATS_GOAL, stats, "from=-24h"),
    ] {
        for (name, query, values) in questions {
            let times = ask(http, path, &format!("{span}&{query}"), *values).await;
            let figure = match times {
                Ok((p50, p99)) => format!("p50 {p50:.0} ms, p99 {p99:.0} ms (goal {goal:.0} ms)"),
                Err(error) => format!("no answer: {error}"),
            };
            report.row(&format!("{kind}: {name}"), figure);
        }
    }
    ensure!(!load.is_finished(), "events stopped arriving");
    walk(report, http, &day).await?;
    load.abort();
    // Its connections have ended then.
    drop(load.await);
    let arrived = last(&mut database).await? - before;
    ensure!(arrived > 0, "no event arrived meanwhile");
    report.row(
        "events that were stored meanwhile, a second",
        thousands(arrived as f64 / began.elapsed().as_secs_f64()),
    );
    streams::run(report, &store).await
}

/// `from=...&to=...` of the day that is filled.
async fn fill(database: &mut PgConnection) -> anyhow::Result<String> {
    let (day, next, name): (String, String, String) = sqlx::query_as(
        "select d::date::text || ' 00:00:00+00', (d::date + 1)::text || ' 00:00:00+00', to_char(d, 'YYYYMMDD') \
         from (select (now() - interval '1 day') at time zone 'utc' as d) x",
    )
    .fetch_one(&mut *database)
    .await?;
    let rfc = |time: &str| time.replace(' ', "T").replace("+00", "Z");
    let query = format!("from={}&to={}", rfc(&day), rfc(&next));
    let filled = format!("select exists (select from sonde_store.events where time >= '{day}' and time < '{next}')");
    if !sqlx::query_scalar(AssertSqlSafe(filled))
        .fetch_one(&mut *database)
        .await?
    {
        store_events(database, &day, &next, &name).await?;
    }
    eprintln!("   events are stored, waiting for the digest");
    loop {
        let behind: i64 =
            sqlx::query_scalar("select last - through from sonde_store.event_ids, sonde_store.event_digest")
                .fetch_one(&mut *database)
                .await?;
        if behind == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    database.execute("vacuum analyze").await?;
    Ok(query)
}

/// The newest event.
async fn last(database: &mut PgConnection) -> anyhow::Result<i64> {
    let sql = "select last from sonde_store.event_ids";
    Ok(sqlx::query_scalar(sql).fetch_one(database).await?)
}

async fn store_events(database: &mut PgConnection, day: &str, next: &str, name: &str) -> anyhow::Result<()> {
    let leaf = format!("sonde_parts.events_{name}");
    // Indexes are made when it is attached: that takes a fraction of the time.
    let make = format!("drop table if exists {leaf}; create table {leaf} (like sonde_store.events including defaults)");
    database.execute(AssertSqlSafe(make)).await?;
    let sql = include_str!("fill.sql")
        .replace("$LEAF", &leaf)
        .replace("$DAY", &format!("'{day}'"))
        .replace("$NEXT", &format!("'{next}'"))
        .replace("$EVENTS", &events().to_string());
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *database).await?;
    Ok(())
}

async fn arrivals(url: String, events: f64, span: Duration) -> anyhow::Result<()> {
    sonde_fleet::run(Options {
        url,
        nodes: 20,
        shape: Shape {
            pods: 50,
            // Other nodes' spools than those that a kept database knows.
            seed: fastrand::u64(..),
            ..Shape::default()
        },
        pace: Pace::Every(Duration::from_secs(5)),
        until: Until::Passed(span),
        events,
        ..Options::default()
    })
    .await
    .map(drop)
}

async fn get(http: SocketAddr, path: String) -> anyhow::Result<serde_json::Value> {
    let answer = tokio::task::spawn_blocking(move || crate::http::get(http, &path)).await??;
    let value: serde_json::Value = serde_json::from_slice(&answer.body).context("an answer that is not JSON")?;
    ensure!(answer.status == 200, "{}", value["detail"]);
    Ok(value)
}

/// Median and 99th percentile in milliseconds.
async fn ask(http: SocketAddr, path: &str, query: &str, values: u64) -> anyhow::Result<(f64, f64)> {
    let mut times = Vec::new();
    for _ in 0..tries() {
        let path = format!("{path}?{}", fill_in(query, values));
        let asked = Instant::now();
        get(http, path).await?;
        times.push(asked.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
    Ok((at(0.5), at(0.99)))
}

/// The query with another number for its last `N`, with all digits where it continues a number.
fn fill_in(query: &str, values: u64) -> String {
    let Some(at) = query.rfind('N') else {
        return query.to_owned();
    };
    let (before, after) = (&query[..at], &query[at + 1..]);
    let value = fastrand::u64(..values);
    match before.ends_with(|c: char| c.is_ascii_digit()) {
        true if values > 100 => format!("{before}{value:03}{after}"),
        true => format!("{before}{value:02}{after}"),
        false => format!("{before}{value}{after}"),
    }
}

/// Every event of a part of the day by cursor, a million at most.
async fn walk(report: &mut Report, http: SocketAddr, day: &str) -> anyhow::Result<()> {
    const MOST: usize = 1_000_000;
    let query = format!("/api/v1/events?{day}&limit=1000&order=asc");
    let (mut seen, mut longest) = (HashSet::new(), Duration::ZERO);
    let (started, mut cursor, mut count) = (Instant::now(), String::new(), 0);
    loop {
        let asked = Instant::now();
        let page = get(http, format!("{query}{cursor}")).await?;
        longest = longest.max(asked.elapsed());
        for event in page["events"].as_array().context("no events")? {
            seen.insert(event["id"].as_i64().context("no id")?);
            count += 1;
        }
        match page["next_cursor"].as_str() {
            Some(next) if count < MOST => cursor = format!("&cursor={next}"),
            _ => break,
        }
    }
    ensure!(count == seen.len(), "{} events came twice", count - seen.len());
    ensure!(
        count == MOST || count as u64 == events(),
        "{count} events came of {}",
        events()
    );
    report.row(
        &format!("{} events by cursor, 1,000 a page, each once", thousands(count as f64)),
        format!(
            "{:.0} s, longest page {:.0} ms",
            started.elapsed().as_secs_f64(),
            longest.as_secs_f64() * 1e3
        ),
    );
    Ok(())
}
