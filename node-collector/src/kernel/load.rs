//! The kernel programs: the object that build.rs made, its settings, its maps, and a program for each rung.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};

use aya::maps::{Map, MapData, RingBuf};
use aya::programs::{BtfTracePoint, Program, ProgramError};
use aya::{Ebpf, EbpfLoader};
use sonde_common::config::{Config, UnknownNetns};
use sonde_ebpf_common::drop::verdict;
use sonde_ebpf_common::fields::Field;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::facts::{BtfFacts, Facts, Release};
use super::plan::{Rung, Signal};
use super::sys::{ProgramCounters, RawMap, program_counters};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sonde-ebpf.o"));

/// What is written into the programs' read-only data, besides the kernel's fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    /// Verdict of each reason.
    pub reasons: [u8; verdict::REASONS],
    /// Nothing is seen of namespaces that were not listed.
    pub only_listed: bool,
    pub stacks: bool,
    pub event_interval_ns: u64,
    pub event_burst_ns: u64,
    /// The verifier may delete NULL checks of arguments that can be NULL.
    pub doubt_null_checks: bool,
    /// A power of two, whole pages.
    pub ring_bytes: u32,
    pub count_keys: u32,
}

impl Settings {
    pub(super) fn new(config: &Config, facts: &Facts, reasons: [u8; verdict::REASONS], cpus: usize) -> Self {
        let probe = config.probes.get("packetloss").cloned().unwrap_or_default();
        let interval = 1_000_000_000 / u64::from(config.events.rate.max(1));
        // 512 KiB for each CPU hold some 700 events with stacks.
        let ring = (cpus.next_power_of_two() << 19).clamp(1 << 20, 16 << 20) as u32;
        Self {
            reasons,
            only_listed: config.events.unknown_netns == UnknownNetns::Drop,
            stacks: probe.stacks,
            doubt_null_checks: facts.release.is_none_or(|release| NULL_IN_DOUBT.contains(&release)),
            event_interval_ns: interval,
            event_burst_ns: interval * u64::from(config.events.burst.saturating_sub(1)),
            ring_bytes: if probe.events { ring } else { PAGE },
            // Each takes 16 bytes on every CPU, and some 80 once.
            count_keys: if cpus > 64 { 4096 } else { 8192 },
        }
    }
}

/// From where arguments were taken for valid pointers to where those of kfree_skb were marked as maybe NULL.
const NULL_IN_DOUBT: std::ops::Range<Release> = Release(6, 2)..Release(6, 15);

const PAGE: u32 = 4096;

#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    #[error("maps cannot be made: {0}")]
    Object(String),
    #[error("no program {0} in the object")]
    NoProgram(&'static str),
    #[error("no map {0} in the object")]
    NoMap(&'static str),
    #[error("kernel BTF cannot be read: {0}")]
    Btf(String),
    #[error("the kernel refused the program: {0}")]
    Refused(String),
    #[error("it cannot be attached: {0}")]
    Attach(String),
    #[error("map {0}: {1}")]
    Map(&'static str, io::Error),
}

/// The loaded object. Dropping it detaches everything.
pub(super) struct Object {
    ebpf: Ebpf,
    /// Types for `tp_btf`, parsed when first needed and let go with [`Object::done`]: it takes some 30 MB.
    kernel_types: Option<aya::Btf>,
    cpus: usize,
}

impl Object {
    /// Makes the maps. No program is loaded yet.
    pub(super) fn new(btf: &BtfFacts, settings: &Settings) -> Result<Self, LoadError> {
        let fields: Vec<(&str, [u8; 8])> = btf.fields.iter().map(|(name, field)| (*name, bytes(field))).collect();
        let [only_listed, stacks, doubt] =
            [settings.only_listed, settings.stacks, settings.doubt_null_checks].map(u32::from);
        let mut loader = EbpfLoader::new();
        // No relocations are asked for, so the kernel's types need not be parsed for them.
        loader.btf(None);
        for (name, field) in &fields {
            loader.override_global(name, field.as_slice(), false);
        }
        for (name, number) in &btf.arguments {
            loader.override_global(name, number, false);
        }
        loader
            .override_global("REASONS", settings.reasons.as_slice(), true)
            .override_global("ONLY_LISTED", &only_listed, true)
            .override_global("STACKS", &stacks, true)
            .override_global("DOUBT_NULL_CHECKS", &doubt, true)
            .override_global("EVENT_INTERVAL_NS", &settings.event_interval_ns, true)
            .override_global("EVENT_BURST_NS", &settings.event_burst_ns, true)
            .map_max_entries("EVENTS", settings.ring_bytes)
            .map_max_entries("COUNTS", settings.count_keys);
        let ebpf = loader.load(OBJECT).map_err(|error| LoadError::Object(chain(&error)))?;
        let cpus = aya::util::nr_cpus().map_err(|(what, error)| LoadError::Object(format!("{what}: {error}")))?;
        Ok(Self {
            ebpf,
            kernel_types: None,
            cpus,
        })
    }

    /// Loads the signal's program for that rung and attaches it.
    pub(super) fn attach(&mut self, signal: &Signal, rung: Rung) -> Result<(), LoadError> {
        let name = signal
            .rungs
            .iter()
            .find(|(r, _)| *r == rung)
            .map_or("", |(_, program)| program);
        let refused = |error: ProgramError| LoadError::Refused(refusal(&error));
        let attach = |error: ProgramError| LoadError::Attach(chain(&error));
        if rung == Rung::TpBtf && self.kernel_types.is_none() {
            let types = aya::Btf::from_sys_fs().map_err(|error| LoadError::Btf(chain(&error)))?;
            self.kernel_types = Some(types);
        }
        match (self.ebpf.program_mut(name), rung) {
            (Some(Program::BtfTracePoint(program)), Rung::TpBtf) => {
                attach_typed(program, signal.tracepoint, self.kernel_types.as_ref(), refused, attach)
            }
            (Some(Program::RawTracePoint(program)), Rung::RawTracepoint) => {
                program.load().map_err(refused)?;
                program.attach(signal.tracepoint).map(drop).map_err(attach)
            }
            _ => Err(LoadError::NoProgram(signal.name)),
        }
    }

    /// Lets go of what only loading needed.
    pub(super) fn done(&mut self) {
        self.kernel_types = None;
        // SAFETY: malloc_trim takes no pointers and may be called at any time.
        #[cfg(target_env = "gnu")]
        unsafe {
            libc::malloc_trim(0);
        }
    }

    /// Counters of the signal's program on that rung.
    pub(super) fn counters(&self, signal: &Signal, rung: Rung) -> io::Result<ProgramCounters> {
        let name = signal
            .rungs
            .iter()
            .find(|(r, _)| *r == rung)
            .map_or("", |(_, program)| program);
        let program = self
            .ebpf
            .program(name)
            .ok_or_else(|| io::Error::other("no such program"))?;
        let fd = match program {
            Program::BtfTracePoint(program) => program.fd(),
            Program::RawTracePoint(program) => program.fd(),
            _ => return Err(io::Error::other("no such program")),
        };
        program_counters(fd.map_err(io::Error::other)?.as_fd())
    }

    pub(super) fn map<K, V>(&self, name: &'static str) -> Result<RawMap<K, V>, LoadError>
    where
        K: FromBytes + IntoBytes + Immutable + Copy,
        V: FromBytes + IntoBytes + Immutable + Copy,
    {
        let (data, copies): (&MapData, usize) = match self.ebpf.map(name) {
            Some(Map::HashMap(data)) => (data, 1),
            Some(Map::PerCpuHashMap(data) | Map::PerCpuArray(data)) => (data, self.cpus),
            _ => return Err(LoadError::NoMap(name)),
        };
        let fd: BorrowedFd<'_> = data.fd().as_fd();
        RawMap::new(fd, copies).map_err(|error| LoadError::Map(name, error))
    }

    /// The ring, once.
    pub(super) fn take_ring(&mut self) -> Result<RingBuf<MapData>, LoadError> {
        let map = self.ebpf.take_map("EVENTS").ok_or(LoadError::NoMap("EVENTS"))?;
        RingBuf::try_from(map).map_err(|error| LoadError::Object(chain(&error)))
    }
}

fn attach_typed(
    program: &mut BtfTracePoint,
    tracepoint: &str,
    types: Option<&aya::Btf>,
    refused: impl Fn(ProgramError) -> LoadError,
    attach: impl Fn(ProgramError) -> LoadError,
) -> Result<(), LoadError> {
    let types = types.ok_or_else(|| LoadError::Btf("not parsed".into()))?;
    program.load(tracepoint, types).map_err(refused)?;
    program.attach().map(drop).map_err(attach)
}

/// As it lies in the programs' memory.
fn bytes(field: &Field) -> [u8; 8] {
    let [a, b, c, d] = field.offset.to_ne_bytes();
    [a, b, c, d, field.shift, field.width, 0, 0]
}

/// One line: the error, and what the verifier said last.
fn refusal(error: &ProgramError) -> String {
    let ProgramError::LoadError { io_error, verifier_log } = error else {
        return chain(error);
    };
    let log = verifier_log.to_string();
    tracing::debug!(%log, "the verifier's log");
    let mut said = log
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !SUMMARY.iter().any(|start| line.starts_with(start)));
    match said.next_back() {
        Some(said) => format!("{io_error}: {said}"),
        None => io_error.to_string(),
    }
}

/// How lines of the verifier begin that say nothing about why.
const SUMMARY: [&str; 3] = ["processed ", "verification time ", "stack depth "];

/// The error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text.lines().map(str::trim).collect::<Vec<_>>().join(" ")
}
