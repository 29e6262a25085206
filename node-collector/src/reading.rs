//! The thread of rounds: each interval it reads `/proc` and the kernel side's maps, publishes the tables for `/metrics`
//! and hands them to the spool.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use sonde_common::prom::Page;
use sonde_common::time::now_ns;

use crate::kernel::{Kernel, KernelStatus};
use crate::pods::{PodIndex, Targets};
use crate::round::Rounds;
use crate::ship::writer::Shipper;
use crate::table::Table;

/// What the last round found.
#[derive(Debug)]
pub struct Snapshot {
    pub time_ns: u64,
    pub tables: Arc<Vec<Table>>,
    /// Families of the kernel side about itself, rendered.
    pub kernel_metrics: String,
    pub kernel_status: KernelStatus,
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
    pub kernel: Arc<Mutex<Kernel>>,
    pub targets: Arc<Targets>,
    pub index: Arc<PodIndex>,
    pub shipper: Shipper,
    pub log: Arc<RoundLog>,
}

/// The running thread. Dropping it ends it after a last round.
#[derive(Debug)]
pub struct Reading {
    stop: Option<Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Reading {
    pub fn start(mut parts: Parts, interval: Duration) -> io::Result<Self> {
        let (stop, stopped) = channel();
        let thread = std::thread::Builder::new().name("sonde-rounds".into()).spawn(move || {
            parts.run(interval, &stopped);
            // What happened since would else be lost with the programs.
            parts.round();
        })?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    pub fn has_failed(&self) -> bool {
        self.thread.as_ref().is_none_or(std::thread::JoinHandle::is_finished)
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Parts {
    fn run(&mut self, interval: Duration, stopped: &Receiver<()>) {
        let mut due = Instant::now();
        loop {
            self.round();
            due += interval;
            // A round that took too long leaves out those it overlapped; they do not pile up.
            while due < Instant::now() {
                due += interval;
            }
            match stopped.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn round(&mut self) {
        let (begun, cpu) = (Instant::now(), thread_cpu_ns());
        let time_ns = now_ns();
        let (mut tables, mut gaps) = self.rounds.read(time_ns, &self.targets.load());
        let (kernel_metrics, kernel_status) = {
            let mut kernel = self.kernel.lock();
            let (more, missed) = kernel.read(time_ns, &self.index);
            tables.extend(more);
            gaps.extend(missed);
            let mut page = Page::new();
            kernel.self_metrics(&mut page);
            (page.finish(), kernel.status())
        };
        let tables = Arc::new(tables);
        self.shipper.rows(Arc::clone(&tables));
        self.shipper.gaps(gaps);
        let snapshot = Snapshot {
            time_ns,
            tables,
            kernel_metrics,
            kernel_status,
        };
        self.log.snapshot.store(Some(Arc::new(snapshot)));
        let took = begun.elapsed().as_nanos() as u64;
        self.log.count.fetch_add(1, Ordering::Relaxed);
        self.log.cpu_ns.fetch_add(thread_cpu_ns() - cpu, Ordering::Relaxed);
        self.log.busy_ns.fetch_add(took, Ordering::Relaxed);
        self.log.last_ns.store(took, Ordering::Relaxed);
    }
}

/// CPU time of the calling thread.
pub fn thread_cpu_ns() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)
        .map_or(0, |t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64)
}
