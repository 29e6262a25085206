//! Both sources of pods, as the collector has them.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sonde_collector::event::{NetnsKey, Subject};
use sonde_collector::handles::Wanted;
use sonde_collector::missing::Missing;
use sonde_collector::pods::cri::{self, Board, CriSource};
use sonde_collector::pods::names::Globs;
use sonde_collector::pods::netns::{NetnsSource, Settings, own_netns};
use sonde_collector::pods::{Pod, PodIndex, Targets};
use sonde_collector::probes::{PROBES, PROCESS_PROBES};
use sonde_collector::processes::{Finder, ProcessRounds};
use sonde_collector::round::Rounds;
use sonde_collector::table::Table;
use sonde_common::paths::HostPaths;
use sonde_common::time::now_ns;
use sonde_lab::wait;

use super::PATIENCE;
use super::node::Node;

const INTERVAL: Duration = Duration::from_millis(500);

pub(crate) struct Watched {
    source: Option<NetnsSource>,
    cri: Option<CriSource>,
    _tasks: tokio::runtime::Runtime,
    pub(crate) index: Arc<PodIndex>,
    pub(crate) targets: Arc<Targets>,
    pub(crate) missing: Arc<Missing>,
    pub(crate) keys: Arc<Mutex<Vec<NetnsKey>>>,
    processes: Mutex<ProcessRounds>,
}

impl Watched {
    pub(crate) fn start(node: &Node, root: &Path) -> Self {
        let paths = HostPaths::below(root);
        let tasks = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let index = Arc::new(PodIndex::new(own_netns(&paths).unwrap()));
        let (targets, missing, board) = (
            Arc::<Targets>::default(),
            Arc::<Missing>::default(),
            Arc::<Board>::default(),
        );
        let settings = cri::Settings {
            endpoint: node.socket().display().to_string(),
            interval: INTERVAL,
            call: PATIENCE,
            paths: paths.clone(),
            only_source: false,
        };
        let cri = tasks.block_on(async {
            let mut cri = CriSource::start(settings, Arc::clone(&board), Arc::clone(&index), Arc::clone(&missing));
            cri.first_look().await;
            cri
        });
        let keys = Arc::new(Mutex::new(Vec::new()));
        let settings = Settings {
            paths: paths.clone(),
            // The names that runtimes give: left to the runtime all the same.
            globs: Some(Globs::new(&["cni-*".to_owned()]).unwrap()),
            cri: Some(board),
            node_name: "node-1".into(),
            include_host: true,
            pod: Wanted::of(PROBES),
            node: Wanted::of(PROBES),
            keep_handles: usize::MAX,
            visit: None,
            visits_due: Arc::default(),
            on_change: Box::new({
                let keys = Arc::clone(&keys);
                move |live| *keys.lock() = live.to_vec()
            }),
        };
        let source =
            NetnsSource::start(settings, Arc::clone(&index), Arc::clone(&targets), Arc::clone(&missing)).unwrap();
        let finder = Finder::with_walks(&paths, Duration::ZERO);
        Self {
            source: Some(source),
            cri: Some(cri),
            _tasks: tasks,
            index,
            targets,
            missing,
            keys,
            processes: Mutex::new(ProcessRounds::new(PROCESS_PROBES, &paths, finder, 1_000)),
        }
    }

    pub(crate) fn pod(&self, sandbox: &str) -> Option<Arc<Pod>> {
        self.index.live().into_iter().find(|pod| pod.sandbox == sandbox)
    }

    pub(crate) fn names(&self) -> Vec<String> {
        let live = self.index.live();
        let mut names: Vec<String> = live
            .iter()
            .map(|pod| format!("{}/{}", pod.namespace, pod.name))
            .collect();
        names.sort();
        names
    }

    pub(crate) fn wait_for(&self, sandbox: &str) -> Arc<Pod> {
        wait::until_true(&format!("pod {sandbox}"), PATIENCE, || Ok(self.pod(sandbox).is_some())).unwrap();
        self.pod(sandbox).unwrap()
    }

    pub(crate) fn wait_for_end(&self, pod: &Pod) {
        wait::until_true(&format!("end of {}", pod.name), PATIENCE, || Ok(pod.has_ended())).unwrap();
        assert!(self.pod(&pod.sandbox).is_none());
    }

    /// Long enough for the runtime to be asked so many times.
    pub(crate) fn wait_for_lists(&self, lists: u32) {
        std::thread::sleep(INTERVAL * lists);
        assert!(!self.cri.as_ref().unwrap().has_failed() && !self.source.as_ref().unwrap().has_failed());
    }

    pub(crate) fn tables(&self) -> Vec<Table> {
        let (mut tables, gaps) = Rounds::new(PROBES).read(now_ns(), &self.targets.load());
        assert!(gaps.is_empty(), "{gaps:?}");
        let mut processes = self.processes.lock();
        let (more, gaps) = processes.read(now_ns(), &self.index.live());
        assert!(gaps.is_empty(), "{gaps:?}");
        let stats = processes.stats();
        assert!(stats.lock().iter().all(|stats| !stats.failing), "{stats:?}");
        tables.extend(more);
        tables
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // Before the tasks' runtime.
        self.source = None;
        self.cri = None;
    }
}

pub(crate) fn name(subject: &Subject) -> String {
    match subject {
        Subject::Node => "node".into(),
        Subject::Unknown => "unknown".into(),
        Subject::Pod(pod) => pod.name.clone(),
    }
}

/// Values of one column by pod and labels.
pub(crate) fn column(tables: &[Table], probe: &str, column: &str) -> HashMap<String, i64> {
    let table = tables.iter().find(|t| t.spec.name == probe).unwrap();
    let at = table.spec.columns.iter().position(|c| c.name == column).unwrap();
    let width = table.spec.labels.len();
    (0..table.len())
        .map(|row| {
            let labels = table.labels[row * width..][..width].join(" ");
            (
                format!("{} {labels}", name(&table.subjects[row])),
                table.columns[at][row],
            )
        })
        .collect()
}

/// Of a pod without labels, or of IPv4.
pub(crate) fn value(tables: &[Table], probe: &str, of: &str, pod: &str) -> i64 {
    let all = column(tables, probe, of);
    *all.get(&format!("{pod} "))
        .or_else(|| all.get(&format!("{pod} ipv4")))
        .unwrap_or_else(|| panic!("{probe}.{of} has no row of {pod}: {all:?}"))
}
