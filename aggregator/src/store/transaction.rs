//! One transaction: the batches of a group and the cursors of their streams, all or nothing.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use sonde_common::time::now_ns;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Row as _};
use uuid::Uuid;

use super::batch::Batch;
use super::catalogue::Definition;
use super::cluster::addresses::ClusterAddresses;
use super::copy::CopyBuffer;
use super::dictionary::{self, Dictionary, UNKNOWN};
use super::digest;
use super::encode::{self, Numbers};
use super::frames::{Frames, Ids, Out, Reading};
use super::partitions::{self, Day, leaf_name};
use super::pods::Pods;
use super::rollup;
use super::schema::{self, ident};
use super::tables::{self, delta_table, key_table};

/// Rows go to the server in pieces of about this size.
const PIECE: usize = 1 << 20;
/// What the buffer may keep between transactions.
const KEEP: usize = 4 * PIECE;

/// Probe tables by probe, as wide as any collector made them.
pub(super) type Tables = Arc<RwLock<HashMap<String, Arc<Definition>>>>;

/// How long things are kept. What is older when it arrives is not stored.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keep {
    pub(super) rows: Duration,
    pub(super) events: Duration,
    pub(super) rollups_1m: Duration,
    pub(super) rollups_1h: Duration,
}

impl Keep {
    /// By the name of a table.
    pub(super) fn of(&self, table: &str) -> Duration {
        match table {
            "events" | "gaps" | "changes" => self.events,
            _ if digest::TABLES.contains(&table) => self.events,
            _ if table.starts_with("r1m_") => self.rollups_1m,
            _ if table.starts_with("r1h_") => self.rollups_1h,
            _ => self.rows,
        }
    }

    /// The oldest moment that is still kept.
    pub(super) fn oldest(keep: Duration, now_ns: u64) -> u64 {
        now_ns.saturating_sub(keep.as_nanos() as u64)
    }
}

/// What became of a group.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Stored {
    /// For each batch of the group.
    pub(super) fate: Vec<Fate>,
    pub(super) rows: u64,
    pub(super) samples: u64,
    pub(super) events: u64,
    pub(super) gaps: u64,
    /// Rows, events and gaps that were older than what is kept.
    pub(super) expired: u64,
    /// Sequence numbers that never came.
    pub(super) missing: u64,
    /// Highest event id after this transaction; `None` without events.
    pub(super) newest_event: Option<i64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Stored,
    /// It was in the tables already; this is the cursor.
    Resent(u64),
    /// Its stream is closed.
    Skipped,
    /// A newer stream of its spool has begun.
    Superseded,
    /// The database does not know its stream: another database, or an older state of it.
    Lost,
}

/// What outlives a transaction.
pub(super) struct Session {
    pub(super) dictionary: Dictionary,
    pub(super) pods: Pods,
    pub(super) cluster: ClusterAddresses,
    frames: Frames,
    frame_ids: Ids,
    buffer: CopyBuffer,
    keys: CopyBuffer,
    leaves: HashSet<(String, Day)>,
    tables: Tables,
    keep: Keep,
}

/// What goes where, by table and day; numbers are places in the group and in the batch.
#[derive(Default)]
struct Plan {
    rows: BTreeMap<(String, Day), Vec<(usize, usize)>>,
    events: BTreeMap<Day, Vec<(usize, usize)>>,
    gaps: BTreeMap<Day, Vec<(usize, usize)>>,
    expired: u64,
}

impl Session {
    pub(super) fn new(tables: Tables, keep: Keep) -> Self {
        Self {
            dictionary: Dictionary::new(),
            pods: Pods::default(),
            cluster: ClusterAddresses::default(),
            frames: Frames::default(),
            frame_ids: Ids::default(),
            buffer: CopyBuffer::default(),
            keys: CopyBuffer::default(),
            leaves: HashSet::new(),
            tables,
            keep,
        }
    }

    /// What we know may not be so any more.
    pub(super) fn forget(&mut self) {
        self.dictionary.clear();
        self.pods.clear();
        self.cluster.clear();
        self.frames.clear();
        // A server that crashed may give them again: what a sequence gave is on its disk only with a commit after that.
        self.frame_ids = Ids::default();
        self.leaves.clear();
    }

    /// Lets go of what has not been needed for a while.
    pub(super) fn prune(&mut self, now_ns: u64) {
        self.pods.prune(now_ns);
        self.cluster.prune(now_ns);
        self.frames.prune();
    }

    /// Stores a group. An error leaves nothing of it behind, but for words and pods that nobody refers to yet.
    pub(super) async fn store(&mut self, connection: &mut PgConnection, group: &[&Batch]) -> sqlx::Result<Stored> {
        let stored = self.try_store(connection, group).await;
        if stored.is_err() {
            // They were moved on for what is not in the tables.
            self.frames.clear();
        }
        stored
    }

    async fn try_store(&mut self, connection: &mut PgConnection, group: &[&Batch]) -> sqlx::Result<Stored> {
        schema::check(connection).await?;
        let now = now_ns();
        let numbers = self.resolve(connection, group).await?;
        let all: Vec<usize> = (0..group.len()).collect();
        self.make_leaves(connection, &self.plan(group, &all, now)).await?;

        let mut tx = schema::begin(connection).await?;
        let (fate, missing) = fates(&mut tx, group).await?;
        let fresh: Vec<usize> = all.into_iter().filter(|at| fate[*at] == Fate::Stored).collect();
        let mut stored = Stored {
            fate,
            missing,
            ..Default::default()
        };
        if fresh.is_empty() {
            tx.rollback().await?;
            return Ok(stored);
        }
        let plan = self.plan(group, &fresh, now);
        stored.expired = plan.expired;
        self.copy_rows(&mut tx, group, &numbers, &plan, &mut stored).await?;
        let kept = Keep::oldest(self.keep.rows, now);
        rollup::late::mark(&mut tx, fresh.iter().map(|at| group[*at]), kept).await?;
        self.copy_gaps(&mut tx, group, &numbers, &plan, now, &mut stored)
            .await?;
        // Last, because it takes the lock that orders commits between aggregators.
        self.copy_events(&mut tx, group, &numbers, &plan, &mut stored).await?;
        move_cursors(&mut tx, fresh.iter().map(|at| group[*at])).await?;
        tx.commit().await?;
        self.buffer.shrink(KEEP);
        self.keys.shrink(KEEP);
        Ok(stored)
    }

    /// Numbers for all words, stacks and pods of the group.
    async fn resolve(&mut self, connection: &mut PgConnection, group: &[&Batch]) -> sqlx::Result<Vec<Numbers>> {
        let pods: Vec<_> = group
            .iter()
            .flat_map(|b| b.body.pods.iter().map(|pod| (b.stream.node_id, pod)))
            .collect();
        self.pods.store(connection, &pods).await?;
        let used: Vec<Vec<bool>> = group.iter().map(|b| used_words(b)).collect();
        let mut words = HashMap::new();
        let mut stacks = HashMap::new();
        let mut digests = Vec::with_capacity(group.len());
        for (batch, used) in group.iter().zip(&used) {
            let strings = &batch.body.strings;
            words.extend(
                strings
                    .iter()
                    .zip(used)
                    .filter(|(_, used)| **used)
                    .map(|(s, _)| (s.as_str(), UNKNOWN)),
            );
            let of_batch = batch.body.stacks.iter().map(|stack| {
                let frames: Vec<&str> = stack.frames.iter().map(|f| strings[*f as usize].as_str()).collect();
                let digest = dictionary::digest(&frames);
                stacks.entry(digest).or_insert((frames, UNKNOWN));
                digest
            });
            digests.push(of_batch.collect::<Vec<_>>());
        }
        self.dictionary.words(connection, &mut words).await?;
        self.dictionary.stacks(connection, &mut stacks).await?;
        let numbers = group.iter().enumerate().map(|(at, batch)| {
            let word = |(text, used): (&String, &bool)| if *used { words[text.as_str()] } else { UNKNOWN };
            let pod = |pod: &sonde_proto::v1::Pod| self.pods.id(batch.stream.node_id, &pod.sandbox);
            Some(Numbers {
                words: batch.body.strings.iter().zip(&used[at]).map(word).collect(),
                stacks: digests[at].iter().map(|digest| stacks[digest].1).collect(),
                pods: batch.body.pods.iter().map(pod).collect::<Option<_>>()?,
            })
        });
        numbers.collect::<Option<_>>().ok_or(sqlx::Error::RowNotFound)
    }

    fn plan(&self, group: &[&Batch], which: &[usize], now: u64) -> Plan {
        let mut plan = Plan::default();
        let oldest_row = Keep::oldest(self.keep.rows, now);
        let oldest_event = Keep::oldest(self.keep.events, now);
        for at in which {
            let body = &group[*at].body;
            for (index, rows) in body.rows.iter().enumerate() {
                if rows.time_ns < oldest_row {
                    plan.expired += rows.subjects.len() as u64;
                } else if !rows.subjects.is_empty() {
                    let key = (rows.probe.clone(), Day::of(rows.time_ns));
                    plan.rows.entry(key).or_default().push((*at, index));
                }
            }
            for (index, event) in body.events.iter().enumerate() {
                if event.time_ns < oldest_event {
                    plan.expired += 1;
                } else {
                    plan.events
                        .entry(Day::of(event.time_ns))
                        .or_default()
                        .push((*at, index));
                }
            }
            for (index, gap) in body.gaps.iter().enumerate() {
                if gap.to_ns < oldest_event {
                    plan.expired += 1;
                } else {
                    let from = gap.from_ns.max(oldest_event);
                    plan.gaps.entry(Day::of(from)).or_default().push((*at, index));
                }
            }
        }
        plan
    }

    async fn make_leaves(&mut self, connection: &mut PgConnection, plan: &Plan) -> sqlx::Result<()> {
        let tables = |(probe, day): &(String, Day)| [(key_table(probe), *day), (delta_table(probe), *day)];
        let rows = plan.rows.keys().flat_map(tables);
        let events = plan.events.keys().map(|day| ("events".to_owned(), *day));
        let gaps = plan.gaps.keys().map(|day| ("gaps".to_owned(), *day));
        let wanted: Vec<_> = rows
            .chain(events)
            .chain(gaps)
            .filter(|leaf| !self.leaves.contains(leaf))
            .collect();
        partitions::ensure(connection, &wanted).await?;
        self.leaves.extend(wanted);
        Ok(())
    }

    async fn copy_rows(
        &mut self,
        tx: &mut PgConnection,
        group: &[&Batch],
        numbers: &[Numbers],
        plan: &Plan,
        stored: &mut Stored,
    ) -> sqlx::Result<()> {
        hold_keyframes(tx, plan).await?;
        for ((probe, day), places) in &plan.rows {
            let table = self.tables.read().get(probe).cloned().ok_or(sqlx::Error::RowNotFound)?;
            let rows_of = |(at, index): &(usize, usize)| &group[*at].body.rows[*index];
            let most = places
                .iter()
                .map(|place| Frames::most_ids(rows_of(place).subjects.len()))
                .sum();
            while self.frame_ids.left() < most {
                let block = sqlx::query_scalar("select nextval('sonde_store.frame_blocks')");
                self.frame_ids.add(block.fetch_one(&mut *tx).await?);
            }
            self.keys.begin();
            self.buffer.begin();
            for place in places {
                let batch = group[place.0];
                let rows = rows_of(place);
                let node_id = batch.stream.node_id;
                let reading = Reading::new(&table, &batch.stream.probes[probe], node_id, rows, &numbers[place.0]);
                let mut out = Out {
                    keys: &mut self.keys,
                    deltas: &mut self.buffer,
                    ids: &mut self.frame_ids,
                };
                self.frames.write(&table, probe, &reading, &mut out);
                stored.rows += rows.subjects.len() as u64;
                stored.samples += rows.columns.iter().map(|c| c.values.len() as u64).sum::<u64>();
            }
            for (buffer, leaf, columns) in [
                (
                    &mut self.keys,
                    leaf_name(&key_table(probe), *day),
                    tables::key_columns(&table),
                ),
                (
                    &mut self.buffer,
                    leaf_name(&delta_table(probe), *day),
                    tables::delta_columns(&table),
                ),
            ] {
                if buffer.has_rows() {
                    buffer.end();
                    copy(tx, &leaf, &columns, buffer).await?;
                }
            }
        }
        Ok(())
    }

    async fn copy_gaps(
        &mut self,
        tx: &mut PgConnection,
        group: &[&Batch],
        numbers: &[Numbers],
        plan: &Plan,
        now: u64,
        stored: &mut Stored,
    ) -> sqlx::Result<()> {
        let oldest = Keep::oldest(self.keep.events, now);
        for (day, places) in &plan.gaps {
            let mut copy = tx
                .copy_in_raw(&statement(&leaf_name("gaps", *day), encode::GAP_COLUMNS))
                .await?;
            self.buffer.begin();
            for (at, index) in places {
                let gap = &group[*at].body.gaps[*index];
                let from = gap.from_ns.max(oldest);
                encode::gap(&mut self.buffer, from, group[*at].stream.node_id, gap, &numbers[*at]);
                stored.gaps += 1;
            }
            self.buffer.end();
            copy.send(self.buffer.as_bytes()).await?;
            copy.finish().await?;
        }
        Ok(())
    }

    async fn copy_events(
        &mut self,
        tx: &mut PgConnection,
        group: &[&Batch],
        numbers: &[Numbers],
        plan: &Plan,
        stored: &mut Stored,
    ) -> sqlx::Result<()> {
        let count: usize = plan.events.values().map(Vec::len).sum();
        if count == 0 {
            return Ok(());
        }
        let last: i64 = sqlx::query_scalar("update sonde_store.event_ids set last = last + $1 returning last")
            .bind(count as i64)
            .fetch_one(&mut *tx)
            .await?;
        let mut id = last - count as i64;
        for (day, places) in &plan.events {
            let mut copy = tx
                .copy_in_raw(&statement(&leaf_name("events", *day), encode::EVENT_COLUMNS))
                .await?;
            self.buffer.begin();
            for (at, index) in places {
                id += 1;
                let event = &group[*at].body.events[*index];
                let known = (&self.pods, &self.cluster);
                encode::event(&mut self.buffer, id, group[*at], event, &numbers[*at], known);
                if self.buffer.len() > PIECE {
                    copy.send(self.buffer.as_bytes()).await?;
                    self.buffer.sent();
                }
            }
            self.buffer.end();
            copy.send(self.buffer.as_bytes()).await?;
            copy.finish().await?;
        }
        stored.events = count as u64;
        stored.newest_event = Some(last);
        Ok(())
    }
}

/// Differences may be all that is written, and would mean nothing without the keyframes of earlier transactions: their
/// tables have to be there, and stay.
async fn hold_keyframes(tx: &mut PgConnection, plan: &Plan) -> sqlx::Result<()> {
    let leaves = plan.rows.keys().map(|(probe, day)| leaf_name(&key_table(probe), *day));
    let leaves: Vec<String> = leaves.map(|leaf| format!("sonde_parts.{}", ident(&leaf))).collect();
    if leaves.is_empty() {
        return Ok(());
    }
    let lock = format!("lock table {} in access share mode", leaves.join(", "));
    sqlx::raw_sql(AssertSqlSafe(lock)).execute(tx).await?;
    Ok(())
}

async fn copy(tx: &mut PgConnection, leaf: &str, columns: &str, rows: &CopyBuffer) -> sqlx::Result<()> {
    let mut copy = tx.copy_in_raw(&statement(leaf, columns)).await?;
    for piece in rows.as_bytes().chunks(PIECE) {
        copy.send(piece).await?;
    }
    copy.finish().await?;
    Ok(())
}

fn statement(leaf: &str, columns: &str) -> String {
    format!(
        "copy sonde_parts.{} ({columns}) from stdin (format binary)",
        ident(leaf)
    )
}

/// Which strings become numbers: labels of rows and words of events. Frames and attributes are stored as text.
fn used_words(batch: &Batch) -> Vec<bool> {
    let mut used = vec![false; batch.body.strings.len()];
    // Labels that a table has and this collector does not are the empty string.
    if let Some(empty) = used.first_mut() {
        *empty = true;
    }
    for rows in &batch.body.rows {
        rows.labels.iter().for_each(|word| used[*word as usize] = true);
    }
    for e in &batch.body.events {
        for word in [e.probe, e.r#type, e.reason, e.protocol, e.comm, e.state, e.interface] {
            used[word as usize] = true;
        }
    }
    used
}

/// Locks the cursors of the group's streams and compares. Also the number of sequences that were passed over.
async fn fates(tx: &mut PgConnection, group: &[&Batch]) -> sqlx::Result<(Vec<Fate>, u64)> {
    let nodes: Vec<i32> = group.iter().map(|b| b.stream.node_id).collect();
    let epochs: Vec<Uuid> = group.iter().map(|b| b.stream.epoch).collect();
    let rows = sqlx::query(
        "select node_id, epoch, sequence, claim from sonde_store.cursors where (node_id, epoch) in \
         (select * from unnest($1::int[], $2::uuid[])) order by node_id, epoch for update",
    )
    .bind(&nodes)
    .bind(&epochs)
    .fetch_all(tx)
    .await?;
    let mut cursors: HashMap<(i32, Uuid), (u64, i64)> = rows
        .iter()
        .map(|row| {
            (
                (row.get("node_id"), row.get("epoch")),
                (row.get::<i64, _>("sequence") as u64, row.get("claim")),
            )
        })
        .collect();
    let mut missing = 0;
    let mut fate = |batch: &&Batch| {
        let Some((cursor, claim)) = cursors.get_mut(&(batch.stream.node_id, batch.stream.epoch)) else {
            return Fate::Lost;
        };
        if batch.sequence <= *cursor {
            return Fate::Resent(*cursor);
        }
        // The answer to the newer stream's Hello says that this was not stored.
        if batch.stream.claim != *claim {
            return Fate::Superseded;
        }
        // A batch of a closed stream may follow one that was refused: storing it would cover that one with its ack.
        if batch.stream.is_closed() {
            return Fate::Skipped;
        }
        missing += batch.sequence - *cursor - 1;
        *cursor = batch.sequence;
        Fate::Stored
    };
    let fates = group.iter().map(&mut fate).collect();
    Ok((fates, missing))
}

async fn move_cursors<'a>(tx: &mut PgConnection, stored: impl Iterator<Item = &'a Batch>) -> sqlx::Result<()> {
    let mut newest: BTreeMap<(i32, Uuid), i64> = BTreeMap::new();
    for batch in stored {
        newest.insert((batch.stream.node_id, batch.stream.epoch), batch.sequence as i64);
    }
    let (keys, sequences): (Vec<_>, Vec<i64>) = newest.into_iter().unzip();
    let (nodes, epochs): (Vec<i32>, Vec<Uuid>) = keys.into_iter().unzip();
    sqlx::query(
        "update sonde_store.cursors c set sequence = u.sequence, updated = now() \
         from unnest($1::int[], $2::uuid[], $3::bigint[]) as u(node_id, epoch, sequence) \
         where c.node_id = u.node_id and c.epoch = u.epoch",
    )
    .bind(nodes)
    .bind(epochs)
    .bind(sequences)
    .execute(tx)
    .await?;
    Ok(())
}
