//! Runs `ip`, `tc` and `nft`. A child is born in the network namespace of the thread that spawns it.

use std::io::Write;
use std::process::{Command, Stdio};

use nix::libc;

use crate::error::{At, LabError, Result};

/// Runs `f` on a thread that shares no file descriptor with the others, in the network namespace of the caller.
///
/// A child process holds copies of all its parent's descriptors until it has executed its program. A socket that another
/// thread closes in between stays open for that moment: its port stays taken, its datagrams are swallowed. So children
/// are born where no sockets are. `f` sees descriptors 0 to 2; it must not use one from outside, nor let one that it
/// opened out: move a `Command` in.
pub fn apart<T: Send>(f: impl FnOnce() -> T + Send) -> std::io::Result<T> {
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("lab-exec".into())
            .spawn_scoped(scope, || {
                share_no_descriptors()?;
                Ok(f())
            })?
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[expect(unsafe_code, reason = "close_range has no safe wrapper")]
fn share_no_descriptors() -> std::io::Result<()> {
    let (first, last) = (3, u32::MAX);
    // SAFETY: the thread gets a table of its own first, so no descriptor of another thread is closed, and this thread
    // owns none above 2.
    let result = unsafe { libc::close_range(first, last, libc::CLOSE_RANGE_UNSHARE as i32) };
    nix::errno::Errno::result(result)?;
    Ok(())
}

/// Standard output of `program args`, with `input` on its standard input.
pub(crate) fn run(place: &str, program: &str, args: &[&str], input: &str) -> Result<String> {
    apart(|| run_here(place, program, args, input)).at(|| format!("{place}: a thread for `{program}`"))?
}

fn run_here(place: &str, program: &str, args: &[&str], input: &str) -> Result<String> {
    let shown = || {
        let mut words = vec![program];
        words.extend(args);
        let line = words.join(" ");
        if input.is_empty() {
            line
        } else {
            format!("{line} <<< {}", input.trim())
        }
    };
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .at(|| format!("{place}: cannot start `{program}`"))?;
    let mut stdin = child.stdin.take().expect("stdin is piped");
    // A program that ended early tells why by its status and stderr, not by our broken pipe.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child
        .wait_with_output()
        .at(|| format!("{place}: `{}` cannot be awaited", shown()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(LabError::Command {
        place: place.to_owned(),
        command: shown(),
        status: output.status.to_string(),
        stderr: String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; "),
    })
}

/// Several `ip` commands in one process; ends at the first that fails.
pub(crate) fn ip_batch(place: &str, lines: &[String]) -> Result<()> {
    run(place, "ip", &["-batch", "-"], &(lines.join("\n") + "\n")).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_command_tells_itself_its_status_and_what_it_said() {
        let error = run("here", "sh", &["-c", "cat >&2; exit 3"], "no such rule")
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "here: `sh -c cat >&2; exit 3 <<< no such rule`: exit status: 3: no such rule"
        );
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run("here", "no-such-program", &[], "").unwrap_err().to_string();
        assert!(error.starts_with("here: cannot start `no-such-program`: "), "{error}");
    }
}
