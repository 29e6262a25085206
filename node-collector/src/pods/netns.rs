//! Pods from named network namespaces, and the node's own.
//!
//! One thread does all that needs to be inside a namespace: it enters, opens what is to be kept (files of `/proc/net`, a
//! netlink socket), asks for the cookie, and goes home. It hears of new names by inotify and of addresses by
//! netlink, and looks at everything once a second in case it missed something.
//!
//! While a namespace is known its file is held open, so its inode cannot become another's.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use sonde_common::paths::HostPaths;
use sonde_common::time::now_ns;

use super::index::Facts;
use super::names::{Globs, namespace_and_pod};
use super::{Pod, PodIndex, Target, Targets};
use crate::event::{NetnsKey, Subject};
use crate::handles::{self, Handles, Wanted};
use crate::missing::Missing;
use crate::netlink::route::{Buffer, RouteSocket};

/// Hears the network namespaces that are there now.
pub type OnChange = Box<dyn Fn(&[NetnsKey]) + Send>;

/// What the source needs to know.
pub struct Settings {
    pub paths: HostPaths,
    /// `None`: no named namespaces, only the node.
    pub globs: Option<Globs>,
    pub include_host: bool,
    /// What to hold of a pod's namespace, and of the node's.
    pub pod: Wanted,
    pub node: Wanted,
    /// How many file handles may be kept open in all.
    pub keep_handles: usize,
    /// Hears which namespaces are pods, each time that changes.
    pub on_change: OnChange,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("paths", &self.paths)
            .field("globs", &self.globs)
            .finish_non_exhaustive()
    }
}

/// The running source. Dropping it ends its thread.
#[derive(Debug)]
pub struct NetnsSource {
    signal: Arc<Signal>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// How others speak to the thread.
#[derive(Debug)]
struct Signal {
    event: EventFd,
    stop: AtomicBool,
}

/// Asks for a look at all names now: an event came from a namespace nobody knows.
#[derive(Clone, Debug)]
pub struct Rescan(Arc<Signal>);

impl Rescan {
    pub fn request(&self) {
        // A full counter means that a request is waiting already.
        let _ = self.0.event.write(1);
    }
}

impl NetnsSource {
    /// Returns when the first look is done: the pods that are there are in the index.
    pub fn start(
        settings: Settings,
        index: Arc<PodIndex>,
        targets: Arc<Targets>,
        missing: Arc<Missing>,
    ) -> io::Result<Self> {
        let signal = Arc::new(Signal {
            event: EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
            stop: AtomicBool::new(false),
        });
        let (ready, first_look) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new().name("sonde-netns".into()).spawn({
            let signal = Arc::clone(&signal);
            move || match Watcher::new(settings, index, targets, missing, signal) {
                Ok(mut watcher) => {
                    watcher.look();
                    let _ = ready.send(Ok(()));
                    watcher.run();
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            }
        })?;
        first_look
            .recv()
            .map_err(|_| io::Error::other("the namespace thread ended"))??;
        Ok(Self {
            signal,
            thread: Some(thread),
        })
    }

    pub fn rescan(&self) -> Rescan {
        Rescan(Arc::clone(&self.signal))
    }

    /// Whether the thread ended by itself, which it must not.
    pub fn has_failed(&self) -> bool {
        self.thread.as_ref().is_none_or(std::thread::JoinHandle::is_finished)
    }
}

impl Drop for NetnsSource {
    fn drop(&mut self) {
        self.signal.stop.store(true, Ordering::Release);
        let _ = self.signal.event.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The key of the network namespace of this process. The cookie is 0 where a socket cannot be made.
pub fn own_netns(paths: &HostPaths) -> io::Result<NetnsKey> {
    let inode = std::fs::metadata(paths.proc.join("self/ns/net"))?.ino() as u32;
    let cookie = RouteSocket::open().map_or(0, |socket| socket.netns_cookie());
    Ok(NetnsKey { inode, cookie })
}

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A name appears before its namespace is mounted on it: looked at again after 1, 2, 4, ... ms up to this.
const LOOK_SOON_AT_MOST: Duration = Duration::from_millis(256);

const TOKEN_SIGNAL: u64 = 0;
const TOKEN_INOTIFY: u64 = 1;
const TOKEN_NODE: u64 = 2;
const FIRST_TOKEN: u64 = 3;

struct Watcher {
    settings: Settings,
    index: Arc<PodIndex>,
    targets: Arc<Targets>,
    missing: Arc<Missing>,
    signal: Arc<Signal>,
    epoll: Epoll,
    /// Our own namespace, to come home to.
    home: File,
    boot: String,
    known: BTreeMap<String, Known>,
    node: Option<Arc<Target>>,
    node_route: Option<RouteSocket>,
    inotify: Option<Inotify>,
    watched: bool,
    buffer: Buffer,
    next_token: u64,
    /// Names whose namespace is not there yet, and how long to wait for them.
    look_soon: Option<Duration>,
}

/// A namespace that is a pod.
struct Known {
    device: u64,
    inode: u64,
    pod: Arc<Pod>,
    target: Arc<Target>,
    route: Option<RouteSocket>,
    token: u64,
}

impl Watcher {
    fn new(
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
            home,
            known: BTreeMap::new(),
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
        if self.settings.include_host {
            self.node = Some(Arc::new(Target {
                subject: Subject::Node,
                handles: handles::open(&self.settings.paths, &self.settings.node, true),
                netns: None,
            }));
        }
        match RouteSocket::open() {
            Ok(socket) => {
                let _ = self
                    .epoll
                    .add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, TOKEN_NODE));
                self.node_route = Some(socket);
            }
            Err(error) => self.missing.say("addresses of the node", &error),
        }
        if self.settings.globs.is_some() {
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

    fn run(&mut self) {
        let mut next_look = Instant::now() + LOOK_EVERY;
        let mut events = [EpollEvent::empty(); 64];
        while !self.signal.stop.load(Ordering::Acquire) {
            let due = self
                .look_soon
                .map_or(next_look, |soon| next_look.min(Instant::now() + soon));
            let wait = due.saturating_duration_since(Instant::now());
            // Rounded up: waiting 0.4 ms would be no waiting at all.
            let millis = u16::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(1000);
            let count = self.epoll.wait(&mut events, EpollTimeout::from(millis)).unwrap_or(0);
            let mut look = Instant::now() >= due;
            for event in &events[..count] {
                match event.data() {
                    TOKEN_SIGNAL => {
                        let _ = self.signal.event.read();
                        look = true;
                    }
                    TOKEN_INOTIFY => {
                        self.drain_inotify();
                        self.look_soon = Some(Duration::from_millis(1));
                        look = true;
                    }
                    TOKEN_NODE => self.node_facts(),
                    token => self.pod_facts(token),
                }
            }
            if look {
                self.look();
                next_look = Instant::now() + LOOK_EVERY;
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

    /// Looks at everything: names that came, went or changed, addresses whose news were missed, history to forget.
    fn look(&mut self) {
        let before: Vec<NetnsKey> = self.keys();
        let first = self.targets.load().is_empty();
        let changed = self.look_at_names();
        self.node_facts();
        for token in self.known.values().map(|known| known.token).collect::<Vec<_>>() {
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
    }

    fn keys(&self) -> Vec<NetnsKey> {
        self.known.values().map(|known| known.pod.netns).collect()
    }

    fn publish(&self) {
        let pods = self.known.values().map(|known| Arc::clone(&known.target));
        self.targets.store(self.node.iter().cloned().chain(pods).collect());
    }

    fn look_at_names(&mut self) -> bool {
        let Some(globs) = self.settings.globs.clone() else {
            return false;
        };
        let dir = self.settings.paths.netns.clone();
        self.watch(&dir);
        let names = match names_of(&dir) {
            Ok(names) => names,
            Err(error) => {
                self.missing.say("named network namespaces", &error);
                return false;
            }
        };
        let home_device = self.home.metadata().map_or(0, |m| m.dev());
        let mut pending = false;
        let mut excluded = Vec::new();
        let mut there = Vec::new();
        for name in names {
            let Ok(meta) = std::fs::metadata(dir.join(&name)) else {
                continue;
            };
            if meta.dev() != home_device {
                // A plain file: `ip netns add` makes it first and mounts the namespace on it then.
                pending = true;
            } else if globs.matches(&name) {
                there.push((name, meta.dev(), meta.ino()));
            } else {
                excluded.push(meta.ino() as u32);
            }
        }
        self.look_soon = match self.look_soon {
            Some(soon) if pending && soon < LOOK_SOON_AT_MOST => Some(soon * 2),
            _ => None,
        };
        let changed = self.end_those_gone(&there);
        let found = self.find_new(&dir, there);
        self.index.exclude(excluded);
        changed || found
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

    fn end_those_gone(&mut self, there: &[(String, u64, u64)]) -> bool {
        let gone: Vec<String> = self
            .known
            .iter()
            .filter(|(name, known)| {
                !there
                    .iter()
                    .any(|(n, device, inode)| n == *name && *device == known.device && *inode == known.inode)
            })
            .map(|(name, _)| name.clone())
            .collect();
        for name in &gone {
            let Some(known) = self.known.remove(name) else { continue };
            if let Some(route) = &known.route {
                let _ = self.epoll.delete(route);
            }
            self.index.end(&known.pod, now_ns());
            tracing::info!(netns = %name, pod = %known.pod.name, namespace = %known.pod.namespace, "pod ended");
        }
        !gone.is_empty()
    }

    fn find_new(&mut self, dir: &Path, there: Vec<(String, u64, u64)>) -> bool {
        let mut found = false;
        let node = self.index.node().map(|key| u64::from(key.inode));
        for (name, device, inode) in there {
            if self.known.contains_key(&name) || Some(inode) == node {
                continue;
            }
            if self.known.values().any(|known| known.inode == inode) {
                // The same namespace under a second name: the first one counts.
                continue;
            }
            let path = dir.join(&name);
            match self.find(&name, &path, device, inode) {
                Ok(known) => {
                    tracing::info!(
                        netns = %name, pod = %known.pod.name, namespace = %known.pod.namespace,
                        inode, cookie = known.pod.netns.cookie, "pod found"
                    );
                    self.known.insert(name, known);
                    found = true;
                }
                // Gone again, or not a network namespace.
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput) => {}
                Err(error) => self.missing.say("network namespaces", &error),
            }
        }
        found
    }

    fn find(&mut self, name: &str, path: &Path, device: u64, inode: u64) -> io::Result<Known> {
        let netns = open_netns(path)?;
        if netns.metadata()?.ino() != inode {
            // Replaced between the look and now.
            return Err(io::ErrorKind::NotFound.into());
        }
        let Settings { paths, pod: wanted, .. } = &self.settings;
        let keep = self.kept() + wanted.count() <= self.settings.keep_handles;
        let inside = self.inside(netns.as_fd(), || {
            (handles::open(paths, wanted, keep), RouteSocket::open())
        });
        let (handles, mut route) = match inside {
            Ok((handles, route)) => (handles, route.ok()),
            Err(error) => {
                self.missing.say("entering network namespaces", &error);
                (Handles::failed(paths, error), None)
            }
        };
        let cookie = route.as_ref().map_or(0, RouteSocket::netns_cookie);
        let facts = self.ask(route.as_mut()).unwrap_or_default();
        let found_ns = now_ns();
        let (namespace, pod) = namespace_and_pod(name);
        let boot = &self.boot;
        let pod = Arc::new(Pod {
            sandbox: match cookie {
                0 => format!("netns/{name}/{inode}@{boot}-{found_ns}"),
                cookie => format!("netns/{name}/{cookie}@{boot}"),
            },
            namespace: namespace.to_owned(),
            name: pod.to_owned(),
            ips: facts.addresses.clone(),
            netns: NetnsKey {
                inode: inode as u32,
                cookie,
            },
            valid_from_ns: found_ns,
            ..Pod::default()
        });
        let token = self.next_token;
        self.next_token += 1;
        if let Some(route) = &route {
            self.epoll.add(route, EpollEvent::new(EpollFlags::EPOLLIN, token))?;
        }
        self.index.add(Arc::clone(&pod));
        self.index.set_facts(Some(&pod), facts, found_ns);
        let target = Arc::new(Target {
            subject: Subject::Pod(Arc::clone(&pod)),
            handles,
            netns: Some(OwnedFd::from(netns)),
        });
        Ok(Known {
            device,
            inode,
            pod,
            target,
            route,
            token,
        })
    }

    fn kept(&self) -> usize {
        let all = self.known.values().map(|known| &known.target).chain(&self.node);
        all.map(|target| target.handles.kept()).sum()
    }

    fn node_facts(&mut self) {
        let mut route = self.node_route.take();
        if let Some(facts) = self.ask_if_changed(route.as_mut()) {
            // The node's own pairs lead into pods; their outer ends are no pod's.
            self.index.set_facts(
                None,
                Facts {
                    host_ifindexes: Vec::new(),
                    ..facts
                },
                now_ns(),
            );
        }
        self.node_route = route;
    }

    fn pod_facts(&mut self, token: u64) {
        let Some(name) = self
            .known
            .iter()
            .find(|(_, known)| known.token == token)
            .map(|(name, _)| name.clone())
        else {
            return;
        };
        let Some(mut known) = self.known.remove(&name) else {
            return;
        };
        if let Some(facts) = self.ask_if_changed(known.route.as_mut()) {
            self.index.set_facts(Some(&known.pod), facts, now_ns());
        }
        self.known.insert(name, known);
    }

    fn ask_if_changed(&mut self, route: Option<&mut RouteSocket>) -> Option<Facts> {
        let route = route?;
        if !route.has_changed(&mut self.buffer) {
            return None;
        }
        self.ask(Some(route))
    }

    fn ask(&mut self, route: Option<&mut RouteSocket>) -> Option<Facts> {
        match route?.facts(self.home.as_fd(), &mut self.buffer) {
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

    /// Does something inside a namespace and comes home.
    fn inside<T>(&self, netns: BorrowedFd<'_>, job: impl FnOnce() -> T) -> io::Result<T> {
        enter(netns)?;
        let result = job();
        // A thread that cannot come home would tell one namespace's facts as another's.
        enter(self.home.as_fd()).expect("the own network namespace can be entered again");
        Ok(result)
    }
}

/// Makes the calling thread, and no other, see this network namespace.
pub fn enter(netns: BorrowedFd<'_>) -> io::Result<()> {
    Ok(setns(netns, CloneFlags::CLONE_NEWNET)?)
}

/// Opens the file of a network namespace, which must be one.
fn open_netns(path: &Path) -> io::Result<File> {
    // Not to hang on a FIFO that somebody put there meanwhile.
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    let fs = nix::sys::statfs::fstatfs(&file)?;
    if fs.filesystem_type() != nix::sys::statfs::NSFS_MAGIC {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(file)
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
