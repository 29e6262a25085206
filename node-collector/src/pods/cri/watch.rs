//! The task that keeps up with the runtime.

use std::collections::{BTreeMap, HashSet};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use sonde_common::config::{Config, PodSource};
use sonde_common::paths::HostPaths;
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep, timeout};
use tonic::{Status, Streaming};

use super::client::{CallError, Listed, Runtime};
use super::{Board, Sandbox, endpoint, v1};
use crate::missing::Missing;
use crate::pods::{PodIndex, cgroup};

/// As it stands in the log and in `/status`.
const WHAT: &str = "pods of the container runtime";
const WHAT_ONE: &str = "single sandboxes of the container runtime";
/// How long the collector's start waits for the runtime's first answer.
const FIRST_ANSWER: Duration = Duration::from_secs(5);
/// Where there is no runtime it may still be installed.
const LOOK_FOR_ONE: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// A new namespace has its sandbox in the list as soon as its addresses are given: asked this often meanwhile, and for
/// this long after the last news of a namespace.
const SOON: Duration = Duration::from_millis(100);
const SOON_AT_MOST: Duration = Duration::from_secs(5);
/// Events and namespaces come in bursts: no two lists are closer than that.
const APART: Duration = Duration::from_millis(50);
/// With events, asking is for what they may have missed.
const WITH_EVENTS: u32 = 10;
const STATUSES_AT_ONCE: usize = 8;

#[derive(Clone, Debug)]
pub struct Settings {
    /// `pods.cri.endpoint`.
    pub endpoint: String,
    pub interval: Duration,
    /// No call may take longer.
    pub call: Duration,
    pub paths: HostPaths,
    /// Pods come from nowhere else: that there is no runtime is worth a word.
    pub only_source: bool,
}

impl Settings {
    pub fn of(config: &Config) -> Self {
        /// A runtime under load takes its time; one that takes this long is stuck.
        const CALL: Duration = Duration::from_secs(5);
        Self {
            endpoint: config.pods.cri.endpoint.clone(),
            interval: config.pods.cri.interval.0,
            call: CALL,
            paths: config.host.paths(),
            only_source: !config.pods.sources.contains(&PodSource::Netns),
        }
    }
}

/// The running task. Dropping it ends it.
#[derive(Debug)]
pub struct CriSource {
    task: JoinHandle<()>,
    answered: watch::Receiver<bool>,
}

impl CriSource {
    pub fn start(settings: Settings, board: Arc<Board>, index: Arc<PodIndex>, missing: Arc<Missing>) -> Self {
        let (answered, first) = watch::channel(false);
        let watch = Watch {
            settings,
            board,
            index,
            missing,
            answered,
            known: BTreeMap::new(),
            socket: None,
            told_of_none: false,
        };
        Self {
            task: tokio::spawn(watch.run()),
            answered: first,
        }
    }

    /// Resolves when the runtime has answered for the first time, or will not soon.
    pub async fn first_look(&mut self) {
        let _ = timeout(FIRST_ANSWER, self.answered.wait_for(|answered| *answered)).await;
    }

    /// Whether the task ended, which it must not.
    pub fn has_failed(&self) -> bool {
        self.task.is_finished()
    }
}

impl Drop for CriSource {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What there is to be said of the runtime now, for people.
pub async fn tell(settings: &Settings) -> String {
    let mut said = format!("none: no socket of {}", endpoint::looked_for(&settings.paths));
    for socket in endpoint::candidates(&settings.endpoint, &settings.paths) {
        let told = async {
            let mut runtime = Runtime::connect(&socket, settings.call).await?;
            let sandboxes = runtime.list().await?.len();
            let Runtime { name, version, .. } = runtime;
            Ok::<_, CallError>(format!("{name} {version} with {sandboxes} sandboxes"))
        };
        let told = told.await;
        let is_next = told.as_ref().is_err_and(CallError::is_no_interface);
        said = format!(
            "{}: {}",
            socket.display(),
            told.unwrap_or_else(|error| error.to_string())
        );
        if !is_next {
            break;
        }
    }
    said
}

struct Watch {
    settings: Settings,
    board: Arc<Board>,
    index: Arc<PodIndex>,
    missing: Arc<Missing>,
    answered: watch::Sender<bool>,
    /// By id: what is in the list.
    known: BTreeMap<String, Known>,
    /// The last one that answered.
    socket: Option<PathBuf>,
    told_of_none: bool,
}

struct Known {
    /// `None`: the runtime could not tell.
    sandbox: Option<Arc<Sandbox>>,
    asked: Instant,
    /// How often it was asked.
    times: u32,
}

impl Known {
    /// 2, 4, 8, ... 64 s after each asking.
    fn may_be_asked_again(&self) -> bool {
        self.asked.elapsed() >= Duration::from_secs(1 << self.times.clamp(1, 6))
    }
}

impl Watch {
    async fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let sockets = self.sockets();
            if sockets.is_empty() {
                self.say_there_is_none();
                self.answered.send_replace(true);
                sleep(LOOK_FOR_ONE).await;
                continue;
            }
            let mut answered = false;
            for socket in &sockets {
                let error = self.follow(socket, &mut answered).await;
                self.missing.say(WHAT, &format_args!("{}: {error}", socket.display()));
                // One that is none, or is gone, does not stand in the way of the next.
                let is_none = error.is_no_interface() || !socket.exists();
                if answered || !is_none {
                    break;
                }
            }
            self.answered.send_replace(true);
            if answered {
                pause = FIRST_PAUSE;
            }
            sleep(FIRST_PAUSE).await;
            // A new namespace is a sign that it is back.
            let _ = timeout(pause - FIRST_PAUSE, self.board.nudged()).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// The one that answered last goes first, also while it is away.
    fn sockets(&self) -> Vec<PathBuf> {
        let candidates = endpoint::candidates(&self.settings.endpoint, &self.settings.paths);
        let others = candidates
            .into_iter()
            .filter(|socket| Some(socket) != self.socket.as_ref());
        self.socket.iter().cloned().chain(others).collect()
    }

    fn say_there_is_none(&mut self) {
        if std::mem::replace(&mut self.told_of_none, true) {
            return;
        }
        let looked_for = endpoint::looked_for(&self.settings.paths);
        if self.settings.only_source {
            self.missing.say(WHAT, &format_args!("no socket of one: {looked_for}"));
        } else {
            tracing::info!(looked_for, "no container runtime");
        }
    }

    /// Keeps up with the runtime until it does not answer.
    async fn follow(&mut self, socket: &Path, answered: &mut bool) -> CallError {
        let mut runtime = match Runtime::connect(socket, self.settings.call).await {
            Ok(runtime) => runtime,
            Err(error) => {
                if !error.is_no_interface() {
                    self.board.set_active();
                }
                return error;
            }
        };
        self.board.set_active();
        let mut events = Events::of(&runtime);
        let mut news = None;
        loop {
            let begun = Instant::now();
            if let Err(error) = self.look(&mut runtime).await {
                return error;
            }
            if !std::mem::replace(answered, true) {
                let Runtime { name, version, .. } = &runtime;
                tracing::info!(socket = %socket.display(), name, version, sandboxes = self.known.len(), "container runtime");
                self.missing.found(WHAT);
                self.socket = Some(socket.to_owned());
                self.answered.send_replace(true);
            }
            let soon = self.board.has_unclaimed() && news.is_some_and(|at: Instant| at.elapsed() < SOON_AT_MOST);
            let pause = match (soon, events.come()) {
                (true, _) => SOON,
                (false, true) => self.settings.interval * WITH_EVENTS,
                (false, false) => self.settings.interval,
            };
            tokio::select! {
                () = self.board.nudged() => news = Some(Instant::now()),
                () = events.next() => {}
                () = sleep(pause) => {}
            }
            sleep(APART.saturating_sub(begun.elapsed())).await;
        }
    }

    /// Lists, and asks about what is new.
    async fn look(&mut self, runtime: &mut Runtime) -> Result<(), CallError> {
        let listed = runtime.list().await?;
        self.board.has_listed();
        let ids: HashSet<&str> = listed.iter().map(|listed| listed.id.as_str()).collect();
        self.known.retain(|id, _| ids.contains(id.as_str()));
        let found: HashSet<String> = self.index.live().iter().map(|pod| pod.sandbox.clone()).collect();
        let ask: Vec<Listed> = listed
            .iter()
            .filter(|listed| self.asks(listed, &found))
            .cloned()
            .collect();
        let runtime = &*runtime;
        let mut answers = futures::stream::iter(ask)
            .map(|listed| async move {
                let status = runtime.status(&listed).await;
                (listed, status)
            })
            .buffer_unordered(STATUSES_AT_ONCE);
        let mut result = Ok(());
        while let Some((listed, status)) = answers.next().await {
            match status {
                Ok(sandbox) => {
                    let sandbox = self.completed(sandbox).await;
                    self.note(listed.id, Some(sandbox));
                }
                Err(error) if error.is_not_found() => drop(self.known.remove(&listed.id)),
                Err(error) if error.is_of_one_sandbox() => {
                    self.missing.say(WHAT_ONE, &error);
                    self.note(listed.id, None);
                }
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        for Listed { id, ready } in &listed {
            let known = self.known.get_mut(id).and_then(|known| known.sandbox.as_mut());
            if let Some(sandbox) = known.filter(|sandbox| sandbox.ready != *ready) {
                Arc::make_mut(sandbox).ready = *ready;
            }
        }
        // Also when the last of many answers failed: what is known is known.
        let sandboxes = self.known.values().filter_map(|known| known.sandbox.clone());
        self.board.publish(sandboxes.collect());
        result
    }

    /// What is new; what could not be told; and what is ready but whose namespace could not be entered, since it may
    /// have another process now.
    fn asks(&self, listed: &Listed, found: &HashSet<String>) -> bool {
        match self.known.get(&listed.id) {
            None => true,
            Some(known) if known.sandbox.is_none() => known.may_be_asked_again(),
            Some(known) => listed.ready && !found.contains(&listed.id) && known.may_be_asked_again(),
        }
    }

    fn note(&mut self, id: String, sandbox: Option<Sandbox>) {
        let times = self.known.get(&id).map_or(0, |known| known.times);
        let known = Known {
            sandbox: sandbox.map(Arc::new),
            asked: Instant::now(),
            times: times + 1,
        };
        self.known.insert(id, known);
    }

    async fn completed(&self, sandbox: Sandbox) -> Sandbox {
        let (paths, told) = (self.settings.paths.clone(), sandbox.clone());
        // Reads folders, of which there may be many.
        spawn_blocking(move || completed(told, &paths)).await.unwrap_or(sandbox)
    }
}

/// What the runtime does not tell, or tells as it sees it from inside another group: its process knows its groups; and a
/// runtime that does not even tell of a process names the group by the id.
fn completed(mut sandbox: Sandbox, paths: &HostPaths) -> Sandbox {
    let hierarchies = cgroup::hierarchies(paths);
    let is_there = |path: &String| cgroup::exists(&hierarchies, path);
    sandbox.cgroup = sandbox.cgroup.filter(is_there);
    if !sandbox.ready || (sandbox.cgroup.is_some() && !sandbox.is_bare()) {
        return sandbox;
    }
    if sandbox.pid != 0 {
        let groups = cgroup::of_process(paths, sandbox.pid).into_iter();
        let mut pods = groups.filter_map(|path| cgroup::of_pod(&path, &sandbox.uid));
        sandbox.cgroup = pods.find(is_there);
        return sandbox;
    }
    if let Some(path) = cgroup::find_by_id(&hierarchies, &sandbox.id) {
        sandbox.cgroup = cgroup::of_pod(&path, &sandbox.uid);
        let mut pids = Vec::new();
        if sandbox.is_bare() && cgroup::processes(&hierarchies, &path, &mut pids).is_ok() {
            sandbox.pid = pids.first().copied().unwrap_or(0);
        }
    }
    sandbox
}

type Begin = Pin<Box<dyn Future<Output = Result<Streaming<v1::ContainerEventResponse>, Status>> + Send>>;

/// The runtime's news, as a reason to ask it.
enum Events {
    /// It has none, or they ended.
    None,
    /// A runtime answers with its first event.
    Begins(Begin),
    Come(Box<Streaming<v1::ContainerEventResponse>>),
}

impl Events {
    fn of(runtime: &Runtime) -> Self {
        if runtime.may_tell_events() {
            Self::Begins(Box::pin(runtime.clone().events()))
        } else {
            Self::None
        }
    }

    fn come(&self) -> bool {
        matches!(self, Self::Come(_))
    }

    /// Resolves when there is news; never, where there are none. May be dropped and asked again.
    async fn next(&mut self) {
        loop {
            match self {
                Self::None => std::future::pending().await,
                Self::Begins(begin) => {
                    *self = match begin.await {
                        Ok(stream) => {
                            tracing::info!("the container runtime tells of changes");
                            Self::Come(Box::new(stream))
                        }
                        Err(status) => {
                            tracing::debug!(%status, "the container runtime tells of no changes, it is asked");
                            Self::None
                        }
                    };
                }
                Self::Come(stream) => {
                    if let Ok(Some(_)) = stream.message().await {
                        return;
                    }
                    *self = Self::None;
                    // What it wanted to say when it ended is asked for.
                    return;
                }
            }
        }
    }
}
