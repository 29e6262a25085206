//! What is known of one network namespace: its ruleset of one generation, and what that says of packets.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::candidates::{self, Candidates, Packet};
use super::conntrack::Readings;
use crate::kernel::monotonic_ns;
use crate::netlink::dump::DumpError;
use crate::netlink::nftables::trace::Culprit;
use crate::netlink::nftables::{self, Ruleset};
use crate::netlink::socket::AskSocket;

/// A ruleset that changes all the time is read so seldom that reading takes this part of the time, in this span.
const SHARE: u32 = 20;
const SOONEST: Duration = Duration::from_millis(20);
const LATEST: Duration = Duration::from_secs(20);
/// After a reading that failed.
const RETRY: Duration = Duration::from_secs(1);
/// Packets that are remembered with what the ruleset says of them.
const ANSWERS: usize = 256;

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
    /// It is another one now.
    is_old: bool,
    answers: HashMap<Packet, Candidates>,
}

/// How it stands with the ruleset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is known as it is now.
    Known,
    /// It has changed and was read just before: later, or as it was.
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
        if self.failed.is_some_and(|at| at.elapsed() < RETRY) {
            return Ok(Standing::Failed);
        }
        let result = self.read(buffer, read);
        self.failed = result.is_err().then(Instant::now);
        result
    }

    fn read(&mut self, buffer: &mut [u8], read: &AtomicU64) -> Result<Standing, DumpError> {
        let socket = AskSocket::netfilter(0)?;
        if let Some(known) = &mut self.known {
            if nftables::generation(&socket, buffer)? == known.ruleset.generation {
                return Ok(Standing::Known);
            }
            known.is_old = true;
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
            is_old: false,
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
        let mut out = Vec::new();
        if let Some(rule) = culprit.and_then(|culprit| candidates::name(ruleset, &packet, culprit)) {
            out.push(("nft_rule", rule));
        }
        let found = known
            .answers
            .entry(packet)
            .or_insert_with_key(|packet| Candidates::find(ruleset, packet));
        if !found.shown.is_empty() {
            let mut all = found.shown.join("; ");
            if found.count > found.shown.len() {
                all.push_str(&format!("; and {} more", found.count - found.shown.len()));
            }
            out.push(("nft", all));
        }
        out.push(("nft_candidates", found.count.to_string()));
        let ms = |ns: u64| ns.div_ceil(1_000_000);
        let ruleset = match at_ns.checked_sub(known.since_ns) {
            Some(before) if known.is_old => format!("read {} ms before the drop, and changed since", ms(before)),
            Some(_) => "unchanged since before the drop".to_owned(),
            None => format!("read {} ms after the drop", ms(known.since_ns - at_ns)),
        };
        out.push(("nft_ruleset", ruleset));
        out
    }

    /// Rules kept.
    pub(super) fn rules(&self) -> usize {
        self.known.as_ref().map_or(0, |known| known.ruleset.rules())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Observation;

    #[test]
    fn how_far_the_ruleset_is_from_the_drop_is_told() {
        let told = |is_old, at_ms: u64| {
            let mut namespace = Namespace {
                known: Some(Known {
                    ruleset: Ruleset::default(),
                    keeps_until: Instant::now(),
                    since_ns: 500_000_000,
                    is_old,
                    answers: HashMap::new(),
                }),
                ..Namespace::default()
            };
            let told = namespace.tell(Packet::of(&Observation::default()), at_ms * 1_000_000, None);
            assert_eq!(told[0], ("nft_candidates", "0".to_owned()));
            told[1].1.clone()
        };
        assert_eq!(told(false, 600), "unchanged since before the drop");
        assert_eq!(told(false, 480), "read 20 ms after the drop");
        assert_eq!(told(true, 600), "read 100 ms before the drop, and changed since");
        assert_eq!(told(true, 480), "read 20 ms after the drop");
        assert!(
            Namespace::default()
                .tell(Packet::of(&Observation::default()), 1, None)
                .is_empty()
        );
    }
}
