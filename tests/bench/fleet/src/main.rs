//! `sonde-fleet`: simulated nodes against an aggregator, or against nobody to see what the load itself costs.

use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::time::{ClockId, clock_gettime};
use sonde_fleet::{Options, Pace, Shape, Until, null, run};

#[derive(Debug, Parser)]
#[command(
    name = "sonde-fleet",
    about = "Simulated nodes that send what collectors send",
    version
)]
struct Arguments {
    /// Where the aggregator takes streams, or `null` for a receiver of its own that keeps nothing
    #[arg(long, default_value = "http://127.0.0.1:9641")]
    url: String,
    #[arg(long, default_value_t = 400)]
    nodes: usize,
    /// Of each node
    #[arg(long, default_value_t = 50)]
    pods: usize,
    /// Share of pods whose numbers move
    #[arg(long, default_value_t = Shape::default().busy)]
    busy: f64,
    /// Share of pods that end and are followed by others with each reading
    #[arg(long, default_value_t = Shape::default().churn)]
    churn: f64,
    /// Share of pods whose counters begin anew with each reading
    #[arg(long, default_value_t = Shape::default().resets)]
    resets: f64,
    /// From one reading of a node to its next: `5s`, `500ms`
    #[arg(long, default_value = "5s", value_parser = duration)]
    interval: Duration,
    /// No interval: the next batch as soon as the window permits
    #[arg(long, value_enum)]
    unpaced: Option<What>,
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Events a second of all nodes together; the size of a batch with `--unpaced events`
    #[arg(long, default_value_t = 0)]
    events: u64,
    /// Events a second of the first node beside that
    #[arg(long, default_value_t = 0)]
    flood: u64,
    /// Batches of a node that may be unacknowledged
    #[arg(long, default_value_t = 64)]
    window: usize,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Threads of the load
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum What {
    Rows,
    Events,
}

fn duration(text: &str) -> Result<Duration, String> {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number: u64 = digits
        .parse()
        .map_err(|_| format!("{text:?}: expected a number with a unit, such as 5s"))?;
    match unit {
        "ms" if number > 0 => Ok(Duration::from_millis(number)),
        "s" if number > 0 => Ok(Duration::from_secs(number)),
        "m" if number > 0 => Ok(Duration::from_secs(number * 60)),
        _ => Err(format!("{text:?}: expected more than 0 of ms, s or m")),
    }
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    // A socket a node.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let against_nobody = arguments.url == "null";
    let url = if against_nobody {
        format!("http://{}", null::start()?)
    } else {
        arguments.url
    };
    let options = Options {
        url,
        nodes: arguments.nodes,
        shape: Shape {
            pods: arguments.pods,
            busy: arguments.busy,
            churn: arguments.churn,
            resets: arguments.resets,
            seed: arguments.seed,
        },
        pace: match arguments.unpaced {
            None => Pace::Every(arguments.interval),
            Some(What::Rows) => Pace::Readings,
            Some(What::Events) => Pace::Events((arguments.events as usize).max(1)),
        },
        until: Until::Passed(Duration::from_secs(arguments.seconds)),
        events: arguments.events as f64,
        flood: arguments.flood as f64,
        window: arguments.window.max(1),
        ..Options::default()
    };
    let report = if arguments.threads == 1 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let cpu = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).context("CPU time of this thread");
        let before = cpu()?;
        let report = runtime.block_on(run(options))?;
        let used = Duration::from(cpu()? - before).as_secs_f64();
        let million = (report.samples + report.events) as f64 / 1e6;
        println!(
            "CPU of the load    {used:.1} s, {:.3} s a million samples and events",
            used / million
        );
        report
    } else {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder
            .worker_threads(arguments.threads)
            .enable_all()
            .build()?
            .block_on(run(options))?
    };
    println!("{report}");
    Ok(())
}
