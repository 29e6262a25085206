//! Makes a data directory, all or nothing: an interrupted run leaves only `data.new`, which the next one replaces.

use std::fs::{self, File};
use std::process::{Command, Stdio};

use super::binaries::Binaries;
use super::layout::Paths;
use super::supervisor::as_user;
use super::user::RunAs;
use super::{EmbeddedError, NAME};

pub(super) fn run(binaries: &Binaries, layout: &Paths, run_as: Option<&RunAs>) -> Result<(), EmbeddedError> {
    let fresh = layout.base.join("data.new");
    match fs::remove_dir_all(&fresh) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(EmbeddedError::io("remove", &fresh)(e)),
        _ => {}
    }
    tracing::info!(directory = %layout.data.display(), version = %binaries.version, "making a postgresql data directory");
    let mut command = Command::new(binaries.program("initdb"));
    command
        .arg("--pgdata")
        .arg(&fresh)
        .args([
            "--username",
            NAME,
            "--auth",
            "trust",
            "--encoding",
            "UTF8",
            "--locale",
            "C",
        ])
        .args(["--no-instructions"])
        .current_dir(&layout.base)
        .stdin(Stdio::null());
    let output = as_user(&mut command, run_as)
        .output()
        .map_err(EmbeddedError::io("run", &binaries.program("initdb")))?;
    if !output.status.success() {
        return Err(EmbeddedError::Failed {
            program: "initdb",
            why: reason(&String::from_utf8_lossy(&output.stderr)),
        });
    }
    // An empty directory may be in the way.
    let _ = fs::remove_dir(&layout.data);
    fs::rename(&fresh, &layout.data).map_err(EmbeddedError::io("rename", &fresh))?;
    File::open(&layout.base)
        .and_then(|dir| dir.sync_all())
        .map_err(EmbeddedError::io("sync", &layout.base))
}

/// The line of a program's complaints that says most.
pub(super) fn reason(stderr: &str) -> String {
    let lines = || stderr.lines().map(str::trim).filter(|l| !l.is_empty());
    // What those hear who come too early says nothing.
    let answer = |l: &str| l.contains("FATAL:  the database system is ");
    let telling = |l: &&str| (l.contains("FATAL:") && !answer(l)) || l.contains("PANIC:") || l.contains("error:");
    let line = lines()
        .find(telling)
        .or_else(|| lines().next_back())
        .unwrap_or("it said nothing");
    line.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_not_what_clients_heard_meanwhile() {
        let log = "LOG:  starting PostgreSQL 15\n\
                   FATAL:  the database system is starting up\n\
                   FATAL:  could not write to file \"pg_wal/xlogtemp.7\": No space left on device\n\
                   LOG:  database system is shut down\n";
        assert!(reason(log).starts_with("FATAL:  could not write"), "{}", reason(log));
        assert_eq!(reason("\n"), "it said nothing");
    }
}
