//! The thread that makes batches and appends them to the spool: events at most a quarter of a second after they
//! happened, rows once a round. Producers hand over and go on; what does not fit is counted and becomes a gap.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prost::Message as _;
use sonde_common::time::now_ns;
use sonde_proto::{gap, v1};

use super::batch::{self, Batch};
use super::early;
use super::spool::{Contents, Cut, Dropped, Heartbeat, Lane, Recovery, Spool};
use crate::event::{Event, Gap, Subject};
use crate::gaps::GapLog;
use crate::pods::{Pod, PodIndex};
use crate::table::Table;

/// How long events are gathered.
const GATHER: Duration = Duration::from_millis(150);
/// How many events make a batch that does not wait.
const BATCH_EVENTS: usize = 4096;
/// Events that may wait for the writer: a slow disk costs memory up to here, then events.
const QUEUED_EVENTS: u64 = 200_000;
const QUEUED_MESSAGES: usize = 4096;
/// Gaps that wait for a spool that cannot be written, or for a writer that is busy.
const KEPT_GAPS: usize = 1000;
/// Gaps that surely fit into one batch, so that each is written or not.
const BATCH_GAPS: usize = 250;
/// What a gap says that tells of what the spool dropped.
const DROPPED: &str = "oldest data dropped to make room";
/// Heartbeat, and sync of what is not acked.
const BEAT: Duration = Duration::from_secs(1);

enum Message {
    Rows(Arc<Vec<Table>>),
    Events(Vec<Event>),
    Gaps(Vec<Gap>),
    Stop,
}

/// Hands things to the writer; never blocks.
#[derive(Clone, Debug)]
pub struct Shipper {
    sender: SyncSender<Message>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// On their way to the thread.
    queued_messages: AtomicU64,
    queued_events: AtomicU64,
    lost_events: AtomicU64,
    lost_rows: AtomicU64,
    /// For which the queue had no room.
    gaps: Mutex<Vec<Gap>>,
    /// Batches that the aggregator refused, with their sequence.
    refused: Mutex<Vec<(Gap, u64)>>,
}

impl Shipper {
    pub fn rows(&self, tables: Arc<Vec<Table>>) {
        let rows: usize = tables.iter().map(Table::len).sum();
        if self.hand_over(Message::Rows(tables)).is_err() {
            self.shared.lost_rows.fetch_add(rows as u64, Ordering::Relaxed);
        }
    }

    pub fn events(&self, events: Vec<Event>) {
        let count = events.len() as u64;
        let full = self.shared.queued_events.load(Ordering::Relaxed) + count > QUEUED_EVENTS;
        if count == 0 {
            return;
        }
        self.shared.queued_events.fetch_add(count, Ordering::Relaxed);
        if full || self.hand_over(Message::Events(events)).is_err() {
            self.shared.queued_events.fetch_sub(count, Ordering::Relaxed);
            self.shared.lost_events.fetch_add(count, Ordering::Relaxed);
        }
    }

    pub fn gaps(&self, gaps: Vec<Gap>) {
        if gaps.is_empty() {
            return;
        }
        if let Err(TrySendError::Full(Message::Gaps(gaps))) = self.hand_over(Message::Gaps(gaps)) {
            let mut waiting = self.shared.gaps.lock();
            waiting.extend(gaps);
            bound(&mut waiting);
        }
    }

    /// A batch of the spool was refused: that is noted there once the gap is in it.
    pub(super) fn refused(&self, gap: Gap, sequence: u64) {
        self.shared.refused.lock().push((gap, sequence));
    }

    fn hand_over(&self, message: Message) -> Result<(), TrySendError<Message>> {
        // Before it is there to be taken: the count is never below what waits.
        self.shared.queued_messages.fetch_add(1, Ordering::Relaxed);
        let sent = self.sender.try_send(message);
        if sent.is_err() {
            self.shared.queued_messages.fetch_sub(1, Ordering::Relaxed);
        }
        sent
    }
}

/// The running thread.
#[derive(Debug)]
pub struct Writer {
    thread: std::thread::JoinHandle<()>,
    sender: SyncSender<Message>,
}

impl Writer {
    pub fn start(
        spool: Arc<Spool>,
        index: Arc<PodIndex>,
        gaps: Arc<GapLog>,
        recovery: Recovery,
    ) -> io::Result<(Self, Shipper)> {
        let (sender, receiver) = sync_channel(QUEUED_MESSAGES);
        let shared = Arc::new(Shared::default());
        let mut work = Work {
            spool,
            index,
            gap_log: gaps,
            shared: Arc::clone(&shared),
            events: Vec::new(),
            gaps: Vec::new(),
            refused: Vec::new(),
            pods: Vec::new(),
            live: HashMap::new(),
            since: None,
            last_beat: None,
            taken_ns: now_ns(),
            failing: false,
        };
        early::look(&work.spool);
        work.tell_of_the_past(&recovery);
        let thread = std::thread::Builder::new()
            .name("sonde-spool".into())
            .spawn(move || work.run(&receiver))?;
        Ok((
            Self {
                thread,
                sender: sender.clone(),
            },
            Shipper { sender, shared },
        ))
    }

    pub fn has_failed(&self) -> bool {
        self.thread.is_finished()
    }

    /// Returns when everything handed over until now is in the spool, and the end of this run noted.
    pub fn stop(self) {
        // Fails only if the thread is gone already.
        let _ = self.sender.send(Message::Stop);
        let _ = self.thread.join();
    }
}

struct Work {
    spool: Arc<Spool>,
    index: Arc<PodIndex>,
    gap_log: Arc<GapLog>,
    shared: Arc<Shared>,
    events: Vec<Event>,
    gaps: Vec<Gap>,
    /// Refused batches of which the gap is among these.
    refused: Vec<u64>,
    /// Came or ended since they were told last.
    pods: Vec<Arc<Pod>>,
    /// By sandbox, as told last.
    live: HashMap<String, Arc<Pod>>,
    /// When the oldest of what is gathered came in.
    since: Option<Instant>,
    last_beat: Option<Instant>,
    /// When the rows and events were that were taken last.
    taken_ns: u64,
    /// The last batch could not be written.
    failing: bool,
}

impl Work {
    fn run(&mut self, receiver: &Receiver<Message>) {
        loop {
            let due = self.since.map_or(BEAT, |since| GATHER.saturating_sub(since.elapsed()));
            match receiver.recv_timeout(due) {
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Ok(message) => self.take(message),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if self.events.len() >= BATCH_EVENTS || self.since.is_some_and(|since| since.elapsed() >= GATHER) {
                self.flush();
            }
            if self.last_beat.is_none_or(|last| last.elapsed() >= BEAT) {
                self.last_beat = Some(Instant::now());
                self.note_losses();
                self.beat(false);
            }
        }
        self.note_losses();
        self.flush();
        self.beat(true);
    }

    fn take(&mut self, message: Message) {
        // The end comes past the queue's count.
        if !matches!(message, Message::Stop) {
            self.shared.queued_messages.fetch_sub(1, Ordering::Relaxed);
        }
        match message {
            Message::Rows(tables) => {
                self.taken_ns = tables.first().map_or(self.taken_ns, |table| table.time_ns);
                if self.failing {
                    // What was lost is told before something newer is there: a kill in between would leave a hole that
                    // nobody counts.
                    self.flush();
                }
                for batch in batch::rows(&tables, &self.index) {
                    self.append(Lane::Rows, &batch);
                }
                self.note_pods();
                return;
            }
            Message::Events(mut events) => {
                self.taken_ns = events.first().map_or(self.taken_ns, |event| event.time_ns);
                self.shared
                    .queued_events
                    .fetch_sub(events.len() as u64, Ordering::Relaxed);
                self.events.append(&mut events);
            }
            Message::Gaps(gaps) => gaps.into_iter().for_each(|gap| self.gap(gap)),
            Message::Stop => {}
        }
        self.since.get_or_insert_with(Instant::now);
    }

    fn flush(&mut self) {
        self.since = None;
        let pods = std::mem::take(&mut self.pods);
        if !self.append_all(Lane::Events, &batch::events(&[], &[], &pods, &self.index)) {
            self.pods.splice(0..0, pods);
        }
        // What tells of losses is not lost with them.
        let mut unwritten = Vec::new();
        let mut gaps = std::mem::take(&mut self.gaps);
        // These are all in the first batch, which is noted to tell of them.
        gaps.sort_by_key(|gap| !tells_of_a_drop(gap));
        for (at, gaps) in gaps.chunks(BATCH_GAPS).enumerate() {
            let written = match &batch::events(&[], gaps, &[], &self.index)[..] {
                [telling] if at == 0 => self.append_telling(telling),
                batches => self.append_all(Lane::Gaps, batches),
            };
            if !written {
                unwritten.extend_from_slice(gaps);
            }
        }
        unwritten.append(&mut self.gaps);
        bound(&mut unwritten);
        self.gaps = unwritten;
        if self.gaps.is_empty() {
            let refused = self.refused.drain(..).map(|sequence| self.spool.refusal_told(sequence));
            if let Err(error) = refused.fold(self.spool.told(), io::Result::and) {
                tracing::debug!(%error, "what was told is not noted as told");
            }
        }
        let events = std::mem::take(&mut self.events);
        self.append_all(Lane::Events, &batch::events(&events, &[], &[], &self.index));
        if !self.gaps.is_empty() || !self.pods.is_empty() {
            // Tried again whether or not anything else comes.
            self.since.get_or_insert_with(Instant::now);
        }
    }

    /// Whether all of them are in the spool.
    fn append_all(&mut self, lane: Lane, batches: &[Batch]) -> bool {
        let mut all = true;
        for batch in batches {
            all &= self.append(lane, batch);
        }
        all
    }

    fn append(&mut self, lane: Lane, batch: &Batch) -> bool {
        let appended = self.spool.append(lane, batch.contents, &batch.payload);
        self.appended(lane, batch, appended)
    }

    fn append_telling(&mut self, batch: &Batch) -> bool {
        let appended = self.spool.append_telling(batch.contents, &batch.payload);
        self.appended(Lane::Gaps, batch, appended)
    }

    fn appended(&mut self, lane: Lane, batch: &Batch, (result, dropped): (io::Result<u64>, Vec<Dropped>)) -> bool {
        self.dropped(dropped);
        match result {
            Ok(_) => {
                if std::mem::take(&mut self.failing) {
                    tracing::info!("spool can be written again");
                }
                true
            }
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::error!(%error, "spool cannot be written, data is lost");
                }
                if batch.contents.count > 0 {
                    self.spool_gap(lane, batch.contents, format!("spool cannot be written: {error}"));
                }
                false
            }
        }
    }

    fn dropped(&mut self, dropped: Vec<Dropped>) {
        for Dropped { lane, contents } in dropped {
            self.spool_gap(lane, contents, DROPPED.to_owned());
        }
    }

    fn spool_gap(&mut self, lane: Lane, contents: Contents, detail: String) {
        let Contents { from_ns, to_ns, count } = contents;
        let detail = format!("{}: {detail}", lane.name());
        // While nothing can be written, losses come with every batch: one gap grows.
        let same = self
            .gaps
            .iter_mut()
            .find(|g| g.cause == gap::SPOOL_FULL && g.detail == detail);
        if let Some(same) = same {
            same.to_ns = same.to_ns.max(to_ns);
            same.from_ns = same.from_ns.min(from_ns);
            same.count += u64::from(count);
            return self.gap_log.grown(gap::SPOOL_FULL, u64::from(count));
        }
        self.gap(Gap {
            probe: "",
            cause: gap::SPOOL_FULL,
            from_ns,
            to_ns,
            count: count.into(),
            subject: Subject::Node,
            detail,
        });
    }

    fn gap(&mut self, gap: Gap) {
        self.gap_log.add(&gap);
        self.gaps.push(gap);
        self.since.get_or_insert_with(Instant::now);
    }

    fn note_losses(&mut self) {
        let events = self.shared.lost_events.swap(0, Ordering::Relaxed);
        let rows = self.shared.lost_rows.swap(0, Ordering::Relaxed);
        let gaps = std::mem::take(&mut *self.shared.gaps.lock());
        gaps.into_iter().for_each(|gap| self.gap(gap));
        let refused = std::mem::take(&mut *self.shared.refused.lock());
        for (gap, sequence) in refused {
            self.gap(gap);
            self.refused.push(sequence);
        }
        self.dropped(self.spool.lost());
        let now = now_ns();
        for (lane, count) in [(Lane::Events, events), (Lane::Rows, rows)] {
            if count > 0 {
                let contents = Contents {
                    from_ns: now - BEAT.as_nanos() as u64,
                    to_ns: now,
                    count: u32::try_from(count).unwrap_or(u32::MAX),
                };
                self.spool_gap(lane, contents, "the disk is too slow, its queue was full".to_owned());
            }
        }
    }

    /// Pods that came or ended since the last time, to be told even if they have no rows or events.
    fn note_pods(&mut self) {
        let now: HashMap<String, Arc<Pod>> = self.index.live().into_iter().map(|p| (p.sandbox.clone(), p)).collect();
        let before = self.pods.len();
        self.pods.extend(
            now.iter()
                .filter(|(sandbox, _)| !self.live.contains_key(*sandbox))
                .map(|(_, p)| Arc::clone(p)),
        );
        self.pods.extend(
            self.live
                .iter()
                .filter(|(sandbox, _)| !now.contains_key(*sandbox))
                .map(|(_, p)| Arc::clone(p)),
        );
        if self.pods.len() == before {
            return;
        }
        self.live = now;
        self.since.get_or_insert_with(Instant::now);
        let pods = self
            .live
            .values()
            .map(|pod| batch::pod_to_proto(pod, &self.index))
            .collect();
        let list = v1::BatchBody {
            pods,
            ..v1::BatchBody::default()
        };
        if let Err(error) = self.spool.remember_pods(&list.encode_to_vec()) {
            tracing::warn!(%error, "pods cannot be remembered for the next start");
        }
    }

    /// Up to when everything was dealt with: what waits or is gathered goes with this process if it is killed, and must be
    /// in the gap that the next one tells of.
    fn reached_ns(&self) -> u64 {
        let queued = self.shared.queued_messages.load(Ordering::Relaxed) > 0;
        let events = self.events.iter().map(|event| event.time_ns);
        // Gaps too, above all that of the time before this process: it may be killed at once.
        let gathered = events.chain(self.gaps.iter().map(|gap| gap.from_ns)).min();
        let waits_since = gathered.or_else(|| queued.then_some(self.taken_ns));
        now_ns().min(waits_since.unwrap_or(u64::MAX))
    }

    /// What was before a heartbeat is on the disk or told: the time after the last one is what the next start tells of.
    fn beat(&mut self, last: bool) {
        if self.failing || self.gaps.iter().any(|gap| gap.cause == gap::SPOOL_FULL) {
            return;
        }
        let heartbeat = Heartbeat {
            time_ns: self.reached_ns(),
            clean: last,
        };
        if let Err(error) = self.spool.sync().and_then(|()| self.spool.beat(heartbeat)) {
            tracing::debug!(%error, "heartbeat or sync failed");
        }
    }

    /// What happened while no collector ran, as far as the spool tells.
    fn tell_of_the_past(&mut self, recovery: &Recovery) {
        let now = now_ns();
        let gap = |cause, from_ns, detail| Gap {
            probe: "",
            cause,
            from_ns,
            to_ns: now,
            count: 0,
            subject: Subject::Node,
            detail,
        };
        if let Some(last) = recovery.last_seen {
            let how = match (last.clean, recovery.rebooted) {
                (true, _) => "after an orderly end",
                (false, false) => "after a crash or kill",
                (false, true) => "after a crash or power cut of the machine",
            };
            self.gap(gap(gap::COLLECTOR_DOWN, last.time_ns.min(now), how.to_owned()));
        }
        self.dropped(recovery.dropped.clone());
        for Cut { file, bytes, after_ns } in &recovery.cuts {
            tracing::warn!(file, bytes, "end of a spool segment could not be read back");
            let from_ns = if *after_ns == 0 { now } else { *after_ns };
            self.gap(gap(
                gap::SPOOL_DAMAGED,
                from_ns.min(now),
                format!("{bytes} bytes cut off {file}"),
            ));
        }
        if let Some(path) = &recovery.set_aside {
            tracing::warn!(path = %path.display(), "spool without a readable meta file set aside, new epoch");
            self.gap(gap(
                gap::SPOOL_DAMAGED,
                now,
                "the spool before could not be read".to_owned(),
            ));
        }
        let seen_ns = recovery.last_seen.map_or(now, |last| last.time_ns);
        let live: BTreeMap<String, Arc<Pod>> = self.index.live().into_iter().map(|p| (p.sandbox.clone(), p)).collect();
        let known = v1::BatchBody::decode(recovery.pods.as_slice()).unwrap_or_default().pods;
        self.pods.extend(
            known
                .into_iter()
                .filter(|pod| !live.contains_key(&pod.sandbox))
                .map(|pod| Arc::new(ended(pod, seen_ns))),
        );
        self.since = Some(Instant::now());
    }
}

fn tells_of_a_drop(told: &Gap) -> bool {
    told.cause == gap::SPOOL_FULL && told.detail.ends_with(DROPPED)
}

/// Keeps gaps that wait from becoming too many: those of one kind become one, which has the count of all.
fn bound(gaps: &mut Vec<Gap>) {
    if gaps.len() <= KEPT_GAPS {
        return;
    }
    let mut places = HashMap::new();
    let mut merged: Vec<Gap> = Vec::new();
    for gap in gaps.drain(..) {
        let subject = match &gap.subject {
            Subject::Node => None,
            Subject::Unknown => Some(String::new()),
            Subject::Pod(pod) => Some(pod.sandbox.clone()),
        };
        match places.entry((gap.probe, gap.cause, subject, gap.detail.clone())) {
            Entry::Occupied(place) => {
                let whole: &mut Gap = &mut merged[*place.get()];
                whole.from_ns = whole.from_ns.min(gap.from_ns);
                whole.to_ns = whole.to_ns.max(gap.to_ns);
                whole.count = whole.count.saturating_add(gap.count);
            }
            Entry::Vacant(place) => {
                place.insert(merged.len());
                merged.push(gap);
            }
        }
    }
    merged.truncate(KEPT_GAPS);
    *gaps = merged;
}

/// A pod of an earlier run that is not there any more; it ended some time after that run.
fn ended(pod: v1::Pod, seen_ns: u64) -> Pod {
    let ip = |octets: Vec<u8>| -> Option<std::net::IpAddr> {
        match octets.len() {
            4 => Some(<[u8; 4]>::try_from(octets).ok()?.into()),
            16 => Some(<[u8; 16]>::try_from(octets).ok()?.into()),
            _ => None,
        }
    };
    Pod {
        sandbox: pod.sandbox,
        uid: pod.uid,
        namespace: pod.namespace,
        name: pod.name,
        workload_kind: pod.workload_kind,
        workload: pod.workload,
        ips: pod.ips.into_iter().filter_map(ip).collect(),
        annotations: std::collections::BTreeMap::new(),
        labels: pod.labels.into_iter().collect(),
        netns: crate::event::NetnsKey {
            inode: pod.netns_inode as u32,
            cookie: pod.netns_cookie,
        },
        host_network: pod.host_network,
        valid_from_ns: pod.valid_from_ns,
        valid_to_ns: AtomicU64::new(seen_ns.max(pod.valid_from_ns)),
        ..Pod::default()
    }
}

#[cfg(test)]
mod tests;
