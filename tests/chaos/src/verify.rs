//! The journals of the nodes beside the views of schema `sonde`.

use std::collections::{HashMap, HashSet};
use std::fmt;

use anyhow::Context as _;
use futures::TryStreamExt as _;
use sonde_proto::gap;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{ConnectOptions as _, Row as _};

use crate::account::{Item, Missing, Span, missing, outside};
use crate::content::{ROWS_A_ROUND, Row, Seen, expected_event, expected_rows};
use crate::journal::{self, Line};
use crate::site::Site;

/// Wrong things that are shown of each sort.
const SHOWN: usize = 5;

#[derive(Debug, Default)]
pub struct Verdict {
    pub told: Vec<String>,
    pub wrong: Vec<String>,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.told.iter().try_for_each(|line| writeln!(f, "{line}"))?;
        match self.wrong.len() {
            0 => write!(
                f,
                "every event and every row is there once with the right value, or in a gap with the right count"
            ),
            _ => write!(f, "WRONG:\n{}", self.wrong.join("\n")),
        }
    }
}

/// What a journal says.
#[derive(Debug, Default)]
struct Handed {
    events: Vec<Item>,
    rounds: Vec<Item>,
    spooled_events: HashSet<u64>,
    spooled_rounds: HashSet<u64>,
    killed: HashSet<u64>,
}

impl Handed {
    fn of(lines: &[Line]) -> Self {
        let mut handed = Self::default();
        for line in lines {
            match line {
                Line::Start { run } => _ = handed.killed.insert(*run),
                Line::End { run } => _ = handed.killed.remove(run),
                Line::Events {
                    run,
                    first,
                    count,
                    time_ns,
                } => handed.events.extend((0..*count).map(|n| Item {
                    run: *run,
                    id: first + n,
                    time_us: time_ns / 1000 + n,
                })),
                Line::Rows { run, round, time_ns } => handed.rounds.push(Item {
                    run: *run,
                    id: *round,
                    time_us: time_ns / 1000,
                }),
                Line::Spooled { events, rounds, .. } => {
                    handed.spooled_events.extend(events.iter().flat_map(|(a, b)| *a..=*b));
                    handed.spooled_rounds.extend(rounds.iter().flat_map(|(a, b)| *a..=*b));
                }
            }
        }
        handed
    }
}

/// A gap of a node.
#[derive(Debug)]
struct Gap {
    span: Span,
    cause: String,
    count: u64,
    detail: String,
}

pub fn verify(site: &Site) -> anyhow::Result<Verdict> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut database = site
            .cluster()
            .connect_options("sonde")
            .disable_statement_logging()
            .connect()
            .await?;
        let mut verdict = Verdict::default();
        for node in &site.nodes {
            let handed = Handed::of(&journal::read(&node.journal)?);
            one(&mut database, &node.name, &handed, &mut verdict)
                .await
                .with_context(|| node.name.clone())?;
        }
        Ok(verdict)
    })
}

async fn one(database: &mut PgConnection, node: &str, handed: &Handed, verdict: &mut Verdict) -> anyhow::Result<()> {
    let gaps = gaps(database, node).await?;
    let events = events(database, node, handed, verdict).await?;
    let rounds = rounds(database, node, handed, verdict).await?;
    let told = format!(
        "{node}: {} runs of the process, {} killed;",
        handed.killed.len() + 1,
        handed.killed.len()
    );
    verdict.told.push(told);
    let lanes = [
        Lane {
            name: "events",
            each: 1,
            items: &handed.events,
            spooled: &handed.spooled_events,
            stored: &events,
        },
        Lane {
            name: "rows",
            each: ROWS_A_ROUND,
            items: &handed.rounds,
            spooled: &handed.spooled_rounds,
            stored: &rounds,
        },
    ];
    for one in &lanes {
        let (spooled, stored) = (|id| one.spooled.contains(&id), |id| one.stored.contains(&id));
        lane(
            one,
            &missing(one.items, spooled, stored, &handed.killed),
            &gaps,
            node,
            verdict,
        );
    }
    let other = gaps
        .iter()
        .filter(|gap| ![gap::SPOOL_FULL, gap::COLLECTOR_DOWN, gap::SPOOL_DAMAGED].contains(&&*gap.cause));
    verdict
        .wrong
        .extend(other.map(|gap| format!("{node}: a gap that nothing caused: {gap:?}")));
    Ok(())
}

/// One of the two that a spool has.
struct Lane<'a> {
    name: &'static str,
    /// So many things that gaps count are an item.
    each: u64,
    items: &'a [Item],
    spooled: &'a HashSet<u64>,
    stored: &'a HashSet<u64>,
}

/// Holes of a lane beside its gaps.
///
/// A gap counts what is missing, exactly: also of what was on its way when the spool dropped it. Only of what was in the
/// memory of a process that was killed nobody knows whether it had been counted.
fn lane(lane: &Lane<'_>, missing: &Missing, gaps: &[Gap], node: &str, verdict: &mut Verdict) {
    let Lane { name, each, items, .. } = *lane;
    let full: Vec<&Gap> = gaps
        .iter()
        .filter(|gap| gap.cause == gap::SPOOL_FULL && gap.detail.starts_with(&format!("{name}: ")))
        .collect();
    let counted: u64 = full.iter().map(|gap| gap.count).sum();
    let spans: Vec<Span> = full.iter().map(|gap| gap.span).collect();
    let must = missing.counted.len() as u64 * each;
    let with_the_process = missing.with_the_process.len() as u64 * each;
    verdict.told.push(format!(
        "  {name}: {} handed over, {must} missing that must be counted, {with_the_process} that went with the memory of a killed \
         process; {} gaps count {counted}",
        items.len() as u64 * each,
        full.len(),
    ));
    if !(must..=must + with_the_process).contains(&counted) {
        verdict.wrong.push(format!(
            "{node}: {name}: gaps count {counted}, expected {must}, at most {with_the_process} more:\n  {}",
            full.iter()
                .map(|gap| format!("{gap:?}"))
                .collect::<Vec<_>>()
                .join("\n  ")
        ));
    }
    let bare = outside(&missing.counted, &spans);
    wrong(
        verdict,
        &format!("{node}: {name} missing in no gap of a full spool"),
        &bare,
    );
    let down = gaps
        .iter()
        .filter(|gap| gap.cause == gap::COLLECTOR_DOWN)
        .map(|gap| gap.span);
    let spans: Vec<Span> = spans.iter().copied().chain(down).collect();
    let bare = outside(&missing.with_the_process, &spans);
    wrong(
        verdict,
        &format!("{node}: {name} that went with a process, in no gap"),
        &bare,
    );
}

fn wrong<T: fmt::Debug>(verdict: &mut Verdict, what: &str, items: &[T]) {
    if !items.is_empty() {
        let shown = &items[..items.len().min(SHOWN)];
        verdict
            .wrong
            .push(format!("{what}: {} of them, such as {shown:?}", items.len()));
    }
}

/// Numbers of events that are there as they should.
async fn events(
    database: &mut PgConnection,
    node: &str,
    handed: &Handed,
    verdict: &mut Verdict,
) -> anyhow::Result<HashSet<u64>> {
    let sql = "select latency_ns, (extract(epoch from time) * 1000000)::bigint, coalesce(pod, 'unknown'), \
               coalesce(reason, ''), coalesce(host(saddr), ''), coalesce(sport, 0), coalesce(attributes->>'noise', ''), \
               type, probe, coalesce(stack::text, '') from sonde.events where node = $1";
    let mut rows = sqlx::query(sql).bind(node).fetch(database);
    let times: HashMap<u64, u64> = handed.events.iter().map(|item| (item.id, item.time_us)).collect();
    let (mut there, mut twice, mut bad) = (HashSet::new(), Vec::new(), Vec::new());
    // One after the other: there may be millions.
    while let Some(row) = rows.try_next().await? {
        let id = row.try_get::<Option<i64>, _>(0)?.unwrap_or_default().cast_unsigned();
        let seen = Seen {
            pod: row.try_get(2)?,
            reason: row.try_get(3)?,
            saddr: row.try_get(4)?,
            sport: row.try_get(5)?,
            noise: row.try_get(6)?,
        };
        let (kind, probe, stack): (String, String, String) = (row.try_get(7)?, row.try_get(8)?, row.try_get(9)?);
        let time = row.try_get::<i64, _>(1)?.cast_unsigned();
        let right = times.get(&id) == Some(&time)
            && seen == expected_event(node, id)
            && (kind.as_str(), probe.as_str()) == ("CHAOS", "chaos")
            && stack.contains("first+0x1");
        if !right {
            bad.push((id, time, seen));
        }
        if !there.insert(id) {
            twice.push(id);
        }
    }
    wrong(verdict, &format!("{node}: events that are there twice"), &twice);
    wrong(
        verdict,
        &format!("{node}: events that are not what was handed over"),
        &bad,
    );
    Ok(there)
}

/// Rounds that are there whole.
async fn rounds(
    database: &mut PgConnection,
    node: &str,
    handed: &Handed,
    verdict: &mut Verdict,
) -> anyhow::Result<HashSet<u64>> {
    let sql = "select (extract(epoch from time) * 1000000)::bigint, round, pod, lane, still, grows, seldom, sometimes, \
               round(wait_seconds::numeric * 1000000000)::bigint, latency_seconds from sonde.chaos where node = $1";
    let rows = sqlx::query(sql).bind(node).fetch_all(database).await?;
    let times: HashMap<u64, u64> = handed.rounds.iter().map(|item| (item.id, item.time_us)).collect();
    let mut found: HashMap<u64, Vec<Row>> = HashMap::new();
    let mut bad = Vec::new();
    for row in rows {
        let (time, row) = (row.try_get::<i64, _>(0)?.cast_unsigned(), parse(&row)?);
        let round = row.round.cast_unsigned();
        if times.get(&round) != Some(&time) {
            bad.push((time, row.clone()));
        }
        found.entry(round).or_default().push(row);
    }
    let order = |row: &Row| (row.pod.clone(), row.lane.clone());
    let mut not_whole = Vec::new();
    for (round, rows) in &mut found {
        let mut expected = expected_rows(node, *round);
        expected.sort_by_key(order);
        rows.sort_by_key(order);
        if *rows != expected {
            let first = rows
                .iter()
                .zip(&expected)
                .find(|(a, b)| a != b)
                .map(|(a, b)| (a.clone(), b.clone()));
            not_whole.push((*round, rows.len(), first));
        }
    }
    wrong(
        verdict,
        &format!("{node}: rows at a time that was never handed over"),
        &bad,
    );
    wrong(
        verdict,
        &format!("{node}: rounds whose rows are not what was handed over (found, expected)"),
        &not_whole,
    );
    Ok(found.into_keys().collect())
}

fn parse(row: &PgRow) -> sqlx::Result<Row> {
    Ok(Row {
        round: row.try_get(1)?,
        pod: row.try_get(2)?,
        lane: row.try_get(3)?,
        still: row.try_get(4)?,
        grows: row.try_get(5)?,
        seldom: row.try_get(6)?,
        sometimes: row.try_get(7)?,
        wait_ns: row.try_get(8)?,
        latency: row.try_get(9)?,
    })
}

async fn gaps(database: &mut PgConnection, node: &str) -> anyhow::Result<Vec<Gap>> {
    let sql = "select (extract(epoch from time) * 1000000)::bigint, (extract(epoch from end_time) * 1000000)::bigint, cause, \
               count, detail from sonde.gaps where node = $1";
    let rows = sqlx::query(sql).bind(node).fetch_all(database).await?;
    let gap = |row: PgRow| -> sqlx::Result<Gap> {
        Ok(Gap {
            span: Span {
                from_us: row.try_get::<i64, _>(0)?.cast_unsigned(),
                to_us: row.try_get::<i64, _>(1)?.cast_unsigned(),
            },
            cause: row.try_get(2)?,
            count: row.try_get::<i64, _>(3)?.cast_unsigned(),
            detail: row.try_get(4)?,
        })
    };
    Ok(rows.into_iter().map(gap).collect::<Result<_, _>>()?)
}
