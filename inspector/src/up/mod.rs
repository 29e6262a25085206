//! `sonde up`: private PostgreSQL + aggregator + collector of this host, in the foreground, ended in order.
//!
//! The parts are the same programs that a cluster runs, as child processes. The order of the end matters: first the
//! collector, which hands over what it still has, then the aggregator, which stores it.

mod child;
mod wait;

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use sonde_common::config::{self, Config};
use sonde_common::shutdown;

use child::{Child, Ended};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where everything is kept [default: /var/lib/sonde as root, else ~/.local/share/sonde]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Pages, federation, REST [default: 127.0.0.1:9640]
    #[arg(long, value_name = "ADDRESS")]
    http: Option<SocketAddr>,
    /// Where collectors connect [default: 127.0.0.1:9641]
    #[arg(long, value_name = "ADDRESS")]
    grpc: Option<SocketAddr>,
    /// The collector's own metrics and status [default: 127.0.0.1:9642]
    #[arg(long, value_name = "ADDRESS")]
    collector_http: Option<SocketAddr>,
    /// Configuration file (YAML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Exit codes: 0 ended as asked, 1 a part could not start or stay up, 2 bad configuration.
pub(crate) async fn run(args: Args) -> ExitCode {
    let config = match config::load(args.config.as_deref(), |key| std::env::var(key).ok()) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    match supervise(&args, config).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { message, code }) => {
            eprintln!("error: {message}");
            ExitCode::from(code)
        }
    }
}

/// What ends `sonde up` with an error: one clear line and the code of the part that failed.
struct Failure {
    message: String,
    code: u8,
}

impl Failure {
    fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            code: 1,
        }
    }
}

/// How long a part may take from signal to exit before it is killed.
const COLLECTOR_DRAIN: Duration = Duration::from_secs(10);
const AGGREGATOR_DRAIN: Duration = Duration::from_secs(30);

async fn supervise(args: &Args, config: Config) -> Result<(), Failure> {
    let layout = Layout::new(args, &config)?;
    let (trigger, mut stop) = shutdown::channel();
    shutdown::on_signals(trigger).map_err(|e| Failure::new(format!("cannot listen for signals: {e}")))?;

    let mut aggregator = Child::new(
        "sonde-aggregator",
        "serve",
        args.config.as_deref(),
        layout.aggregator_env(),
    );
    let mut collector = Child::new("sonde-collector", "run", args.config.as_deref(), layout.collector_env());
    let result = async {
        eprintln!("sonde: starting the aggregator (data in {})", layout.data_dir.display());
        aggregator.start()?;
        if !ready(&mut aggregator, layout.http, &mut stop).await? {
            return Ok(());
        }
        eprintln!("sonde: starting the collector of node {}", config.node.name);
        collector.start()?;
        if !ready(&mut collector, layout.collector_http, &mut stop).await? {
            return Ok(());
        }
        layout.announce();
        wait::say_what_is_off(layout.collector_http).await;
        keep_up(&mut aggregator, &mut collector, &mut stop).await
    }
    .await;

    eprintln!("sonde: ending");
    collector.stop(COLLECTOR_DRAIN).await;
    aggregator.stop(AGGREGATOR_DRAIN).await;
    result
}

/// True once the part answers; false when the user ended it first.
async fn ready(child: &mut Child, address: SocketAddr, stop: &mut shutdown::Shutdown) -> Result<bool, Failure> {
    let program = child.program();
    tokio::select! {
        () = stop.recv() => Ok(false),
        ended = child.ended() => Err(ended.into_failure()),
        () = wait::until_ready(program, address) => Ok(true),
    }
}

/// Starts a part again that died, later and later, until the user ends it all.
async fn keep_up(aggregator: &mut Child, collector: &mut Child, stop: &mut shutdown::Shutdown) -> Result<(), Failure> {
    loop {
        let (child, ended) = tokio::select! {
            () = stop.recv() => return Ok(()),
            ended = aggregator.ended() => (&mut *aggregator, ended),
            ended = collector.ended() => (&mut *collector, ended),
        };
        let pause = child.next_pause();
        eprintln!("sonde: {ended}, starting it again in {} s", pause.as_secs());
        tokio::select! {
            () = stop.recv() => return Ok(()),
            () = tokio::time::sleep(pause) => child.start()?,
        }
    }
}

/// Addresses and folders of this run.
struct Layout {
    data_dir: PathBuf,
    http: SocketAddr,
    grpc: SocketAddr,
    collector_http: SocketAddr,
}

impl Layout {
    fn new(args: &Args, config: &Config) -> Result<Self, Failure> {
        let data_dir = match &args.data_dir {
            Some(dir) => {
                std::path::absolute(dir).map_err(|e| Failure::new(format!("--data-dir {}: {e}", dir.display())))?
            }
            None => default_data_dir()?,
        };
        make_dir(&data_dir)?;
        Ok(Self {
            data_dir,
            http: free_port("--http", args.http.unwrap_or(config.aggregator.http))?,
            grpc: free_port("--grpc", args.grpc.unwrap_or(config.aggregator.grpc))?,
            collector_http: free_port("--collector-http", args.collector_http.unwrap_or(config.collector.http))?,
        })
    }

    fn aggregator_env(&self) -> Vec<(&'static str, String)> {
        vec![
            ("SONDE_AGGREGATOR_HTTP", self.http.to_string()),
            ("SONDE_AGGREGATOR_GRPC", self.grpc.to_string()),
            (
                "SONDE_AGGREGATOR_DATA_DIR",
                self.data_dir.join("aggregator").display().to_string(),
            ),
        ]
    }

    fn collector_env(&self) -> Vec<(&'static str, String)> {
        vec![
            ("SONDE_COLLECTOR_HTTP", self.collector_http.to_string()),
            ("SONDE_COLLECTOR_AGGREGATOR", format!("http://{}", self.grpc)),
            (
                "SONDE_COLLECTOR_DATA_DIR",
                self.data_dir.join("collector").display().to_string(),
            ),
        ]
    }

    fn announce(&self) {
        let Self {
            http,
            grpc,
            collector_http,
            data_dir,
        } = self;
        eprintln!(
            "sonde: ready\n\
             \x20 pages       http://{http}/\n\
             \x20 events      http://{http}/api/v1/events\n\
             \x20 federation  http://{http}/federate?match[]={{__name__=~\"sonde_.%2B\"}}\n\
             \x20 collectors  http://{grpc} (gRPC)\n\
             \x20 collector   http://{collector_http}/metrics and /status\n\
             \x20 data        {}\n\
             sonde: Ctrl-C ends it",
            data_dir.display()
        );
    }
}

fn default_data_dir() -> Result<PathBuf, Failure> {
    if nix::unistd::geteuid().is_root() {
        return Ok("/var/lib/sonde".into());
    }
    let base = std::env::var_os("XDG_DATA_HOME")
        .filter(|d| !d.is_empty())
        .map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/share"));
    base.or_else(home)
        .map(|dir| dir.join("sonde"))
        .ok_or_else(|| Failure::new("no HOME: name a folder with --data-dir"))
}

/// Others may pass through: below it the aggregator's part belongs to another user.
fn make_dir(dir: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::PermissionsExt as _;
    let fail = |e: std::io::Error| Failure::new(format!("--data-dir {}: {e}", dir.display()));
    std::fs::create_dir_all(dir).map_err(fail)?;
    let mode = std::fs::metadata(dir).map_err(fail)?.permissions().mode();
    if nix::unistd::geteuid().is_root() && mode & 0o011 != 0o011 {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode | 0o011)).map_err(fail)?;
    }
    Ok(())
}

/// The address with a port that is free now: port 0 becomes a real one, so that every part can be told the same number.
/// A port in use is found here, before anything starts: somebody else's answer on it must not pass for ours.
fn free_port(flag: &str, address: SocketAddr) -> Result<SocketAddr, Failure> {
    TcpListener::bind(address)
        .and_then(|listener| listener.local_addr())
        .map_err(|e| Failure::new(format!("{flag} {address}: cannot listen: {e}")))
}

impl Ended {
    fn into_failure(self) -> Failure {
        let code = self
            .code()
            .and_then(|code| u8::try_from(code).ok())
            .filter(|code| *code != 0)
            .unwrap_or(1);
        Failure {
            message: self.to_string(),
            code,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_zero_becomes_a_real_port_and_a_port_in_use_is_said() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        assert_ne!(free_port("--http", any).map_err(|f| f.message).unwrap().port(), 0);
        let taken = TcpListener::bind(any).unwrap();
        let address = taken.local_addr().unwrap();
        let message = free_port("--http", address).map_err(|f| f.message).unwrap_err();
        assert!(
            message.starts_with(&format!("--http {address}: cannot listen: ")),
            "{message}"
        );
    }
}
