//! A round of the probes that read single processes.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use sonde_common::paths::HostPaths;

use super::{Finder, Id};
use crate::event::{Gap, Subject};
use crate::pods::Pod;
use crate::probes::{ProcessProbe, ProcessRegistration};
use crate::procfs::ReadError;
use crate::procfs::process::{Answer, Handle, Processes, Stat};
use crate::round::{Failures, ProbeStats, keep_stats};
use crate::table::Table;

/// A process of a pod.
#[derive(Debug)]
pub struct Process {
    pub handle: Handle,
    pub id: Id,
    pub parent: u32,
    /// Ended, but its parent has not waited for it: it still has what it did, and no files.
    pub is_zombie: bool,
}

impl Process {
    fn new(pid: u32, handle: Handle, stat: Stat) -> Self {
        Self {
            handle,
            id: Id { pid, start: stat.start },
            parent: stat.parent,
            is_zombie: stat.is_zombie,
        }
    }
}

/// The processes of one pod, and how to read them.
#[derive(Debug)]
pub struct Members<'a> {
    pub list: &'a mut [Process],
    pub files: &'a mut Processes,
}

/// What was found of a pod in its last round.
#[derive(Debug, Default)]
struct Last {
    /// All of them: one that is no longer listed may still be there as a zombie.
    ids: Vec<Id>,
    /// Those that are kept open.
    kept: Vec<Process>,
    /// Some came, ended or could not be looked at: who is whose parent may have changed.
    moved: bool,
}

/// The probes that are on, and what they need from round to round.
#[derive(Debug)]
pub struct ProcessRounds {
    probes: Vec<(&'static ProcessRegistration, Box<dyn ProcessProbe>)>,
    files: Processes,
    finder: Finder,
    /// By sandbox.
    last: HashMap<String, Last>,
    /// How many processes may be kept open from round to round, and how many are.
    keep: usize,
    kept: usize,
    failures: Failures,
    stats: Arc<Mutex<Vec<ProbeStats>>>,
}

impl ProcessRounds {
    /// `descriptors`: how many may be held from round to round.
    pub fn new(
        registrations: impl IntoIterator<Item = &'static ProcessRegistration>,
        paths: &HostPaths,
        finder: Finder,
        descriptors: usize,
    ) -> Self {
        let probes: Vec<_> = registrations.into_iter().map(|probe| (probe, (probe.make)())).collect();
        let stats = probes
            .iter()
            .map(|(probe, _)| ProbeStats::new(probe.spec.name))
            .collect();
        Self {
            probes,
            files: Processes::new(paths.proc.clone()),
            finder,
            last: HashMap::new(),
            keep: descriptors / Handle::DESCRIPTORS,
            kept: 0,
            failures: Failures::default(),
            stats: Arc::new(Mutex::new(stats)),
        }
    }

    /// Other probes from the next round on. Those that stay go on as they are.
    pub fn set(&mut self, registrations: impl IntoIterator<Item = &'static ProcessRegistration>) {
        let mut before = std::mem::take(&mut self.probes);
        let probes = registrations.into_iter().map(|registration| {
            let same = |(probe, _): &(&ProcessRegistration, _)| probe.spec.name == registration.spec.name;
            match before.iter().position(same) {
                Some(at) => before.swap_remove(at),
                None => (registration, (registration.make)()),
            }
        });
        self.probes = probes.collect();
        keep_stats(&self.stats, self.probes.iter().map(|(probe, _)| probe.spec.name));
    }

    pub fn stats(&self) -> Arc<Mutex<Vec<ProbeStats>>> {
        Arc::clone(&self.stats)
    }

    /// Reads the processes of every pod. One table for each probe that found something.
    pub fn read(&mut self, time_ns: u64, pods: &[Arc<Pod>]) -> (Vec<Table>, Vec<Gap>) {
        if self.probes.is_empty() {
            return (Vec::new(), Vec::new());
        }
        let stats = Arc::clone(&self.stats);
        let mut stats = stats.lock();
        let mut tables: Vec<Table> = self
            .probes
            .iter()
            .zip(stats.iter_mut())
            .map(|((probe, _), stats)| {
                stats.failing = false;
                Table::with_capacity(probe.spec, time_ns, stats.rows)
            })
            .collect();
        self.finder.prepare(pods, &self.files);
        for pod in pods {
            self.read_pod(pod, &mut tables, &mut stats, time_ns);
        }
        let live: HashSet<&str> = pods.iter().map(|pod| pod.sandbox.as_str()).collect();
        self.last.retain(|sandbox, last| {
            let is_live = live.contains(sandbox.as_str());
            if !is_live {
                self.kept -= last.kept.len();
            }
            is_live
        });
        for ((_, probe), (table, stats)) in self.probes.iter_mut().zip(tables.iter().zip(stats.iter_mut())) {
            probe.forget_all_but(&live);
            stats.rows = table.len();
        }
        tables.retain(|table| !table.is_empty());
        (tables, self.failures.due(time_ns))
    }

    fn read_pod(&mut self, pod: &Arc<Pod>, tables: &mut [Table], stats: &mut [ProbeStats], time_ns: u64) {
        let mut before = Instant::now();
        let subject = Subject::Pod(Arc::clone(pod));
        let mut members = self.members(pod);
        for ((registration, probe), (table, stats)) in self.probes.iter_mut().zip(tables.iter_mut().zip(stats)) {
            let spec = registration.spec;
            let result = match &mut members {
                Ok(None) => Ok(()),
                Ok(Some((list, _))) => {
                    let members = Members {
                        list,
                        files: &mut self.files,
                    };
                    probe.read(members, &subject, table).map_err(Arc::new)
                }
                Err(error) => Err(Arc::clone(error)),
            };
            match result {
                Ok(()) => self.failures.recovered(spec, &subject, time_ns),
                Err(error) => self.failures.note(spec, &subject, &error, time_ns, stats),
            }
            let after = Instant::now();
            stats.busy_ns += (after - before).as_nanos() as u64;
            before = after;
        }
        if let Ok(Some((list, moved))) = members {
            self.keep(pod, list, moved);
        }
    }

    /// Its processes as they are now, those kept of the last round used again; and whether any came or ended since.
    fn members(&mut self, pod: &Pod) -> Result<Option<(Vec<Process>, bool)>, Arc<ReadError>> {
        let Some(found) = self.finder.of(pod)? else {
            return Ok(None);
        };
        let last = self.last.entry(pod.sandbox.clone()).or_default();
        let kept = std::mem::take(&mut last.kept);
        self.kept -= kept.len();
        let known: HashSet<Id> = last.ids.iter().copied().collect();
        let mut kept: HashMap<u32, Process> = kept.into_iter().map(|process| (process.id.pid, process)).collect();
        let mut list = Vec::with_capacity(found.len());
        let (mut moved, mut reused) = (false, 0);
        for pid in found {
            if let Some(process) = kept.remove(&pid).filter(|process| !process.is_zombie)
                && self.finder.is_still(pod, &process.handle, &self.files)
            {
                list.push(process);
                reused = list.len();
                continue;
            }
            let handle = match self.files.open(pid).map_err(Arc::new)? {
                Answer::Is(handle) => handle,
                Answer::Ended | Answer::Absent => {
                    moved = true;
                    continue;
                }
            };
            if pod.cgroup.is_none() && !self.finder.is_still(pod, &handle, &self.files) {
                continue;
            }
            match self.files.stat(&handle).map_err(Arc::new)? {
                Answer::Is(stat) => list.push(Process::new(pid, handle, stat)),
                Answer::Ended | Answer::Absent => moved = true,
            }
        }
        let listed: HashSet<u32> = list.iter().map(|process| process.id.pid).collect();
        for Id { pid, start } in last.ids.iter().copied().filter(|id| !listed.contains(&id.pid)) {
            let Ok(Answer::Is(handle)) = self.files.open(pid) else {
                continue;
            };
            match self.files.stat(&handle) {
                Ok(Answer::Is(stat)) if stat.is_zombie && stat.start == start => {
                    list.push(Process::new(pid, handle, stat));
                }
                _ => {}
            }
        }
        moved |= list.len() != known.len() || list.iter().any(|process| !known.contains(&process.id));
        if (moved || last.moved) && reused > 0 {
            self.parents(&mut list)?;
        }
        Ok(Some((list, moved)))
    }

    /// When a process ends, its children get another parent.
    fn parents(&mut self, list: &mut Vec<Process>) -> Result<(), Arc<ReadError>> {
        let mut failed = None;
        list.retain_mut(|process| match self.files.stat(&process.handle) {
            Ok(Answer::Is(stat)) => {
                process.parent = stat.parent;
                process.is_zombie = stat.is_zombie;
                true
            }
            Ok(Answer::Ended | Answer::Absent) => false,
            Err(error) => {
                failed = Some(Arc::new(error));
                true
            }
        });
        failed.map_or(Ok(()), Err)
    }

    /// For the next round.
    fn keep(&mut self, pod: &Pod, list: Vec<Process>, moved: bool) {
        let mut last = Last {
            ids: list.iter().map(|process| process.id).collect(),
            kept: Vec::new(),
            moved,
        };
        if self.kept + list.len() <= self.keep {
            self.kept += list.len();
            last.kept = list;
        }
        self.last.insert(pod.sandbox.clone(), last);
    }
}
