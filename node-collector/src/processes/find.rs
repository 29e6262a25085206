//! Which processes are a pod's.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sonde_common::paths::HostPaths;

use crate::pods::{Pod, cgroup};
use crate::procfs::ReadError;
use crate::procfs::process::{Answer, Handle, Processes};

/// How often all processes of the host are looked at for those of named namespaces: 4 us each.
const WALK_EVERY: Duration = Duration::from_secs(10);
/// On a host with very many, a walk takes at most this part of the time.
const WALK_SHARE: u32 = 50;

#[derive(Debug)]
pub struct Finder {
    hierarchies: Vec<PathBuf>,
    every: Duration,
    by_netns: HashMap<u32, Vec<u32>>,
    /// Namespaces that the last walk looked for.
    looked_for: HashSet<u32>,
    /// Why the last walk cannot say whose a process is.
    incomplete: Option<Arc<ReadError>>,
    walked: Option<Instant>,
    took: Duration,
}

impl Finder {
    pub fn new(paths: &HostPaths) -> Self {
        Self::with_walks(paths, WALK_EVERY)
    }

    /// With another time between walks.
    pub fn with_walks(paths: &HostPaths, every: Duration) -> Self {
        Self {
            hierarchies: cgroup::hierarchies(paths),
            every,
            by_netns: HashMap::new(),
            looked_for: HashSet::new(),
            incomplete: None,
            walked: None,
            took: Duration::ZERO,
        }
    }

    /// Walks over all processes if it is time and one of the pods needs it: each interval, and at once for a new pod.
    pub(super) fn prepare(&mut self, pods: &[Arc<Pod>], processes: &Processes) {
        let wanted: HashSet<u32> = pods
            .iter()
            .filter(|pod| pod.cgroup.is_none() && !pod.host_network)
            .map(|pod| pod.netns.inode)
            .collect();
        let rest = self.took * WALK_SHARE;
        let since = self.walked.map_or(Duration::MAX, |walked| walked.elapsed());
        let is_new = !wanted.is_subset(&self.looked_for);
        if wanted.is_empty() || since < rest || (since < self.every && !is_new) {
            return;
        }
        let begun = Instant::now();
        self.by_netns.clear();
        self.incomplete = None;
        let all = processes.all().unwrap_or_else(|source| {
            self.incomplete = Some(Arc::new(ReadError::Open { file: "/proc", source }));
            Vec::new()
        });
        for pid in all {
            let netns = match processes.open(pid) {
                Ok(Answer::Is(process)) => processes.netns(&process),
                Ok(Answer::Ended | Answer::Absent) => continue,
                Err(error) => Err(error),
            };
            match netns {
                Ok(Answer::Is(inode)) if wanted.contains(&inode) => self.by_netns.entry(inode).or_default().push(pid),
                Ok(_) => {}
                // Of no pod, and in some virtual machines not even root may look at it.
                Err(_) if pid == 1 => {}
                Err(error) => self.incomplete = Some(Arc::new(error)),
            }
        }
        self.looked_for = wanted;
        self.walked = Some(begun);
        self.took = begun.elapsed();
    }

    /// Numbers of its processes, ended ones that nobody waited for not among them. `None`: what is the pod's own cannot
    /// be told (on the host network without a control group of its own).
    pub(super) fn of(&self, pod: &Pod) -> Result<Option<Vec<u32>>, Arc<ReadError>> {
        if let Some(path) = &pod.cgroup {
            let mut pids = Vec::new();
            let found = cgroup::processes(&self.hierarchies, path, &mut pids).map_err(|source| {
                Arc::new(ReadError::Read {
                    file: "cgroup.procs",
                    source,
                })
            })?;
            return Ok(found.map(|()| pids));
        }
        if pod.host_network || !self.looked_for.contains(&pod.netns.inode) {
            return Ok(None);
        }
        match &self.incomplete {
            // One that may not be looked at may be this pod's.
            Some(error) => Err(Arc::clone(error)),
            None => Ok(Some(self.by_netns.get(&pod.netns.inode).cloned().unwrap_or_default())),
        }
    }

    /// Whether one of those that were found is the pod's still: since the walk it may have ended or have gone elsewhere.
    pub(super) fn is_still(&self, pod: &Pod, process: &Handle, processes: &Processes) -> bool {
        if pod.cgroup.is_some() {
            return processes.is_there(process);
        }
        matches!(processes.netns(process), Ok(Answer::Is(inode)) if inode == pod.netns.inode)
    }
}
