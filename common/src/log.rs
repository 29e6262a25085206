//! Logs: lower case, no full stop, fields; to stderr.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

/// The client of the Kubernetes API tells of each request that fails, as an error and without saying which; its caller
/// says it once and counts it. Whoever names it in `log.level` hears it all the same: what comes later counts.
const QUIET: &str = "kube_client=off";

/// Starts logging. Called once, by `main`.
pub fn init(log: &Log) {
    let filter = EnvFilter::try_new(format!("{QUIET},{}", log.level)).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // Else it tells of a line that cannot be written, by another that cannot be written: that is a panic of whoever logs,
        // as when a pipe that read them is closed.
        .log_internal_errors(false)
        .with_writer(std::io::stderr);
    match log.format {
        LogFormat::Text => builder
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
            .init(),
        LogFormat::Json => builder.json().init(),
    }
}
