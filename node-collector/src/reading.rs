//! The thread of rounds: each interval it reads `/proc` and the kernel side's maps, publishes the tables for `/metrics`
//! and hands them to the spool.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use sonde_common::config::Config;
use sonde_common::prom::{Format, Page};
use sonde_common::time::now_ns;

use crate::event::Gap;
use crate::kernel::{Changed, Kernel, KernelStatus};
use crate::pipeline::EventStats;
use crate::pods::{PodIndex, Targets};
use crate::probes::{PROBES, PROCESS_PROBES};
use crate::processes::ProcessRounds;
use crate::round::Rounds;
use crate::serve::Pages;
use crate::ship::writer::Shipper;
use crate::switched::{Switched, What};
use crate::table::Table;

/// What the last round found.
#[derive(Debug)]
pub struct Snapshot {
    pub time_ns: u64,
    pub tables: Arc<Vec<Table>>,
    /// Families of the kernel side about itself, rendered, in the order of [`Format::ALL`].
    pub kernel_metrics: [String; 2],
    pub kernel_status: KernelStatus,
    /// What scrapers asked for so far.
    pub pages: Pages,
}

/// The last round, and all rounds in figures.
#[derive(Debug, Default)]
pub struct RoundLog {
    snapshot: ArcSwapOption<Snapshot>,
    count: AtomicU64,
    cpu_ns: AtomicU64,
    busy_ns: AtomicU64,
    last_ns: AtomicU64,
}

impl RoundLog {
    /// `None` before the first round.
    pub fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.snapshot.load_full()
    }

    /// Rounds, their CPU time, their time, the time of the last one.
    pub fn totals(&self) -> (u64, u64, u64, u64) {
        let get = |value: &AtomicU64| value.load(Ordering::Relaxed);
        (
            get(&self.count),
            get(&self.cpu_ns),
            get(&self.busy_ns),
            get(&self.last_ns),
        )
    }
}

/// What a round needs.
pub struct Parts {
    pub rounds: Rounds,
    pub processes: ProcessRounds,
    pub kernel: Arc<Mutex<Kernel>>,
    pub targets: Arc<Targets>,
    pub index: Arc<PodIndex>,
    pub shipper: Shipper,
    pub log: Arc<RoundLog>,
    pub events: Arc<EventStats>,
    /// Probes of `/proc`, see [`note`].
    pub switched: Switched,
}

/// Notes which probes of `/proc` are off with `config`, and gives what came on as gaps.
pub fn note(switched: &mut Switched, config: &Config, now_ns: u64) -> Vec<Gap> {
    let files = PROBES.iter().map(|probe| probe.spec.name);
    let all = files.chain(PROCESS_PROBES.iter().map(|probe| probe.spec.name));
    all.filter_map(|name| switched.note(name, What::Probe, !config.is_enabled(name, true), now_ns))
        .collect()
}

/// How long after an event its count is read, where the next round is further away: who sees an event looks for it in
/// the metrics next.
const SOON: Duration = Duration::from_secs(1);

/// What the thread of rounds is asked to do between two of them.
type Errand = Box<dyn FnOnce(&mut Parts, &mut Duration) + Send>;

/// The running thread. Dropping it ends it after a last round.
#[derive(Debug)]
pub struct Reading {
    errands: Option<Sender<Errand>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Reading {
    pub fn start(mut parts: Parts, interval: Duration) -> io::Result<Self> {
        let (errands, asked) = channel();
        let thread = std::thread::Builder::new().name("sonde-rounds".into()).spawn(move || {
            parts.run(interval, &asked);
            // What happened since would else be lost with the programs.
            parts.round();
        })?;
        Ok(Self {
            errands: Some(errands),
            thread: Some(thread),
        })
    }

    /// Changes what rounds do, and how often they are. Resolves with `errand`'s answer when the round under way is done;
    /// `None`: the thread is gone.
    pub async fn change<T: Send + 'static>(
        &self,
        errand: impl FnOnce(&mut Parts, &mut Duration) -> T + Send + 'static,
    ) -> Option<T> {
        let (answer, answered) = tokio::sync::oneshot::channel();
        let errand: Errand = Box::new(move |parts, interval| {
            // Whoever asked may be gone.
            let _ = answer.send(errand(parts, interval));
        });
        self.errands.as_ref()?.send(errand).ok()?;
        answered.await.ok()
    }

    pub fn has_failed(&self) -> bool {
        self.thread.as_ref().is_none_or(std::thread::JoinHandle::is_finished)
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        drop(self.errands.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Parts {
    fn run(&mut self, mut interval: Duration, asked: &Receiver<Errand>) {
        let mut due = Instant::now();
        let mut counted = 0;
        loop {
            if Instant::now() >= due {
                counted = self.events.total();
                self.round();
                due += interval;
                // A round that took too long leaves out those it overlapped; they do not pile up.
                while due < Instant::now() {
                    due += interval;
                }
            } else if self.events.total() != counted {
                counted = self.events.total();
                self.count_events();
            }
            match asked.recv_timeout(due.saturating_duration_since(Instant::now()).min(SOON)) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(errand) => {
                    errand(self, &mut interval);
                    // What changed is seen at once.
                    due = Instant::now();
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Other probes and another interval from now on. The last rows of what ends, and what could not be seen, are shipped.
    pub fn apply(&mut self, config: &Config, interval: &mut Duration) -> Changed {
        *interval = config.collector.interval.0;
        self.rounds
            .set(PROBES.iter().filter(|probe| config.is_enabled(probe.spec.name, true)));
        self.processes.set(
            PROCESS_PROBES
                .iter()
                .filter(|probe| config.is_enabled(probe.spec.name, true)),
        );
        let mut changed = self.kernel.lock().apply(config);
        self.shipper.rows(Arc::new(std::mem::take(&mut changed.tables)));
        self.shipper.gaps(std::mem::take(&mut changed.gaps));
        self.shipper.gaps(note(&mut self.switched, config, now_ns()));
        changed
    }

    fn round(&mut self) {
        let (begun, cpu) = (Instant::now(), thread_cpu_ns());
        let time_ns = now_ns();
        let (mut tables, gaps) = self.rounds.read(time_ns, &self.targets.load());
        self.shipper.gaps(gaps);
        let (more, gaps) = self.processes.read(time_ns, &self.index.live());
        tables.extend(more);
        self.shipper.gaps(gaps);
        self.publish(time_ns, tables, |_| false);
        let took = begun.elapsed().as_nanos() as u64;
        self.log.count.fetch_add(1, Ordering::Relaxed);
        self.log.cpu_ns.fetch_add(thread_cpu_ns() - cpu, Ordering::Relaxed);
        self.log.busy_ns.fetch_add(took, Ordering::Relaxed);
        self.log.last_ns.store(took, Ordering::Relaxed);
    }

    /// Between two rounds: the kernel side's maps alone.
    fn count_events(&mut self) {
        self.publish(now_ns(), Vec::new(), |_| true);
    }

    /// Reads the kernel side, ships its tables behind `tables`, and shows both; of the tables shown before, those that
    /// are not read now and that `keep` permits stay.
    fn publish(&mut self, time_ns: u64, mut tables: Vec<Table>, keep: impl Fn(&Table) -> bool) {
        let (kernel_metrics, kernel_status) = {
            let mut kernel = self.kernel.lock();
            let (more, missed) = kernel.read(time_ns, &self.index);
            tables.extend(more);
            self.shipper.gaps(missed);
            let rendered = Format::ALL.map(|format| {
                let mut page = Page::of(format);
                kernel.self_metrics(&mut page);
                page.finish()
            });
            (rendered, kernel.status())
        };
        let tables = Arc::new(tables);
        self.shipper.rows(Arc::clone(&tables));
        let before = self.log.snapshot();
        let is_new = |table: &Table| tables.iter().any(|new| new.spec.name == table.spec.name);
        let old = before.iter().flat_map(|snapshot| snapshot.tables.iter());
        let kept: Vec<Table> = old.filter(|table| keep(table) && !is_new(table)).cloned().collect();
        let shown = if kept.is_empty() {
            tables
        } else {
            Arc::new(kept.into_iter().chain(tables.iter().cloned()).collect())
        };
        let snapshot = Snapshot {
            time_ns,
            tables: shown,
            kernel_metrics,
            kernel_status,
            pages: Pages::default(),
        };
        self.log.snapshot.store(Some(Arc::new(snapshot)));
    }
}

/// CPU time of the calling thread.
pub fn thread_cpu_ns() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)
        .map_or(0, |t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64)
}
