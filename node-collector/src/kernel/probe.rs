//! What a probe of the kernel side is made of. Adding one is its file, its program file, its record, and one line in
//! [`super::probes::ALL`].

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use sonde_common::config::Config;
use zerocopy::{Immutable, IntoBytes};

use super::Gauge;
use super::btf::Btf;
use super::load::{LoadError, Object};
use super::plan::Signal;
use super::symbols::Symbols;
use crate::catalogue::ProbeSpec;
use crate::event::{NetnsKey, Observation, Subject};
use crate::table::Table;

/// A probe: what it says, what it hooks, and how to begin with it.
#[derive(Debug)]
pub(crate) struct KernelProbe {
    pub spec: &'static ProbeSpec,
    /// What it sees belongs to no network namespace.
    pub node_only: bool,
    pub defaults: Defaults,
    /// Each is tried, and runs or not, by itself.
    pub signals: &'static [&'static Signal],
    /// Its own maps and their sizes. One entry while the probe is off.
    pub maps: &'static [(&'static str, Entries)],
    /// Position in `sonde_ebpf_common::lost` of what a full map left uncounted, and what that is.
    pub uncounted: Option<(usize, &'static str)>,
    /// Called when at least one of its signals may run.
    pub prepare: fn(&Host<'_>) -> Setup,
}

/// Entries of a map on a host with that many CPUs.
pub(crate) type Entries = fn(usize) -> u32;

/// Of keys under `probes.NAME` that the configuration leaves out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Defaults {
    pub enabled: bool,
    /// From which time on something is an event.
    pub threshold: Duration,
    /// One in so many packets is looked at.
    pub sample: u32,
}

/// From which time on a softirq or command is slow, as KubeSkoop has it.
pub(crate) const THRESHOLD_10_MS: Duration = Duration::from_millis(10);
/// From which time on a read or send is slow.
pub(crate) const THRESHOLD_100_MS: Duration = Duration::from_millis(100);

impl Defaults {
    /// For probes that see what is seldom, and measure no time.
    pub(crate) const ON: Self = Self {
        enabled: true,
        threshold: Duration::ZERO,
        sample: 1,
    };

    /// What holds, with what the configuration says.
    pub(crate) fn with(self, config: &Config, probe: &str) -> ProbeSettings {
        let said = config.probes.get(probe).cloned().unwrap_or_default();
        ProbeSettings {
            enabled: said.enabled.unwrap_or(self.enabled),
            events: said.events,
            stacks: said.stacks,
            threshold: said.threshold.map_or(self.threshold, |span| span.0),
            sample: said.sample.map_or(self.sample, std::num::NonZeroU32::get),
        }
    }
}

/// `probes.NAME` with all its defaults filled in. The programs get the last four by themselves: where they declare
/// `NAME_EVENTS` (u32), `NAME_STACKS` (u32), `NAME_THRESHOLD_NS` (u64) or `NAME_SAMPLE` (u32), these are set, and set anew
/// when the configuration changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProbeSettings {
    pub enabled: bool,
    pub events: bool,
    pub stacks: bool,
    pub threshold: Duration,
    pub sample: u32,
}

/// What holds of a probe's settings now: they may change while it runs.
#[derive(Debug)]
pub(crate) struct Live {
    events: AtomicBool,
    threshold_ns: AtomicU64,
    sample: AtomicU32,
}

impl Live {
    pub(crate) fn new(settings: &ProbeSettings) -> Self {
        let live = Self {
            events: AtomicBool::new(false),
            threshold_ns: AtomicU64::new(0),
            sample: AtomicU32::new(1),
        };
        live.set(settings);
        live
    }

    pub(super) fn set(&self, settings: &ProbeSettings) {
        self.events.store(settings.events, Ordering::Relaxed);
        self.threshold_ns.store(settings.threshold_ns(), Ordering::Relaxed);
        self.sample.store(settings.sample, Ordering::Relaxed);
    }

    pub(crate) fn events(&self) -> bool {
        self.events.load(Ordering::Relaxed)
    }

    pub(crate) fn threshold(&self) -> Duration {
        Duration::from_nanos(self.threshold_ns.load(Ordering::Relaxed))
    }

    pub(crate) fn sample(&self) -> u32 {
        self.sample.load(Ordering::Relaxed)
    }
}

#[cfg(any(test, fuzzing))]
pub(crate) fn live_with_sample(sample: u32) -> Arc<Live> {
    let settings = Defaults { sample, ..Defaults::ON }.with(&Config::default(), "");
    Arc::new(Live::new(&settings))
}

impl ProbeSettings {
    pub(super) fn threshold_ns(&self) -> u64 {
        u64::try_from(self.threshold.as_nanos()).unwrap_or(u64::MAX)
    }
}

impl KernelProbe {
    pub(crate) fn settings(&self, config: &Config) -> ProbeSettings {
        self.defaults.with(config, self.spec.name)
    }
}

/// What a probe may look at before its programs are loaded.
pub(crate) struct Host<'a> {
    pub config: &'a Config,
    /// What its reader and decoders are to go by.
    pub live: Arc<Live>,
    /// The host's network namespace, where it is known.
    pub node: Option<NetnsKey>,
    /// The running kernel's types, for names of enumerators.
    pub btf: Option<&'a Btf>,
    /// Kept by who names addresses.
    pub symbols: Arc<Symbols>,
}

pub(super) type Open = Box<dyn FnOnce(&Object) -> Result<Opened, LoadError>>;

/// What the programs are to know before loading, and how to go on after it.
pub(crate) struct Setup {
    /// Values of `static`s in the programs, by name.
    pub globals: Vec<(&'static str, Vec<u8>)>,
    pub open: Open,
}

impl Setup {
    pub(crate) fn new(open: impl FnOnce(&Object) -> Result<Opened, LoadError> + 'static) -> Self {
        Self {
            globals: Vec::new(),
            open: Box::new(open),
        }
    }

    /// For programs that tell of the node as a whole: its place.
    pub(crate) fn of_node(self, host: &Host<'_>) -> Self {
        let node = host.node.unwrap_or_default();
        self.global("NODE_NETNS", &node.inode)
            .global("NODE_COOKIE", &node.cookie)
    }

    /// Sets a `static` of the programs, which must be there.
    pub(crate) fn global(mut self, name: &'static str, value: &(impl IntoBytes + Immutable + ?Sized)) -> Self {
        self.globals.push((name, value.as_bytes().to_vec()));
        self
    }
}

/// A probe whose programs run.
pub(crate) struct Opened {
    pub reader: Box<dyn Reader>,
    /// See `sonde_ebpf_common::record::kind`.
    pub decoders: Decoders,
}

/// By the first word of the records that they read.
pub(crate) type Decoders = Vec<(u32, Box<dyn Decoder>)>;

/// Reads the probe's maps.
pub(crate) trait Reader: Send {
    /// Rows of a round. A table without rows is not sent.
    fn read(&mut self, round: &Round<'_>) -> io::Result<Table>;

    /// What only a look at its maps finds: observations, with the positions of their types in
    /// `sonde_ebpf_common::limit`. Asked once a round.
    fn observe(&mut self) -> io::Result<Vec<(usize, Observation)>> {
        Ok(Vec::new())
    }

    /// The calling thread is in a pod's network namespace, whose devices are new or have changed.
    fn visit(&mut self, _netns: NetnsKey) -> io::Result<()> {
        Ok(())
    }

    /// Where it could not see something since it was asked last, and what that was. Asked after each reading.
    fn missed(&mut self) -> Vec<(NetnsKey, &'static str)> {
        Vec::new()
    }

    /// These are the pods' network namespaces now: what was left in others is not wanted any more.
    fn stay_in(&mut self, _live: &[NetnsKey]) {}

    /// Everything its maps count at this moment, of any namespace: for `doctor`, which waits for it to grow.
    fn seen(&mut self) -> io::Result<u64>;

    /// As of the last round: keys in its maps, and what they count in namespaces that belong to no pod.
    fn standing(&self) -> Standing;

    /// More of its own figures, as gauges: name, help, value.
    fn gauges(&self) -> Vec<Gauge> {
        Vec::new()
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    pub keys: usize,
    pub unknown: u64,
}

/// A round, as readers see it.
pub(crate) struct Round<'a> {
    pub time_ns: u64,
    /// Namespaces that are read for the last time.
    pub gone: &'a [NetnsKey],
    pub owner: &'a dyn Fn(NetnsKey) -> Subject,
}

/// Makes observations of records. Runs in the ring's thread.
pub(crate) trait Decoder: Send {
    /// The whole record, its first two words included; they are checked already.
    fn decode(&mut self, record: &[u8]) -> Result<Decoded, Box<dyn Error>>;
}

pub(crate) enum Decoded {
    /// An event, and the position of its type in `sonde_ebpf_common::limit`.
    Event(usize, Box<Observation>),
    /// A record that turned out to be none.
    Nothing,
}

/// Entries of a map of histograms.
pub(crate) fn latency_keys(cpus: usize) -> u32 {
    key_budget(cpus, size_of::<sonde_ebpf_common::latency::Latency>())
}

/// Entries of a per-CPU map of large values: 8 MiB of them on all CPUs, but no fewer than a node's pods need.
pub(crate) fn key_budget(cpus: usize, value: usize) -> u32 {
    ((8 << 20) / (cpus.max(1) * value)).clamp(256, 2048) as u32
}

/// Entries of a map of counts: each takes 16 bytes or more on every CPU.
pub(crate) fn count_keys(cpus: usize) -> u32 {
    if cpus > 16 { 4096 } else { 8192 }
}
