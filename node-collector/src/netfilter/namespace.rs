//! What is known of one network namespace: its ruleset of one generation, and what that says of packets.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::candidates::{Candidates, Packet};
use super::conntrack::Readings;
use crate::kernel::monotonic_ns;
use crate::netlink::dump::DumpError;
use crate::netlink::nftables::trace::Culprit;
use crate::netlink::nftables::{self, Ruleset};
use crate::netlink::socket::AskSocket;

/// A ruleset that changes all the time is read so seldom that reading takes this part of the time, in this span.
const SHARE: u32 = 20;
const SOONEST: Duration = Duration::from_millis(20);
const LATEST: Duration = Duration::from_secs(1);
/// Packets that are remembered with what the ruleset says of them.
const ANSWERS: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Namespace {
    /// Its pod's sandbox; empty: the node.
    pub(super) owner: String,
    known: Option<Known>,
    failed: Option<Instant>,
    pub(super) conntrack: Readings,
    /// When it was last asked about.
    pub(super) used: Option<Instant>,
}

#[derive(Debug)]
struct Known {
    ruleset: Ruleset,
    /// Not read again before.
    keeps_until: Instant,
    /// Since when at the latest it has been this one (CLOCK_MONOTONIC).
    since_ns: u64,
    answers: HashMap<Packet, Candidates>,
}

/// How it stands with the ruleset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is known as it is now.
    Known,
    /// It has changed and was read just before: later.
    NotYet,
    /// It could not be read just before.
    Failed,
}

impl Namespace {
    pub(super) fn of(owner: &str) -> Self {
        Self {
            owner: owner.to_owned(),
            ..Self::default()
        }
    }

    /// Reads the ruleset of the namespace that the calling thread is in, if it is another one now.
    pub(super) fn refresh(&mut self, buffer: &mut [u8], read: &AtomicU64) -> Result<Standing, DumpError> {
        if self.failed.is_some_and(|at| at.elapsed() < LATEST) {
            return Ok(Standing::Failed);
        }
        let result = self.read(buffer, read);
        self.failed = result.is_err().then(Instant::now);
        result
    }

    fn read(&mut self, buffer: &mut [u8], read: &AtomicU64) -> Result<Standing, DumpError> {
        let socket = AskSocket::netfilter(0)?;
        if let Some(known) = &self.known {
            if nftables::generation(&socket, buffer)? == known.ruleset.generation {
                return Ok(Standing::Known);
            }
            if Instant::now() < known.keeps_until {
                return Ok(Standing::NotYet);
            }
        }
        let begin = Instant::now();
        let ruleset = nftables::read(&socket, buffer)?;
        let took = begin.elapsed();
        read.fetch_add(1, Ordering::Relaxed);
        self.known = Some(Known {
            ruleset,
            keeps_until: Instant::now() + (SHARE * took).clamp(SOONEST, LATEST),
            since_ns: monotonic_ns(),
            answers: HashMap::new(),
        });
        Ok(Standing::Known)
    }

    /// Attributes that tell what can have dropped the packet at that time, and what did if it is `culprit`.
    pub(super) fn tell(
        &mut self,
        packet: Packet,
        at_ns: u64,
        culprit: Option<&Culprit>,
    ) -> Vec<(&'static str, String)> {
        let Some(known) = &mut self.known else {
            return Vec::new();
        };
        if known.answers.len() >= ANSWERS {
            known.answers.clear();
        }
        let ruleset = &known.ruleset;
        let found = known
            .answers
            .entry(packet)
            .or_insert_with_key(|packet| Candidates::find(ruleset, packet));
        let mut out = Vec::new();
        if let Some(rule) = culprit.and_then(|culprit| found.name(ruleset, culprit)) {
            out.push(("nft_rule", rule));
        }
        if !found.shown.is_empty() {
            let mut all = found.shown.join("; ");
            if found.count > found.shown.len() {
                all.push_str(&format!("; and {} more", found.count - found.shown.len()));
            }
            out.push(("nft", all));
        }
        out.push(("nft_candidates", found.count.to_string()));
        let ruleset = match at_ns.checked_sub(known.since_ns) {
            Some(_) => "unchanged since before the drop".to_owned(),
            None => format!(
                "read {} ms after the drop",
                (known.since_ns - at_ns).div_ceil(1_000_000)
            ),
        };
        out.push(("nft_ruleset", ruleset));
        out
    }

    /// Rules kept.
    pub(super) fn rules(&self) -> usize {
        self.known.as_ref().map_or(0, |known| known.ruleset.rules())
    }
}
