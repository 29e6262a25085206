//! The programs under measurement: started in a folder of their own on free ports, ended when dropped.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Folder with the built programs.
pub(crate) fn bin_dir() -> PathBuf {
    std::env::var_os("SONDE_BIN_DIR").map_or_else(|| PathBuf::from("target/release"), PathBuf::from)
}

pub(crate) fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?)
}

pub(crate) struct Program {
    child: Child,
    name: &'static str,
    pub(crate) http: SocketAddr,
}

impl Program {
    /// Starts `sonde-aggregator serve` or `sonde-collector run` and waits until it says that it is ready.
    pub(crate) fn start(
        name: &'static str,
        subcommand: &str,
        http: SocketAddr,
        dir: &Path,
        env: &[(&str, String)],
    ) -> anyhow::Result<Self> {
        let mut command = Command::new(bin_dir().join(name));
        command.arg(subcommand).envs(env.iter().map(|(k, v)| (k, v.as_str())));
        Self::run(name, command, http, dir).context("`make build` makes it")
    }

    /// The same for any program that says so at `/-/ready`.
    pub(crate) fn run(name: &'static str, mut command: Command, http: SocketAddr, dir: &Path) -> anyhow::Result<Self> {
        let log = std::fs::File::create(dir.join(format!("{name}.log")))?;
        // Also where this is ended in the middle of a measurement. From the main thread only: it ends with the one that started it.
        //
        // SAFETY: one system call, which may be made between fork and exec.
        unsafe {
            command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGTERM)?));
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let mut program = Self { child, name, http };
        for _ in 0..600 {
            if let Some(status) = program.child.try_wait()? {
                bail!(
                    "{name} ended: {status}\n{}",
                    std::fs::read_to_string(dir.join(format!("{name}.log")))?
                );
            }
            if crate::http::get(http, "/-/ready").is_ok_and(|answer| answer.status == 200) {
                return Ok(program);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        bail!("{name} did not get ready within a minute")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory in bytes.
    pub(crate) fn resident(&self) -> anyhow::Result<u64> {
        resident(self.pid())
    }

    /// The most it ever had, in bytes.
    pub(crate) fn highest(&self) -> anyhow::Result<u64> {
        memory(self.pid(), "VmHWM:")
    }

    /// From here on [`Self::highest`] is about what comes.
    pub(crate) fn forget_highest(&self) -> anyhow::Result<()> {
        Ok(std::fs::write(format!("/proc/{}/clear_refs", self.pid()), "5")?)
    }

    /// User and system time so far.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        cpu(self.pid())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may be gone already; then there is nothing to end.
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        if let Err(error) = self.child.wait() {
            eprintln!("{}: {error}", self.name);
        }
    }
}

pub(crate) fn resident(pid: u32) -> anyhow::Result<u64> {
    memory(pid, "VmRSS:")
}

fn memory(pid: u32, key: &str) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|l| l.strip_prefix(key))
        .with_context(|| format!("no {key}"))?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

pub(crate) fn cpu(pid: u32) -> anyhow::Result<Duration> {
    ticks(pid, 2)
}

/// With that of its children that ended.
pub(crate) fn cpu_with_children(pid: u32) -> anyhow::Result<Duration> {
    ticks(pid, 4)
}

/// utime, stime, cutime, cstime: the first so many of these.
fn ticks(pid: u32, fields: usize) -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = &stat[stat.rfind(')').context("no name")? + 2..];
    let times = after_name.split(' ').skip(11).take(fields).map(str::parse::<u64>);
    // USER_HZ is 100 in the kernel's interface, whatever HZ is.
    Ok(Duration::from_millis(times.sum::<Result<u64, _>>()? * 10))
}

/// Processes whose ancestor is `pid`, itself left out.
pub(crate) fn descendants(pid: u32) -> Vec<u32> {
    let mut all = Vec::new();
    let mut parents = vec![pid];
    while let Some(parent) = parents.pop() {
        let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
        let threads = std::fs::read_dir(format!("/proc/{parent}/task"))
            .into_iter()
            .flatten()
            .flatten();
        let of_threads: String = threads
            .filter(|t| t.file_name() != *parent.to_string())
            .filter_map(|t| std::fs::read_to_string(t.path().join("children")).ok())
            .collect();
        for child in children
            .split_whitespace()
            .chain(of_threads.split_whitespace())
            .filter_map(|c| c.parse().ok())
        {
            all.push(child);
            parents.push(child);
        }
    }
    all
}
