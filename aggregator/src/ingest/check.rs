//! A batch, checked before anything of it is stored: afterwards nothing in it can be out of bounds, and the database has
//! no reason to refuse it. An error names the field and what was expected; the whole batch is refused.

use std::collections::{HashMap, HashSet};

use sonde_proto::limits::{
    EARLIEST_NS, MAX_ATTRIBUTES, MAX_FRAMES, MAX_FUTURE_NS, MAX_IPS, MAX_POD_LABELS, MAX_POD_TEXT, MAX_STRING, MAX_WORD,
};
use sonde_proto::{names, v1};

use crate::store::batch::StreamProbe;

/// What is wrong with a batch.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {what}")]
pub(super) struct Invalid {
    field: String,
    what: String,
}

type Checked = Result<(), Invalid>;

/// Formats only when something is wrong: this runs for every value.
macro_rules! ensure {
    ($right:expr, $field:expr, $($what:tt)+) => {
        if !$right {
            return Err(Invalid { field: $field.to_string(), what: format!($($what)+) });
        }
    };
}

/// Gaps of a node whose clock is ahead are cut to ours: what tells why all else of it is refused would be refused as well, and
/// nobody would hear of it but our log.
pub(super) fn cut_gaps(body: &mut v1::BatchBody, now_ns: u64) {
    for gap in &mut body.gaps {
        let may_be = gap.from_ns <= gap.to_ns && i64::try_from(gap.to_ns).is_ok();
        if may_be && gap.to_ns > now_ns.saturating_add(MAX_FUTURE_NS) {
            gap.to_ns = now_ns;
            gap.from_ns = gap.from_ns.min(now_ns);
        }
    }
}

/// Checks against what the stream's own catalogue promised.
pub(super) fn check(body: &v1::BatchBody, probes: &HashMap<String, StreamProbe>, now_ns: u64) -> Checked {
    let check = Check { body, probes, now_ns };
    check.strings()?;
    check.stacks()?;
    check.pods()?;
    for (at, rows) in body.rows.iter().enumerate() {
        check.rows(rows).map_err(|e| e.inside("rows", at))?;
    }
    for (at, event) in body.events.iter().enumerate() {
        check.event(event).map_err(|e| e.inside("events", at))?;
    }
    for (at, gap) in body.gaps.iter().enumerate() {
        check.gap(gap).map_err(|e| e.inside("gaps", at))?;
    }
    Ok(())
}

impl Invalid {
    fn inside(self, list: &str, at: usize) -> Self {
        Self {
            field: format!("{list}[{at}].{}", self.field),
            ..self
        }
    }
}

struct Check<'a> {
    body: &'a v1::BatchBody,
    probes: &'a HashMap<String, StreamProbe>,
    now_ns: u64,
}

impl Check<'_> {
    fn strings(&self) -> Checked {
        let strings = &self.body.strings;
        let needs_some = !(self.body.rows.is_empty() && self.body.events.is_empty() && self.body.stacks.is_empty());
        ensure!(
            !(strings.is_empty() && needs_some),
            "strings",
            "empty, expected \"\" at index 0"
        );
        ensure!(
            strings.first().is_none_or(String::is_empty),
            "strings[0]",
            "expected \"\""
        );
        for (at, string) in strings.iter().enumerate() {
            text(&format_args!("strings[{at}]"), string, MAX_STRING)?;
        }
        Ok(())
    }

    fn stacks(&self) -> Checked {
        for (at, stack) in self.body.stacks.iter().enumerate() {
            let frames = stack.frames.len();
            ensure!(
                frames <= MAX_FRAMES,
                format_args!("stacks[{at}]"),
                "{frames} frames, expected at most {MAX_FRAMES}"
            );
            for frame in &stack.frames {
                self.string(&format_args!("stacks[{at}].frames"), *frame)?;
            }
        }
        Ok(())
    }

    fn pods(&self) -> Checked {
        let mut seen = HashSet::new();
        for (at, pod) in self.body.pods.iter().enumerate() {
            self.pod(pod).map_err(|e| e.inside("pods", at))?;
            ensure!(
                seen.insert(&pod.sandbox),
                format_args!("pods[{at}].sandbox"),
                "{:?} is there twice",
                pod.sandbox
            );
        }
        Ok(())
    }

    fn pod(&self, pod: &v1::Pod) -> Checked {
        ensure!(!pod.sandbox.is_empty(), "sandbox", "empty");
        for (field, value) in [
            ("sandbox", &pod.sandbox),
            ("uid", &pod.uid),
            ("namespace", &pod.namespace),
            ("name", &pod.name),
            ("workload_kind", &pod.workload_kind),
            ("workload", &pod.workload),
        ] {
            text(&field, value, MAX_POD_TEXT)?;
        }
        ensure!(
            pod.ips.len() <= MAX_IPS,
            "ips",
            "{}, expected at most {MAX_IPS}",
            pod.ips.len()
        );
        for ip in &pod.ips {
            ensure!(
                matches!(ip.len(), 4 | 16),
                "ips",
                "an address of {} bytes, expected 4 or 16",
                ip.len()
            );
        }
        ensure!(
            pod.labels.len() <= MAX_POD_LABELS,
            "labels",
            "{}, expected at most {MAX_POD_LABELS}",
            pod.labels.len()
        );
        for (key, value) in &pod.labels {
            text(&"labels", key, MAX_POD_TEXT)?;
            text(&"labels", value, MAX_POD_TEXT)?;
        }
        signed("netns_inode", pod.netns_inode)?;
        // Where the beginning is not known it is 0.
        self.not_future("valid_from_ns", pod.valid_from_ns)?;
        self.not_future("valid_to_ns", pod.valid_to_ns)?;
        ensure!(
            pod.valid_to_ns == 0 || pod.valid_to_ns >= pod.valid_from_ns,
            "valid_to_ns",
            "{} is before valid_from_ns, {}",
            pod.valid_to_ns,
            pod.valid_from_ns
        );
        Ok(())
    }

    fn rows(&self, rows: &v1::Rows) -> Checked {
        let Some(probe) = self.probes.get(&rows.probe) else {
            ensure!(
                false,
                "probe",
                "{:?} is not in the catalogue of this stream",
                rows.probe
            );
            return Ok(());
        };
        self.time("time_ns", rows.time_ns)?;
        let n = rows.subjects.len();
        for subject in &rows.subjects {
            self.subject("subjects", *subject)?;
        }
        let labels = probe.said.labels.len();
        ensure!(
            rows.labels.len() == n * labels,
            "labels",
            "{}, expected {} ({n} rows of {labels})",
            rows.labels.len(),
            n * labels
        );
        for label in &rows.labels {
            self.word("labels", *label)?;
        }
        let columns = &probe.said.columns;
        ensure!(
            rows.columns.len() <= columns.len(),
            "columns",
            "{}, expected at most the {} of the catalogue",
            rows.columns.len(),
            columns.len()
        );
        for (column, said) in rows.columns.iter().zip(columns) {
            let width = said.width();
            ensure!(
                column.values.len() == n * width,
                format_args!("columns.{}", said.name),
                "{} values, expected {} ({n} rows of {width})",
                column.values.len(),
                n * width
            );
        }
        Ok(())
    }

    fn event(&self, event: &v1::Event) -> Checked {
        self.time("time_ns", event.time_ns)?;
        if !event.subject_unknown {
            self.subject("subject", event.subject)?;
        }
        if event.peer != 0 {
            self.subject("peer", event.peer - 1)?;
        }
        for (field, word) in [
            ("probe", event.probe),
            ("type", event.r#type),
            ("reason", event.reason),
            ("protocol", event.protocol),
            ("comm", event.comm),
            ("state", event.state),
            ("interface", event.interface),
        ] {
            self.word(field, word)?;
        }
        let probe = &self.body.strings[event.probe as usize];
        ensure!(
            self.probes.contains_key(probe),
            "probe",
            "{probe:?} is not in the catalogue of this stream"
        );
        ensure!(event.r#type != 0, "type", "empty");
        for (field, address) in [("saddr", &event.saddr), ("daddr", &event.daddr)] {
            let length = address.len();
            ensure!(
                matches!(length, 0 | 4 | 16),
                field,
                "an address of {length} bytes, expected 0, 4 or 16"
            );
        }
        for (field, port) in [("sport", event.sport), ("dport", event.dport)] {
            ensure!(port <= 65_535, field, "{port} is not a port");
        }
        ensure!(
            v1::Direction::try_from(event.direction).is_ok(),
            "direction",
            "{} is none",
            event.direction
        );
        signed("latency_ns", event.latency_ns.unwrap_or(0))?;
        signed("suppressed", event.suppressed)?;
        for (field, number) in [("cpu", event.cpu.unwrap_or(0)), ("pid", event.pid)] {
            ensure!(
                i32::try_from(number).is_ok(),
                field,
                "{number}, expected at most {}",
                i32::MAX
            );
        }
        let stacks = self.body.stacks.len();
        ensure!(
            event.stack as usize <= stacks,
            "stack",
            "{}, but there are {stacks}",
            event.stack
        );
        ensure!(
            event.attributes.len() <= MAX_ATTRIBUTES,
            "attributes",
            "{}, expected at most {MAX_ATTRIBUTES}",
            event.attributes.len()
        );
        for attribute in &event.attributes {
            ensure!(attribute.key != 0, "attributes", "a key is empty");
            self.string(&"attributes", attribute.key)?;
            self.string(&"attributes", attribute.value)?;
        }
        Ok(())
    }

    fn gap(&self, gap: &v1::Gap) -> Checked {
        let known = gap.probe.is_empty() || self.probes.contains_key(&gap.probe);
        ensure!(known, "probe", "{:?} is not in the catalogue of this stream", gap.probe);
        ensure!(
            names::is_valid(&gap.cause),
            "cause",
            "{:?} is not a word of [a-z][a-z0-9_]*",
            gap.cause
        );
        self.time("from_ns", gap.from_ns)?;
        self.time("to_ns", gap.to_ns)?;
        ensure!(
            gap.from_ns <= gap.to_ns,
            "to_ns",
            "{} is before from_ns, {}",
            gap.to_ns,
            gap.from_ns
        );
        signed("count", gap.count)?;
        if !gap.subject_unknown {
            self.subject("subject", gap.subject)?;
        }
        text(&"detail", &gap.detail, MAX_STRING)
    }

    /// What is older than retention is another matter: it is accepted and not stored, since a spool may have waited for
    /// long.
    fn time(&self, field: &str, ns: u64) -> Checked {
        ensure!(
            ns >= EARLIEST_NS,
            field,
            "{ns} is before 2020: the clock of the node is not set"
        );
        self.not_future(field, ns)
    }

    fn not_future(&self, field: &str, ns: u64) -> Checked {
        let latest = self.now_ns.saturating_add(MAX_FUTURE_NS);
        ensure!(
            ns <= latest,
            field,
            "{ns} is {} s ahead of the aggregator's clock, expected at most {} s",
            (ns - self.now_ns) / 1_000_000_000,
            MAX_FUTURE_NS / 1_000_000_000
        );
        Ok(())
    }

    fn subject(&self, field: &str, subject: u32) -> Checked {
        let pods = self.body.pods.len();
        ensure!(
            subject as usize <= pods,
            field,
            "subject {subject}, but there are {pods} pods"
        );
        Ok(())
    }

    fn string(&self, field: &dyn std::fmt::Display, string: u32) -> Checked {
        let strings = self.body.strings.len();
        ensure!(
            (string as usize) < strings,
            field,
            "string {string}, but there are {strings}"
        );
        Ok(())
    }

    /// A string that becomes a number in the tables.
    fn word(&self, field: &str, word: u32) -> Checked {
        self.string(&field, word)?;
        let length = self.body.strings[word as usize].len();
        ensure!(
            length <= MAX_WORD,
            field,
            "a string of {length} bytes, expected at most {MAX_WORD}"
        );
        Ok(())
    }
}

/// PostgreSQL has no unsigned integers.
fn signed(field: &str, value: u64) -> Checked {
    ensure!(
        i64::try_from(value).is_ok(),
        field,
        "{value}, expected at most {}",
        i64::MAX
    );
    Ok(())
}

/// PostgreSQL has no NUL in texts.
fn text(field: &dyn std::fmt::Display, text: &str, most: usize) -> Checked {
    ensure!(
        text.len() <= most,
        field,
        "{} bytes, expected at most {most}",
        text.len()
    );
    ensure!(!text.as_bytes().contains(&0), field, "contains a NUL");
    Ok(())
}
