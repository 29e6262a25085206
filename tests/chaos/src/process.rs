//! A child that ends with this process, its output at the end of a file.

use std::fs::File;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A program that was built beside this one, or lies in `SONDE_BIN_DIR`, without what this environment would tell it.
pub fn command(program: &str) -> anyhow::Result<Command> {
    let beside = std::env::current_exe()?
        .parent()
        .context("this program has no folder")?
        .to_owned();
    let dir = std::env::var_os("SONDE_BIN_DIR").map_or(beside, PathBuf::from);
    let path = dir.join(program);
    anyhow::ensure!(
        path.exists(),
        "{} does not exist: `make build`, or set SONDE_BIN_DIR",
        path.display()
    );
    let mut command = Command::new(path);
    for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("SONDE_")) {
        command.env_remove(key);
    }
    Ok(command)
}

#[derive(Debug)]
pub struct Process {
    child: Child,
    pub stdin: Option<ChildStdin>,
    log: PathBuf,
}

impl Process {
    /// From the main thread only: the child ends with the thread that started it.
    pub fn start(mut command: Command, log: &Path) -> anyhow::Result<Self> {
        let output = File::options().create(true).append(true).open(log)?;
        command.stdin(Stdio::piped()).stdout(output.try_clone()?).stderr(output);
        // SAFETY: prctl is async-signal-safe, and nothing else is done between fork and exec.
        unsafe {
            command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?));
        }
        let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        Ok(Self {
            stdin: child.stdin.take(),
            child,
            log: log.to_owned(),
        })
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// SIGKILL, and gone.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM, and how it ended.
    pub fn terminate(&mut self) -> anyhow::Result<ExitStatus> {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM)?;
        Ok(self.child.wait()?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program of ours that ended so has a fault in it: by a panic, or by a signal that nobody sent.
pub fn is_fault(status: ExitStatus) -> bool {
    status.code() == Some(101) || status.signal().is_some()
}
