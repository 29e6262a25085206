//! What the host lets the probes of `/proc` read, for `sonde-collector doctor`. The kernel side tells of its own.

use std::fmt;
use std::fs::File;
use std::os::fd::AsFd as _;

use serde::Serialize;
use sonde_common::config::{Config, PodSource};

use crate::kernel::{self, DoctorReport};
use crate::netlink::route::RouteSocket;
use crate::pods::{cri, netns};
use crate::probes::{PROBES, PROCESS_PROBES, ProcessRegistration};
use crate::procfs::process::Processes;

/// Everything `doctor` says.
#[derive(Debug, Serialize)]
pub struct Report {
    #[serde(flatten)]
    kernel: DoctorReport,
    /// Probes of `/proc`.
    probes: Vec<ProbeLine>,
    /// Whether network namespaces other than the own one can be entered.
    namespaces: String,
    /// The container runtime that pods are asked of.
    runtime: String,
}

#[derive(Debug, Serialize)]
struct ProbeLine {
    name: &'static str,
    /// `procfs` or `netlink`; absent: off.
    #[serde(skip_serializing_if = "Option::is_none")]
    rung: Option<&'static str>,
    state: String,
}

/// Reads the host and tries what the configuration asks for. Changes nothing that stays.
pub fn doctor(config: &Config) -> Report {
    Report {
        kernel: kernel::doctor(config),
        probes: probes(config),
        namespaces: entering(config),
        runtime: runtime(config),
    }
}

fn probes(config: &Config) -> Vec<ProbeLine> {
    let paths = config.host.paths();
    let line = |probe: &crate::probes::Registration| {
        let name = probe.spec.name;
        if !config.is_enabled(name, true) {
            return ProbeLine {
                name,
                rung: None,
                state: "switched off by the configuration".to_owned(),
            };
        }
        let missing: Vec<String> = probe
            .files
            .iter()
            .filter_map(|file| Some(format!("{}: {}", file.name(), File::open(file.path(&paths)).err()?)))
            .chain(
                probe
                    .netlink
                    .iter()
                    .filter(|family| family.may_be_asked(&paths))
                    .filter_map(|family| Some(format!("{}: {}", family.name(), family.open().err()?))),
            )
            .collect();
        let wanted = probe.files.len() + probe.netlink.len();
        let all_missing = wanted > 0 && missing.len() == wanted;
        let state = if missing.is_empty() {
            "reads".to_owned()
        } else {
            missing.join("; ")
        };
        ProbeLine {
            name,
            rung: (!all_missing).then_some(if probe.netlink.is_empty() { "procfs" } else { "netlink" }),
            state,
        }
    };
    let processes = PROCESS_PROBES.iter().map(|probe| of_processes(config, probe));
    PROBES.iter().map(line).chain(processes).collect()
}

/// Tried on the processes that are there now: their files are not for everybody to read.
fn of_processes(config: &Config, probe: &ProcessRegistration) -> ProbeLine {
    /// More of them would tell the same.
    const MOST: usize = 1000;
    let name = probe.spec.name;
    let off = |state: String| ProbeLine {
        name,
        rung: None,
        state,
    };
    if !config.is_enabled(name, true) {
        return off("switched off by the configuration".to_owned());
    }
    let files = Processes::new(config.host.proc.clone());
    let pids = match files.all() {
        Ok(pids) => pids,
        Err(error) => return off(error.to_string()),
    };
    let read = |pid: &u32| {
        let path = config.host.proc.join(format!("{pid}/{}", probe.file));
        if path.is_dir() {
            std::fs::read_dir(path).map(drop)
        } else {
            std::fs::read(path).map(drop)
        }
    };
    let results: Vec<_> = pids.iter().take(MOST).map(read).collect();
    let denied = |result: &&std::io::Result<()>| matches!(result, Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied);
    let denied = results.iter().filter(denied).count();
    if !results.iter().any(Result::is_ok) {
        let why = results.into_iter().find_map(Result::err);
        return off(why.map_or("no processes".to_owned(), |error| error.to_string()));
    }
    ProbeLine {
        name,
        rung: Some("procfs"),
        state: match denied {
            0 => "reads".to_owned(),
            denied => format!(
                "reads, but of {denied} of {} processes not (needs CAP_SYS_PTRACE)",
                results.len()
            ),
        },
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.kernel)?;
        for line in &self.probes {
            writeln!(f, "{:<20} {:<16} {}", line.name, line.rung.unwrap_or("off"), line.state)?;
        }
        writeln!(f, "\n{:<20} {}", "network namespaces", self.namespaces)?;
        writeln!(f, "{:<20} {}", "container runtime", self.runtime)
    }
}

fn runtime(config: &Config) -> String {
    if !config.pods.sources.contains(&PodSource::Cri) {
        return "not asked: `pods.sources` has no `cri`".to_owned();
    }
    let settings = cri::Settings::of(config);
    // On a thread of its own: this may be one that runs tasks already.
    let told = std::thread::spawn(move || {
        let tasks = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok::<_, std::io::Error>(tasks.block_on(cri::tell(&settings)))
    });
    match told.join() {
        Ok(Ok(told)) => told,
        Ok(Err(error)) => error.to_string(),
        Err(_) => "could not tell".to_owned(),
    }
}

/// Whether this process may enter another network namespace: tried on its own, which needs the same rights.
fn entering(config: &Config) -> String {
    let own = config.host.paths().proc.join("thread-self/ns/net");
    let entered = std::thread::spawn(move || {
        let file = File::open(own)?;
        netns::enter(file.as_fd())
    });
    match entered.join() {
        Ok(Ok(())) => {
            let cookie = RouteSocket::open().map_or(0, |socket| socket.netns_cookie());
            match cookie {
                0 => "entered; told apart by inode and time (no SO_NETNS_COOKIE, Linux 5.14)".to_owned(),
                _ => "entered; told apart by cookie".to_owned(),
            }
        }
        Ok(Err(error)) => format!("cannot be entered, only the own one is read: {error} (needs CAP_SYS_ADMIN)"),
        Err(_) => "could not tell".to_owned(),
    }
}
