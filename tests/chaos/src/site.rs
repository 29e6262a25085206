//! PostgreSQL, an aggregator and nodes, each with a way to it that can be cut. What ends is started again.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use sonde_aggregator::embedded::{Cluster, Options, user};
use tempfile::TempDir;

use crate::disk::Disk;
use crate::node::Status;
use crate::process::{Process, command, is_fault};
use crate::relay::Relay;

/// Only bounds a failure.
pub const PATIENCE: Duration = Duration::from_secs(180);
/// Between two looks.
pub const LOOK: Duration = Duration::from_millis(20);
/// Before a program that ended by itself is started again, as a supervisor does.
const AGAIN: Duration = Duration::from_millis(200);
const NODES: usize = 2;
/// Of a spool: small enough to overflow in a moment.
const SPOOL_BYTES: u64 = 2 << 20;
const SPOOL_DISK_MIB: u64 = 8;
/// More than the longest run stores.
const POSTGRES_DISK_MIB: u64 = 8192;

#[derive(Debug)]
pub struct Site {
    cluster: Option<Cluster>,
    aggregator: Process,
    pub nodes: Vec<Node>,
    http: SocketAddr,
    grpc: SocketAddr,
    /// Of PostgreSQL, where this process may mount.
    pub disk: Option<Disk>,
    /// What ended although nobody ended it.
    pub faults: Vec<String>,
    /// How often a program ended by itself, as it may when it cannot start.
    pub gave_up: usize,
    dir: TempDir,
}

#[derive(Debug)]
pub struct Node {
    pub name: String,
    process: Process,
    pub relay: Relay,
    pub disk: Option<Disk>,
    status: PathBuf,
    pub journal: PathBuf,
}

impl Node {
    /// What it says of itself; `None` before it said anything.
    pub fn status(&self) -> Option<Status> {
        Status::read(&self.status)
    }

    /// The process may be gone, then nobody hears it.
    pub fn say(&mut self, word: &str) {
        if let Some(stdin) = &mut self.process.stdin {
            let _ = writeln!(stdin, "{word}");
        }
    }
}

impl Site {
    /// `disks`: file systems of their own that can be filled.
    pub fn start(disks: bool) -> anyhow::Result<Self> {
        let dir = TempDir::with_prefix("sonde-chaos-")?;
        // Others than root have to get in.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755))?;
        let database = dir.path().join("database");
        let disk = disks.then(|| Disk::new(&database, POSTGRES_DISK_MIB)).transpose()?;
        let cluster = Cluster::start(Options {
            data_dir: database,
            run_as: user::is_root().then(|| user::choose("")).transpose()?,
            settings: vec![
                ("shared_buffers", "32MB".into()),
                ("min_wal_size", "32MB".into()),
                ("max_wal_size", "64MB".into()),
            ],
        })?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime
            .block_on(cluster.ensure_database("sonde"))
            .context("making the database")?;
        let (http, grpc) = free_ports()?;
        let aggregator = Process::start(aggregator(&cluster, http, grpc)?, &dir.path().join("aggregator.log"))?;
        let mut site = Self {
            cluster: Some(cluster),
            aggregator,
            nodes: Vec::new(),
            http,
            grpc,
            disk,
            faults: Vec::new(),
            gave_up: 0,
            dir,
        };
        for number in 0..NODES {
            let node = site.node(number, disks)?;
            site.nodes.push(node);
        }
        Ok(site)
    }

    fn node(&self, number: usize, disks: bool) -> anyhow::Result<Node> {
        let name = format!("node-{number}");
        let home = self.dir.path().join(&name);
        let disk = disks
            .then(|| Disk::new(&home.join("disk"), SPOOL_DISK_MIB))
            .transpose()?;
        std::fs::create_dir_all(home.join("disk"))?;
        let relay = Relay::start(self.grpc)?;
        let process = Process::start(node_command(&home, &name, relay.address)?, &home.join("log"))?;
        Ok(Node {
            process,
            relay,
            disk,
            status: home.join("status"),
            journal: home.join("journal"),
            name,
        })
    }

    pub fn cluster(&self) -> &Cluster {
        self.cluster.as_ref().expect("there until the end")
    }

    pub fn kill_node(&mut self, number: usize) -> anyhow::Result<()> {
        self.nodes[number].process.kill()?;
        self.start_node(number)
    }

    fn start_node(&mut self, number: usize) -> anyhow::Result<()> {
        let home = self.dir.path().join(&self.nodes[number].name);
        let node = &mut self.nodes[number];
        node.process = Process::start(node_command(&home, &node.name, node.relay.address)?, &home.join("log"))?;
        Ok(())
    }

    pub fn kill_aggregator(&mut self) -> anyhow::Result<()> {
        self.aggregator.kill()?;
        self.start_aggregator()
    }

    fn start_aggregator(&mut self) -> anyhow::Result<()> {
        let command = aggregator(self.cluster(), self.http, self.grpc)?;
        self.aggregator = Process::start(command, &self.dir.path().join("aggregator.log"))?;
        Ok(())
    }

    /// Starts again what ended by itself.
    pub fn tend(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.aggregator.ended()? {
            self.ended("aggregator", status);
            self.start_aggregator()?;
        }
        for number in 0..self.nodes.len() {
            if let Some(status) = self.nodes[number].process.ended()? {
                let name = self.nodes[number].name.clone();
                self.ended(&name, status);
                self.start_node(number)?;
            }
        }
        Ok(())
    }

    fn ended(&mut self, what: &str, status: std::process::ExitStatus) {
        if is_fault(status) {
            self.faults.push(format!("{what}: {status}"));
        }
        self.gave_up += 1;
        std::thread::sleep(AGAIN);
    }

    pub fn until(
        &mut self,
        what: &str,
        mut condition: impl FnMut(&mut Self) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self)? {
            if Instant::now() > deadline {
                bail!("{what}: not within {PATIENCE:?}\n{}", self.logs());
            }
            self.tend()?;
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    pub fn sleep(&mut self, time: Duration) -> anyhow::Result<()> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.tend()?;
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Everything that nodes made is stored or given up, and they have ended in order.
    pub fn finish(&mut self) -> anyhow::Result<()> {
        for number in 0..self.nodes.len() {
            self.nodes[number].say("finish");
            let deadline = Instant::now() + PATIENCE;
            loop {
                match self.nodes[number].process.ended()? {
                    Some(status) if status.success() => break,
                    Some(status) => bail!("node {number} ended with {status}\n{}", self.logs()),
                    None if Instant::now() > deadline => bail!("node {number} does not drain\n{}", self.logs()),
                    None => std::thread::sleep(LOOK),
                }
                if let Some(status) = self.aggregator.ended()? {
                    self.ended("aggregator", status);
                    self.start_aggregator()?;
                }
            }
        }
        Ok(())
    }

    /// The aggregator in order, then the database.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        let status = self.aggregator.terminate()?;
        if !status.success() {
            bail!("the aggregator ended with {status}\n{}", self.logs());
        }
        if let Some(cluster) = self.cluster.take() {
            cluster.stop();
        }
        self.look_for_panics();
        Ok(())
    }

    fn look_for_panics(&mut self) {
        let logs = std::iter::once(("aggregator".to_owned(), self.aggregator.log()))
            .chain(self.nodes.iter().map(|node| (node.name.clone(), node.process.log())));
        let told: Vec<String> = logs
            .flat_map(|(name, log)| {
                let panics: Vec<String> = log
                    .lines()
                    .filter(|line| line.contains("panicked at"))
                    .map(|line| format!("{name}: {line}"))
                    .collect();
                panics
            })
            .collect();
        self.faults.extend(told);
    }

    /// The end of every log.
    pub fn logs(&self) -> String {
        let end = |name: &str, log: String| {
            let lines: Vec<&str> = log.lines().collect();
            format!(
                "---- {name} ----\n{}\n",
                lines[lines.len().saturating_sub(25)..].join("\n")
            )
        };
        let nodes = self.nodes.iter().map(|node| end(&node.name, node.process.log()));
        std::iter::once(end("aggregator", self.aggregator.log()))
            .chain(nodes)
            .collect()
    }

    /// Where everything is, kept when a run failed.
    pub fn keep(self) -> PathBuf {
        self.dir.keep()
    }
}

/// Two that are free now; held together, they differ.
fn free_ports() -> anyhow::Result<(SocketAddr, SocketAddr)> {
    let [a, b] = [
        TcpListener::bind(("127.0.0.1", 0))?,
        TcpListener::bind(("127.0.0.1", 0))?,
    ];
    Ok((a.local_addr()?, b.local_addr()?))
}

fn aggregator(cluster: &Cluster, http: SocketAddr, grpc: SocketAddr) -> anyhow::Result<Command> {
    let mut serve = command("sonde-aggregator")?;
    let socket = cluster.socket_dir().display();
    serve
        .arg("serve")
        .env("SONDE_AGGREGATOR_HTTP", http.to_string())
        .env("SONDE_AGGREGATOR_GRPC", grpc.to_string())
        .env(
            "SONDE_STORAGE_DATABASE_URL",
            format!("postgres://sonde@localhost/sonde?host={socket}"),
        )
        .env("RUST_BACKTRACE", "1");
    Ok(serve)
}

fn node_command(home: &std::path::Path, name: &str, relay: SocketAddr) -> anyhow::Result<Command> {
    let program = std::env::current_exe()?.with_file_name("sonde-chaos-node");
    let mut node = Command::new(&program);
    node.args(["--name", name])
        .args(["--max-bytes", &SPOOL_BYTES.to_string()])
        .args(["--aggregator", &format!("http://{relay}")])
        .arg("--spool")
        .arg(home.join("disk/spool"))
        .arg("--journal")
        .arg(home.join("journal"))
        .arg("--status")
        .arg(home.join("status"))
        .env("RUST_BACKTRACE", "1");
    if !program.exists() {
        bail!("{} does not exist", program.display());
    }
    Ok(node)
}

/// Numbers of client connections' processes of a postmaster.
pub fn backends(postmaster: u32) -> Vec<u32> {
    let children =
        std::fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children")).unwrap_or_default();
    let is_backend = |pid: &u32| {
        let title = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        title.starts_with("postgres: sonde ")
    };
    children
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .filter(is_backend)
        .collect()
}
