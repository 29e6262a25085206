//! Results of all kernels as a table, and as docs/kernels.md.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::guest::RUNS;
use crate::{Check, Outcome};

/// Rungs as the collector names them, best first, and as they stand in a cell.
const RUNGS: [(&str, &str); 6] = [
    ("tp_btf", "tp_btf"),
    ("raw_tracepoint", "raw"),
    ("fentry", "fentry"),
    ("kprobe", "kprobe"),
    ("tcx", "tcx"),
    ("clsact", "clsact"),
];

/// What the runs of a kernel found, or why it did not run.
struct Column {
    /// As on the command line.
    name: String,
    version: String,
    checks: Result<Vec<Check>, Missing>,
}

struct Missing {
    why: String,
    is_fault: bool,
}

#[derive(Default)]
pub struct Table(Vec<Column>);

impl Table {
    pub fn add(&mut self, name: &str, version: &str, checks: Vec<Check>) {
        self.push(name, version, Ok(checks));
    }

    /// It cannot be had.
    pub fn add_missing(&mut self, name: &str, why: &str) {
        let (why, is_fault) = (why.to_owned(), false);
        self.push(name, "none", Err(Missing { why, is_fault }));
    }

    /// It did not come to its end.
    pub fn add_failed(&mut self, name: &str, version: &str, why: &str) {
        let (why, is_fault) = (why.to_owned(), true);
        self.push(name, version, Err(Missing { why, is_fault }));
    }

    fn push(&mut self, name: &str, version: &str, checks: Result<Vec<Check>, Missing>) {
        self.0.push(Column {
            name: name.to_owned(),
            version: version.to_owned(),
            checks,
        });
    }

    /// Everything that is not as it should be, a line each.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for column in &self.0 {
            for check in column.checks.iter().flatten() {
                if let Outcome::Wrong(why) = &check.outcome {
                    let rung = check.rung.as_deref().unwrap_or("off");
                    faults.push(format!(
                        "{} {} on {rung} ({}): {why}",
                        column.name, check.signal, check.run
                    ));
                }
            }
            if let Err(Missing { why, is_fault: true }) = &column.checks {
                faults.push(format!("{}: {why}", column.name));
            }
            if let Ok(checks) = &column.checks {
                for signal in self.signals() {
                    if !checks
                        .iter()
                        .any(|check| check.signal == signal && check.rung.is_some())
                    {
                        faults.push(format!("{} {signal}: no rung at all", column.name));
                    }
                }
            }
        }
        faults
    }

    fn signals(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for check in self.0.iter().flat_map(|column| column.checks.iter().flatten()) {
            if !names.contains(&check.signal.as_str()) {
                names.push(&check.signal);
            }
        }
        names
    }

    /// In Markdown, readable as it is.
    pub fn render(&self) -> String {
        let mut text = String::from("| signal |");
        for column in &self.0 {
            let _ = write!(text, " {} |", column.name);
        }
        text.push_str("\n|---|");
        text.push_str(&"---|".repeat(self.0.len()));
        for signal in self.signals() {
            let _ = write!(text, "\n| {signal} |");
            for column in &self.0 {
                let _ = write!(text, " {} |", column.cell(signal));
            }
        }
        text.push('\n');
        text
    }

    /// docs/kernels.md.
    pub fn document(&self) -> String {
        let mut text = String::from(HEAD);
        text.push_str("| name | version of Debian's package |\n|---|---|\n");
        for column in &self.0 {
            let _ = match &column.checks {
                Ok(_) => writeln!(text, "| {} | {} |", column.name, column.version),
                Err(missing) => writeln!(
                    text,
                    "| {} | {}: not run: {} |",
                    column.name, column.version, missing.why
                ),
            };
        }
        text.push_str(TABLE);
        text.push_str(&self.render());
        text.push_str(REASONS);
        for (reason, places) in self.reasons() {
            let _ = writeln!(text, "- {reason}: {places}");
        }
        let faults = self.faults();
        if !faults.is_empty() {
            text.push_str("\n## What is wrong\n\n");
            for fault in faults {
                let _ = writeln!(text, "- {}", fault.lines().next().unwrap_or_default());
            }
        }
        text.push_str(WITNESSED);
        for signal in self.signals() {
            let right = self.0.iter().rev().find_map(|column| column.word(signal));
            if let Some(right) = right {
                let _ = writeln!(text, "| {signal} | {right} |");
            }
        }
        text
    }

    /// Why which rung was not to be had, and where: rung and reason, then signals with their kernels.
    fn reasons(&self) -> BTreeMap<String, String> {
        let mut places: BTreeMap<String, BTreeMap<&str, Vec<&str>>> = BTreeMap::new();
        for column in &self.0 {
            for check in column.checks.iter().flatten().filter(|check| check.run != HIDDEN) {
                for (rung, why) in refusals(&check.reason) {
                    let signals = places.entry(format!("{rung}: {why}")).or_default();
                    let kernels = signals.entry(&check.signal).or_default();
                    if !kernels.contains(&column.name.as_str()) {
                        kernels.push(&column.name);
                    }
                }
            }
        }
        let tell = |signals: BTreeMap<&str, Vec<&str>>| {
            let all = signals
                .into_iter()
                .map(|(signal, kernels)| format!("{signal} on {}", kernels.join(", ")));
            all.collect::<Vec<_>>().join("; ")
        };
        places
            .into_iter()
            .map(|(reason, signals)| (reason, tell(signals)))
            .collect()
    }
}

/// The run without BTF of the kernel's own.
const HIDDEN: &str = "btf_path";

impl Column {
    /// Rungs on which the signal was right, the one taken by itself in bold, then the one without BTF.
    fn cell(&self, signal: &str) -> String {
        let Ok(checks) = &self.checks else {
            return "not run".into();
        };
        let of = |run: &str| checks.iter().find(|check| check.signal == signal && check.run == run);
        let mut tried: Vec<String> = Vec::new();
        let default = of(RUNS[0].name).and_then(|check| check.rung.as_deref());
        for (rung, short) in RUNGS {
            let on =
                |check: &&Check| check.signal == signal && check.rung.as_deref() == Some(rung) && check.run != HIDDEN;
            let outcomes: Vec<_> = checks.iter().filter(on).map(|check| &check.outcome).collect();
            if outcomes.is_empty() {
                continue;
            }
            let mark = if outcomes.iter().any(|outcome| matches!(outcome, Outcome::Wrong(_))) {
                " WRONG"
            } else {
                ""
            };
            tried.push(match default == Some(rung) {
                true => format!("**{short}**{mark}"),
                false => format!("{short}{mark}"),
            });
        }
        let hidden = match of(HIDDEN) {
            Some(Check {
                rung: Some(rung),
                outcome,
                ..
            }) => {
                let short = RUNGS
                    .iter()
                    .find(|(name, _)| name == rung)
                    .map_or(rung.as_str(), |(_, short)| short);
                let mark = if matches!(outcome, Outcome::Wrong(_)) {
                    " WRONG"
                } else {
                    ""
                };
                format!("; file: {short}{mark}")
            }
            _ => "; file: off".into(),
        };
        match tried.as_slice() {
            [] => format!("off{hidden}"),
            some => some.join(", ") + &hidden,
        }
    }

    /// What was right of a signal on the rung it takes by itself.
    fn word(&self, signal: &str) -> Option<&str> {
        let check = self.checks.as_ref().ok()?.iter().find(|check| check.signal == signal)?;
        match &check.outcome {
            Outcome::Right(what) => Some(what),
            _ => None,
        }
    }
}

/// `tp_btf: why; kprobe: why` taken apart, without what this test itself left out.
fn refusals(reason: &str) -> Vec<(&'static str, &str)> {
    let mut starts: Vec<(usize, &'static str)> = Vec::new();
    for (rung, _) in RUNGS {
        let begin = format!("{rung}: ");
        starts.extend(reason.match_indices(&begin).filter_map(|(at, _)| {
            let is_start = at == 0 || reason[..at].ends_with("; ");
            is_start.then_some((at, rung))
        }));
    }
    starts.sort_unstable();
    let ends = starts.iter().skip(1).map(|(at, _)| *at - 2).chain([reason.len()]);
    let all = starts
        .iter()
        .zip(ends)
        .map(|((at, rung), end)| (*rung, &reason[at + rung.len() + 2..end]));
    all.filter(|(_, why)| !why.contains("kernel.rungs leaves")).collect()
}

const HEAD: &str = "# Kernels

<!-- Written by `make test-kernels`. -->

Each of these kernels of Debian was booted in a virtual machine with a collector in it. For every signal the real thing was
made there (packets dropped by a rule, resets of each type, segments lost, data left unread, queues that hold back, commands to
a virtio-net device), once for each way to hook into the kernel that the kernel has, and what the collector counted and told
was compared with what was done and what the kernel itself counted: numbers exactly, addresses and ports always. The machines are
emulated, so times say nothing about a real one. `make test` does the same with two of them.

";

const TABLE: &str = "
## What was right on what

In bold the rung that the collector takes by itself; the others were taken when `kernel.rungs` had nothing else. Behind `file` the
rung that is taken when the kernel has no BTF of its own and `kernel.btf_path` names a file. `raw` is `raw_tracepoint`.

";

const REASONS: &str = "
## Why not on a better one

The kernel's reasons, as `sonde-collector doctor` and `/status` give them.

";

const WITNESSED: &str = "
## What was compared

On the newest kernel:

| signal | result |
|---|---|
";

#[cfg(test)]
mod tests {
    use super::*;

    fn check(run: &str, rung: Option<&str>, reason: &str, outcome: Outcome) -> Check {
        Check {
            run: run.into(),
            signal: "p.count".into(),
            rung: rung.map(str::to_owned),
            reason: reason.into(),
            outcome,
        }
    }

    fn right() -> Outcome {
        Outcome::Right("3 of 3".into())
    }

    #[test]
    fn a_cell_has_every_rung_that_was_right_and_the_one_taken_in_bold() {
        let mut table = Table::default();
        let checks = vec![
            check(
                "default",
                Some("fentry"),
                "tp_btf: none; of that name; raw_tracepoint: x",
                right(),
            ),
            check(
                "raw_tracepoint",
                None,
                "kernel.rungs leaves out every way to it",
                Outcome::Off,
            ),
            check(
                "kprobe",
                Some("kprobe"),
                "tp_btf: kernel.rungs leaves it out; fentry: kernel.rungs leaves it out",
                right(),
            ),
            check("btf_path", Some("kprobe"), "tp_btf: no BTF", right()),
        ];
        table.add("5.10", "5.10.9-1", checks);
        table.add_missing("6.1", "no mirror");
        assert!(
            table
                .render()
                .contains("| p.count | **fentry**, kprobe; file: kprobe | not run |"),
            "{}",
            table.render()
        );
        let reasons: Vec<_> = table.reasons().into_iter().collect();
        assert_eq!(
            reasons,
            [
                ("raw_tracepoint: x".into(), "p.count on 5.10".into()),
                ("tp_btf: none; of that name".into(), "p.count on 5.10".to_owned()),
            ]
        );
        assert!(table.faults().is_empty());
        let document = table.document();
        assert!(document.contains("| 6.1 | none: not run: no mirror |") && document.contains("| p.count | 3 of 3 |"));
    }

    #[test]
    fn what_was_wrong_or_ran_on_nothing_is_a_fault() {
        let mut table = Table::default();
        table.add(
            "6.1",
            "6.1.9",
            vec![check("default", Some("tp_btf"), "", Outcome::Wrong("4, not 3".into()))],
        );
        table.add("6.2", "6.2.9", vec![check("default", None, "tp_btf: x", Outcome::Off)]);
        assert_eq!(
            table.faults(),
            [
                "6.1 p.count on tp_btf (default): 4, not 3",
                "6.2 p.count: no rung at all"
            ]
        );
        assert!(table.render().contains("**tp_btf** WRONG; file: off"));
        table.add_failed("6.3", "6.3.9", "Oops");
        assert_eq!(table.faults().last().map(String::as_str), Some("6.3: Oops"));
    }
}
