//! What a first process has to do: file systems, modules, and the end.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::sync::Mutex;

use anyhow::{Context as _, Result};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};

use crate::Line;

/// The serial port that the host listens to. The console is the other one.
pub(super) struct Voice(Mutex<File>);

impl Voice {
    pub(super) fn say(&self, line: &Line) -> Result<()> {
        let mut text = serde_json::to_string(line)?;
        text.push('\n');
        let mut port = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Ok(port.write_all(text.as_bytes())?)
    }
}

pub(super) fn is_first_process() -> bool {
    std::process::id() == 1
}

pub(super) fn start() -> Result<Voice> {
    for (kind, to) in [
        ("devtmpfs", "/dev"),
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("tmpfs", "/run"),
        ("tmpfs", "/tmp"),
        ("tmpfs", "/var/lib"),
        ("tracefs", "/sys/kernel/tracing"),
        ("bpf", "/sys/fs/bpf"),
        ("cgroup2", "/sys/fs/cgroup"),
    ] {
        mount(Some(kind), to, Some(kind), MsFlags::empty(), None::<&str>).with_context(|| format!("mount {to}"))?;
    }
    let port = OpenOptions::new()
        .write(true)
        .open("/dev/ttyS1")
        .context("/dev/ttyS1")?;
    // SAFETY: this is the only thread.
    unsafe { std::env::set_var("PATH", "/bin") };
    load_modules()?;
    name_nics()?;
    command("ip", &["link", "set", "lo", "up"])?;
    Ok(Voice(Mutex::new(port)))
}

fn load_modules() -> Result<()> {
    let mut paths: Vec<_> = fs::read_dir("/modules")?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    paths.sort();
    for path in paths {
        let file = File::open(&path)?;
        match finit_module(&file, &CString::default(), ModuleInitFlags::empty()) {
            Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
            // Nothing here may need it; what does will say so.
            Err(error) => println!("guest: {}: {error}", path.display()),
        }
    }
    Ok(())
}

/// The NICs of virtio-net, joined to each other.
pub(super) const NICS: [&str; 2] = ["nic0", "nic1"];

/// Up to Linux 5.10 a device that is made in another namespace may not have a name that is taken here.
fn name_nics() -> Result<()> {
    let of_driver = |entry: &fs::DirEntry| {
        let driver = fs::read_link(entry.path().join("device/driver"));
        driver.is_ok_and(|driver| driver.ends_with("virtio_net"))
    };
    let entries = fs::read_dir("/sys/class/net")?.filter_map(Result::ok).filter(of_driver);
    let mut found: Vec<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    found.sort();
    anyhow::ensure!(found.len() == NICS.len(), "NICs of virtio-net: {found:?}");
    for (old, new) in found.iter().zip(NICS) {
        command("ip", &["link", "set", old, "name", new])?;
        // Else it joins groups at moments of its own, each of which is a command to the device.
        fs::write(format!("/proc/sys/net/ipv6/conf/{new}/disable_ipv6"), "1")?;
    }
    Ok(())
}

/// Runs a program that must succeed.
pub(super) fn command(program: &str, args: &[&str]) -> Result<()> {
    let output = std::process::Command::new(program).args(args).output();
    let output = output.with_context(|| format!("cannot start {program}"))?;
    anyhow::ensure!(
        output.status.success(),
        "{program} {args:?}: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

pub(super) fn switch_off() -> ! {
    nix::unistd::sync();
    // It comes back only if this process has no right to it.
    let _ = reboot(RebootMode::RB_POWER_OFF);
    std::process::exit(1);
}

/// Covers a folder with an empty one.
pub(super) fn hide(path: &str) -> Result<()> {
    mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), None::<&str>).with_context(|| format!("hide {path}"))
}
