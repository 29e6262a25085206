//! What this host permits and has, read once at start. Deciding is for `plan`.

use std::path::{Path, PathBuf};

use serde::Serialize;
use sonde_common::config::{Config, Switch};
use sonde_ebpf_common::fields::{ARGUMENTS, FIELDS, Field, NO_ARGUMENT};

use super::btf::{Btf, Kind, resolve_argument, resolve_field};
use super::plan::Attach;
use super::probes;

/// "Could not tell" is not "no".
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Answer {
    Yes,
    /// With the reason.
    No(String),
    /// With what stood in the way of knowing.
    Unknown(String),
}

/// Linux version, for what no file tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Release(pub u32, pub u32);

/// Capabilities that matter here, by number in `linux/capability.h`.
pub(super) const CAP_NET_ADMIN: u32 = 12;
pub(super) const CAP_SYS_ADMIN: u32 = 21;
pub(super) const CAP_SYS_RESOURCE: u32 = 24;
pub(super) const CAP_SYSLOG: u32 = 34;
pub(super) const CAP_PERFMON: u32 = 38;
pub(super) const CAP_BPF: u32 = 39;

pub(super) const CAPABILITIES: [(u32, &str); 6] = [
    (CAP_BPF, "BPF"),
    (CAP_PERFMON, "PERFMON"),
    (CAP_SYS_ADMIN, "SYS_ADMIN"),
    (CAP_SYSLOG, "SYSLOG"),
    (CAP_NET_ADMIN, "NET_ADMIN"),
    (CAP_SYS_RESOURCE, "SYS_RESOURCE"),
];

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Facts {
    pub release_text: String,
    /// `None`: the text could not be read as a version.
    pub release: Option<Release>,
    /// Effective set of this thread; `None`: could not be read.
    pub capabilities: Option<u64>,
    /// Where member offsets come from, or why there are none.
    pub btf: Result<BtfFacts, String>,
    /// Whether the kernel itself has BTF, which `tp_btf` programs are checked against.
    pub kernel_btf: Answer,
    /// Whether the kernel was built with kprobes. Whether it takes programs at functions by type (fentry) is told by
    /// trying only.
    pub kprobes: Answer,
    /// Confidentiality forbids reading kernel memory from programs.
    pub lockdown: Answer,
    /// Whether programs are compiled.
    pub jit: Answer,
    /// Whether memory for maps is not bounded by RLIMIT_MEMLOCK; matters below 5.11 only.
    pub memlock: Answer,
    /// Whether a network device of this host is virtio-net's.
    pub virtio_net: Answer,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct BtfFacts {
    pub path: PathBuf,
    pub types: usize,
    /// Of those that signals hook, the ones that this kernel has.
    pub tracepoints: Vec<&'static str>,
    pub functions: Vec<&'static str>,
    /// Fields and arguments by symbol, as the programs get them.
    #[serde(skip)]
    pub fields: Vec<(&'static str, Field)>,
    #[serde(skip)]
    pub arguments: Vec<(&'static str, u32)>,
    /// Symbols of what this kernel does not have, and why.
    pub absent: Vec<(&'static str, String)>,
}

impl Facts {
    pub(super) fn has(&self, capability: u32) -> Option<bool> {
        self.capabilities.map(|set| set >> capability & 1 != 0)
    }
}

/// Reads the host. Also gives the BTF that was read, for the names of drop reasons.
pub(super) fn gather(config: &Config) -> (Facts, Option<Btf>) {
    let (proc, sys) = (&config.host.proc, &config.host.sys);
    let kernel_path = sys.join("kernel/btf/vmlinux");
    let release_text = first_line(&proc.join("sys/kernel/osrelease")).unwrap_or_default();
    let off = config.kernel.ebpf == Switch::Off;
    let (btf, parsed) = match off {
        true => (Err("not looked for: kernel.ebpf is off".to_owned()), None),
        false => match read_btf(&config.kernel.btf_path, &kernel_path) {
            Ok((path, btf)) => (Ok(describe(path, &btf)), Some(btf)),
            Err(why) => (Err(why), None),
        },
    };
    let facts = Facts {
        release: parse_release(&release_text),
        release_text,
        capabilities: std::fs::read_to_string("/proc/thread-self/status")
            .ok()
            .and_then(|text| parse_capabilities(&text)),
        btf,
        kernel_btf: match kernel_path.try_exists() {
            Ok(true) => Answer::Yes,
            Ok(false) => Answer::No(format!("{} does not exist", kernel_path.display())),
            Err(error) => Answer::Unknown(format!("{}: {error}", kernel_path.display())),
        },
        kprobes: kprobes(&sys.join("bus/event_source/devices")),
        lockdown: parse_lockdown(first_line(&sys.join("kernel/security/lockdown"))),
        jit: parse_jit(first_line(&proc.join("sys/net/core/bpf_jit_enable"))),
        memlock: if off {
            Answer::Unknown("not tried".into())
        } else {
            raise_memlock()
        },
        virtio_net: virtio_net(&sys.join("bus/virtio/drivers/virtio_net")),
    };
    (facts, parsed)
}

/// The driver's directory has a link for each of its devices.
fn virtio_net(driver: &Path) -> Answer {
    match std::fs::read_dir(driver) {
        Ok(entries) => {
            let mut names = entries.filter_map(|entry| Some(entry.ok()?.file_name()));
            match names.any(|name| name.as_encoded_bytes().starts_with(b"virtio")) {
                true => Answer::Yes,
                false => Answer::No("no virtio-net device".into()),
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Answer::No("no virtio-net device".into()),
        Err(error) => Answer::Unknown(format!("{}: {error}", driver.display())),
    }
}

fn first_line(path: &Path) -> Result<String, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// A file that was named is taken or nothing is: another kernel's offsets would read wrong memory.
fn read_btf(named: &Path, kernel: &Path) -> Result<(PathBuf, Btf), String> {
    let path = if named.as_os_str().is_empty() { kernel } else { named };
    let bytes = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let btf = Btf::parse(bytes).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok((path.to_owned(), btf))
}

fn describe(path: PathBuf, btf: &Btf) -> BtfFacts {
    let mut absent = Vec::new();
    let fields = FIELDS.iter().map(|decl| {
        let field = resolve_field(btf, decl).unwrap_or_else(|why| {
            absent.push((decl.symbol, why.to_string()));
            Field::ABSENT
        });
        (decl.symbol, field)
    });
    let fields = fields.collect();
    let arguments = ARGUMENTS.iter().map(|decl| {
        let number = resolve_argument(btf, decl).unwrap_or_else(|why| {
            absent.push((decl.symbol, why.to_string()));
            NO_ARGUMENT
        });
        (decl.symbol, number)
    });
    let arguments = arguments.collect();
    let hooks = || {
        probes::signals()
            .flat_map(|signal| signal.steps)
            .flat_map(|step| step.hooks)
    };
    let mut tracepoints: Vec<&'static str> = hooks()
        .filter_map(|hook| match hook.1 {
            Attach::TpBtf(name) | Attach::RawTracepoint(name) => Some(name),
            _ => None,
        })
        .collect();
    let mut functions: Vec<&'static str> = hooks()
        .flat_map(|hook| match hook.1 {
            Attach::Fentry(names) | Attach::Fexit(names) => names,
            _ => &[],
        })
        .copied()
        .collect();
    for names in [&mut tracepoints, &mut functions] {
        names.sort_unstable();
        names.dedup();
    }
    tracepoints.retain(|name| btf.tracepoint(name).is_some());
    functions.retain(|name| btf.find(Kind::Function, name).is_some());
    BtfFacts {
        path,
        types: btf.len(),
        tracepoints,
        functions,
        fields,
        arguments,
        absent,
    }
}

/// Every kernel that this runs on shows its kprobes as a device of perf events (since Linux 4.17).
fn kprobes(devices: &Path) -> Answer {
    match (devices.try_exists(), devices.join("kprobe").try_exists()) {
        (_, Ok(true)) => Answer::Yes,
        (Ok(true), Ok(false)) => Answer::No(format!(
            "the kernel has no kprobes: {} does not exist",
            devices.join("kprobe").display()
        )),
        (_, Err(error)) => Answer::Unknown(format!("{}: {error}", devices.display())),
        _ => Answer::Unknown(format!("{} does not exist", devices.display())),
    }
}

/// Whether the running kernel is that version or a later one. One that does not tell is none.
pub(crate) fn is_since(proc: &Path, major: u32, minor: u32) -> bool {
    let text = first_line(&proc.join("sys/kernel/osrelease")).unwrap_or_default();
    parse_release(&text).is_some_and(|release| release >= Release(major, minor))
}

fn parse_release(text: &str) -> Option<Release> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some(Release(numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn parse_capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// `none [integrity] confidentiality`: the one in brackets is in force.
fn parse_lockdown(line: Result<String, String>) -> Answer {
    match line {
        Ok(line) if line.contains("[confidentiality]") => {
            Answer::No("lockdown is at confidentiality: programs may not read kernel memory".into())
        }
        Ok(line) if line.contains("[none]") || line.contains("[integrity]") => Answer::Yes,
        Ok(line) => Answer::Unknown(format!("lockdown says {line:?}")),
        Err(why) => Answer::Unknown(why),
    }
}

fn parse_jit(line: Result<String, String>) -> Answer {
    match line.as_deref().map(str::trim) {
        Ok("1" | "2") => Answer::Yes,
        Ok("0") => Answer::No("net.core.bpf_jit_enable is 0: programs are interpreted".into()),
        Ok(other) => Answer::Unknown(format!("net.core.bpf_jit_enable is {other:?}")),
        Err(_) => Answer::Unknown(line.err().unwrap_or_default()),
    }
}

fn raise_memlock() -> Answer {
    use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
    match setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY) {
        Ok(()) => Answer::Yes,
        Err(error) => {
            let now = getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(soft, _)| soft);
            Answer::No(format!("RLIMIT_MEMLOCK stays at {now} bytes ({error})"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_its_first_two_numbers() {
        assert_eq!(parse_release("6.18.44-fc-v595"), Some(Release(6, 18)));
        assert_eq!(parse_release("5.10-generic"), Some(Release(5, 10)));
        assert!(parse_release("6.12.117+deb13") > Some(Release(6, 9)));
        assert_eq!(parse_release("linux"), None);
        assert_eq!(parse_release(""), None);
    }

    #[test]
    fn capabilities_are_the_effective_ones() {
        let status = "CapPrm:\t000001ffffffffff\nCapEff:\t000000c000000000\nCapBnd:\t000001ffffffffff\n";
        let set = parse_capabilities(status).unwrap();
        assert_eq!(
            (set >> CAP_BPF & 1, set >> CAP_PERFMON & 1, set >> CAP_SYS_ADMIN & 1),
            (1, 1, 0)
        );
        assert_eq!(parse_capabilities("Name:\tx\n"), None);
        assert_eq!(parse_capabilities("CapEff:\tzz\n"), None);
    }

    #[test]
    fn lockdown_forbids_only_at_confidentiality_and_an_unreadable_file_forbids_nothing() {
        assert_eq!(
            parse_lockdown(Ok("none [integrity] confidentiality".into())),
            Answer::Yes
        );
        assert!(matches!(
            parse_lockdown(Ok("none integrity [confidentiality]".into())),
            Answer::No(_)
        ));
        assert!(matches!(
            parse_lockdown(Err("lockdown: not found".into())),
            Answer::Unknown(_)
        ));
        assert!(matches!(parse_lockdown(Ok("?".into())), Answer::Unknown(_)));
    }

    #[test]
    fn kprobes_are_missing_only_where_other_devices_are_seen() {
        let sys = tempfile::tempdir().unwrap();
        let devices = sys.path().join("devices");
        assert!(matches!(kprobes(&devices), Answer::Unknown(_)));
        std::fs::create_dir_all(devices.join("software")).unwrap();
        assert!(matches!(kprobes(&devices), Answer::No(_)));
        std::fs::create_dir(devices.join("kprobe")).unwrap();
        assert_eq!(kprobes(&devices), Answer::Yes);
    }

    #[test]
    fn a_named_file_that_is_no_btf_is_not_replaced_by_the_kernels() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("btf");
        std::fs::write(&path, b"nonsense").unwrap();
        let why = read_btf(&path, Path::new("/sys/kernel/btf/vmlinux")).err().unwrap();
        assert!(why.contains("not BTF") && why.contains("btf"), "{why}");
    }
}
