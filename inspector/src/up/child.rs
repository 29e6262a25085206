//! One part as a child process: started beside this binary, in a process group of its own (Ctrl-C in the terminal
//! reaches only `sonde up`, which then ends the parts in order), and ended by the kernel should `sonde up` be killed.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Command;

use super::Failure;

/// A part that ran this long is healthy: its next start does not wait.
const HEALTHY: Duration = Duration::from_secs(60);

pub(super) struct Child {
    program: &'static str,
    subcommand: &'static str,
    config: Option<PathBuf>,
    env: Vec<(&'static str, String)>,
    process: Option<tokio::process::Child>,
    started: Instant,
    deaths: u32,
}

/// How a part ended.
pub(super) struct Ended {
    program: &'static str,
    status: Result<ExitStatus, std::io::Error>,
}

impl Ended {
    pub(super) fn code(&self) -> Option<i32> {
        self.status.as_ref().ok().and_then(ExitStatus::code)
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.status {
            Ok(status) => write!(f, "{} ended ({status})", self.program),
            Err(error) => write!(f, "{} cannot be watched: {error}", self.program),
        }
    }
}

impl Child {
    pub(super) fn new(
        program: &'static str,
        subcommand: &'static str,
        config: Option<&Path>,
        env: Vec<(&'static str, String)>,
    ) -> Self {
        let config = config.map(Path::to_owned);
        Self {
            program,
            subcommand,
            config,
            env,
            process: None,
            started: Instant::now(),
            deaths: 0,
        }
    }

    pub(super) fn program(&self) -> &'static str {
        self.program
    }

    pub(super) fn start(&mut self) -> Result<(), Failure> {
        let beside = std::env::current_exe()
            .ok()
            .and_then(|exe| Some(exe.parent()?.join(self.program)));
        let path = beside.filter(|path| path.exists()).ok_or_else(|| {
            Failure::new(format!(
                "{} is not beside this program: `make build` makes both",
                self.program
            ))
        })?;
        let mut command = Command::new(&path);
        command
            .arg(self.subcommand)
            .envs(self.env.iter().map(|(k, v)| (*k, v.as_str())))
            .process_group(0);
        if let Some(config) = &self.config {
            command.arg("--config").arg(config);
        }
        let parent = std::process::id();
        // SAFETY: between fork and exec only prctl, getppid and raise are called: all are async-signal-safe.
        unsafe {
            command.pre_exec(move || {
                nix::sys::prctl::set_pdeathsig(Signal::SIGTERM)?;
                // The parent may have died before the line above.
                if nix::unistd::getppid().as_raw().cast_unsigned() != parent {
                    nix::sys::signal::raise(Signal::SIGTERM)?;
                }
                Ok(())
            });
        }
        let process = command
            .spawn()
            .map_err(|e| Failure::new(format!("{}: {e}", path.display())))?;
        self.process = Some(process);
        self.started = Instant::now();
        Ok(())
    }

    /// Resolves when the process ends; never, while there is none.
    pub(super) async fn ended(&mut self) -> Ended {
        let Some(process) = &mut self.process else {
            return std::future::pending().await;
        };
        let status = process.wait().await;
        self.process = None;
        Ended {
            program: self.program,
            status,
        }
    }

    /// 1 s, 2 s, 4 s ... 30 s while it dies young.
    pub(super) fn next_pause(&mut self) -> Duration {
        if self.started.elapsed() > HEALTHY {
            self.deaths = 0;
        }
        let pause = Duration::from_secs(1 << self.deaths.min(5)).min(Duration::from_secs(30));
        self.deaths += 1;
        pause
    }

    /// SIGTERM, then SIGKILL when it takes longer than `patience`.
    pub(super) async fn stop(&mut self, patience: Duration) {
        let Some(process) = &mut self.process else { return };
        let Some(pid) = process.id().and_then(|id| i32::try_from(id).ok()) else {
            return;
        };
        // It may have ended by itself in the meantime.
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        if tokio::time::timeout(patience, process.wait()).await.is_err() {
            eprintln!(
                "sonde: {} did not end within {} s and is killed",
                self.program,
                patience.as_secs()
            );
            let _ = process.kill().await;
        }
        self.process = None;
    }
}
