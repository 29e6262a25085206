//! Gaps as they were made: counted by cause for metrics, the newest kept for `/status`.

use std::collections::VecDeque;

use parking_lot::Mutex;
use serde::Serialize;
use sonde_common::time::rfc3339;
use sonde_proto::gap;

use crate::event::{Gap, Subject};

const KEPT: usize = 50;

#[derive(Debug, Default)]
pub struct GapLog(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// By place in [`gap::ALL`]: gaps, and what they count.
    counts: [(u64, u64); gap::ALL.len()],
    newest: VecDeque<Entry>,
}

/// A gap for people.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    pub cause: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub probe: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub pod: String,
    pub from: String,
    pub to: String,
    pub count: u64,
    pub detail: String,
}

impl GapLog {
    pub fn add(&self, gap: &Gap) {
        let mut inner = self.0.lock();
        inner.count(gap.cause, 1, gap.count);
        if inner.newest.len() == KEPT {
            inner.newest.pop_front();
        }
        inner.newest.push_back(Entry {
            cause: gap.cause,
            probe: gap.probe,
            pod: match &gap.subject {
                Subject::Pod(pod) => format!("{}/{}", pod.namespace, pod.name),
                Subject::Node | Subject::Unknown => String::new(),
            },
            from: rfc3339(gap.from_ns),
            to: rfc3339(gap.to_ns),
            count: gap.count,
            detail: gap.detail.clone(),
        });
    }

    /// A gap already added counts for more.
    pub fn grown(&self, cause: &'static str, count: u64) {
        self.0.lock().count(cause, 0, count);
    }

    /// Cause, gaps, and what they count, for every cause there is.
    pub fn counts(&self) -> Vec<(&'static str, u64, u64)> {
        let inner = self.0.lock();
        gap::ALL
            .into_iter()
            .zip(inner.counts)
            .map(|(cause, (gaps, missing))| (cause, gaps, missing))
            .collect()
    }

    /// The newest first.
    pub fn newest(&self) -> Vec<Entry> {
        self.0.lock().newest.iter().rev().cloned().collect()
    }
}

impl Inner {
    fn count(&mut self, cause: &str, gaps: u64, missing: u64) {
        if let Some(place) = gap::ALL.iter().position(|known| *known == cause) {
            self.counts[place].0 += gaps;
            self.counts[place].1 += missing;
        }
    }
}
