//! The kernel programs: the object that build.rs made, its settings, its maps, and a program for each rung.

use std::cell::OnceCell;
use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use aya::maps::{Map, MapData, RingBuf};
use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfLoader};
use sonde_common::config::{Config, UnknownNetns};
use sonde_ebpf_common::fields::Field;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::facts::{BtfFacts, Facts, Release};
use super::plan::{Attach, Hook, Step};
use super::probe::KernelProbe;
use super::probes;
use super::sys::{BPF_ANY, ProgramCounters, RawMap, program_counters};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sonde-ebpf.o"));

/// What is written into the programs' read-only data, besides the kernel's fields, and the sizes of maps.
#[derive(Clone, Debug, Default)]
pub(super) struct Settings {
    /// Of probes: each must be there.
    globals: Vec<(&'static str, Vec<u8>)>,
    /// What all probes have that want it: set where it is there.
    common: Vec<(String, Vec<u8>)>,
    /// Entries, or bytes of a ring.
    maps: Vec<(&'static str, u32)>,
}

impl Settings {
    /// `wanted`: the probes that shall run. The maps of others take next to nothing.
    pub(super) fn new(config: &Config, facts: &Facts, wanted: &[&'static KernelProbe], cpus: usize) -> Self {
        let mut settings = Self::default();
        settings.set_listed(config.events.unknown_netns == UnknownNetns::Drop);
        let doubt = facts.release.is_none_or(|release| NULL_IN_DOUBT.contains(&release));
        settings.global("DOUBT_NULL_CHECKS", &u32::from(doubt));
        let by_load = facts.release >= Some(BYTES_BY_LOAD);
        settings.global("BYTES_BY_LOAD", &u32::from(by_load));
        settings.global("ARGUMENT_REGISTERS", &ARGUMENT_REGISTERS);
        let (mut events, mut may_be) = (false, false);
        for probe in probes::ALL {
            let is_wanted = wanted.iter().any(|wanted| wanted.spec.name == probe.spec.name);
            for (name, entries) in probe.maps {
                settings.maps.push((*name, if is_wanted { entries(cpus) } else { 1 }));
            }
            let makes_events = is_wanted && probe.signals.iter().any(|signal| !signal.buckets.is_empty());
            may_be |= makes_events;
            events |= makes_events && probe.settings(config).events;
        }
        settings.common = live(config);
        // 512 KiB for each CPU hold some 700 events with stacks; see `memory` for why no more than 8 MiB.
        let ring = (cpus.next_power_of_two() << 19).clamp(LEAST_RING as usize, 8 << 20) as u32;
        let (ring, rare) = match (events, may_be) {
            (true, _) => (ring, RARE_BYTES),
            // Should they be switched on: enough until the next start.
            (false, true) => (LEAST_RING / 8, RARE_BYTES / 8),
            (false, false) => (PAGE, PAGE),
        };
        settings.maps.extend([("EVENTS", ring), ("RARE", rare)]);
        // More pods than a node has; what the last ones cannot have is said when they are listed.
        let namespaces = if cpus > 16 { 1024 } else { 2048 };
        settings.maps.extend([("NAMESPACES", namespaces), ("HELD", namespaces)]);
        settings
    }

    /// Whether nothing is seen of namespaces that were not listed.
    pub(super) fn set_listed(&mut self, only: bool) {
        self.globals.retain(|(name, _)| *name != "ONLY_LISTED");
        self.global("ONLY_LISTED", &u32::from(only));
    }

    /// For few probes.
    pub(super) fn smaller_ring(&mut self) {
        for (_, bytes) in self.maps.iter_mut().filter(|(name, _)| *name == "EVENTS") {
            *bytes = (*bytes / 4).max(LEAST_RING).min(*bytes);
        }
    }

    fn global(&mut self, name: &'static str, value: &(impl IntoBytes + Immutable)) {
        self.globals.push((name, value.as_bytes().to_vec()));
    }

    pub(super) fn add(&mut self, globals: Vec<(&'static str, Vec<u8>)>) {
        self.globals.extend(globals);
    }
}

/// How long the collector may be silent before it is taken to be gone: it looks in each round.
fn patience_ns(config: &Config) -> u64 {
    const LATE_NS: u64 = 60_000_000_000;
    (3 * config.collector.interval.as_nanos()).saturating_add(LATE_NS)
}

/// What may change while programs run, by name. A probe has those of its own that it wants.
fn live(config: &Config) -> Vec<(String, Vec<u8>)> {
    let interval = 1_000_000_000 / u64::from(config.events.rate.max(1));
    let burst = interval * u64::from(config.events.burst.saturating_sub(1));
    let mut live = vec![
        ("EVENT_INTERVAL_NS".to_owned(), interval.as_bytes().to_vec()),
        ("EVENT_BURST_NS".to_owned(), burst.as_bytes().to_vec()),
        ("FLOW_PATIENCE_NS".to_owned(), patience_ns(config).as_bytes().to_vec()),
    ];
    for probe in probes::ALL {
        let own = probe.settings(config);
        let upper = probe.spec.name.to_ascii_uppercase();
        live.extend([
            (format!("{upper}_EVENTS"), u32::from(own.events).as_bytes().to_vec()),
            (format!("{upper}_STACKS"), u32::from(own.stacks).as_bytes().to_vec()),
            (format!("{upper}_THRESHOLD_NS"), own.threshold_ns().as_bytes().to_vec()),
            (format!("{upper}_SAMPLE"), own.sample.as_bytes().to_vec()),
        ]);
    }
    live
}

/// From where arguments were taken for valid pointers to where those of kfree_skb were marked as maybe NULL.
const NULL_IN_DOUBT: std::ops::Range<Release> = Release(6, 2)..Release(6, 15);

/// From where on typed programs may follow a pointer to plain bytes, such as `skb->head`.
const BYTES_BY_LOAD: Release = Release(6, 18);

/// Offsets of the registers that hold a function's first arguments in `struct pt_regs` (`user_pt_regs` on arm64).
#[cfg(target_arch = "x86_64")]
const ARGUMENT_REGISTERS: [u16; 4] = [112, 104, 96, 88];
#[cfg(target_arch = "aarch64")]
const ARGUMENT_REGISTERS: [u16; 4] = [0, 8, 16, 24];

const PAGE: u32 = 4096;
const LEAST_RING: u32 = 1 << 20;
/// Some 350 events with stacks.
const RARE_BYTES: u32 = 1 << 18;

#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error("maps cannot be made: {0}")]
    Object(String),
    #[error("no program {0} in the object")]
    NoProgram(&'static str),
    #[error("no map {0} in the object")]
    NoMap(&'static str),
    #[error("kernel BTF cannot be read: {0}")]
    Btf(String),
    #[error("the kernel refused the program{of}: {why}")]
    Refused { of: String, why: String },
    #[error("it cannot be attached{of}: {why}")]
    Attach { of: String, why: String },
    #[error("setting {0}: {1}")]
    Live(String, io::Error),
    #[error("map {0}: {1}")]
    Map(&'static str, io::Error),
}

/// The kernel's types for programs that are checked against them: parsed when first needed, and kept for as long as
/// programs are loaded, as they take some 30 MB.
#[derive(Default)]
pub(super) struct KernelTypes(OnceCell<Result<aya::Btf, String>>);

impl KernelTypes {
    fn get(&self) -> Result<&aya::Btf, LoadError> {
        self.0
            .get_or_init(|| aya::Btf::from_sys_fs().map_err(|error| chain(&error)))
            .as_ref()
            .map_err(|why| LoadError::Btf(why.clone()))
    }
}

/// The loaded object. Dropping it detaches everything.
pub(crate) struct Object {
    ebpf: Ebpf,
    cpus: usize,
}

impl Object {
    /// Makes the maps. No program is loaded yet.
    pub(super) fn new(btf: &BtfFacts, settings: &Settings) -> Result<Self, LoadError> {
        let fields: Vec<(&str, [u8; 8])> = btf.fields.iter().map(|(name, field)| (*name, bytes(field))).collect();
        let mut loader = EbpfLoader::new();
        // No relocations are asked for, so the kernel's types need not be parsed for them.
        loader.btf(None);
        for (name, field) in &fields {
            loader.override_global(name, field.as_slice(), false);
        }
        for (name, number) in &btf.arguments {
            loader.override_global(name, number, false);
        }
        for (name, value) in &settings.globals {
            loader.override_global(name, value.as_slice(), true);
        }
        for (name, value) in &settings.common {
            loader.override_global(name, value.as_slice(), false);
        }
        for (name, entries) in &settings.maps {
            loader.map_max_entries(name, *entries);
        }
        let ebpf = loader.load(OBJECT).map_err(|error| LoadError::Object(chain(&error)))?;
        let cpus = aya::util::nr_cpus().map_err(|(what, error)| LoadError::Object(format!("{what}: {error}")))?;
        Ok(Self { ebpf, cpus })
    }

    /// Loads the step's programs and attaches them: all, or none stays.
    pub(super) fn attach(&mut self, step: &Step, types: &KernelTypes) -> Result<(), LoadError> {
        for (at, hook) in step.hooks.iter().enumerate() {
            let several = if step.hooks.len() > 1 {
                format!(" {}", hook.0)
            } else {
                String::new()
            };
            if let Err(error) = self.attach_one(hook, &several, types) {
                for hook in &step.hooks[..=at] {
                    self.unload(hook);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    fn attach_one(&mut self, hook: &Hook, of: &str, types: &KernelTypes) -> Result<(), LoadError> {
        let Hook(name, at) = *hook;
        let refused = |error: ProgramError| LoadError::Refused {
            of: of.to_owned(),
            why: refusal(&error),
        };
        let attach = |error: ProgramError| LoadError::Attach {
            of: of.to_owned(),
            why: chain(&error),
        };
        let program = self.ebpf.program_mut(name).ok_or(LoadError::NoProgram(name))?;
        match (program, at) {
            (Program::BtfTracePoint(program), Attach::TpBtf(tracepoint)) => {
                let types = types.get()?;
                patiently(|| program.load(tracepoint, types)).map_err(refused)?;
                program.attach().map(drop).map_err(attach)
            }
            (Program::RawTracePoint(program), Attach::RawTracepoint(tracepoint)) => {
                patiently(|| program.load()).map_err(refused)?;
                program.attach(tracepoint).map(drop).map_err(attach)
            }
            (Program::FEntry(program), Attach::Fentry(functions)) => {
                let types = types.get()?;
                first(functions, |function| patiently(|| program.load(function, types))).map_err(refused)?;
                program.attach().map(drop).map_err(attach)
            }
            (Program::FExit(program), Attach::Fexit(functions)) => {
                let types = types.get()?;
                first(functions, |function| patiently(|| program.load(function, types))).map_err(refused)?;
                program.attach().map(drop).map_err(attach)
            }
            (Program::KProbe(program), Attach::Kprobe(functions) | Attach::Kretprobe(functions)) => {
                patiently(|| program.load()).map_err(refused)?;
                first(functions, |function| program.attach(function, 0).map(drop)).map_err(attach)
            }
            (Program::SchedClassifier(program), Attach::Tcx | Attach::Clsact) => {
                patiently(|| program.load()).map_err(refused)
            }
            _ => Err(LoadError::NoProgram(name)),
        }
    }

    /// Detaches a program and lets it go, if it was loaded.
    fn unload(&mut self, hook: &Hook) {
        // An error means that there was nothing to let go.
        let _ = match self.ebpf.program_mut(hook.0) {
            Some(Program::BtfTracePoint(program)) => program.unload(),
            Some(Program::RawTracePoint(program)) => program.unload(),
            Some(Program::FEntry(program)) => program.unload(),
            Some(Program::FExit(program)) => program.unload(),
            Some(Program::KProbe(program)) => program.unload(),
            Some(Program::SchedClassifier(program)) => program.unload(),
            _ => Ok(()),
        };
    }

    /// Changes what may change while programs run. With the error: what could not be changed.
    pub(super) fn set_live(&self, config: &Config) -> Result<(), LoadError> {
        for (name, value) in live(config) {
            let Some(fd) = self
                .ebpf
                .map(&format!(".data.{name}"))
                .and_then(|map| Some(data(map)?.fd()))
            else {
                continue;
            };
            let written = match *value.as_slice() {
                [a, b, c, d] => RawMap::new(fd.as_fd(), 1).and_then(|map| map.set(&0u32, &[a, b, c, d], BPF_ANY)),
                ref eight => {
                    let number = u64::read_from_bytes(eight).expect("settings have four or eight bytes");
                    RawMap::new(fd.as_fd(), 1).and_then(|map| map.set(&0u32, &number, BPF_ANY))
                }
            };
            written.map_err(|error| LoadError::Live(name, error))?;
        }
        Ok(())
    }

    pub(super) fn detach(&mut self, step: &Step) {
        for hook in step.hooks {
            self.unload(hook);
        }
    }

    /// Lets go of what only loading needed, and of the maps of probes that do not run, whose programs cannot be loaded after.
    pub(super) fn done(&mut self, running: &HashSet<&'static str>) {
        for probe in probes::ALL.iter().filter(|probe| !running.contains(probe.spec.name)) {
            for (name, _) in probe.maps {
                drop(self.ebpf.take_map(name));
            }
        }
        // SAFETY: malloc_trim takes no pointers and may be called at any time.
        #[cfg(target_env = "gnu")]
        unsafe {
            libc::malloc_trim(0);
        }
    }

    /// Whether the program was loaded: then it is attached.
    pub(super) fn runs(&self, name: &str) -> bool {
        self.fd(name).is_ok()
    }

    /// Of a loaded program.
    fn fd(&self, name: &str) -> io::Result<BorrowedFd<'_>> {
        let fd = match self.ebpf.program(name) {
            Some(Program::BtfTracePoint(program)) => program.fd(),
            Some(Program::RawTracePoint(program)) => program.fd(),
            Some(Program::FEntry(program)) => program.fd(),
            Some(Program::FExit(program)) => program.fd(),
            Some(Program::KProbe(program)) => program.fd(),
            Some(Program::SchedClassifier(program)) => program.fd(),
            _ => return Err(io::Error::other("no such program")),
        };
        Ok(fd.map_err(io::Error::other)?.as_fd())
    }

    /// Counters of the step's programs, added up.
    pub(super) fn counters(&self, step: &Step) -> io::Result<ProgramCounters> {
        let mut sum = ProgramCounters::default();
        for Hook(name, _) in step.hooks {
            let one = program_counters(self.fd(name)?)?;
            sum.misses += one.misses;
            sum.runs += one.runs;
            sum.run_time_ns += one.run_time_ns;
        }
        Ok(sum)
    }

    /// Whether a program for devices was loaded.
    pub(super) fn is_for_devices(&self) -> bool {
        let loaded = |program: &Program| matches!(program, Program::SchedClassifier(program) if program.fd().is_ok());
        self.ebpf.programs().any(|(_, program)| loaded(program))
    }

    /// A program for devices, to attach it; `None`: it was not loaded.
    pub(super) fn for_devices(&self, name: &'static str) -> Option<OwnedFd> {
        let Some(Program::SchedClassifier(program)) = self.ebpf.program(name) else {
            return None;
        };
        program.fd().ok()?.as_fd().try_clone_to_owned().ok()
    }

    /// The map of that name. Its types are the probe's word.
    pub(super) fn map<K, V>(&self, name: &'static str) -> Result<RawMap<K, V>, LoadError>
    where
        K: FromBytes + IntoBytes + Immutable + Copy,
        V: FromBytes + IntoBytes + Immutable + Copy,
    {
        let map = self.ebpf.map(name).ok_or(LoadError::NoMap(name))?;
        let copies = match map {
            Map::PerCpuHashMap(_) | Map::PerCpuArray(_) | Map::PerCpuLruHashMap(_) => self.cpus,
            _ => 1,
        };
        let fd: BorrowedFd<'_> = data(map).ok_or(LoadError::NoMap(name))?.fd().as_fd();
        RawMap::new(fd, copies).map_err(|error| LoadError::Map(name, error))
    }

    /// A ring, once.
    pub(super) fn take_ring(&mut self, name: &'static str) -> Result<RingBuf<MapData>, LoadError> {
        let map = self.ebpf.take_map(name).ok_or(LoadError::NoMap(name))?;
        RingBuf::try_from(map).map_err(|error| LoadError::Object(chain(&error)))
    }

    /// Memory of all maps, as the kernel tells it.
    pub(super) fn map_bytes(&self) -> u64 {
        let fds = self.ebpf.maps().filter_map(|(_, map)| Some(data(map)?.fd().as_fd()));
        fds.filter_map(|fd| memlock(&std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).ok()?))
            .sum()
    }
}

/// The line `memlock:` of a map, in bytes.
fn memlock(fdinfo: &str) -> Option<u64> {
    let line = fdinfo.lines().find_map(|line| line.strip_prefix("memlock:"))?;
    line.trim().parse().ok()
}

fn data(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::PerCpuHashMap(data)
        | Map::PerCpuLruHashMap(data)
        | Map::RingBuf(data) => Some(data),
        _ => None,
    }
}

/// The verifier leaves off with EAGAIN when a signal waits for the thread: that says nothing about the program.
fn patiently(mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    const TRIES: usize = 5;
    let mut result = load();
    for _ in 1..TRIES {
        match &result {
            Err(ProgramError::LoadError { io_error, .. }) if io_error.raw_os_error() == Some(libc::EAGAIN) => {
                result = load();
            }
            _ => break,
        }
    }
    result
}

/// The first function that this kernel has and permits; else why not the first that it has.
fn first(
    functions: &[&'static str],
    mut try_one: impl FnMut(&'static str) -> Result<(), ProgramError>,
) -> Result<(), ProgramError> {
    let mut result = Ok(());
    for function in functions {
        match try_one(function) {
            Ok(()) => return Ok(()),
            // That the kernel has no function of that name says less than why it does not take another.
            Err(ProgramError::Btf(_)) if result.is_err() => {}
            Err(error) if result.is_ok() || matches!(result, Err(ProgramError::Btf(_))) => result = Err(error),
            Err(_) => {}
        }
    }
    result
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

#[cfg(test)]
mod memory;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_word_on_a_maps_memory_is_read() {
        assert_eq!(memlock("pos:\t0\nmemlock:\t1048576\nfrozen:\t0\n"), Some(1_048_576));
        assert_eq!(memlock("pos:\t0\n"), None);
    }

    /// One that is a constant would hold what it was at the start, and nobody would know.
    #[test]
    fn what_may_change_while_programs_run_is_no_constant_of_theirs() {
        let object = aya_obj::Object::parse(OBJECT).unwrap();
        let has = |section: &str, name: &str| object.maps.contains_key(&format!(".{section}.{name}"));
        let names: Vec<String> = live(&Config::default()).into_iter().map(|(name, _)| name).collect();
        let changeable: Vec<_> = names.iter().filter(|name| has("data", name)).collect();
        assert!(
            changeable.iter().any(|name| *name == "KERNELLATENCY_THRESHOLD_NS"),
            "{changeable:?}"
        );
        for name in names {
            assert!(
                !has("rodata", &name) && !has("bss", &name),
                "{name} must be in section .data.{name}"
            );
        }
    }

    /// Also where the kernel has nothing to attach them to.
    #[test]
    fn the_verifier_takes_every_program_for_kprobes() {
        let config = Config::default();
        let (facts, btf) = super::super::facts::gather(&config);
        let Ok(btf_facts) = &facts.btf else {
            println!("SKIPPED: no BTF");
            return;
        };
        let mut settings = Settings::new(&config, &facts, probes::ALL, 1);
        let symbols = std::sync::Arc::new(super::super::symbols::Symbols::new(&config.host.proc));
        for probe in probes::ALL {
            let (setup, _) = super::super::engine::set_up(probe, &config, None, btf.as_ref(), &symbols);
            settings.add(setup.globals);
        }
        let mut object = match Object::new(btf_facts, &settings) {
            Ok(object) => object,
            Err(error) => {
                println!("SKIPPED: {error}");
                return;
            }
        };
        for hook in probes::signals()
            .flat_map(|signal| signal.steps)
            .flat_map(|step| step.hooks)
        {
            if !matches!(hook.1, Attach::Kprobe(_) | Attach::Kretprobe(_)) {
                continue;
            }
            let Some(Program::KProbe(program)) = object.ebpf.program_mut(hook.0) else {
                panic!("no program {} for a kprobe", hook.0);
            };
            match program.load() {
                Ok(()) => {}
                Err(ProgramError::LoadError { io_error, verifier_log }) if verifier_log.to_string().is_empty() => {
                    println!("SKIPPED: {}: {io_error}", hook.0);
                }
                Err(error) => panic!("{}: {}", hook.0, chain(&error)),
            }
        }
    }

    #[test]
    fn a_load_that_a_signal_broke_off_is_tried_again_and_no_other() {
        let tries = |errno: i32, good_after: usize| {
            let mut tried = 0;
            let result = patiently(|| {
                tried += 1;
                if tried > good_after {
                    return Ok(());
                }
                Err(ProgramError::LoadError {
                    io_error: io::Error::from_raw_os_error(errno),
                    verifier_log: aya_obj::VerifierLog::new(String::new()),
                })
            });
            (tried, result.is_ok())
        };
        assert_eq!(tries(libc::EAGAIN, 2), (3, true));
        assert_eq!(tries(libc::EAGAIN, 9), (5, false));
        assert_eq!(tries(libc::EACCES, 2), (1, false));
    }

    #[test]
    fn of_several_names_the_first_that_works_is_taken() {
        let tried = std::cell::RefCell::new(Vec::new());
        let attempt = |good: &'static str| {
            tried.borrow_mut().clear();
            first(&["a", "b", "c"], |name| {
                tried.borrow_mut().push(name);
                if name == good {
                    Ok(())
                } else {
                    Err(ProgramError::NotLoaded)
                }
            })
        };
        assert!(attempt("b").is_ok());
        assert_eq!(*tried.borrow(), ["a", "b"]);
        assert!(attempt("x").is_err());
        assert_eq!(*tried.borrow(), ["a", "b", "c"]);
        let unknown = |name: &str| {
            let type_name = name.to_owned();
            ProgramError::Btf(aya_obj::btf::BtfError::UnknownBtfTypeName { type_name })
        };
        for refused in ["a", "b"] {
            let result = first(&["a", "b"], |name| {
                Err(if name == refused {
                    ProgramError::NotLoaded
                } else {
                    unknown(name)
                })
            });
            assert!(matches!(result, Err(ProgramError::NotLoaded)), "{refused}: {result:?}");
        }
    }
}
