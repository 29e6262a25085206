//! Boots a kernel under QEMU and reads what the guest says.
//!
//! Emulated, without KVM: it needs no device and runs anywhere. One CPU, and `cx16` masked: QEMU 7.2 emulates that
//! instruction wrongly, and kernels from 6.12 on die of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::image::Image;
use super::kernels::Kernel;
use crate::Line;

/// For a guest that hangs. A run takes a minute or two.
const LIMIT: Duration = Duration::from_secs(1800);
pub(super) const QEMU: &str = "qemu-system-x86_64";
pub(super) const SETPRIV: &str = "setpriv";

/// What a guest said, and how it went.
#[derive(Debug)]
pub(super) struct Ran {
    pub lines: Vec<Line>,
    pub verdict: Verdict,
    /// What the kernel said.
    pub console: PathBuf,
    pub took: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It came to its end.
    Ended,
    /// The kernel fell over, or the guest never came to its end: with what is known.
    Died(String),
    /// What the checks need does not work.
    Broken(String),
}

/// Boots it; once more if the guest's kernel fell over, which is mostly the emulator's fault. Logs of all boots stay in `logs`.
pub(super) fn boot(kernel: &Kernel, image: &Image, logs: &Path) -> Result<Ran> {
    fs::create_dir_all(logs)?;
    let first = boot_once(kernel, image, logs, 1)?;
    let Verdict::Died(why) = &first.verdict else {
        return Ok(first);
    };
    println!(
        "{}: the guest did not come to its end ({why}; see {}): one more boot",
        kernel.series.name,
        first.console.display()
    );
    boot_once(kernel, image, logs, 2)
}

/// What the newest boot of a series said, without another one.
pub(super) fn last(kernel: &Kernel, logs: &Path) -> Result<Ran> {
    let said_at = |number: &u32| {
        fs::metadata(log(kernel, logs, *number, SAID))
            .and_then(|meta| meta.modified())
            .ok()
    };
    let number = [1, 2]
        .into_iter()
        .filter(|number| said_at(number).is_some())
        .max_by_key(said_at);
    let number = number.with_context(|| format!("{} was never booted", kernel.series.name))?;
    read(kernel, logs, number, Duration::ZERO, false, "")
}

const CONSOLE: &str = "console.log";
const SAID: &str = "said.jsonl";

fn log(kernel: &Kernel, logs: &Path, number: u32, what: &str) -> PathBuf {
    logs.join(format!("{}-{number}.{what}", kernel.series.name))
}

const MACHINE: &str = "-accel tcg -cpu max,-cx16 -smp 1 -m 1024 -M q35 \
    -nodefaults -no-user-config -display none -no-reboot";

fn boot_once(kernel: &Kernel, image: &Image, logs: &Path, number: u32) -> Result<Ran> {
    let [console, said] = [CONSOLE, SAID].map(|what| log(kernel, logs, number, what));
    for file in [&console, &said] {
        fs::write(file, "")?;
    }
    // Beside the logs: it is some 40 MB, and where temporary files are there may be less.
    let initramfs = tempfile::NamedTempFile::new_in(logs)?;
    image.write(kernel, initramfs.path())?;
    // It ends with this process, however that ends.
    let mut command = Command::new(SETPRIV);
    command
        .args(["--pdeathsig", "KILL", QEMU])
        .args(MACHINE.split_ascii_whitespace())
        .arg("-serial")
        .arg(format!("file:{}", console.display()))
        .arg("-serial")
        .arg(format!("file:{}", said.display()))
        .arg("-kernel")
        .arg(&kernel.vmlinuz)
        .arg("-initrd")
        .arg(initramfs.path())
        .args(["-append", "console=ttyS0 panic=-1 quiet"]);
    // Two NICs on one hub: nothing leaves the emulator.
    for n in 0..2 {
        command
            .arg("-netdev")
            .arg(format!("hubport,hubid=0,id=n{n}"))
            .arg("-device")
            .arg(format!("virtio-net-pci,netdev=n{n},mac=52:54:00:12:34:0{n}"));
    }
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {QEMU}"))?;
    let mut late = false;
    while child.try_wait()?.is_none() {
        if start.elapsed() > LIMIT {
            late = true;
            child.kill()?;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let output = child.wait_with_output()?;
    let qemu = String::from_utf8_lossy(&output.stderr);
    read(kernel, logs, number, start.elapsed(), late, &qemu)
}

/// What the logs of a boot say.
fn read(kernel: &Kernel, logs: &Path, number: u32, took: Duration, late: bool, qemu: &str) -> Result<Ran> {
    let console = log(kernel, logs, number, CONSOLE);
    let text = |path: &Path| Ok::<_, std::io::Error>(String::from_utf8_lossy(&fs::read(path)?).into_owned());
    let said = text(&log(kernel, logs, number, SAID))?;
    // One that was cut off is none.
    let lines: Vec<Line> = said
        .lines()
        .filter_map(|line| serde_json::from_str(line.trim()).ok())
        .collect();
    let verdict = judge(&lines, &text(&console)?, late, qemu);
    Ok(Ran {
        lines,
        verdict,
        console,
        took,
    })
}

/// Beginnings of what a kernel says when it falls over.
const DEATHS: [&str; 5] = [
    "Oops:",
    "Kernel panic",
    "BUG:",
    "general protection fault",
    "double fault",
];

fn judge(lines: &[Line], console: &str, late: bool, qemu: &str) -> Verdict {
    if let Some(line) = console
        .lines()
        .find(|line| DEATHS.iter().any(|death| line.contains(death)))
    {
        return Verdict::Died(line.trim().to_owned());
    }
    match lines.last() {
        Some(Line::End) => Verdict::Ended,
        Some(Line::Broken { why }) => Verdict::Broken(why.clone()),
        _ if late => Verdict::Died(format!("nothing for {} s", LIMIT.as_secs())),
        _ => Verdict::Died(format!("it ended early; QEMU says {:?}", qemu.trim())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_guest_that_says_so_has_ended() {
        assert_eq!(judge(&[Line::End], "", false, ""), Verdict::Ended);
        let oops = judge(&[Line::End], "x\n[ 1.0] Oops: int3: 0000\n", false, "");
        assert_eq!(oops, Verdict::Died("[ 1.0] Oops: int3: 0000".into()));
        assert!(matches!(judge(&[], "", false, "no disk"), Verdict::Died(why) if why.contains("no disk")));
        let late = format!("nothing for {} s", LIMIT.as_secs());
        assert_eq!(judge(&[], "", true, ""), Verdict::Died(late));
    }
}
