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
    pub list: &'a [Process],
    pub files: &'a mut Processes,
}

/// The probes that are on, and what they need from round to round.
#[derive(Debug)]
pub struct ProcessRounds {
    probes: Vec<(&'static ProcessRegistration, Box<dyn ProcessProbe>)>,
    files: Processes,
    finder: Finder,
    /// By sandbox: a process that is no longer listed may still be there as a zombie.
    last: HashMap<String, Vec<Id>>,
    failures: Failures,
    stats: Arc<Mutex<Vec<ProbeStats>>>,
}

impl ProcessRounds {
    pub fn new(
        registrations: impl IntoIterator<Item = &'static ProcessRegistration>,
        paths: &HostPaths,
        finder: Finder,
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
        self.last.retain(|sandbox, _| live.contains(sandbox.as_str()));
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
        let members = self.members(pod);
        for ((registration, probe), (table, stats)) in self.probes.iter_mut().zip(tables.iter_mut().zip(stats)) {
            let spec = registration.spec;
            let result = match &members {
                Ok(None) => Ok(()),
                Ok(Some(list)) => {
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
    }

    fn members(&mut self, pod: &Pod) -> Result<Option<Vec<Process>>, Arc<ReadError>> {
        let Some(found) = self.finder.of(pod, &self.files)? else {
            return Ok(None);
        };
        let mut list = Vec::with_capacity(found.len());
        for (pid, handle) in found {
            if let Answer::Is(stat) = self.files.stat(&handle).map_err(Arc::new)? {
                list.push(Process::new(pid, handle, stat));
            }
        }
        let unlisted = self.last.remove(&pod.sandbox).unwrap_or_default();
        for Id { pid, start } in unlisted {
            if list.iter().any(|process| process.id.pid == pid) {
                continue;
            }
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
        let ids = list.iter().map(|process| process.id).collect();
        self.last.insert(pod.sandbox.clone(), ids);
        Ok(Some(list))
    }
}
