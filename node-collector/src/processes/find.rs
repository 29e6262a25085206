//! Which processes are a pod's.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sonde_common::paths::HostPaths;

use crate::pods::{Pod, cgroup};
use crate::procfs::ReadError;
use crate::procfs::process::Processes;

/// How often all processes of the host are looked at for those of named namespaces: 3 us each.
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
        for pid in processes.all().unwrap_or_default() {
            if let Some(inode) = processes.netns(pid).filter(|inode| wanted.contains(inode)) {
                self.by_netns.entry(inode).or_default().push(pid);
            }
        }
        self.looked_for = wanted;
        self.walked = Some(begun);
        self.took = begun.elapsed();
    }

    /// `None`: what is the pod's own cannot be told (on the host network without a control group of its own).
    pub(super) fn of(&self, pod: &Pod, processes: &Processes) -> Result<Option<Vec<u32>>, ReadError> {
        let mut pids = Vec::new();
        if let Some(path) = &pod.cgroup {
            let found = cgroup::processes(&self.hierarchies, path, &mut pids).map_err(|source| ReadError::Read {
                file: "cgroup.procs",
                source,
            })?;
            return Ok(found.map(|()| pids));
        }
        if pod.host_network {
            return Ok(None);
        }
        let known = self.by_netns.get(&pod.netns.inode).into_iter().flatten();
        // One may have ended since the walk and its number be another's.
        pids.extend(
            known
                .copied()
                .filter(|pid| processes.netns(*pid) == Some(pod.netns.inode)),
        );
        Ok(self.looked_for.contains(&pod.netns.inode).then_some(pids))
    }
}
