//! What this host lets Sonde see, and why not more: for `sonde-collector doctor`.
//!
//! Each rung that the plan allows is really loaded and attached, and a packet is dropped to see it fire: that a
//! program could be attached proves little.

use std::fmt;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use serde::Serialize;
use sonde_common::config::Config;
use sonde_ebpf_common::drop::{Count, CountKey};

use super::facts::{self, Answer, CAPABILITIES, Facts};
use super::load::{LoadError, Object, Settings};
use super::plan::{Decision, Rung, SIGNALS, Signal, plan};
use super::reasons::Reasons;
use super::sites::verdicts;
use super::symbols::Symbols;
use super::sys::{BatchBuffer, RawMap};

#[derive(Debug, Serialize)]
pub struct DoctorReport {
    pub facts: Vec<Line>,
    pub signals: Vec<SignalLine>,
}

#[derive(Debug, Serialize)]
pub struct Line {
    pub name: &'static str,
    pub value: String,
}

#[derive(Debug, Serialize)]
pub struct SignalLine {
    pub name: &'static str,
    /// The rung it would run on; absent: off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rung: Option<&'static str>,
    /// What was seen when it was tried, or why it is off.
    pub state: String,
    /// Every rung, best first, and what is to be said of it.
    pub rungs: Vec<RungLine>,
}

#[derive(Debug, Serialize)]
pub struct RungLine {
    pub rung: &'static str,
    pub finding: String,
}

/// Reads the host and tries what the plan allows. Changes nothing that stays.
pub fn doctor(config: &Config) -> DoctorReport {
    let (facts, btf) = facts::gather(config);
    let reasons = btf
        .as_ref()
        .map(|btf| Reasons::read(btf, &config.host.sys))
        .unwrap_or_default();
    drop(btf);
    let signals = SIGNALS
        .iter()
        .map(|signal| examine(signal, &facts, &reasons, config))
        .collect();
    DoctorReport {
        facts: describe(&facts, &reasons, config),
        signals,
    }
}

fn examine(signal: &Signal, facts: &Facts, reasons: &Reasons, config: &Config) -> SignalLine {
    let decision = plan(signal, facts, config);
    let mut line = SignalLine {
        name: signal.name,
        rung: None,
        state: String::new(),
        rungs: Vec::new(),
    };
    for (rung, _) in signal.rungs {
        let finding = match finding(signal, *rung, &decision, facts, reasons, config) {
            Ok(seen) => {
                if line.rung.is_none() {
                    (line.rung, line.state) = (Some(rung.name()), seen.clone());
                }
                seen
            }
            Err(why) => why,
        };
        line.rungs.push(RungLine {
            rung: rung.name(),
            finding,
        });
    }
    if line.rung.is_none() {
        let all = || {
            line.rungs
                .iter()
                .map(|r| format!("{}: {}", r.rung, r.finding))
                .collect::<Vec<_>>()
                .join("; ")
        };
        line.state = decision.off.clone().unwrap_or_else(all);
    }
    line
}

fn finding(
    signal: &Signal,
    rung: Rung,
    decision: &Decision,
    facts: &Facts,
    reasons: &Reasons,
    config: &Config,
) -> Result<String, String> {
    if let Some(why) = &decision.off {
        return Err(why.clone());
    }
    if let Some((_, why)) = decision.rejected.iter().find(|(rejected, _)| *rejected == rung) {
        return Err(why.clone());
    }
    let btf = facts.btf.as_ref().map_err(Clone::clone)?;
    let settings = Settings::new(config, facts, verdicts(reasons), aya::util::nr_cpus().unwrap_or(1));
    // An object of its own for each rung: a program that was refused leaves nothing behind.
    let settings = Settings {
        only_listed: false,
        ..settings
    };
    try_rung(btf, &settings, signal, rung).map_err(|error| error.to_string())
}

fn try_rung(btf: &facts::BtfFacts, settings: &Settings, signal: &Signal, rung: Rung) -> Result<String, LoadError> {
    let mut object = Object::new(btf, settings)?;
    object.attach(signal, rung)?;
    if signal.events {
        return Ok("loads and attaches".into());
    }
    let counts: RawMap<CountKey, Count> = object.map("COUNTS")?;
    let fired = match drop_a_packet() {
        Err(error) => format!("no packet could be dropped to see it fire ({error})"),
        Ok(()) => match wait_for_count(&counts) {
            true => "and fires".to_owned(),
            false => "but did not see a packet that was dropped".to_owned(),
        },
    };
    Ok(format!("loads and attaches, {fired}"))
}

/// A datagram to a port of the loopback address that was just closed.
fn drop_a_packet() -> std::io::Result<()> {
    let closed = UdpSocket::bind(("127.0.0.1", 0))?.local_addr()?;
    let socket = UdpSocket::bind(("127.0.0.1", 0))?;
    socket.send_to(b"sonde", closed).map(drop)
}

fn wait_for_count(counts: &RawMap<CountKey, Count>) -> bool {
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        let mut drops = 0;
        let sum = |_: &CountKey, copies: &[Count]| drops += copies.iter().map(|copy| copy.skbs).sum::<u64>();
        let _ = counts.for_each(&mut BatchBuffer::default(), sum);
        if drops > 0 || Instant::now() > deadline {
            return drops > 0;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn describe(facts: &Facts, reasons: &Reasons, config: &Config) -> Vec<Line> {
    let answer = |answer: &Answer, yes: &str| match answer {
        Answer::Yes => yes.to_owned(),
        Answer::No(why) => why.clone(),
        Answer::Unknown(why) => format!("not known ({why})"),
    };
    let capabilities = match facts.capabilities {
        None => "not known (/proc/thread-self/status cannot be read)".to_owned(),
        Some(set) => {
            let have = |has: bool| {
                let names = CAPABILITIES
                    .iter()
                    .filter(|(number, _)| (set >> number & 1 != 0) == has);
                names.map(|(_, name)| *name).collect::<Vec<_>>().join(" ")
            };
            match (have(true), have(false)) {
                (all, none) if none.is_empty() => all,
                (none, all) if none.is_empty() => format!("none of {all}"),
                (some, others) => format!("{some}; not {others}"),
            }
        }
    };
    let btf = match &facts.btf {
        Ok(btf) => format!("{}, {} types", btf.path.display(), btf.types),
        Err(why) => why.clone(),
    };
    let symbols = Symbols::new(&config.host.proc);
    let statistics = std::fs::read_to_string(config.host.proc.join("sys/kernel/bpf_stats_enabled"));
    let lines = [
        ("kernel", facts.release_text.clone()),
        ("capabilities", capabilities),
        ("btf", btf),
        ("kernel's own btf", answer(&facts.kernel_btf, "yes")),
        ("drop reasons", format!("{} named", reasons.len())),
        (
            "kallsyms",
            symbols
                .len()
                .map_or_else(|why| why, |functions| format!("{functions} functions")),
        ),
        ("lockdown", answer(&facts.lockdown, "permits reading kernel memory")),
        ("jit", answer(&facts.jit, "on")),
        ("locked memory", answer(&facts.memlock, "not bounded")),
        (
            "run statistics",
            match statistics.as_deref().map(str::trim) {
                Ok("0") => "off: what programs cost is not known (kernel.bpf_stats_enabled)".to_owned(),
                Ok(_) => "on".to_owned(),
                Err(error) => format!("not known ({error})"),
            },
        ),
    ];
    let mut lines: Vec<Line> = lines.map(|(name, value)| Line { name, value }).into();
    let absent = facts.btf.as_ref().map(|btf| btf.absent.as_slice()).unwrap_or_default();
    lines.extend(absent.iter().map(|(_, why)| Line {
        name: "not in this kernel",
        value: why.clone(),
    }));
    lines
}

impl fmt::Display for DoctorReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.facts {
            writeln!(f, "{:<20} {}", line.name, line.value)?;
        }
        for signal in &self.signals {
            writeln!(
                f,
                "\n{:<20} {:<16} {}",
                signal.name,
                signal.rung.unwrap_or("off"),
                signal.state
            )?;
            for rung in &signal.rungs {
                writeln!(f, "{:<20}   {:<14} {}", "", rung.rung, rung.finding)?;
            }
        }
        Ok(())
    }
}
