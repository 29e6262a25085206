//! The thread that enters network namespaces to ask what dropped a packet there.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use sonde_common::config::Config;
use sonde_common::paths::HostPaths;

use super::candidates::{Hook, Packet};
use super::namespace::{Namespace, Standing};
use super::tracer::Tracer;
use super::{Dropper, Stats, Tracing};
use crate::event::{Event, NetnsKey, Subject};
use crate::kernel;
use crate::missing::Missing;
use crate::netlink::nftables::trace::Tuple;
use crate::pods::{PodIndex, Target, Targets, netns};

/// Events that wait for a ruleset; more go on without one.
const WAITING: usize = 20_000;
/// How long an event waits for its namespace to be open to us: its pod may have been found just now.
const NAMESPACE_COMES: Duration = Duration::from_millis(500);
/// How long an event waits for a ruleset that has changed; then it is told what is known of it.
const RULESET_COMES: Duration = Duration::from_secs(1);
/// How often is looked while something waits or is traced.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How often is looked for nftables where it was not there.
const ABSENT_FOR: Duration = Duration::from_secs(60);
/// Namespaces and rules that are remembered.
const NAMESPACES: usize = 256;
const RULES: usize = 500_000;

const RULESETS: &str = "nftables rulesets";
const TRACES: &str = "traces of nftables";
const ENTERING: &str = "namespaces of netfilter's drops";

/// An event, and when it came.
type Waiting = (Instant, Event);

pub(super) struct Worker {
    /// Nftables drops by itself (Linux 6.7), and not through the function that calls all of netfilter.
    tells_nft: bool,
    paths: HostPaths,
    index: Arc<PodIndex>,
    targets: Arc<Targets>,
    missing: Arc<Missing>,
    stats: Arc<Stats>,
    waiting: Vec<Waiting>,
    namespaces: HashMap<NetnsKey, Namespace>,
    tracing: Tracing,
    /// While that is on.
    tracer: Option<Tracer>,
    /// Whether the kernel has nftables, and when that was found.
    nft: Option<(bool, Instant)>,
    buffer: Vec<u8>,
}

/// Where a namespace is to be entered.
enum Place {
    Home,
    Away(Arc<Target>),
}

impl Place {
    /// Whose it is; empty: the node's.
    fn owner(&self) -> &str {
        match self {
            Self::Home => "",
            Self::Away(target) => match &target.subject {
                Subject::Pod(pod) => &pod.sandbox,
                Subject::Node | Subject::Unknown => "",
            },
        }
    }
}

impl Worker {
    pub(super) fn new(
        config: &Config,
        index: Arc<PodIndex>,
        targets: Arc<Targets>,
        missing: Arc<Missing>,
        stats: Arc<Stats>,
        tracing: Tracing,
    ) -> Self {
        let paths = config.host.paths();
        Self {
            tells_nft: kernel::is_since(&paths.proc, 6, 7),
            paths,
            index,
            targets,
            missing,
            stats,
            waiting: Vec::new(),
            namespaces: HashMap::new(),
            tracing,
            tracer: None,
            nft: None,
            buffer: vec![0; 64 * 1024],
        }
    }

    /// The namespace of this thread, which is the process's until it enters another one.
    pub(super) fn begin(&self) -> io::Result<File> {
        File::open("/proc/thread-self/ns/net")
    }

    pub(super) fn run(&mut self, home: &File, receiver: &Receiver<Vec<Event>>, deliver: impl Fn(Vec<Event>)) {
        let mut ends = false;
        while !ends {
            let is_idle = self.waiting.is_empty() && self.tracer.as_ref().is_none_or(Tracer::is_idle);
            let batch = match is_idle {
                true => receiver.recv().map_err(|_| RecvTimeoutError::Disconnected),
                false => receiver.recv_timeout(LOOK_EVERY),
            };
            match batch {
                Ok(batch) => {
                    self.take(batch);
                    while self.waiting.len() < WAITING
                        && let Ok(batch) = receiver.try_recv()
                    {
                        self.take(batch);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => ends = true,
            }
            let targets = self.targets.load();
            self.follow_configuration();
            if let Some(tracer) = &mut self.tracer {
                let node = self.index.node();
                tracer.poll(&mut self.buffer, |key| find(key, node, &targets).is_some());
            }
            let done = self.work(home, &targets, ends);
            if !done.is_empty() {
                let count = done.len() as u64;
                deliver(done);
                self.stats.waiting.fetch_sub(count, Ordering::Relaxed);
            }
        }
    }

    /// With the tracer go its sockets, and with those the tables that it put into namespaces.
    fn follow_configuration(&mut self) {
        match (self.tracing.is_on(), &self.tracer) {
            (true, None) => self.tracer = Some(Tracer::default()),
            (false, Some(_)) => self.tracer = None,
            _ => {}
        }
    }

    fn take(&mut self, batch: Vec<Event>) {
        let now = Instant::now();
        self.waiting.extend(batch.into_iter().map(|event| (now, event)));
    }

    /// Explains what can be explained now. `ends`: nothing may wait any more.
    fn work(&mut self, home: &File, targets: &[Arc<Target>], ends: bool) -> Vec<Event> {
        let mut by_namespace: HashMap<Option<NetnsKey>, Vec<Waiting>> = HashMap::new();
        for waiting in std::mem::take(&mut self.waiting) {
            by_namespace
                .entry(waiting.1.observation.netns)
                .or_default()
                .push(waiting);
        }
        let mut done = Vec::new();
        for (netns, events) in by_namespace {
            let place = netns.and_then(|netns| Some((netns, find(netns, self.index.node(), targets)?)));
            let mut later = match place {
                Some((netns, place)) => self.explain(home, (netns, place), events, ends, &mut done),
                None => self.nowhere(events, &mut done),
            };
            let room = if ends {
                0
            } else {
                WAITING.saturating_sub(self.waiting.len())
            };
            let rest = later.split_off(later.len().min(room));
            self.give_up(rest, &mut done);
            self.waiting.append(&mut later);
        }
        self.forget(targets);
        done
    }

    /// Of events without a namespace, or of one that is not open to us: those come back that may yet have one.
    fn nowhere(&self, events: Vec<Waiting>, done: &mut Vec<Event>) -> Vec<Waiting> {
        let (later, over) = events.into_iter().partition(|(since, event)| {
            let is_known = event.observation.netns.is_some() && event.subject != Subject::Unknown;
            is_known && since.elapsed() < NAMESPACE_COMES
        });
        self.give_up(over, done);
        later
    }

    fn give_up(&self, events: Vec<Waiting>, done: &mut Vec<Event>) {
        self.stats.unexplained.fetch_add(events.len() as u64, Ordering::Relaxed);
        for (_, mut event) in events {
            let dropper = Dropper::of(&event.observation, self.tells_nft);
            event.observation.attributes.push(("netfilter", dropper.name().into()));
            done.push(event);
        }
    }

    /// Goes into the namespace with its events. Those come back that must wait for its ruleset.
    fn explain(
        &mut self,
        home: &File,
        (netns, place): (NetnsKey, Place),
        events: Vec<Waiting>,
        ends: bool,
        done: &mut Vec<Event>,
    ) -> Vec<Waiting> {
        if let Place::Away(target) = &place
            && let Some(netns) = &target.netns
            && let Err(error) = netns::enter(netns.as_fd())
        {
            self.missing.say(ENTERING, &error);
            self.give_up(events, done);
            return Vec::new();
        }
        // Without cookies a key may come again, for another pod.
        let known = self.namespaces.remove(&netns);
        let mut namespace = known
            .filter(|known| known.owner == place.owner())
            .unwrap_or_else(|| Namespace::of(place.owner()));
        let later = self.explain_inside(netns, &mut namespace, events, ends, done);
        if matches!(place, Place::Away(_)) {
            // A thread that cannot come home would tell one namespace's rules as another's.
            netns::enter(home.as_fd()).expect("the own network namespace can be entered again");
        }
        namespace.used = Some(Instant::now());
        self.namespaces.insert(netns, namespace);
        later
    }

    fn explain_inside(
        &mut self,
        netns: NetnsKey,
        namespace: &mut Namespace,
        events: Vec<Waiting>,
        ends: bool,
        done: &mut Vec<Event>,
    ) -> Vec<Waiting> {
        let tells_nft = self.tells_nft;
        let dropper = |event: &Event| Dropper::of(&event.observation, tells_nft);
        let standing = if events.iter().all(|(_, event)| dropper(event) == Dropper::Other) {
            None
        } else {
            self.ruleset(namespace)
        };
        if events.iter().any(|(_, event)| dropper(event) != Dropper::Nft) {
            namespace.conntrack.read(&self.paths);
        }
        let mut later = Vec::new();
        for (since, mut event) in events {
            let dropper = dropper(&event);
            let can_be_nft = dropper != Dropper::Other;
            if can_be_nft && standing == Some(Standing::NotYet) && !ends && since.elapsed() < RULESET_COMES {
                later.push((since, event));
                continue;
            }
            let seen = &mut event.observation;
            let packet = Packet::of(seen);
            seen.attributes.push(("netfilter", dropper.name().into()));
            if can_be_nft && matches!(standing, Some(Standing::Known | Standing::NotYet)) {
                let key = packet.tuple().map(|tuple| (netns, tuple));
                let culprit = key.and_then(|key| self.tracer.as_ref()?.found(&key));
                let told = namespace.tell(packet, seen.ktime_ns, culprit);
                let is_told = told.iter().any(|(name, _)| *name == "nft_rule");
                seen.attributes
                    .extend(told.into_iter().map(|(name, value)| (name, value.into())));
                let can_be_traced = Hook::of(seen).is_none_or(Hook::is_traced);
                if let Some(key) = key.filter(|_| can_be_traced && !is_told) {
                    self.trace(key);
                }
            } else if can_be_nft {
                self.stats.unexplained.fetch_add(1, Ordering::Relaxed);
            }
            if dropper != Dropper::Nft
                && Hook::of(seen).is_none_or(Hook::tracks)
                && let Some((name, value)) = namespace.conntrack.tell(seen.ktime_ns)
            {
                seen.attributes.push((name, value.into()));
            }
            done.push(event);
        }
        later
    }

    /// `None`: this kernel has no nftables, or its ruleset cannot be read.
    fn ruleset(&mut self, namespace: &mut Namespace) -> Option<Standing> {
        if !self.has_nft() {
            return None;
        }
        match namespace.refresh(&mut self.buffer, &self.stats.rulesets) {
            Ok(standing) => {
                if standing == Standing::Known {
                    self.missing.found(RULESETS);
                }
                Some(standing)
            }
            Err(error) => {
                self.missing.say(RULESETS, &error);
                Some(Standing::Failed)
            }
        }
    }

    fn trace(&mut self, key: (NetnsKey, Tuple)) {
        let Some(tracer) = self.tracer.as_mut().filter(|tracer| tracer.wants(&key)) else {
            return;
        };
        match tracer.start(key) {
            Ok(started) => {
                self.stats.traces.fetch_add(started.into(), Ordering::Relaxed);
                self.missing.found(TRACES);
            }
            Err(error) => self.missing.say(TRACES, &error),
        }
    }

    /// To ask a kernel that has nftables as a module would load it: so its own list of functions is asked first.
    fn has_nft(&mut self) -> bool {
        match self.nft {
            Some((true, _)) => true,
            Some((false, at)) if at.elapsed() < ABSENT_FOR => false,
            _ => {
                let there = has_function(&self.paths.proc.join("kallsyms"), "nft_do_chain");
                self.nft = Some((there, Instant::now()));
                there
            }
        }
    }

    /// Keeps what is remembered within its bounds: what is gone goes first, then what was not asked about longest.
    fn forget(&mut self, targets: &[Arc<Target>]) {
        let node = self.index.node();
        let is_much = |all: &HashMap<NetnsKey, Namespace>| {
            all.len() > NAMESPACES || all.values().map(Namespace::rules).sum::<usize>() > RULES
        };
        if !is_much(&self.namespaces) {
            return;
        }
        self.namespaces.retain(|key, _| find(*key, node, targets).is_some());
        while is_much(&self.namespaces) && self.namespaces.len() > 1 {
            let oldest = self.namespaces.iter().min_by_key(|(_, namespace)| namespace.used);
            let Some(oldest) = oldest.map(|(key, _)| *key) else {
                return;
            };
            self.namespaces.remove(&oldest);
        }
    }
}

fn find(key: NetnsKey, node: Option<NetnsKey>, targets: &[Arc<Target>]) -> Option<Place> {
    if node.is_some_and(|node| node.inode == key.inode) {
        return Some(Place::Home);
    }
    let is_it = |target: &&Arc<Target>| match &target.subject {
        Subject::Pod(pod) => {
            let cookies = (pod.netns.cookie, key.cookie);
            let is_same = pod.netns.inode == key.inode && (cookies.0 == cookies.1 || cookies.0 == 0 || cookies.1 == 0);
            is_same && target.netns.is_some()
        }
        Subject::Node | Subject::Unknown => false,
    };
    targets.iter().find(is_it).map(|target| Place::Away(Arc::clone(target)))
}

/// Whether the kernel lists a function of that name, of its own or of a module that is loaded.
fn has_function(kallsyms: &Path, name: &str) -> bool {
    let Ok(file) = File::open(kallsyms) else { return false };
    let mut lines = BufReader::with_capacity(256 * 1024, file);
    let mut line = Vec::new();
    loop {
        line.clear();
        match lines.read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return false,
            Ok(_) => {}
        }
        let mut words = line.split(|byte| byte.is_ascii_whitespace());
        if words.nth(2) == Some(name.as_bytes()) {
            return true;
        }
    }
}
