//! `make bench`: measures on this machine and writes docs/performance.md. Wall-clock figures of a shared machine are
//! read as ratios; CPU time, instruction-free counts and bytes are what to compare between versions.

mod events;
mod federate;
mod http;
mod ingest;
mod kernel;
mod page;
mod plain;
mod programs;
mod queries;
mod report;
mod round;
mod scale;
mod search;
mod sockets;
mod store;

use anyhow::Context as _;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    anyhow::ensure!(
        nix::unistd::geteuid().is_root(),
        "the benchmark needs root: it makes network namespaces and loads eBPF"
    );
    // A socket for each simulated node, here and in the aggregator.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let only = std::env::args().nth(1);
    let wanted = |name: &str| only.as_deref().is_none_or(|o| o == name);
    let mut report = report::Report::new()?;
    if wanted("kernel") {
        kernel::run(&mut report).context("kernel side")?;
    }
    if wanted("packets") {
        kernel::per_packet(&mut report).context("programs of every packet")?;
    }
    if wanted("events") {
        events::run(&mut report).context("events")?;
    }
    if wanted("sockets") {
        sockets::run(&mut report).context("sockets")?;
    }
    if wanted("round") {
        round::run(&mut report).context("rounds")?;
    }
    if wanted("page") {
        page::run(&mut report)?;
    }
    if wanted("ingest") {
        ingest::run(&mut report).await.context("ingest")?;
    }
    if wanted("scale") {
        scale::run(&mut report).await.context("many nodes")?;
    }
    if wanted("queries") {
        queries::run(&mut report).await.context("queries")?;
    }
    if wanted("search") {
        search::run(&mut report).await.context("event search")?;
    }
    if wanted("federate") {
        federate::run(&mut report).await.context("federation")?;
    }
    print!("{}", report.text());
    if only.is_none() {
        let path = "docs/performance.md";
        std::fs::write(path, report.text()).context(path)?;
        eprintln!("written to {path}");
    }
    Ok(())
}
