//! One place where Sonde runs: a data folder, free ports, a configuration that sees only one lab's pods.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use sonde_lab::Lab;
use sonde_lab::wait::{Look, until};
use tempfile::TempDir;

use crate::http;
use crate::process::{Process, command};

/// How long anything may take before the test says that it does not come. Generous: it only bounds a failure.
pub const LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Site {
    pub lab: Lab,
    pub http: SocketAddr,
    pub grpc: SocketAddr,
    pub collector_http: SocketAddr,
    pub node: String,
    pub config: PathBuf,
    dir: TempDir,
}

impl Site {
    /// `events` is the YAML of the section `events` beside `unknown_netns`, such as `rate: 5, burst: 5`, or nothing.
    pub fn new(lab: &Lab, events: &str) -> Result<Self> {
        let dir = TempDir::with_prefix("sonde-e2e-")?;
        // The aggregator gives up root and must get to its part.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        let [http, grpc, collector_http] = free_ports()?;
        let node = format!("node-{}", lab.prefix());
        let config = dir.path().join("config.yaml");
        // Namespaces of other labs on this kernel are none of our business: unknown ones are dropped. A flood is to be told
        // whole, whatever it costs.
        let yaml = format!(
            "node: {{name: {node}}}\n\
             kernel: {{cpu_budget_percent: 0}}\n\
             pods: {{sources: [netns], netns: {{include: [\"{}\"]}}, include_host: false}}\n\
             events: {{unknown_netns: drop{}{events}}}\n\
             collector: {{interval: 1s}}\n",
            lab.glob(),
            if events.is_empty() { "" } else { ", " },
        );
        fs::write(&config, yaml)?;
        Ok(Self {
            lab: lab.clone(),
            http,
            grpc,
            collector_http,
            node,
            config,
            dir,
        })
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.log"))
    }

    /// `sonde up`, ready.
    pub fn up(&self) -> Result<Process> {
        let mut up = command("sonde")?;
        up.arg("up").arg("--data-dir").arg(self.data_dir());
        for (flag, address) in [
            ("--http", self.http),
            ("--grpc", self.grpc),
            ("--collector-http", self.collector_http),
        ] {
            up.arg(flag).arg(address.to_string());
        }
        up.arg("--config").arg(&self.config);
        let mut process = Process::start(&self.lab, "sonde up", up, &self.log("up"))?;
        self.await_ready(&mut process, self.http)?;
        self.await_ready(&mut process, self.collector_http)?;
        Ok(process)
    }

    /// The aggregator alone, not waited for.
    pub fn spawn_aggregator(&self) -> Result<Process> {
        let mut serve = command("sonde-aggregator")?;
        serve
            .arg("serve")
            .arg("--config")
            .arg(&self.config)
            .env("SONDE_AGGREGATOR_HTTP", self.http.to_string())
            .env("SONDE_AGGREGATOR_GRPC", self.grpc.to_string())
            .env("SONDE_AGGREGATOR_DATA_DIR", self.data_dir().join("aggregator"));
        Process::start(&self.lab, "sonde-aggregator", serve, &self.log("aggregator"))
    }

    /// The aggregator alone, ready.
    pub fn aggregator(&self) -> Result<Process> {
        let mut process = self.spawn_aggregator()?;
        self.await_ready(&mut process, self.http)?;
        Ok(process)
    }

    /// The collector alone, not waited for.
    pub fn spawn_collector(&self) -> Result<Process> {
        let mut run = command("sonde-collector")?;
        run.arg("run")
            .arg("--config")
            .arg(&self.config)
            .env("SONDE_COLLECTOR_HTTP", self.collector_http.to_string())
            .env("SONDE_COLLECTOR_AGGREGATOR", format!("http://{}", self.grpc))
            .env("SONDE_COLLECTOR_DATA_DIR", self.data_dir().join("collector"));
        Process::start(&self.lab, "sonde-collector", run, &self.log("collector"))
    }

    /// The collector alone, ready.
    pub fn collector(&self) -> Result<Process> {
        let mut process = self.spawn_collector()?;
        self.await_ready(&mut process, self.collector_http)?;
        Ok(process)
    }

    /// Until `/-/ready` says so. A process that ends meanwhile is an error with its log.
    pub fn await_ready(&self, process: &mut Process, address: SocketAddr) -> Result<()> {
        let mut end = None;
        until(&format!("{address}/-/ready"), LIMIT, || {
            end = process.ended().transpose();
            if end.is_some() {
                return Ok(Look::Found(()));
            }
            Ok(match http::get(address, "/-/ready", &[]) {
                Ok(response) if response.status == 200 => Look::Found(()),
                Ok(response) => Look::NotYet(response.body),
                Err(error) => Look::NotYet(format!("{error:#}")),
            })
        })
        .with_context(|| process.log())?;
        match end {
            None => Ok(()),
            Some(status) => bail!("ended before it was ready: {status:?}\n{}", process.log()),
        }
    }

    /// The end of every log, for a test that failed.
    pub fn logs(&self) -> String {
        const LAST: usize = 120;
        let mut all = String::new();
        for name in ["up", "aggregator", "collector"] {
            let Ok(text) = fs::read_to_string(self.log(name)) else {
                continue;
            };
            let lines: Vec<&str> = text.lines().collect();
            all.push_str(&format!("---- {name}: the last of {} lines ----\n", lines.len()));
            all.push_str(&lines[lines.len().saturating_sub(LAST)..].join("\n"));
            all.push('\n');
        }
        all
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
    }
}

/// Ports that are free now. They are held together, so they differ.
pub fn free_ports<const N: usize>() -> Result<[SocketAddr; N]> {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let listeners = (0..N).map(|_| TcpListener::bind(any)).collect::<Result<Vec<_>, _>>()?;
    let mut addresses = [any; N];
    for (address, listener) in addresses.iter_mut().zip(&listeners) {
        *address = listener.local_addr()?;
    }
    Ok(addresses)
}
