//! All nodes at once: who sends what when, and what came back.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures::{StreamExt as _, TryStreamExt as _};
use sonde_common::time::now_ns;
use sonde_proto::v1::{Batch, Up, up};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::mix::Mix;
use crate::node::{Node, Shape};
use crate::report::Report;
use crate::stream::Stream;

/// When a node sends.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// A reading so often, each node at a time of its own, and events four times a second.
    Every(Duration),
    /// The next reading as soon as the window permits.
    Readings,
    /// The next batch of so many events as soon as the window permits.
    Events(usize),
}

/// When to stop.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    Passed(Duration),
    /// So many batches of each node.
    Batches(u64),
}

#[derive(Clone, Debug)]
pub struct Options {
    /// `http://HOST:PORT`.
    pub url: String,
    pub nodes: usize,
    pub shape: Shape,
    pub pace: Pace,
    pub until: Until,
    /// A second, of all nodes together; with [`Pace::Every`].
    pub events: f64,
    /// A second, of the first node beside that; with [`Pace::Every`].
    pub flood: f64,
    /// Batches of a node that may be unacknowledged.
    pub window: usize,
    /// Time of the first reading and from one to the next; `None`: when it is made.
    pub times: Option<(u64, Duration)>,
    /// How long to wait for the last acks, and for a way to the aggregator.
    pub patience: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            url: String::new(),
            nodes: 1,
            shape: Shape::default(),
            pace: Pace::Every(Duration::from_secs(5)),
            until: Until::Passed(Duration::from_secs(60)),
            events: 0.0,
            flood: 0.0,
            window: 64,
            times: None,
            patience: Duration::from_secs(120),
        }
    }
}

/// Events are gathered so long before they are sent.
const GATHER: Duration = Duration::from_millis(250);
/// Between two attempts to connect.
const PAUSE: Duration = Duration::from_millis(200);
/// Connections that are made at one time.
const CONNECTING: usize = 64;

#[derive(Debug, Default)]
struct Totals {
    samples: AtomicU64,
    numbers: AtomicU64,
    events: AtomicU64,
    batches: AtomicU64,
    bytes: AtomicU64,
    reconnects: AtomicU64,
    late: AtomicU64,
}

/// Connects all nodes, then lets them send. Ends when everything is acknowledged.
pub async fn run(options: Options) -> anyhow::Result<Report> {
    let (options, mix, totals) = (Arc::new(options), Arc::new(Mix::real()), Arc::new(Totals::default()));
    let from_ns = options.times.map_or_else(now_ns, |(from, _)| from);
    let connected = futures::stream::iter(0..options.nodes).map(|number| {
        let node = Node::new(number, Arc::clone(&mix), options.shape, from_ns);
        let (options, totals) = (Arc::clone(&options), Arc::clone(&totals));
        async move { Sender::connect(number, node, options, totals).await }
    });
    let senders: Vec<(Sender, Stream)> = connected.buffer_unordered(CONNECTING).try_collect().await?;
    let started = Instant::now();
    // They end with this function, also where nobody waits for its end.
    let mut tasks = JoinSet::new();
    for (sender, stream) in senders {
        tasks.spawn(sender.run(stream, started));
    }
    let mut latencies = Vec::new();
    let mut failure = None;
    while let Some(done) = tasks.join_next().await {
        match done? {
            Ok(mut of_node) => latencies.append(&mut of_node),
            Err(error) => failure = Some(error),
        }
    }
    if let Some(failure) = failure {
        return Err(failure);
    }
    latencies.sort_unstable();
    let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    Ok(Report {
        elapsed: started.elapsed(),
        samples: of(&totals.samples),
        numbers: of(&totals.numbers),
        events: of(&totals.events),
        batches: of(&totals.batches),
        bytes: of(&totals.bytes),
        reconnects: of(&totals.reconnects),
        late: of(&totals.late),
        latencies,
    })
}

/// A batch that is not acknowledged.
struct Sent {
    batch: Batch,
    due: Instant,
    samples: u64,
    numbers: u64,
    events: u64,
}

/// A node and its stream.
struct Sender {
    node: Node,
    options: Arc<Options>,
    totals: Arc<Totals>,
    /// Without an ack; those from `next` on are not on the wire either.
    unacked: VecDeque<Sent>,
    next: usize,
    latencies: Vec<Duration>,
    /// Events a second.
    rate: f64,
    /// Parts of an event that are still to come.
    owed: f64,
    readings: u64,
    made: u64,
    reading_due: Instant,
    events_due: Instant,
    connected: Instant,
    ends: Option<Instant>,
    interval: Duration,
}

impl Sender {
    async fn connect(
        number: usize,
        node: Node,
        options: Arc<Options>,
        totals: Arc<Totals>,
    ) -> anyhow::Result<(Self, Stream)> {
        let interval = match options.pace {
            Pace::Every(interval) => interval,
            // Nobody is to take it for silent between two runs.
            _ => Duration::from_secs(600),
        };
        let now = Instant::now();
        let offset = interval.mul_f64(number as f64 / options.nodes as f64);
        let flood = if number == 0 { options.flood } else { 0.0 };
        let sender = Self {
            node,
            totals,
            unacked: VecDeque::new(),
            next: 0,
            latencies: Vec::new(),
            rate: options.events / options.nodes as f64 + flood,
            owed: 0.0,
            readings: 0,
            made: 0,
            // Until `run` these are after a beginning that is not yet known.
            reading_due: now + offset,
            events_due: now + offset.min(GATHER),
            connected: now,
            ends: None,
            interval,
            options,
        };
        let stream = sender.open().await?;
        Ok((sender, stream))
    }

    /// Tries until it succeeds.
    async fn open(&self) -> anyhow::Result<Stream> {
        let deadline = Instant::now() + self.options.patience;
        loop {
            let hello = self.node.hello(self.interval.as_nanos() as u64);
            match Stream::open(&self.options.url, hello).await {
                Ok(stream) => return Ok(stream),
                Err(error) if Instant::now() > deadline => return Err(error.context(self.node.name.clone())),
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    async fn run(mut self, mut stream: Stream, started: Instant) -> anyhow::Result<Vec<Duration>> {
        let wait = started.saturating_duration_since(self.connected);
        self.reading_due += wait;
        self.events_due += wait;
        if let Until::Passed(time) = self.options.until {
            self.ends = Some(started + time);
        }
        loop {
            match self.talk(&mut stream).await {
                Ok(()) => return Ok(self.latencies),
                Err(error) if self.is_over_due() => {
                    return Err(error.context(format!(
                        "{}: {} batches without an ack",
                        self.node.name,
                        self.unacked.len()
                    )));
                }
                Err(_) => {
                    self.totals.reconnects.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(PAUSE).await;
                    stream = self.open().await?;
                }
            }
        }
    }

    fn has_ended(&self) -> bool {
        match self.options.until {
            Until::Passed(_) => self.ends.is_some_and(|ends| Instant::now() >= ends),
            Until::Batches(all) => self.made >= all,
        }
    }

    fn is_over_due(&self) -> bool {
        self.ends
            .is_some_and(|ends| Instant::now() >= ends + self.options.patience)
    }

    /// One connection. `Ok` when all is sent and acknowledged.
    async fn talk(&mut self, stream: &mut Stream) -> anyhow::Result<()> {
        self.acked(stream.durable);
        self.next = 0;
        let give_up = tokio::time::sleep(self.options.patience);
        tokio::pin!(give_up);
        let up = stream.up.clone();
        loop {
            let ended = self.has_ended();
            if ended && self.unacked.is_empty() {
                return Ok(());
            }
            let may_make = !ended && self.next == self.unacked.len() && self.unacked.len() < self.options.window;
            tokio::select! {
                ack = stream.ack() => {
                    self.acked(ack?);
                    give_up.as_mut().reset(Instant::now() + self.options.patience);
                }
                permit = up.reserve(), if self.next < self.unacked.len() => {
                    let batch = self.unacked[self.next].batch.clone();
                    permit.context("the stream is closed")?.send(Up { message: Some(up::Message::Batch(batch)) });
                    self.next += 1;
                }
                () = tokio::time::sleep_until(self.due()), if may_make => self.make(),
                () = &mut give_up, if !self.unacked.is_empty() => {
                    bail!("{}: no ack for {} batches within {:?}", self.node.name, self.unacked.len(), self.options.patience);
                }
            }
        }
    }

    fn acked(&mut self, sequence: u64) {
        let now = Instant::now();
        let add = |counter: &AtomicU64, more| _ = counter.fetch_add(more, Ordering::Relaxed);
        while self.unacked.front().is_some_and(|sent| sent.batch.sequence <= sequence) {
            let Some(sent) = self.unacked.pop_front() else { break };
            self.next = self.next.saturating_sub(1);
            self.latencies.push(now.saturating_duration_since(sent.due));
            add(&self.totals.samples, sent.samples);
            add(&self.totals.numbers, sent.numbers);
            add(&self.totals.events, sent.events);
            add(&self.totals.batches, 1);
            add(&self.totals.bytes, sent.batch.body.len() as u64);
        }
    }

    /// When there is something to make. At the end of the run there is something to look at.
    fn due(&self) -> Instant {
        let due = match self.options.pace {
            Pace::Every(_) if self.rate > 0.0 => self.reading_due.min(self.events_due),
            Pace::Every(_) => self.reading_due,
            Pace::Readings | Pace::Events(_) => Instant::now(),
        };
        self.ends.map_or(due, |ends| due.min(ends))
    }

    fn make(&mut self) {
        let now = Instant::now();
        if self.ends.is_some_and(|ends| now >= ends) {
            return;
        }
        match self.options.pace {
            Pace::Readings => self.reading(now),
            Pace::Events(count) => self.events(count, now),
            Pace::Every(interval) => {
                if now >= self.reading_due {
                    let due = self.reading_due;
                    self.totals
                        .late
                        .fetch_add(u64::from(now > due + interval), Ordering::Relaxed);
                    self.reading(due);
                    self.reading_due += interval;
                }
                if self.rate > 0.0 && now >= self.events_due {
                    let due = self.events_due;
                    self.owed += self.rate * GATHER.as_secs_f64();
                    let whole = self.owed.floor();
                    self.owed -= whole;
                    if whole >= 1.0 {
                        self.events(whole as usize, due);
                    }
                    self.events_due += GATHER;
                }
            }
        }
    }

    fn reading(&mut self, due: Instant) {
        let time_ns = match self.options.times {
            Some((from, step)) => from + step.as_nanos() as u64 * self.readings,
            None => now_ns(),
        };
        self.readings += 1;
        let batch = self.node.reading(time_ns);
        let (samples, numbers) = (self.node.samples(), self.node.numbers());
        self.queue(Sent {
            batch,
            due,
            samples,
            numbers,
            events: 0,
        });
    }

    fn events(&mut self, count: usize, due: Instant) {
        let batch = self.node.events(count, now_ns());
        self.queue(Sent {
            batch,
            due,
            samples: 0,
            numbers: 0,
            events: count as u64,
        });
    }

    fn queue(&mut self, sent: Sent) {
        self.made += 1;
        self.unacked.push_back(sent);
    }
}
