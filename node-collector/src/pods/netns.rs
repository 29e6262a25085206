//! The source of pods that enters network namespaces: named ones, those of the container runtime's sandboxes, and the
//! node's own.
//!
//! One thread does all that needs to be inside a namespace: it enters, opens what is to be kept (files, netlink
//! sockets), asks for the cookie, and goes home. It hears of new names by inotify and of addresses by
//! netlink, and looks at everything once a second in case it missed something. Which sandboxes there are it reads
//! off a [`Board`]. The thread itself is in `super::watcher`.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::eventfd::{EfdFlags, EventFd};
use sonde_common::paths::HostPaths;

use super::cri::Board;
use super::names::Globs;
pub use super::open::enter;
use super::watcher::Watcher;
use super::{PodIndex, Targets};
use crate::event::NetnsKey;
use crate::handles::Wanted;
use crate::missing::Missing;
use crate::netlink::route::RouteSocket;

/// Hears the network namespaces that are pods now, or of which the container runtime is about to say so.
pub type OnChange = Box<dyn Fn(&[NetnsKey]) + Send>;

/// Called in the network namespace of a pod whose devices are new or have changed.
pub type Visit = Box<dyn Fn(NetnsKey) + Send>;

/// What the source needs to know.
pub struct Settings {
    pub paths: HostPaths,
    /// `None`: no named namespaces.
    pub globs: Option<Globs>,
    /// Sandboxes of the container runtime. `None`: it is not asked.
    pub cri: Option<Arc<Board>>,
    /// Ends the names of static pods.
    pub node_name: String,
    pub include_host: bool,
    /// What to hold of a pod's namespace, and of the node's.
    pub pod: Wanted,
    pub node: Wanted,
    /// How many file handles may be kept open in all.
    pub keep_handles: usize,
    /// Hears which namespaces are pods, each time that changes.
    pub on_change: OnChange,
    /// `None`: nobody has anything to do in there.
    pub visit: Option<Visit>,
    /// True: all are to be visited once more.
    pub visits_due: Arc<AtomicBool>,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("paths", &self.paths)
            .field("globs", &self.globs)
            .field("cri", &self.cri)
            .finish_non_exhaustive()
    }
}

/// The running source. Dropping it ends its thread.
#[derive(Debug)]
pub struct NetnsSource {
    signal: Arc<Signal>,
    cri: Option<Arc<Board>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// How others speak to the thread.
#[derive(Debug)]
pub(super) struct Signal {
    pub(super) event: EventFd,
    stop: AtomicBool,
}

impl Signal {
    pub(super) fn wake(&self) {
        // A full counter means that a request is waiting already.
        let _ = self.event.write(1);
    }

    pub(super) fn is_stop(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

/// Asks for a look at everything now: an event came from a namespace nobody knows.
#[derive(Clone, Debug)]
pub struct Rescan {
    signal: Arc<Signal>,
    cri: Option<Arc<Board>>,
}

impl Rescan {
    pub fn request(&self) {
        self.signal.wake();
        if let Some(board) = &self.cri {
            board.wonder();
        }
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
        let cri = settings.cri.clone();
        if let Some(board) = &cri {
            let signal = Arc::clone(&signal);
            board.on_news(move || signal.wake());
        }
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
            cri,
            thread: Some(thread),
        })
    }

    pub fn rescan(&self) -> Rescan {
        Rescan {
            signal: Arc::clone(&self.signal),
            cri: self.cri.clone(),
        }
    }

    /// Whether the thread ended by itself, which it must not.
    pub fn has_failed(&self) -> bool {
        self.thread.as_ref().is_none_or(std::thread::JoinHandle::is_finished)
    }
}

impl Drop for NetnsSource {
    fn drop(&mut self) {
        self.signal.stop.store(true, Ordering::Release);
        self.signal.wake();
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
