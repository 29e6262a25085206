//! A collector without an aggregator, run by a file, that sees the pods of one lab.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use sonde_lab::Lab;

const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) struct Running {
    child: Child,
    pub(crate) http: SocketAddr,
    pub(crate) dir: tempfile::TempDir,
}

impl Running {
    /// Ready. `more` is YAML behind what every such collector has; `{dir}` in it is a folder of its own.
    pub(crate) fn start(lab: &Lab, more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.yaml"), yaml(lab, dir.path(), more)).unwrap();
        Self::start_with(lab, dir, "config.yaml")
    }

    /// With a file that is there, below `dir`.
    pub(crate) fn start_with(lab: &Lab, dir: tempfile::TempDir, file: &str) -> Self {
        let log = dir.path().join("log");
        let config = dir.path().join(file);
        let child = sonde_lab::apart(move || {
            Command::new(env!("CARGO_BIN_EXE_sonde-collector"))
                .args(["run", "--config"])
                .arg(config)
                .env_clear()
                .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")
                .env("SONDE_TEST_TOKEN", "very-secret")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(File::create(log).unwrap())
                .spawn()
        });
        let child = child.unwrap().unwrap();
        lab.adopt(child.id()).unwrap();
        let mut running = Self {
            child,
            http: SocketAddr::from(([127, 0, 0, 1], 0)),
            dir,
        };
        until("the collector to be ready", || {
            let ended = running.child.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", running.log());
            // The child may not have begun.
            let log = std::fs::read_to_string(running.path("log")).unwrap_or_default();
            let (_, address) = log.split_once("collector serves http=")?;
            running.http = address.lines().next()?.trim().parse().ok()?;
            running.get("/-/ready").filter(|body| body == "ready\n")
        });
        running
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(self.http).ok()?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: x\r\n\r\n").ok()?;
        let mut answer = String::new();
        BufReader::new(stream).read_to_string(&mut answer).ok()?;
        Some(answer.split_once("\r\n\r\n")?.1.to_owned())
    }

    pub(crate) fn status(&self) -> Value {
        serde_json::from_str(&self.get("/status").unwrap()).unwrap()
    }

    /// The sum of all series of `/metrics` that begin with the name and hold each of `labels`.
    pub(crate) fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let page = self.get("/metrics").unwrap();
        let series = page.lines().filter(|line| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with(['{', ' '])) && labels.iter().all(|label| line.contains(label))
        });
        series
            .map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap())
            .sum()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// SIGTERM; whether it ended well.
    pub(crate) fn end(&mut self) -> bool {
        self.signal(Signal::SIGTERM);
        self.child.wait().unwrap().success()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}

/// What every such collector has, and `more`.
pub(crate) fn yaml(lab: &Lab, dir: &Path, more: &str) -> String {
    let dir = dir.display();
    format!(
        "node: {{name: alone}}\n\
         log: {{level: info}}\n\
         pods: {{sources: [netns], netns: {{include: [\"{}\"]}}, include_host: false}}\n\
         collector: {{http: \"127.0.0.1:0\", aggregator: none, data_dir: {dir}/data, interval: 200ms}}\n\
         {}",
        lab.glob(),
        more.replace("{dir}", &dir.to_string())
    )
}

/// Whole lines of a file, as JSON.
pub(crate) fn lines(path: &Path) -> Vec<Value> {
    let Ok(file) = File::open(path) else {
        return Vec::new();
    };
    let lines = BufReader::new(file).lines().map(Result::unwrap);
    lines.filter_map(|line| serde_json::from_str(&line).ok()).collect()
}
