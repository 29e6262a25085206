//! Keeps the postmaster running: starts it, starts it again when it dies, ends it.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use parking_lot::{Condvar, Mutex};

use super::binaries::Binaries;
use super::complaint::Complaint;
use super::layout::{self, Paths};
use super::user::RunAs;
use super::{EmbeddedError, Options, initdb, predecessor};

/// Settings that differ from the server's defaults, sized for one machine that does other work too.
const SETTINGS: [(&str, &str); 14] = [
    ("listen_addresses", ""),
    ("unix_socket_permissions", "0700"),
    ("max_connections", "60"),
    ("shared_buffers", "128MB"),
    ("wal_compression", "on"),
    ("max_wal_size", "2GB"),
    ("checkpoint_timeout", "15min"),
    // A query over a parent locks every partition and each of its indexes.
    ("max_locks_per_transaction", "512"),
    ("jit", "off"),
    ("timezone", "UTC"),
    ("log_timezone", "UTC"),
    ("log_destination", "stderr"),
    ("log_line_prefix", ""),
    ("lc_messages", "C"),
];

/// A server that dies more often than this is given time.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Supervisor {
    shared: Arc<Shared>,
    data: PathBuf,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    complaint: Complaint,
}

#[derive(Debug, Default)]
struct State {
    /// The postmaster, from its start until it is reaped: as long as it is here the number is not reused.
    pid: Option<u32>,
    stopping: bool,
}

/// All that is needed to start the server again.
struct Recipe {
    program: PathBuf,
    paths: Paths,
    arguments: Vec<String>,
    run_as: Option<RunAs>,
}

impl Supervisor {
    /// Returns once the server takes connections, or with what keeps it from that: it is tried again as long as this lives.
    pub(super) fn start(
        binaries: &Binaries,
        layout: &Paths,
        options: &Options,
    ) -> Result<(Self, Result<(), EmbeddedError>), EmbeddedError> {
        let mut arguments = vec!["-D".to_owned(), layout.data.display().to_string()];
        let ours = SETTINGS.iter().map(|(key, value)| (*key, (*value).to_owned()));
        let socket = [
            ("unix_socket_directories", layout.socket_dir.display().to_string()),
            ("port", layout::PORT.to_string()),
        ];
        for (key, value) in ours.chain(socket).chain(options.settings.iter().cloned()) {
            arguments.extend(["-c".to_owned(), format!("{key}={value}")]);
        }
        let recipe = Recipe {
            program: binaries.program("postgres"),
            paths: layout.clone(),
            arguments,
            run_as: options.run_as.clone(),
        };
        let shared = Arc::new(Shared::default());
        let (report, first) = mpsc::channel();
        // A thread of its own: the parent death signal follows the thread that started the child, not the process.
        let thread = std::thread::Builder::new()
            .name("postgres".into())
            .spawn({
                let shared = Arc::clone(&shared);
                move || supervise(&recipe, &shared, report)
            })
            .map_err(EmbeddedError::io("start a thread for", &layout.data))?;
        let supervisor = Self {
            shared,
            data: layout.data.clone(),
            thread: Some(thread),
        };
        let first = first.recv().unwrap_or_else(|_| {
            Err(EmbeddedError::Failed {
                program: "postgres",
                why: "its supervisor ended".into(),
            })
        });
        Ok((supervisor, first))
    }

    pub(super) fn complaint(&self) -> Complaint {
        self.shared.complaint.clone()
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.shared.state.lock().pid
    }

    pub(super) fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        {
            let mut state = self.shared.state.lock();
            state.stopping = true;
            if let Some(pid) = state.pid {
                let _ = kill(Pid::from_raw(pid as i32), Signal::SIGINT);
            }
            self.shared.changed.notify_all();
        }
        while !thread.is_finished() {
            if predecessor::recovers(&self.data)
                && let Some(pid) = self.shared.state.lock().pid
            {
                let _ = kill(Pid::from_raw(pid as i32), Signal::SIGQUIT);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = thread.join();
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.end();
    }
}

/// Runs the server until it is to stop. How the first start went is reported: whoever started it may give it up then.
fn supervise(recipe: &Recipe, shared: &Shared, report: mpsc::Sender<Result<(), EmbeddedError>>) {
    let mut report = Some(report);
    loop {
        let outcome = run_once(recipe, shared, &mut report);
        if shared.state.lock().stopping {
            return;
        }
        match (outcome, report.take()) {
            (Ok(status), None) => tracing::error!(%status, "postgresql ended by itself, starting it again"),
            (Err(e), None) => tracing::error!(error = %e, "postgresql does not start, trying again"),
            (Err(e), Some(report)) => {
                let _ = report.send(Err(e));
            }
            (Ok(status), Some(report)) => {
                let why = format!("it ended at once ({status})");
                let _ = report.send(Err(EmbeddedError::Failed {
                    program: "postgres",
                    why,
                }));
            }
        }
        let mut state = shared.state.lock();
        if !state.stopping {
            shared.changed.wait_for(&mut state, RESTART_PAUSE);
        }
        drop(state);
        if let Err(e) = predecessor::settle(&recipe.paths) {
            tracing::error!(error = %e, "processes of the postgresql that ended are still there");
        }
    }
}

/// Starts the server, waits until it is ready, says so, and waits until it ends.
fn run_once(
    recipe: &Recipe,
    shared: &Shared,
    report: &mut Option<mpsc::Sender<Result<(), EmbeddedError>>>,
) -> Result<std::process::ExitStatus, EmbeddedError> {
    let mut child = {
        let mut state = shared.state.lock();
        if state.stopping {
            return Ok(std::process::ExitStatus::default());
        }
        let child = spawn(recipe)?;
        state.pid = Some(child.id());
        child
    };
    let tail = Arc::new(Mutex::new(String::new()));
    let stderr = child.stderr.take().expect("stderr is piped");
    let log = std::thread::spawn({
        let (tail, complaint) = (Arc::clone(&tail), shared.complaint.clone());
        move || forward_log(stderr, &tail, &complaint)
    });
    let ready = wait_until_ready(&recipe.paths.data, child.id());
    if ready && let Some(report) = report.take() {
        let _ = report.send(Ok(()));
    }
    // Without reaping: until `pid` is cleared, `stop` may send a signal to this number.
    let _ = waitid(
        Id::Pid(Pid::from_raw(child.id() as i32)),
        WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT,
    );
    shared.state.lock().pid = None;
    let status = child.wait().map_err(EmbeddedError::io("wait for", &recipe.program))?;
    if !ready {
        // Nothing but the server itself has run, so its end closes the pipe.
        let _ = log.join();
        let why = initdb::reason(&tail.lock());
        shared.complaint.set(why.clone());
        return Err(EmbeddedError::Failed {
            program: "postgres",
            why,
        });
    }
    Ok(status)
}

fn spawn(recipe: &Recipe) -> Result<Child, EmbeddedError> {
    let mut command = Command::new(&recipe.program);
    command
        .args(&recipe.arguments)
        .current_dir(&recipe.paths.data)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // Ctrl-C in a terminal goes to the whole group; the server must outlive the last write.
        .process_group(0);
    as_user(&mut command, recipe.run_as.as_ref());
    die_with_parent(&mut command);
    command.spawn().map_err(EmbeddedError::io("run", &recipe.program))
}

/// The environment must not reconfigure the server (`PGDATA`, `PGPORT`, ...), and no rights may be left over.
pub(super) fn as_user<'a>(command: &'a mut Command, run_as: Option<&RunAs>) -> &'a mut Command {
    command.env_clear().envs([
        ("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"),
        ("LC_ALL", "C"),
        ("TZ", "UTC"),
    ]);
    if let Some(user) = run_as {
        // The standard library drops supplementary groups too when root sets the user.
        command.uid(user.uid).gid(user.gid);
    }
    command
}

/// SIGINT is the server's fast shutdown: clients are disconnected, a checkpoint is written.
fn die_with_parent(command: &mut Command) {
    let parent = std::process::id();
    let arm = move || {
        nix::sys::prctl::set_pdeathsig(Signal::SIGINT)?;
        if nix::unistd::getppid().as_raw() as u32 != parent {
            return Err(std::io::Error::from_raw_os_error(libc::ESRCH));
        }
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe calls are made: prctl, getppid; the error path does not
    // allocate before the child gives up.
    unsafe { command.pre_exec(arm) };
}

/// The server writes its state into line 8 of its pid file; `false` when it ended before.
fn wait_until_ready(data: &Path, pid: u32) -> bool {
    let file = data.join("postmaster.pid");
    let (started, mut said) = (Instant::now(), Instant::now());
    loop {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let mut lines = text.lines();
        let ours = lines.next().and_then(|l| l.trim().parse().ok()) == Some(pid);
        if ours && lines.nth(6).is_some_and(|state| state.trim() == "ready") {
            return true;
        }
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
        let status = waitid(Id::Pid(Pid::from_raw(pid as i32)), flags);
        if !matches!(status, Ok(nix::sys::wait::WaitStatus::StillAlive)) {
            return false;
        }
        if said.elapsed() > Duration::from_secs(10) {
            said = Instant::now();
            tracing::info!(
                seconds = started.elapsed().as_secs(),
                "postgresql is still starting (recovery)"
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

const SESSION_ENDED: &str = "terminating connection due to administrator command";

/// The server's log, line by line into ours; the last of it is kept for an error message.
fn forward_log(stderr: ChildStderr, tail: &Mutex<String>, complaint: &Complaint) {
    const KEEP: usize = 16 << 10;
    for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        let (level, message) = line.split_once(":  ").unwrap_or(("", &line));
        complaint.hear(level, message);
        match level {
            // Whoever ends a session knows: we at our own end, or an administrator.
            "FATAL" if message.starts_with(SESSION_ENDED) => tracing::debug!(target: "postgresql", "{message}"),
            "FATAL" | "PANIC" => tracing::error!(target: "postgresql", "{message}"),
            "ERROR" | "WARNING" => tracing::warn!(target: "postgresql", "{message}"),
            _ => tracing::debug!(target: "postgresql", "{line}"),
        }
        let mut tail = tail.lock();
        if tail.len() + line.len() < KEEP {
            tail.push_str(&line);
            tail.push('\n');
        }
    }
}
