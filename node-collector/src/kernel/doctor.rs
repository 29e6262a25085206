//! What this host lets Sonde see, and why not more: for `sonde-collector doctor`.
//!
//! Each rung that the plan allows is really loaded and attached, and where that can be made to happen (a packet dropped,
//! say) it is seen to fire: that a program could be attached proves little.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use sonde_common::config::Config;

use super::btf::Btf;
use super::engine::set_up;
use super::facts::{self, Answer, CAPABILITIES, Facts};
use super::load::{KernelTypes, LoadError, Object, Settings};
use super::plan::{Decision, Signal, plan};
use super::probe::Reader;
use super::probes;
use super::reasons::Reasons;
use super::symbols::Symbols;

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
    let symbols = Arc::new(Symbols::new(&config.host.proc));
    let trial = Trial {
        config,
        facts: &facts,
        btf: btf.as_ref(),
        symbols: Arc::clone(&symbols),
        types: KernelTypes::default(),
    };
    let mut signals: Vec<SignalLine> = probes::signals().map(|signal| trial.examine(signal)).collect();
    signals.sort_by_key(|line| line.name);
    DoctorReport {
        facts: describe(&facts, &reasons, &symbols, config),
        signals,
    }
}

/// What every attempt needs.
struct Trial<'a> {
    config: &'a Config,
    facts: &'a Facts,
    btf: Option<&'a Btf>,
    symbols: Arc<Symbols>,
    types: KernelTypes,
}

impl Trial<'_> {
    fn examine(&self, signal: &'static Signal) -> SignalLine {
        let decision = plan(signal, self.facts, self.config);
        let mut line = SignalLine {
            name: signal.name,
            rung: None,
            state: String::new(),
            rungs: Vec::new(),
        };
        for (at, step) in signal.steps.iter().enumerate() {
            let rung = step.rung.name();
            let finding = match self.finding(signal, at, &decision) {
                Ok(seen) => {
                    if line.rung.is_none() {
                        (line.rung, line.state) = (Some(rung), seen.clone());
                    }
                    seen
                }
                Err(why) => why,
            };
            line.rungs.push(RungLine { rung, finding });
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

    fn finding(&self, signal: &Signal, step: usize, decision: &Decision) -> Result<String, String> {
        if let Some(why) = &decision.off {
            return Err(why.clone());
        }
        if let Some((_, why)) = decision.rejected.iter().find(|(rejected, _)| *rejected == step) {
            return Err(why.clone());
        }
        self.try_step(signal, step).map_err(|error| error.to_string())
    }

    /// With an object of its own: a program that was refused leaves nothing behind.
    fn try_step(&self, signal: &Signal, step: usize) -> Result<String, LoadError> {
        let btf = self.facts.btf.as_ref().map_err(|why| LoadError::Btf(why.clone()))?;
        let probe = probes::find(signal.probe).ok_or(LoadError::NoProgram(signal.name))?;
        let cpus = aya::util::nr_cpus().unwrap_or(1);
        let mut settings = Settings::new(self.config, self.facts, &[probe], cpus);
        // What is made to happen below happens in this namespace, which is not listed.
        settings.set_listed(false);
        let (setup, _) = set_up(probe, self.config, None, self.btf, &self.symbols);
        settings.add(setup.globals);
        let mut object = Object::new(btf, &settings)?;
        object.attach(&signal.steps[step], &self.types)?;
        let Some(provoke) = signal.provoke else {
            return Ok("loads and attaches".into());
        };
        let mut reader = (setup.open)(&object)?.reader;
        let fired = match provoke() {
            Err(error) => format!("it could not be made to fire ({error})"),
            Ok(()) => match wait_for_count(&mut *reader) {
                true => "and fires".to_owned(),
                false => "but did not see what was made to happen".to_owned(),
            },
        };
        Ok(format!("loads and attaches, {fired}"))
    }
}

fn wait_for_count(reader: &mut dyn Reader) -> bool {
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        let seen = reader.seen().unwrap_or(0);
        if seen > 0 || Instant::now() > deadline {
            return seen > 0;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn describe(facts: &Facts, reasons: &Reasons, symbols: &Symbols, config: &Config) -> Vec<Line> {
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
        ("kprobes", answer(&facts.kprobes, "yes")),
        ("lockdown", answer(&facts.lockdown, "permits reading kernel memory")),
        ("jit", answer(&facts.jit, "on")),
        ("locked memory", answer(&facts.memlock, "not bounded")),
        ("threaded napi", threaded_napi(&config.host.sys.join("class/net"))),
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

/// Devices of this namespace that are polled in a thread of their own (`/sys/class/net/NAME/threaded`, Linux 5.12), so
/// that what they receive raises no softirq and is not in `net_softirq`.
fn threaded_napi(devices: &Path) -> String {
    let entries = match std::fs::read_dir(devices) {
        Ok(entries) => entries,
        Err(error) => return format!("not known ({}: {error})", devices.display()),
    };
    let is_threaded = |entry: &std::fs::DirEntry| {
        let said = std::fs::read_to_string(entry.path().join("threaded"));
        said.is_ok_and(|said| said.trim() != "0")
    };
    let mut names: Vec<String> = entries
        .flatten()
        .filter(is_threaded)
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort_unstable();
    match names.as_slice() {
        [] => "no device".to_owned(),
        names => format!("{}: net_softirq does not see what they receive", names.join(" ")),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_that_are_polled_in_a_thread_are_named() {
        let sys = tempfile::tempdir().unwrap();
        let devices = sys.path().join("net");
        assert!(threaded_napi(&devices).starts_with("not known"));
        for (name, said) in [
            ("eth1", Some("1\n")),
            ("eth0", Some("1\n")),
            ("lo", Some("0\n")),
            ("old0", None),
        ] {
            std::fs::create_dir_all(devices.join(name)).unwrap();
            if let Some(said) = said {
                std::fs::write(devices.join(name).join("threaded"), said).unwrap();
            }
        }
        assert_eq!(
            threaded_napi(&devices),
            "eth0 eth1: net_softirq does not see what they receive"
        );
        for name in ["eth0", "eth1"] {
            std::fs::remove_dir_all(devices.join(name)).unwrap();
        }
        assert_eq!(threaded_napi(&devices), "no device");
    }
}
