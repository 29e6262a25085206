//! The thread that enters network namespaces: what is there, what came, what went.
//!
//! While a namespace is known its file is held open, so its inode cannot become another's.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use sonde_common::time::now_ns;

use super::cri::Sandbox;
use super::index::Facts;
use super::names::{is_of_a_runtime, namespace_and_pod};
use super::netns::{Settings, Signal};
use super::open::{Home, Opened, open_netns};
use super::{Pod, PodIndex, Target, Targets, workload};
use crate::event::{NetnsKey, Subject};
use crate::missing::Missing;
use crate::netlink::route::{Buffer, RouteSocket};

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A name appears before its namespace is mounted on it: looked at again after 1, 2, 4, ... ms up to this.
const LOOK_SOON_AT_MOST: Duration = Duration::from_millis(256);

const TOKEN_SIGNAL: u64 = 0;
const TOKEN_INOTIFY: u64 = 1;
const TOKEN_NODE: u64 = 2;
const FIRST_TOKEN: u64 = 3;

pub(super) struct Watcher {
    settings: Settings,
    index: Arc<PodIndex>,
    targets: Arc<Targets>,
    missing: Arc<Missing>,
    signal: Arc<Signal>,
    epoll: Epoll,
    home: Home,
    boot: String,
    known: BTreeMap<Key, Known>,
    /// Namespaces of a runtime's making that it has not named yet, by inode. What happens in them is a pod's.
    unclaimed: BTreeMap<u64, (File, NetnsKey)>,
    node: Option<Arc<Target>>,
    node_route: Option<RouteSocket>,
    inotify: Option<Inotify>,
    watched: bool,
    buffer: Buffer,
    next_token: u64,
    /// Names whose namespace is not there yet, and how long to wait for them.
    look_soon: Option<Duration>,
}

/// Where a pod was found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    /// Of the container runtime, by its id.
    Sandbox(String),
    /// A named network namespace.
    Name(String),
}

struct Known {
    pod: Arc<Pod>,
    /// `None`: it shares the node's network namespace.
    own: Option<Own>,
}

/// A network namespace that is a pod's own.
struct Own {
    device: u64,
    inode: u64,
    target: Arc<Target>,
    route: Option<RouteSocket>,
    token: u64,
}

/// A name that leads to a network namespace now.
struct Named {
    name: String,
    device: u64,
    inode: u64,
}

impl Watcher {
    pub(super) fn new(
        settings: Settings,
        index: Arc<PodIndex>,
        targets: Arc<Targets>,
        missing: Arc<Missing>,
        signal: Arc<Signal>,
    ) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&signal.event, EpollEvent::new(EpollFlags::EPOLLIN, TOKEN_SIGNAL))?;
        // This thread's, not the process's: they are the same until the thread enters another one.
        let home = File::open(settings.paths.proc.join("thread-self/ns/net"))
            .or_else(|_| File::open("/proc/thread-self/ns/net"))?;
        let boot = std::fs::read_to_string(settings.paths.proc.join("sys/kernel/random/boot_id")).unwrap_or_default();
        let mut watcher = Self {
            boot: boot.chars().take(8).collect(),
            index,
            targets,
            missing,
            signal,
            home: Home(home),
            known: BTreeMap::new(),
            unclaimed: BTreeMap::new(),
            node: None,
            node_route: None,
            inotify: None,
            watched: false,
            buffer: Buffer::default(),
            next_token: FIRST_TOKEN,
            look_soon: None,
            epoll,
            settings,
        };
        watcher.open_node();
        Ok(watcher)
    }

    fn open_node(&mut self) {
        let Settings { paths, node, .. } = &self.settings;
        let opened = Opened::here(paths, node, true);
        if self.settings.include_host {
            self.node = Some(Arc::new(Target {
                subject: Subject::Node,
                handles: opened.handles,
                netns: None,
            }));
        }
        match opened.route {
            Some(socket) => {
                let _ = self
                    .epoll
                    .add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, TOKEN_NODE));
                self.node_route = Some(socket);
            }
            None => self.missing.say("addresses of the node", &"no socket of NETLINK_ROUTE"),
        }
        if self.settings.globs.is_some() || self.settings.cri.is_some() {
            match Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK) {
                Ok(inotify) => {
                    let _ = self
                        .epoll
                        .add(&inotify, EpollEvent::new(EpollFlags::EPOLLIN, TOKEN_INOTIFY));
                    self.inotify = Some(inotify);
                }
                Err(error) => self.missing.say("instant discovery of network namespaces", &error),
            }
        }
    }

    pub(super) fn run(&mut self) {
        let mut next_look = Instant::now() + LOOK_EVERY;
        let mut events = [EpollEvent::empty(); 64];
        while !self.signal.is_stop() {
            let due = self
                .look_soon
                .map_or(next_look, |soon| next_look.min(Instant::now() + soon));
            let wait = due.saturating_duration_since(Instant::now());
            // Rounded up: waiting 0.4 ms would be no waiting at all.
            let millis = u16::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(1000);
            let count = self.epoll.wait(&mut events, EpollTimeout::from(millis)).unwrap_or(0);
            let mut look = Instant::now() >= due;
            let mut names_changed = false;
            for event in &events[..count] {
                match event.data() {
                    TOKEN_SIGNAL => {
                        let _ = self.signal.event.read();
                        look = true;
                    }
                    TOKEN_INOTIFY => {
                        self.drain_inotify();
                        self.look_soon = Some(Duration::from_millis(1));
                        (look, names_changed) = (true, true);
                    }
                    TOKEN_NODE => self.node_facts(),
                    token => self.pod_facts(token),
                }
            }
            if look {
                self.look();
                next_look = Instant::now() + LOOK_EVERY;
            }
            if let Some(board) = self.settings.cri.as_ref().filter(|_| names_changed) {
                board.nudge();
            }
        }
    }

    fn drain_inotify(&mut self) {
        while let Some(Ok(events)) = self.inotify.as_ref().map(Inotify::read_events) {
            if events
                .iter()
                .any(|event| event.mask.contains(AddWatchFlags::IN_IGNORED))
            {
                self.watched = false;
            }
            if events.is_empty() {
                break;
            }
        }
    }

    /// Looks at everything: sandboxes and names that came, went or changed, addresses whose news were missed, history
    /// to forget.
    pub(super) fn look(&mut self) {
        let before: Vec<NetnsKey> = self.keys();
        let first = self.targets.load().is_empty();
        let changed = self.look_at_pods();
        self.node_facts();
        for token in self.own().map(|own| own.token).collect::<Vec<_>>() {
            self.pod_facts(token);
        }
        self.index.forget(now_ns());
        if changed || first {
            self.publish();
        }
        let after = self.keys();
        if before != after || first {
            (self.settings.on_change)(&after);
        }
        if self.settings.visits_due.swap(false, Ordering::AcqRel) {
            for known in self.known.values() {
                self.visit(known);
            }
        }
    }

    /// Lets others do what they have to do in a pod's namespace.
    fn visit(&self, Known { pod, own }: &Known) {
        if let (Some(visit), Some(netns)) = (
            &self.settings.visit,
            own.as_ref().and_then(|own| own.target.netns.as_ref()),
        ) && let Err(error) = self.home.leave_for(netns.as_fd(), || visit(pod.netns))
        {
            self.missing.say("entering network namespaces", &error);
        }
    }

    fn own(&self) -> impl Iterator<Item = &Own> {
        self.known.values().filter_map(|known| known.own.as_ref())
    }

    fn keys(&self) -> Vec<NetnsKey> {
        let own = self.known.values().filter(|known| known.own.is_some());
        let unclaimed = self.unclaimed.values().map(|(_, key)| *key);
        own.map(|known| known.pod.netns).chain(unclaimed).collect()
    }

    fn publish(&self) {
        let pods = self.own().map(|own| Arc::clone(&own.target));
        self.targets.store(self.node.iter().cloned().chain(pods).collect());
    }

    /// Sandboxes go before names: what a runtime made is its pod, whatever its name matches.
    fn look_at_pods(&mut self) -> bool {
        let names = self.names_there();
        let mut changed = false;
        if let Some(board) = self.settings.cri.clone() {
            let sandboxes = board.sandboxes();
            changed |= self.end_if(|watcher, key, known| match key {
                Key::Sandbox(id) => {
                    let sandbox = sandboxes.iter().find(|sandbox| sandbox.id == *id);
                    !sandbox.is_some_and(|sandbox| watcher.is_there(sandbox, known.own.as_ref()))
                }
                Key::Name(_) => false,
            });
            changed |= self.find_sandboxes(&sandboxes);
        }
        let Some(names) = names else { return changed };
        let claimed: HashSet<u64> = self
            .known
            .iter()
            .filter(|(key, _)| matches!(key, Key::Sandbox(_)))
            .filter_map(|(_, known)| Some(known.own.as_ref()?.inode))
            .collect();
        let is_runtimes = |named: &Named| {
            let board = self.settings.cri.as_ref();
            board.is_some_and(|board| board.is_active()) && is_of_a_runtime(&named.name)
        };
        let (runtimes, others): (Vec<Named>, Vec<Named>) = names
            .into_iter()
            .filter(|named| !claimed.contains(&named.inode))
            .partition(is_runtimes);
        if let Some(board) = self.settings.cri.clone() {
            self.note_unclaimed(&runtimes);
            board.set_unclaimed(!runtimes.is_empty());
        }
        let Some(globs) = &self.settings.globs else {
            return changed;
        };
        let (there, excluded): (Vec<Named>, Vec<Named>) =
            others.into_iter().partition(|named| globs.matches(&named.name));
        changed |= self.end_if(|_, key, known| match (key, &known.own) {
            (Key::Name(name), Some(own)) => !there
                .iter()
                .any(|named| named.name == *name && named.device == own.device && named.inode == own.inode),
            _ => false,
        });
        changed |= self.find_names(there);
        self.index
            .exclude(excluded.iter().map(|named| named.inode as u32).collect());
        changed
    }

    /// A pod's first packets come before its runtime names it: its namespace is told of with the key it will have.
    fn note_unclaimed(&mut self, there: &[Named]) {
        self.unclaimed
            .retain(|inode, _| there.iter().any(|named| named.inode == *inode));
        for named in there {
            if self.unclaimed.contains_key(&named.inode) {
                continue;
            }
            let Ok(netns) = open_netns(&self.settings.paths.netns.join(&named.name)) else {
                continue;
            };
            let cookie = self.home.leave_for(netns.as_fd(), || {
                RouteSocket::open().map_or(0, |socket| socket.netns_cookie())
            });
            let key = NetnsKey {
                inode: named.inode as u32,
                cookie: cookie.unwrap_or(0),
            };
            if netns.metadata().is_ok_and(|meta| meta.ino() == named.inode) {
                self.unclaimed.insert(named.inode, (netns, key));
            }
        }
    }

    /// `None`: nobody asks for them, or they cannot be told.
    fn names_there(&mut self) -> Option<Vec<Named>> {
        if self.settings.globs.is_none() && self.settings.cri.is_none() {
            return None;
        }
        let dir = self.settings.paths.netns.clone();
        self.watch(&dir);
        let names = match names_of(&dir) {
            Ok(names) => names,
            Err(error) => {
                self.missing.say("named network namespaces", &error);
                return None;
            }
        };
        let home_device = self.home.0.metadata().map_or(0, |m| m.dev());
        let mut pending = false;
        let mut there = Vec::new();
        for name in names {
            let Ok(meta) = std::fs::metadata(dir.join(&name)) else {
                continue;
            };
            let (device, inode) = (meta.dev(), meta.ino());
            if device == home_device {
                there.push(Named { name, device, inode });
            } else {
                // A plain file: `ip netns add` makes it first and mounts the namespace on it then.
                pending = true;
            }
        }
        self.look_soon = match self.look_soon {
            Some(soon) if pending && soon < LOOK_SOON_AT_MOST => Some(soon * 2),
            _ => None,
        };
        Some(there)
    }

    fn watch(&mut self, dir: &Path) {
        let Some(inotify) = self.inotify.as_ref().filter(|_| !self.watched) else {
            return;
        };
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_ONLYDIR;
        // Without the directory there is nothing to watch yet: tried again at each look.
        self.watched = inotify.add_watch(dir, flags).is_ok();
    }

    /// Whether a sandbox that was found is still there. That it has no process says nothing of its namespace, and
    /// the runtime still names the namespace of a stopped one.
    fn is_there(&self, sandbox: &Sandbox, own: Option<&Own>) -> bool {
        let Some(own) = own else { return sandbox.ready };
        let leads_there =
            |path: PathBuf| std::fs::metadata(path).is_ok_and(|m| m.ino() == own.inode && m.dev() == own.device);
        self.paths_of(sandbox).any(leads_there)
    }

    /// Where the namespace of a sandbox is, the surest first.
    fn paths_of(&self, sandbox: &Sandbox) -> impl Iterator<Item = PathBuf> {
        let paths = &self.settings.paths;
        let name = sandbox.netns.as_ref().map(|path| paths.of_host(path));
        // Of one that is not ready the process has ended, and its number may be another's.
        let process = (sandbox.ready && sandbox.pid != 0).then(|| paths.proc.join(format!("{}/ns/net", sandbox.pid)));
        name.into_iter().chain(process)
    }

    fn end_if(&mut self, is_gone: impl Fn(&Self, &Key, &Known) -> bool) -> bool {
        let gone: Vec<Key> = self
            .known
            .iter()
            .filter(|(key, known)| is_gone(self, key, known))
            .map(|(key, _)| key.clone())
            .collect();
        for key in &gone {
            let Some(known) = self.known.remove(key) else { continue };
            if let Some(route) = known.own.as_ref().and_then(|own| own.route.as_ref()) {
                let _ = self.epoll.delete(route);
            }
            self.index.end(&known.pod, now_ns());
            tracing::info!(
                sandbox = %known.pod.sandbox, pod = %known.pod.name, namespace = %known.pod.namespace, "pod ended"
            );
        }
        !gone.is_empty()
    }

    fn find_sandboxes(&mut self, sandboxes: &[Arc<Sandbox>]) -> bool {
        let mut found = false;
        for sandbox in sandboxes {
            let key = Key::Sandbox(sandbox.id.clone());
            if self.known.contains_key(&key) {
                continue;
            }
            let result = if sandbox.host_network {
                if !sandbox.ready {
                    continue;
                }
                Ok(self.on_the_host(sandbox))
            } else {
                self.find_sandbox(sandbox)
            };
            match result {
                Ok(known) => {
                    self.say_found(&known);
                    self.known.insert(key, known);
                    found = true;
                }
                // Stopped, or its first process has another one now: the runtime is asked again.
                Err(error) if is_no_netns(&error) => {
                    tracing::debug!(sandbox = %sandbox.id, pod = %sandbox.name, %error, "sandbox without a network namespace");
                }
                Err(error) => self.missing.say("network namespaces of sandboxes", &error),
            }
        }
        found
    }

    fn find_sandbox(&mut self, sandbox: &Sandbox) -> io::Result<Known> {
        let mut result = Err(io::ErrorKind::NotFound.into());
        for path in self.paths_of(sandbox) {
            match open_netns(&path) {
                Ok(netns) => {
                    result = Ok(netns);
                    break;
                }
                Err(error) if is_no_netns(&error) => {}
                Err(error) => result = Err(error),
            }
        }
        let netns = result?;
        if self
            .index
            .node()
            .is_some_and(|node| netns.metadata().is_ok_and(|m| m.ino() == u64::from(node.inode)))
        {
            return Ok(self.on_the_host(sandbox));
        }
        let mut pod = self.pod_of(sandbox);
        self.open(netns, |_, facts| {
            if pod.ips.is_empty() {
                pod.ips.clone_from(&facts.addresses);
            }
            pod
        })
    }

    /// Without anything of its own to read or to be named by.
    fn on_the_host(&self, sandbox: &Sandbox) -> Known {
        let pod = Arc::new(Pod {
            host_network: true,
            ..self.pod_of(sandbox)
        });
        self.index.add(Arc::clone(&pod));
        Known { pod, own: None }
    }

    fn pod_of(&self, sandbox: &Sandbox) -> Pod {
        let workload = workload::of_pod(
            &sandbox.name,
            &sandbox.labels,
            &sandbox.annotations,
            &self.settings.node_name,
        );
        let found_ns = now_ns();
        Pod {
            sandbox: sandbox.id.clone(),
            uid: sandbox.uid.clone(),
            namespace: sandbox.namespace.clone(),
            name: sandbox.name.clone(),
            attempt: sandbox.attempt,
            workload_kind: workload.kind.to_owned(),
            workload: workload.name,
            ips: sandbox.ips.clone(),
            labels: sandbox.labels.clone(),
            annotations: sandbox.annotations.clone(),
            cgroup: sandbox.cgroup.clone(),
            // The runtime's clock is this machine's, but it may have been set since.
            valid_from_ns: match sandbox.created_ns {
                created_ns if (1..found_ns).contains(&created_ns) => created_ns,
                _ => found_ns,
            },
            ..Pod::default()
        }
    }

    fn find_names(&mut self, there: Vec<Named>) -> bool {
        let mut found = false;
        let node = self.index.node().map(|key| u64::from(key.inode));
        for named in there {
            let key = Key::Name(named.name);
            let Key::Name(name) = &key else { continue };
            if self.known.contains_key(&key) || Some(named.inode) == node {
                continue;
            }
            if self.own().any(|own| own.inode == named.inode) {
                // The same namespace under a second name: the first one counts.
                continue;
            }
            match self.find_name(name, named.inode) {
                Ok(known) => {
                    self.say_found(&known);
                    self.known.insert(key, known);
                    found = true;
                }
                // Gone again, or not a network namespace.
                Err(error) if is_no_netns(&error) => {}
                Err(error) => self.missing.say("network namespaces", &error),
            }
        }
        found
    }

    fn find_name(&mut self, name: &str, inode: u64) -> io::Result<Known> {
        let netns = open_netns(&self.settings.paths.netns.join(name))?;
        if netns.metadata()?.ino() != inode {
            // Replaced between the look and now.
            return Err(io::ErrorKind::NotFound.into());
        }
        let boot = self.boot.clone();
        self.open(netns, |key, facts| {
            let found_ns = now_ns();
            let (namespace, pod) = namespace_and_pod(name);
            Pod {
                sandbox: match key.cookie {
                    0 => format!("netns/{name}/{inode}@{boot}-{found_ns}"),
                    cookie => format!("netns/{name}/{cookie}@{boot}"),
                },
                namespace: namespace.to_owned(),
                name: pod.to_owned(),
                ips: facts.addresses.clone(),
                valid_from_ns: found_ns,
                ..Pod::default()
            }
        })
    }

    /// Opens what is to be kept of a namespace and puts its pod into the index.
    fn open(&mut self, netns: File, pod: impl FnOnce(&NetnsKey, &Facts) -> Pod) -> io::Result<Known> {
        let meta = netns.metadata()?;
        let (device, inode) = (meta.dev(), meta.ino());
        let Settings { paths, pod: wanted, .. } = &self.settings;
        let keep = self.kept() + wanted.count() <= self.settings.keep_handles;
        let opened = self.home.leave_for(netns.as_fd(), || Opened::here(paths, wanted, keep));
        let Opened { handles, mut route } = opened.unwrap_or_else(|error| {
            self.missing.say("entering network namespaces", &error);
            Opened::failed(paths, error)
        });
        let key = NetnsKey {
            inode: inode as u32,
            cookie: route.as_ref().map_or(0, RouteSocket::netns_cookie),
        };
        let asked = ask(route.as_mut(), &self.home, &mut self.buffer);
        let mut facts = asked.unwrap_or_default();
        let pod = Arc::new(Pod {
            netns: key,
            ..pod(&key, &facts)
        });
        if facts.addresses.is_empty() {
            // Those that the runtime tells of.
            facts.addresses.clone_from(&pod.ips);
        }
        let token = self.next_token;
        self.next_token += 1;
        if let Some(route) = &route {
            self.epoll.add(route, EpollEvent::new(EpollFlags::EPOLLIN, token))?;
        }
        self.index.add(Arc::clone(&pod));
        self.index.set_facts(Some(&pod), facts, now_ns());
        let target = Arc::new(Target {
            subject: Subject::Pod(Arc::clone(&pod)),
            handles,
            netns: Some(OwnedFd::from(netns)),
        });
        let own = Own {
            device,
            inode,
            target,
            route,
            token,
        };
        let known = Known { pod, own: Some(own) };
        self.visit(&known);
        Ok(known)
    }

    fn say_found(&self, known: &Known) {
        let Pod {
            sandbox,
            namespace,
            name,
            netns,
            host_network,
            ..
        } = &*known.pod;
        tracing::info!(%sandbox, pod = %name, %namespace, inode = netns.inode, cookie = netns.cookie, host_network, "pod found");
    }

    fn kept(&self) -> usize {
        let all = self.own().map(|own| &own.target).chain(&self.node);
        all.map(|target| target.handles.kept()).sum()
    }

    fn node_facts(&mut self) {
        if let Some(facts) = ask_if_changed(self.node_route.as_mut(), &self.home, &mut self.buffer) {
            // The node's own pairs lead into pods; their outer ends are no pod's.
            let facts = Facts {
                host_ifindexes: Vec::new(),
                ..facts
            };
            self.index.set_facts(None, facts, now_ns());
        }
    }

    fn pod_facts(&mut self, token: u64) {
        let is_it = |known: &Known| known.own.as_ref().is_some_and(|own| own.token == token);
        let Some(known) = self.known.values_mut().find(|known| is_it(known)) else {
            return;
        };
        let route = known.own.as_mut().and_then(|own| own.route.as_mut());
        if let Some(facts) = ask_if_changed(route, &self.home, &mut self.buffer) {
            self.index.set_facts(Some(&known.pod), facts, now_ns());
            if let Some(known) = self.known.values().find(|known| is_it(known)) {
                self.visit(known);
            }
        }
    }
}

fn ask_if_changed(route: Option<&mut RouteSocket>, home: &Home, buffer: &mut Buffer) -> Option<Facts> {
    let route = route?;
    if !route.has_changed(buffer) {
        return None;
    }
    ask(Some(route), home, buffer)
}

fn ask(route: Option<&mut RouteSocket>, home: &Home, buffer: &mut Buffer) -> Option<Facts> {
    match route?.facts(home.0.as_fd(), buffer) {
        Ok(facts) => Some(Facts {
            addresses: facts.addresses,
            host_ifindexes: facts.outer_ifindexes,
        }),
        Err(error) => {
            // Asked again at the next look.
            tracing::debug!(%error, "addresses cannot be read");
            None
        }
    }
}

/// Gone, or never one: the name of a namespace that was made after this program's mounts is a plain file.
fn is_no_netns(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput)
        || error.raw_os_error() == Some(libc::ESRCH)
}

fn names_of(dir: &Path) -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        // Made by the first `ip netns add`.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut names: Vec<String> = entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect();
    names.sort_unstable();
    Ok(names)
}
