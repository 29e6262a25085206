//! One of our programs as a child process, with its output in a file. Ended by its id only.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::unistd::Pid;
use sonde_lab::Lab;
use sonde_lab::wait::{Look, until};

/// An orderly end includes a checkpoint of PostgreSQL.
const END: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

/// Where `program` is, `sonde` for example.
pub fn binary(program: &str) -> Result<PathBuf> {
    let beside_tests = || -> Option<PathBuf> { Some(std::env::current_exe().ok()?.parent()?.parent()?.to_owned()) };
    let dir = match std::env::var_os("SONDE_BIN_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => beside_tests().context("this program has no path")?,
    };
    let path = dir.join(program);
    if !path.exists() {
        bail!("{} does not exist: `make build`, or set SONDE_BIN_DIR", path.display());
    }
    Ok(path)
}

/// One of our programs without what this environment would tell it.
pub fn command(program: &str) -> Result<Command> {
    let mut command = Command::new(binary(program)?);
    for (key, _) in std::env::vars_os() {
        if key.to_string_lossy().starts_with("SONDE_") || key == "NODE_NAME" {
            command.env_remove(&key);
        }
    }
    Ok(command)
}

impl Process {
    /// Starts it with its output at the end of `log`. Should this process be killed, the next lab ends it.
    pub fn start(lab: &Lab, name: &str, mut command: Command, log: &Path) -> Result<Self> {
        // A shell that runs the tests in the background has Ctrl-C ignored, and so would have what they start.
        //
        // SAFETY: one system call, which may be made between fork and exec, and no handler.
        unsafe {
            command.pre_exec(|| {
                signal(Signal::SIGINT, SigHandler::SigDfl)?;
                Ok(())
            });
        }
        // All that owns a descriptor of that thread also ends there.
        let child = sonde_lab::apart(move || -> Result<Child> {
            let output = File::options().create(true).append(true).open(log)?;
            command
                .stdin(Stdio::null())
                .stdout(output.try_clone()?)
                .stderr(output)
                .spawn()
                .with_context(|| format!("cannot start {command:?}"))
        })??;
        lab.adopt(child.id())?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
        })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// How it ended, `None` while it runs.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.ended()?.is_none() {
            kill(Pid::from_raw(self.child.id().cast_signed()), signal)?;
        }
        Ok(())
    }

    /// SIGTERM, and how it ended.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait()
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.wait()?;
        Ok(())
    }

    pub fn wait(&mut self) -> Result<ExitStatus> {
        let what = format!("{} (process {}) to end", self.name, self.child.id());
        let mut failure = None;
        let status = until(&what, END, || {
            Ok(match self.child.try_wait() {
                Ok(Some(status)) => Look::Found(Some(status)),
                Ok(None) => Look::NotYet("it runs".into()),
                Err(error) => {
                    failure = Some(error);
                    Look::Found(None)
                }
            })
        })?;
        match (status, failure) {
            (Some(status), _) => Ok(status),
            (None, error) => bail!("{what}: {error:?}"),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.terminate().is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// What a program that ends by itself said and how it ended.
pub fn output(mut command: Command) -> Result<(Option<i32>, String, String)> {
    let shown = format!("{command:?}");
    let output = sonde_lab::apart(move || command.stdin(Stdio::null()).output())?.context(shown)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status.code(), text(&output.stdout), text(&output.stderr)))
}
