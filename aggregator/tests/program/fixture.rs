//! The program in a directory of its own, with ports that the kernel picks.

use std::fs::Permissions;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sqlx::postgres::{PgConnectOptions, PgPool};
use tempfile::TempDir;

/// Long enough for any machine; a test that waits so long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A directory that another user may pass.
pub(crate) fn directory() -> TempDir {
    let dir = tempfile::Builder::new().prefix("sonde-program-").tempdir().unwrap();
    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    dir
}

/// `sonde-aggregator ...` with a data directory, on ports of the kernel's choice, and nothing of our environment.
pub(crate) fn command(data_dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sonde-aggregator"));
    command
        .args(arguments)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("SONDE_AGGREGATOR_DATA_DIR", data_dir)
        .env("SONDE_AGGREGATOR_HTTP", "127.0.0.1:0")
        .env("SONDE_AGGREGATOR_GRPC", "127.0.0.1:0")
        .stdin(Stdio::null());
    command
}

/// How it refuses to run: the code, and what it says, without log lines.
pub(crate) fn refusal(command: &mut Command) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = command.output().unwrap();
    let stderr = String::from_utf8(stderr).unwrap();
    let said: Vec<&str> = stderr.lines().filter(|l| l.starts_with("sonde-aggregator: ")).collect();
    assert_eq!(said.len(), 1, "expected one clear line: {stderr}");
    assert_eq!(stderr.lines().last(), Some(said[0]), "and nothing after it: {stderr}");
    (status.code(), said[0].to_owned())
}

/// The running program.
pub(crate) struct Program {
    child: Child,
    pub(crate) data_dir: PathBuf,
    pub(crate) http: SocketAddr,
    pub(crate) grpc: SocketAddr,
}

impl Program {
    pub(crate) fn start(data_dir: &Path) -> Self {
        Self::spawn(data_dir, &mut command(data_dir, &["serve"]))
    }

    /// Returns when it says that it is ready, or that it serves without its database.
    pub(crate) fn spawn(data_dir: &Path, command: &mut Command) -> Self {
        Self::spawn_read(data_dir, command, true)
    }

    /// The same; nobody reads what it says from then on, as after `sonde-aggregator serve 2>&1 | head`.
    pub(crate) fn start_unread(data_dir: &Path) -> Self {
        Self::spawn_read(data_dir, &mut command(data_dir, &["serve"]), false)
    }

    fn spawn_read(data_dir: &Path, command: &mut Command, to_the_end: bool) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let stderr = child.stderr.take().unwrap();
        let (lines, said) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                // Nobody listens any more once it is ready; the pipe must be emptied all the same, or be closed.
                if lines.send(line).is_err() && !to_the_end {
                    return;
                }
            }
        });
        let deadline = Instant::now() + PATIENCE;
        let mut log = Vec::new();
        let ready = loop {
            match said.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line)
                    if line.contains("aggregator is ready")
                        || line.contains("aggregator serves without its database") =>
                {
                    break line;
                }
                Ok(line) => log.push(line),
                Err(_) => {
                    let _ = child.kill();
                    panic!("it does not become ready: {log:#?}");
                }
            }
        };
        let address = |key: &str| {
            let text = ready
                .split(key)
                .nth(1)
                .and_then(|t| t.split_whitespace().next())
                .unwrap();
            text.parse().unwrap_or_else(|e| panic!("{key} in {ready:?}: {e}"))
        };
        Self {
            child,
            data_dir: data_dir.to_owned(),
            http: address("http="),
            grpc: address("grpc="),
        }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// SIGKILL, and gone.
    pub(crate) fn kill(self) {
        self.signal(Signal::SIGKILL);
        self.reap();
    }

    /// It was killed.
    pub(crate) fn reap(mut self) {
        self.wait();
        // Its database may still be ending: that is the next one's to see to.
        std::mem::forget(self);
    }

    /// SIGTERM, and it ends well.
    pub(crate) fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.wait();
        assert!(status.success(), "{status}");
    }

    pub(crate) fn postmaster(&self) -> Option<Pid> {
        postmaster(&self.data_dir)
    }

    /// The private database.
    pub(crate) fn database(&self) -> PgPool {
        let socket = self.data_dir.join("postgres/run");
        let options = PgConnectOptions::new_without_pgpass()
            .socket(socket)
            .username("sonde")
            .database("sonde");
        PgPool::connect_lazy_with(options)
    }

    /// Asks whether it is ready until the answer is this status; what it says then.
    pub(crate) fn ready(&self, expected: u16) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (status, said) = self.get("/-/ready");
            if status == expected {
                return said;
            }
            assert!(Instant::now() < deadline, "expected {expected}: {said}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Status and body of a GET.
    pub(crate) fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.http).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let host = self.http;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer
            .split(' ')
            .nth(1)
            .and_then(|s| s.parse().ok())
            .unwrap_or_else(|| panic!("{answer:?}"));
        (
            status,
            answer
                .split_once("\r\n\r\n")
                .map(|(_, body)| body.to_owned())
                .unwrap_or_default(),
        )
    }
}

impl Drop for Program {
    /// A test that failed leaves nothing running.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(pid) = self.postmaster() {
            gone(pid);
        }
    }
}

pub(crate) fn postmaster(data_dir: &Path) -> Option<Pid> {
    let text = std::fs::read_to_string(data_dir.join("postgres/data/postmaster.pid")).ok()?;
    text.lines().next()?.parse().ok().map(Pid::from_raw)
}

/// Waits until there is no such process.
pub(crate) fn gone(pid: Pid) {
    let deadline = Instant::now() + PATIENCE;
    while kill(pid, None).is_ok() {
        assert!(Instant::now() < deadline, "process {pid} does not end");
        std::thread::sleep(Duration::from_millis(20));
    }
}
