//! The process that is a node: the collector's spool, writer and client, and a maker of events and rows in place of probes.
//!
//! It reads words from standard input: `burst` and `calm` set how much it makes, `finish` lets it end once everything is
//! acknowledged. What it holds it says in a small file ([`Status`]).

use std::io::BufRead as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use sonde_collector::gaps::GapLog;
use sonde_collector::pods::PodIndex;
use sonde_collector::ship::client::{Client, Link};
use sonde_collector::ship::spool::{Frame, Next, Spool};
use sonde_collector::ship::writer::{Shipper, Writer};
use sonde_common::shutdown;
use sonde_common::time::now_ns;
use sonde_proto::{body, gap, v1};

use crate::content::{Pods, SPEC};
use crate::journal::{Journal, Line};

#[derive(Debug, clap::Parser)]
pub struct Arguments {
    #[arg(long)]
    pub name: String,
    #[arg(long)]
    pub spool: PathBuf,
    #[arg(long)]
    pub max_bytes: u64,
    #[arg(long)]
    pub journal: PathBuf,
    #[arg(long)]
    pub status: PathBuf,
    /// `http://HOST:PORT`
    #[arg(long)]
    pub aggregator: String,
}

/// From one thing that is made to the next.
const TICK: Duration = Duration::from_millis(20);
/// A reading comes with every so many ticks.
const TICKS_A_ROUND: u64 = 5;
const EVENTS_A_TICK: u64 = 20;
const EVENTS_A_TICK_IN_A_BURST: u64 = 500;
/// How often what was seen in the spool is looked for, and the status told.
const LOOK: Duration = Duration::from_millis(5);

const CALM: u8 = 0;
const BURST: u8 = 1;
const FINISH: u8 = 2;

/// What a node tells of itself while it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Of this process.
    pub run: u64,
    /// What it counted as lost from its spool.
    pub lost: u64,
    pub acked: u64,
}

impl Status {
    pub fn read(path: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(path).ok()?;
        let numbers: Vec<u64> = text.split_whitespace().map(|n| n.parse().ok()).collect::<Option<_>>()?;
        let [run, lost, acked] = numbers[..] else { return None };
        Some(Self { run, lost, acked })
    }

    fn write(self, path: &Path) -> std::io::Result<()> {
        let new = path.with_extension("new");
        std::fs::write(&new, format!("{} {} {}", self.run, self.lost, self.acked))?;
        std::fs::rename(new, path)
    }
}

pub fn main(arguments: Arguments) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(run(arguments))
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let (journal, before) = Journal::append(&arguments.journal)?;
    let (spool, recovery) = Spool::open(&arguments.spool, arguments.max_bytes, "chaos")?;
    let spool = Arc::new(spool);
    let mut maker = Maker::after(&before, &arguments.name, journal.try_clone()?);
    journal.write(&Line::Start { run: maker.run })?;
    let gaps = Arc::new(GapLog::default());
    let (writer, shipper) = Writer::start(
        Arc::clone(&spool),
        Arc::new(PodIndex::default()),
        Arc::clone(&gaps),
        recovery,
    )?;
    let hello = v1::Hello {
        node: arguments.name.clone(),
        boot_id: vec![7; 16],
        epoch: spool.epoch().as_bytes().to_vec(),
        version: "chaos".into(),
        interval_ns: 1_000_000_000,
        catalogue: Some(v1::Catalogue {
            probes: vec![SPEC.to_proto()],
        }),
        ..v1::Hello::default()
    };
    let client = Client::new(
        std::slice::from_ref(&arguments.aggregator),
        hello,
        Arc::clone(&spool),
        Arc::new(Link::default()),
        shipper.clone(),
    );
    let (end, ends) = shutdown::channel();
    let client = tokio::spawn(client.map_err(anyhow::Error::msg)?.run(ends));

    let mode = Arc::new(AtomicU8::new(CALM));
    listen(Arc::clone(&mode));
    let all_written = Arc::new(AtomicBool::new(false));
    let observer = {
        let (spool, all_written) = (Arc::clone(&spool), Arc::clone(&all_written));
        let after = last_seen(&before, &spool.epoch().to_string());
        let (status, run) = (arguments.status.clone(), maker.run);
        std::thread::spawn(move || observe(&spool, after, &journal, &gaps, &status, run, &all_written))
    };
    let run = maker.run;
    let made_in = Arc::clone(&spool);
    let made = tokio::task::spawn_blocking(move || -> anyhow::Result<Journal> {
        while mode.load(Ordering::Relaxed) != FINISH {
            maker.tick(&shipper, mode.load(Ordering::Relaxed))?;
            std::thread::sleep(TICK);
        }
        // What was dropped on its way is told when it is known whether it arrived.
        while !(made_in.is_drained() && made_in.is_settled()) {
            std::thread::sleep(TICK);
        }
        drop(shipper);
        writer.stop();
        Ok(maker.journal)
    });
    let journal = made.await??;
    all_written.store(true, Ordering::Relaxed);
    let observed = tokio::task::spawn_blocking(move || observer.join()).await?;
    observed.map_err(|_| anyhow::anyhow!("the observer panicked"))??;
    while !spool.is_drained() {
        tokio::time::sleep(LOOK).await;
    }
    end.fire();
    client.await?;
    journal.write(&Line::End { run })?;
    Ok(())
}

/// Words from standard input.
fn listen(mode: Arc<AtomicU8>) {
    std::thread::spawn(move || {
        for word in std::io::stdin().lock().lines().map_while(Result::ok) {
            let new = match word.as_str() {
                "burst" => BURST,
                "finish" => FINISH,
                _ => CALM,
            };
            mode.store(new, Ordering::Relaxed);
        }
    });
}

/// Makes things with ascending numbers.
struct Maker {
    run: u64,
    pods: Pods,
    next_event: u64,
    next_round: u64,
    ticks: u64,
    journal: Journal,
}

impl Maker {
    fn after(before: &[Line], node: &str, journal: Journal) -> Self {
        let mut maker = Self {
            run: 1,
            pods: Pods::new(node),
            next_event: 1,
            next_round: 1,
            ticks: 0,
            journal,
        };
        for line in before {
            match line {
                Line::Start { run } => maker.run = run + 1,
                Line::Events { first, count, .. } => maker.next_event = first + count,
                Line::Rows { round, .. } => maker.next_round = round + 1,
                Line::Spooled { .. } | Line::End { .. } => {}
            }
        }
        maker
    }

    fn tick(&mut self, shipper: &Shipper, mode: u8) -> std::io::Result<()> {
        // Whole microseconds: the database has no others.
        let time_ns = now_ns() / 1000 * 1000;
        let count = if mode == BURST {
            EVENTS_A_TICK_IN_A_BURST
        } else {
            EVENTS_A_TICK
        };
        let first = self.next_event;
        self.journal.write(&Line::Events {
            run: self.run,
            first,
            count,
            time_ns,
        })?;
        self.next_event += count;
        let event = |id| self.pods.event(id, time_ns + (id - first) * 1000);
        shipper.events((first..first + count).map(event).collect());
        self.ticks += 1;
        if self.ticks.is_multiple_of(TICKS_A_ROUND) {
            let round = self.next_round;
            self.journal.write(&Line::Rows {
                run: self.run,
                round,
                time_ns,
            })?;
            self.next_round += 1;
            shipper.rows(Arc::new(vec![self.pods.table(round, time_ns)]));
        }
        Ok(())
    }
}

fn last_seen(before: &[Line], of_epoch: &str) -> u64 {
    let seen = before.iter().filter_map(|line| match line {
        Line::Spooled { epoch, sequence, .. } if epoch == of_epoch => Some(*sequence),
        _ => None,
    });
    seen.max().unwrap_or(0)
}

/// Writes down what is in the spool, until everything is written and seen.
fn observe(
    spool: &Spool,
    after: u64,
    journal: &Journal,
    gaps: &GapLog,
    status: &Path,
    run: u64,
    all_written: &AtomicBool,
) -> anyhow::Result<()> {
    let mut reader = spool.reader(after);
    let epoch = spool.epoch().to_string();
    let mut told = None;
    loop {
        let last = all_written.load(Ordering::Relaxed);
        match reader.next(spool) {
            Ok(Next::Frame(frame)) => {
                journal.write(&spooled(&epoch, &frame)?)?;
                continue;
            }
            Ok(Next::Nothing) => {}
            Ok(Next::Damaged(cut)) => eprintln!("observer: damaged: {cut:?}"),
            Err(error) => eprintln!("observer: {error}"),
        }
        if last {
            return Ok(());
        }
        let lost = gaps.counts().into_iter().find(|(cause, ..)| *cause == gap::SPOOL_FULL);
        let now = Status {
            run,
            lost: lost.map_or(0, |(_, _, missing)| missing),
            acked: spool.stats().acked,
        };
        if told != Some(now) {
            now.write(status)?;
            told = Some(now);
        }
        std::thread::sleep(LOOK);
    }
}

fn spooled(epoch: &str, frame: &Frame) -> anyhow::Result<Line> {
    let body = body::decode(&frame.payload).with_context(|| format!("batch {} of our own spool", frame.sequence))?;
    let span = |numbers: &mut dyn Iterator<Item = u64>| {
        numbers.fold(None, |span: Option<(u64, u64)>, n| {
            Some(span.map_or((n, n), |(a, b)| (a.min(n), b.max(n))))
        })
    };
    let rounds = body
        .rows
        .iter()
        .filter_map(|rows| rows.columns.first()?.values.first().copied());
    Ok(Line::Spooled {
        epoch: epoch.to_owned(),
        sequence: frame.sequence,
        events: span(&mut body.events.iter().filter_map(|event| event.latency_ns)),
        rounds: span(&mut rounds.map(|round| round as u64)),
    })
}
