//! What runs in the virtual machine.

mod checks;
mod init;
mod receiver;
mod runs;
mod scene;

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

use crate::{Check, Line, Outcome};
use init::Voice;
use receiver::Receiver;
pub use runs::{RUNS, Run};
use scene::{BTF_FILE, GRPC, Scene, Signal};

/// Never comes back: the machine is switched off.
pub fn main() {
    if !init::is_first_process() {
        eprintln!("error: sonde-guest is the first process of a virtual machine, see tests/kernels");
        std::process::exit(2);
    }
    let said = init::start().and_then(|voice| {
        let result = std::panic::catch_unwind(|| examine(&voice));
        let result = result.unwrap_or_else(|_| Err(anyhow::anyhow!("the guest's program panicked: see the console")));
        match result {
            Ok(()) => voice.say(&Line::End),
            Err(error) => voice.say(&Line::Broken {
                why: format!("{error:#}"),
            }),
        }
    });
    if let Err(error) = said {
        println!("guest: {error:#}");
    }
    init::switch_off();
}

fn examine(voice: &Voice) -> Result<()> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned();
    voice.say(&Line::Up { release })?;
    if Path::new(TESTS).exists() {
        return own_tests(voice);
    }
    fs::copy("/sys/kernel/btf/vmlinux", BTF_FILE).context("the kernel's BTF")?;
    let receiver = Receiver::start(SocketAddr::from(GRPC))?;
    for run in &RUNS {
        if run.btf_file {
            init::hide("/sys/kernel/btf")?;
        }
        one(run, &receiver, voice).with_context(|| format!("run {}", run.name))?;
    }
    Ok(())
}

/// Tests of the collector's library, where they are wanted.
const TESTS: &str = "/tests";

fn own_tests(voice: &Voice) -> Result<()> {
    let mut child = Command::new(TESTS)
        .arg(fs::read_to_string(format!("{TESTS}.filter"))?)
        .args(["--test-threads", "1", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()?;
    let output = child.stdout.take().context("no output")?;
    for line in BufReader::new(output).lines() {
        voice.say(&Line::Tests { text: line? })?;
    }
    child.wait()?;
    Ok(())
}

/// Scenes in which a check is made before it is believed that something is wrong.
const ATTEMPTS: u32 = 3;

/// The kernel does not run a program while the same one, or for programs on breakpoints any other, is under way on that CPU, and
/// none on a breakpoint while user space reads a map there (`bpf_prog_active`); with preemption, that goes on while others
/// run in its place. This machine has one CPU, emulated, so that it happens to what a check does. The kernel counts it (all of it
/// from 6.7 on), and so does the collector. A check that found something else than it must while programs of its signals were
/// skipped says nothing, and is made again with all new.
fn one(run: &Run, receiver: &Receiver, voice: &Voice) -> Result<()> {
    let mut left: Vec<&checks::Check> = checks::ALL.iter().collect();
    for attempt in 1..=ATTEMPTS {
        left = examine_once(run, receiver, voice, &left, attempt == ATTEMPTS)?;
        if left.is_empty() {
            break;
        }
    }
    Ok(())
}

/// Says what was found, but of the checks that are to be made again, which it gives back.
fn examine_once<'a>(
    run: &Run,
    receiver: &Receiver,
    voice: &Voice,
    checks: &[&'a checks::Check],
    last: bool,
) -> Result<Vec<&'a checks::Check>> {
    let scene = Scene::start(run, receiver)?;
    let signals = scene.signals()?;
    let mut again = Vec::new();
    let mut wrong = false;
    for check in checks {
        let skipped = skipped(&scene, &signals, check)?;
        // One that is off needs no traffic, if all of the check are.
        let runs = check.signals.iter().any(|name| is_on(&signals, name));
        let found = if runs { (check.run)(&scene) } else { Vec::new() };
        let skipped = self::skipped(&scene, &signals, check)? - skipped;
        if !last && skipped > 0 && found.iter().any(|(_, found)| found.is_err()) {
            let (run, signal) = (run.name.into(), check.signals[0].into());
            voice.say(&Line::Skipped {
                run,
                signal,
                count: skipped,
            })?;
            again.push(*check);
            continue;
        }
        for name in check.signals {
            let signal = signals
                .get(*name)
                .with_context(|| format!("no signal {name} in /status"))?;
            let outcome = match (&signal.rung, found.iter().find(|(of, _)| of == name)) {
                (None, _) => Outcome::Off,
                (Some(_), Some((_, Ok(what)))) => Outcome::Right(what.clone()),
                (Some(_), Some((_, Err(error)))) => Outcome::Wrong(format!("{error:#} ({skipped} runs skipped)")),
                (Some(_), None) => Outcome::Wrong("it was not checked".into()),
            };
            wrong |= matches!(outcome, Outcome::Wrong(_));
            voice.say(&Line::Check(Check {
                run: run.name.into(),
                signal: (*name).into(),
                rung: signal.rung.clone(),
                reason: signal.reason.clone(),
                outcome,
            }))?;
        }
    }
    let is_checked = |name: &&String| checks::ALL.iter().any(|check| check.signals.contains(&name.as_str()));
    if let Some(name) = signals.keys().find(|name| !is_checked(name)) {
        anyhow::bail!("nothing checks signal {name}");
    }
    if wrong {
        voice.say(&Line::Log {
            run: run.name.into(),
            text: scene.log(),
        })?;
    }
    scene.end()?;
    Ok(again)
}

/// Runs of a check's programs that the kernel says it skipped.
fn skipped(scene: &Scene, signals: &HashMap<String, Signal>, check: &checks::Check) -> Result<u64> {
    let on = check.signals.iter().filter(|name| is_on(signals, name));
    on.map(|name| scene.misses(name)).sum()
}

fn is_on(signals: &HashMap<String, Signal>, name: &str) -> bool {
    signals.get(name).is_some_and(|signal| signal.rung.is_some())
}
