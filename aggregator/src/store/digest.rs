//! Events in short: counts for statistics, and which addresses and attributes there are. Added from blocks of events in the order of their
//! ids, some seconds after they are stored, by one aggregator at a time; see migration 0008 for why nothing can be missing or
//! doubled. Readers take what is above `through` from the events themselves (`query/stats.rs`, `query/filter.rs`).

use std::time::Duration;

use sonde_common::shutdown::Shutdown;
use sqlx::{Connection as _, PgConnection};
use tokio::time::{Instant, MissedTickBehavior};

use super::database::{self, describe};
use super::event_ranges::Ranges;
use super::partitions::{self, Day};
use super::{Store, schema};

/// Tables of the digest that are partitioned, with days as events are.
pub(super) const TABLES: [&str; 11] = [
    "event_kinds_1m",
    "event_kinds_10m",
    "event_subjects_10m",
    "event_subjects_1h",
    "event_subjects_6h",
    "event_addresses",
    "event_attributes",
    "event_words_1h",
    "event_words_6h",
    "event_ends_1h",
    "event_ends_6h",
];

/// How often it is looked whether something is due.
const LOOK: Duration = Duration::from_secs(2);
/// New events wait so long at most, or until so many are there: readers look into each of them until then.
const WAIT: Duration = Duration::from_secs(15);
const ENOUGH: i64 = 10_000;
/// Events of one transaction.
const BLOCK: i64 = 200_000;

/// What is counted of the events of a block: they are read once, as the index by id is read of every day that is kept.
const BLOCK_TABLE: &str = "create temporary table if not exists event_block (time timestamptz, node_id int, pod_id int, probe int, \
     type int, reason int, protocol int, direction smallint, saddr inet, daddr inet, sport int, dport int, comm int, state int, \
     interface int, stack_id int, attributes jsonb) on commit delete rows";

const READ: &str = "insert into event_block \
     select time, node_id, pod_id, probe, type, reason, protocol, direction, saddr, daddr, sport, dport, comm, state, \
         interface, stack_id, attributes \
     from sonde_store.events where id > $1 and id <= $2";

/// By the finest of what they are counted by.
const KINDS_TABLE: &str = "create temporary table if not exists event_block_kinds (time timestamptz, node_id int, pod_id int, probe int, \
     type int, reason int, protocol int, direction smallint, n bigint) on commit delete rows";

const READ_KINDS: &str = "insert into event_block_kinds \
     select date_trunc('minute', time, 'UTC'), node_id, coalesce(pod_id, -1), probe, type, coalesce(reason, 0), \
         coalesce(protocol, 0), direction, count(*) \
     from event_block group by 1, 2, 3, 4, 5, 6, 7, 8";

/// The same by the address at either end.
const ENDS_TABLE: &str = "create temporary table if not exists event_block_ends (time timestamptz, type int, field smallint, address inet, \
     n bigint) on commit delete rows";

const READ_ENDS: &str = "insert into event_block_ends \
     select date_trunc('hour', e.time, 'UTC'), e.type, v.field, v.address, count(*) \
     from event_block e cross join lateral (values (1::smallint, coalesce(e.saddr, '::/0')), (2, coalesce(e.daddr, '::/0'))) \
         v(field, address) \
     group by 1, 2, 3, 4";

/// In the order of keys, so that neighbours are written together. Addresses are counted of each type and of all.
const COUNT: [&str; 7] = [
    "insert into sonde_store.event_kinds_1m as c (time, probe, type, reason, protocol, direction, n) \
     select time, probe, type, reason, protocol, direction, sum(n) from event_block_kinds group by 1, 2, 3, 4, 5, 6 order by 1, 3, 4 \
     on conflict (time, type, reason, protocol, direction, probe) do update set n = c.n + excluded.n",
    "insert into sonde_store.event_kinds_10m as c (time, probe, type, reason, protocol, direction, n) \
     select to_timestamp(floor(extract(epoch from time) / 600) * 600), probe, type, reason, protocol, direction, sum(n) \
     from event_block_kinds group by 1, 2, 3, 4, 5, 6 order by 1, 3, 4 \
     on conflict (time, type, reason, protocol, direction, probe) do update set n = c.n + excluded.n",
    "insert into sonde_store.event_subjects_10m as c (time, node_id, pod_id, probe, type, n) \
     select to_timestamp(floor(extract(epoch from time) / 600) * 600), node_id, pod_id, probe, type, sum(n) \
     from event_block_kinds group by 1, 2, 3, 4, 5 order by 3, 1 \
     on conflict (pod_id, time, node_id, type, probe) do update set n = c.n + excluded.n",
    "insert into sonde_store.event_subjects_1h as c (time, node_id, pod_id, probe, type, n) \
     select date_trunc('hour', time, 'UTC'), node_id, pod_id, probe, type, sum(n) \
     from event_block_kinds group by 1, 2, 3, 4, 5 order by 3, 1 \
     on conflict (pod_id, time, node_id, type, probe) do update set n = c.n + excluded.n",
    "insert into sonde_store.event_subjects_6h as c (time, node_id, pod_id, probe, type, n) \
     select to_timestamp(floor(extract(epoch from time) / 21600) * 21600), node_id, pod_id, probe, type, sum(n) \
     from event_block_kinds group by 1, 2, 3, 4, 5 order by 3, 1 \
     on conflict (pod_id, time, node_id, type, probe) do update set n = c.n + excluded.n",
    "insert into sonde_store.event_ends_1h as c (time, type, field, address, n) \
     select time, coalesce(type, 0), field, address, sum(n) from event_block_ends \
     group by grouping sets ((time, field, address, type), (time, field, address)) order by 3, 2, 1, 4 \
     on conflict (field, type, time, address) do update set n = c.n + excluded.n",
    "insert into sonde_store.event_ends_6h as c (time, type, field, address, n) \
     select to_timestamp(floor(extract(epoch from time) / 21600) * 21600), 0, field, address, sum(n) from event_block_ends \
     group by 1, 3, 4 order by 3, 1, 4 \
     on conflict (field, type, time, address) do update set n = c.n + excluded.n",
];

/// Of each type and of all; of source ports and stacks of all only, as they are too many of each. Fields have the numbers that
/// migrations 0013 and 0015 give them.
const WORDS: &str = "with words as materialized ( \
         select date_trunc('hour', e.time, 'UTC') as time, e.type, v.field, v.word, count(*) as n \
         from event_block e cross join lateral (values (1::smallint, coalesce(e.interface, 0)), (2, coalesce(e.comm, 0)), \
             (3, coalesce(e.state, 0)), (4, coalesce(e.dport, -1)), (5, coalesce(e.sport, -1)), (6, coalesce(e.stack_id, 0))) \
             v(field, word) \
         group by 1, 2, 3, 4), \
     by_hour as ( \
         insert into sonde_store.event_words_1h as c (time, type, field, word, n) \
         select time, coalesce(type, 0), field, word, sum(n) from words \
         group by grouping sets ((time, field, word, type), (time, field, word)) \
         having grouping(type) = 1 or field <= 4 order by 3, 2, 1, 4 \
         on conflict (field, type, time, word) do update set n = c.n + excluded.n) \
     insert into sonde_store.event_words_6h as c (time, type, field, word, n) \
     select to_timestamp(floor(extract(epoch from time) / 21600) * 21600), 0, field, word, sum(n) from words \
     where field <= 5 group by 1, 3, 4 order by 3, 1, 4 \
     on conflict (field, type, time, word) do update set n = c.n + excluded.n";

const ADDRESSES: &str = "insert into sonde_store.event_addresses (time, address) \
     select distinct date_trunc('day', e.time, 'UTC'), a.address \
     from event_block e cross join lateral (values (e.saddr), (e.daddr)) a(address) \
     where a.address is not null order by 2 \
     on conflict (address, time) do nothing";

/// Long numbers are too many to be kept each, and what is very long does not fit into an index.
const ATTRIBUTES: &str = "insert into sonde_store.event_attributes as c (time, text, more, hours) \
     select date_trunc('day', e.time, 'UTC'), \
         case when a.value ~ '^[0-9]{6,}$' then left(a.key, 200) || ' ' \
              else left(a.key || ' ' || a.value, 250) end, \
         case when length(a.key) > 200 or length(a.key || ' ' || a.value) > 250 then 2 \
              when a.value ~ '^[0-9]{6,}$' then 1 else 0 end, \
         bit_or(1 << extract(hour from e.time at time zone 'UTC')::int) \
     from event_block e cross join lateral jsonb_each_text(e.attributes) a \
     where e.attributes is not null group by 1, 2, 3 order by 2 \
     on conflict (text, more, time) do update set hours = c.hours | excluded.hours where c.hours | excluded.hours <> c.hours";

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// There was nothing, or another aggregator is at it.
    Nothing,
    /// All that was there is in.
    Up,
    /// More is left.
    More,
}

impl Store {
    /// Takes all events in that are stored. May be ended at any point.
    pub async fn digest_events(&self) -> sqlx::Result<()> {
        let mut connection = database::digest_connection(&self.inner.target).await?;
        Ranges::default().summarize(&mut connection).await?;
        while step(&mut connection).await? == Step::More {}
        connection.close().await
    }
}

/// Until the end: takes in what is new, with rests.
pub(super) async fn run(store: Store, mut shutdown: Shutdown) {
    tokio::select! {
        () = work(&store) => {}
        () = shutdown.recv() => {}
    }
}

async fn work(store: &Store) {
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let newest = store.newest_event();
    let mut connection: Option<PgConnection> = None;
    let mut ranges = Ranges::default();
    let (mut through, mut done) = (0, None::<Instant>);
    loop {
        tick.tick().await;
        if store.status().problem.is_some() {
            connection = None;
            continue;
        }
        let new = *newest.borrow() - through;
        if new < ENOUGH && (new == 0 || done.is_some_and(|at| at.elapsed() < WAIT)) {
            continue;
        }
        let before = *newest.borrow();
        match take_in(store, &mut connection, &mut ranges).await {
            Ok(()) => (through, done) = (before, Some(Instant::now())),
            Err(e) => {
                connection = None;
                tracing::warn!(error = %describe(&e), "events cannot be summed up now, it is tried again");
            }
        }
    }
}

async fn take_in(store: &Store, connection: &mut Option<PgConnection>, ranges: &mut Ranges) -> sqlx::Result<()> {
    if connection.is_none() {
        *connection = Some(database::digest_connection(&store.inner.target).await?);
    }
    let connection = connection.as_mut().expect("just made");
    loop {
        let started = Instant::now();
        ranges.summarize(connection).await?;
        if step(connection).await? != Step::More {
            return Ok(());
        }
        // An old database catches up: writers and readers have as long for themselves.
        tokio::time::sleep(started.elapsed()).await;
    }
}

/// One block.
async fn step(connection: &mut PgConnection) -> sqlx::Result<Step> {
    schema::check(connection).await?;
    // Its own statement, before the partitions are listed: those of all events up to it are there then.
    let last: i64 = sqlx::query_scalar("select last from sonde_store.event_ids")
        .fetch_one(&mut *connection)
        .await?;
    let leaves = partitions::list(connection).await?;
    let days: Vec<Day> = leaves.iter().filter(|l| l.table == "events").map(|l| l.day).collect();
    let wanted: Vec<(String, Day)> = TABLES
        .iter()
        .flat_map(|table| days.iter().map(|day| ((*table).to_owned(), *day)))
        .filter(|(table, day)| !leaves.iter().any(|l| l.table == *table && l.day == *day))
        .collect();
    partitions::ensure(connection, &wanted).await?;
    for table in [BLOCK_TABLE, KINDS_TABLE, ENDS_TABLE] {
        sqlx::raw_sql(table).execute(&mut *connection).await?;
    }

    let mut tx = connection.begin().await?;
    schema::hold(&mut tx).await?;
    let through: Option<i64> =
        sqlx::query_scalar("select through from sonde_store.event_digest for update skip locked")
            .fetch_optional(&mut *tx)
            .await?;
    let Some(through) = through.filter(|through| *through < last) else {
        tx.rollback().await?;
        return Ok(Step::Nothing);
    };
    // Blocks of a database that lost its oldest events begin where there are some.
    let to = last.min(through + BLOCK);
    sqlx::query(READ).bind(through).bind(to).execute(&mut *tx).await?;
    for sql in [READ_KINDS, READ_ENDS]
        .into_iter()
        .chain(COUNT)
        .chain([WORDS, ADDRESSES, ATTRIBUTES])
    {
        sqlx::query(sql).execute(&mut *tx).await?;
    }
    sqlx::query("update sonde_store.event_digest set through = $1")
        .bind(to)
        .execute(&mut *tx)
        .await?;
    tx.commit().await?;
    Ok(if to < last { Step::More } else { Step::Up })
}
