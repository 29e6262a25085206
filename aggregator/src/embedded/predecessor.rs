//! What an aggregator that was killed may have left: a server that still runs or is ending, processes of a server that
//! was killed itself, a pid file whose number now belongs to somebody else. Whoever holds our lock may end them.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::EmbeddedError;
use super::layout::{PORT, Paths};

/// How long a fast shutdown (it writes a checkpoint) may take before an immediate one.
const FAST: Duration = Duration::from_secs(60);
const IMMEDIATE: Duration = Duration::from_secs(10);

/// Afterwards nothing runs in the data directory, and no file says that something does. PostgreSQL would believe such a
/// file if its number belongs to anything at all: another process of a restarted container, or a dead one not yet reaped.
pub(super) fn settle(layout: &Paths) -> Result<(), EmbeddedError> {
    let data = &layout.data;
    let postmaster = std::fs::read_to_string(data.join("postmaster.pid"))
        .ok()
        .and_then(|text| text.lines().next()?.trim().parse::<i32>().ok());
    let mut running = processes_in(data);
    if let Some(postmaster) = postmaster.filter(|pid| running.contains(pid)) {
        tracing::info!(pid = postmaster, "ending the postgresql of an earlier run");
        let _ = kill(Pid::from_raw(postmaster), Signal::SIGINT);
        running = wait_for_none(data, FAST, |running| is_recovering(data, running));
    }
    for signal in [Signal::SIGQUIT, Signal::SIGKILL] {
        if running.is_empty() {
            break;
        }
        tracing::warn!(pids = ?running, %signal, "ending processes of an earlier postgresql");
        for pid in running {
            let _ = kill(Pid::from_raw(pid), signal);
        }
        running = wait_for_none(data, IMMEDIATE, |_| false);
    }
    if let Some(pid) = running.first() {
        return Err(EmbeddedError::WillNotEnd { pid: *pid });
    }
    let socket = format!(".s.PGSQL.{PORT}");
    let lock = layout.socket_dir.join(format!("{socket}.lock"));
    for file in [data.join("postmaster.pid"), lock, layout.socket_dir.join(socket)] {
        match std::fs::remove_file(&file) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(EmbeddedError::io("remove", &file)(e)),
            _ => {}
        }
    }
    Ok(())
}

/// Processes of any server in this directory: every one of them works there and is named `postgres`.
fn processes_in(data: &Path) -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pid = |entry: std::fs::DirEntry| entry.file_name().to_str()?.parse::<i32>().ok();
    entries
        .flatten()
        .filter_map(pid)
        .filter(|pid| {
            let proc = Path::new("/proc").join(pid.to_string());
            std::fs::read_link(proc.join("cwd")).is_ok_and(|cwd| cwd == data)
                && std::fs::read_to_string(proc.join("comm")).is_ok_and(|comm| comm.trim() == "postgres")
        })
        .collect()
}

/// A server that is recovering from a crash has no checkpoint to write, and begins anew the next time. But it hears of a fast
/// shutdown late, as first it syncs every file that there is, and where it ended by itself at that moment PostgreSQL waits for
/// ever, for a checkpointer that nobody told to end: it can be ended at once, and has to be.
pub(super) fn recovers(data: &Path) -> bool {
    is_recovering(data, &processes_in(data))
}

fn is_recovering(data: &Path, processes: &[i32]) -> bool {
    // Processes say in their titles what they are.
    let title = |pid| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    match state(data) {
        Some(IN_CRASH_RECOVERY) => true,
        // Still as it was when it crashed. A standby, which always recovers, says something else.
        Some(IN_PRODUCTION) => processes.iter().any(|pid| title(pid).starts_with(b"postgres: startup")),
        _ => false,
    }
}

/// `DBState` of PostgreSQL's `pg_control.h`, in this place and with these numbers in all versions from 9.1 on.
const IN_CRASH_RECOVERY: u32 = 4;
const IN_PRODUCTION: u32 = 6;

fn state(data: &Path) -> Option<u32> {
    let control = std::fs::read(data.join("global/pg_control")).ok()?;
    // Behind the system's identifier and two versions.
    Some(u32::from_ne_bytes(control.get(16..20)?.try_into().ok()?))
}

/// Those that are left when that becomes useless, or at the end.
fn wait_for_none(data: &Path, at_most: Duration, is_useless: impl Fn(&[i32]) -> bool) -> Vec<i32> {
    let deadline = Instant::now() + at_most;
    loop {
        let running = processes_in(data);
        if running.is_empty() || is_useless(&running) || Instant::now() >= deadline {
            return running;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
