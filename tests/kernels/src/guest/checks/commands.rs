//! Control commands of virtio-net: a NIC of the virtual machine is told to take all packets, and not to, again and again.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use sonde_lab::wait::{Look, until};

use super::{Check, same};
use crate::guest::init::{NICS, command};
use crate::guest::scene::{LIMIT, Mark, Scene};

pub(super) const CHECK: Check = Check {
    signals: &["virtcmdlatency.times"],
    run: |scene| vec![("virtcmdlatency.times", check(scene))],
};

const TIMES: u64 = 10;

fn check(scene: &Scene) -> Result<String> {
    // One alone would wait for the other to take what it sends.
    for device in NICS {
        command("ip", &["link", "set", device, "up"])?;
    }
    let witness = Witness::new()?;
    // What bringing it up made the driver do in the background is over.
    let started = settled(&witness)?;
    let before = scene.mark()?;
    same("commands while nothing was done", witness.count()?, started)?;
    let missed = scene.misses("virtcmdlatency.times")?;
    for _ in 0..TIMES {
        for how in ["on", "off"] {
            command("ip", &["link", "set", NICS[0], "promisc", how])?;
        }
    }
    let commands = settled(&witness)? - started;
    ensure!(commands >= TIMES, "{commands} commands only");
    let after = scene.mark()?;
    // The kernel runs no kprobe on a CPU on which a map is just read, and says so.
    let missed = scene.misses("virtcmdlatency.times")? - missed;
    let name = "sonde_virtcmdlatency_latency_seconds_count";
    let of = |mark: &Mark| mark.sum(name, &[]);
    let counted = of(&after) - of(&before);
    ensure!(
        (commands.saturating_sub(missed)..=commands).contains(&counted),
        "{counted} commands counted of {commands}, {missed} missed"
    );
    let is_one = |kind: &str| kind == "VIRTCMDEXCUTE" || kind == "VIRTCMDEXCUTE_100MS";
    let events = scene.exactly(&before, &after, "commands", counted as usize, |event| {
        is_one(&event.kind)
    })?;
    let wrong = events
        .iter()
        .find(|event| !event.pod.is_empty() || event.latency_ns.is_none_or(|ns| ns == 0));
    ensure!(wrong.is_none(), "{wrong:?}");
    let but = match missed {
        0 => String::new(),
        missed => format!(", but {missed} that the kernel says it missed"),
    };
    Ok(format!(
        "{counted} commands of {}, timed and told{but}",
        witness.function
    ))
}

/// The kernel's own counter of calls of the function: a kprobe of ftrace.
struct Witness {
    function: &'static str,
}

const TRACING: &str = "/sys/kernel/tracing";

impl Witness {
    fn new() -> Result<Self> {
        let functions = fs::read_to_string("/proc/kallsyms")?;
        let is_there = |name: &&str| {
            functions
                .lines()
                .any(|line| line.split_ascii_whitespace().nth(2) == Some(name))
        };
        let function = ["virtnet_send_command_reply", "virtnet_send_command"]
            .into_iter()
            .find(is_there);
        let function = function.context("the driver has no function that sends commands")?;
        fs::write(
            format!("{TRACING}/kprobe_events"),
            format!("p:matrix/commands {function}\n"),
        )?;
        fs::write(format!("{TRACING}/events/matrix/commands/enable"), "1")?;
        Ok(Self { function })
    }

    /// Calls since it was made.
    fn count(&self) -> Result<u64> {
        let profile = fs::read_to_string(format!("{TRACING}/kprobe_profile"))?;
        let line = profile.lines().find(|line| line.trim_start().starts_with("commands"));
        let hits = line
            .context("no line in kprobe_profile")?
            .split_ascii_whitespace()
            .nth(1);
        Ok(hits.context("no number in kprobe_profile")?.parse()?)
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        let off = fs::write(format!("{TRACING}/events/matrix/commands/enable"), "0")
            .and_then(|()| fs::write(format!("{TRACING}/kprobe_events"), ""));
        if let Err(error) = off {
            println!("guest: the witness of commands stays: {error}");
        }
    }
}

/// The count once it has stood still for a while: newer drivers give commands in the background.
fn settled(witness: &Witness) -> Result<u64> {
    let mut last = (witness.count()?, 0);
    until("commands to come to an end", LIMIT, || {
        let now = witness.count().unwrap_or(0);
        last = if now == last.0 { (now, last.1 + 1) } else { (now, 0) };
        Ok(match last.1 {
            // Looks that are 50 ms apart, for the most part.
            20.. => Look::Found(()),
            _ => Look::NotYet(now.to_string()),
        })
    })?;
    Ok(last.0)
}
