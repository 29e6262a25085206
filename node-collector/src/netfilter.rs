//! What netfilter dropped a packet for: the rules and policies of nftables that can have done it, the one that did
//! where that was traced, or connection tracking without room.
//!
//! The kernel says of such a drop only that it was netfilter, and in a stack at which hook. So the ruleset of the
//! network namespace is read, from a thread of its own: events wait here, and those of other things do not.
//! Nothing is read before something was dropped; a ruleset is read again only when its generation has changed, and where
//! that is all the time, so seldom that it costs little: events wait for that, a second at most.

mod candidates;
mod conntrack;
mod namespace;
mod tracer;
mod worker;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};

use sonde_common::config::Config;

use crate::event::{Event, Observation};
use crate::missing::Missing;
use crate::pods::{PodIndex, Targets};
use crate::probes::packetloss::SPEC;
use candidates::attribute;
use worker::Worker;

/// Batches between pipeline and thread.
const BATCHES: usize = 256;

/// What the thread did.
#[derive(Debug, Default)]
pub struct Stats {
    /// Rulesets read.
    pub rulesets: AtomicU64,
    /// Traces begun.
    pub traces: AtomicU64,
    /// Events that wait for it now.
    pub waiting: AtomicU64,
    /// Events that went on without what they should tell of netfilter.
    pub unexplained: AtomicU64,
}

/// Whether the kernel is asked which rule it was: `probes.packetloss.nft_trace`, as the configuration has it now.
#[derive(Clone, Debug)]
pub struct Tracing(Arc<AtomicBool>);

impl Tracing {
    pub fn new(config: &Config) -> Self {
        let tracing = Self(Arc::default());
        tracing.set(config);
        tracing
    }

    /// What is under way when it is switched off is given up within a look of the thread's.
    pub fn set(&self, config: &Config) {
        let asked = config.probes.get(SPEC.name).is_some_and(|probe| probe.nft_trace);
        self.0.store(asked, Ordering::Relaxed);
    }

    fn is_on(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The running thread. Dropping it gives on what waits, as it is, and ends it.
#[derive(Debug)]
pub struct Explainer {
    sender: Option<SyncSender<Vec<Event>>>,
    stats: Arc<Stats>,
    tracing: Tracing,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Explainer {
    /// Explained events go to `deliver`, later than others.
    pub fn start(
        config: &Config,
        index: Arc<PodIndex>,
        targets: Arc<Targets>,
        missing: Arc<Missing>,
        deliver: impl Fn(Vec<Event>) + Send + 'static,
    ) -> io::Result<Self> {
        let (sender, receiver) = sync_channel(BATCHES);
        let stats = Arc::new(Stats::default());
        let tracing = Tracing::new(config);
        let mut worker = Worker::new(config, index, targets, missing, Arc::clone(&stats), tracing.clone());
        let (ready, started) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("sonde-netfilter".into())
            .spawn(move || match worker.begin() {
                Ok(home) => {
                    let _ = ready.send(Ok(()));
                    worker.run(&home, &receiver, deliver);
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            })?;
        started
            .recv()
            .map_err(|_| io::Error::other("the netfilter thread ended"))??;
        Ok(Self {
            sender: Some(sender),
            stats,
            tracing,
            thread: Some(thread),
        })
    }

    /// Takes the events that it will give on itself.
    pub fn take(&self, events: &mut Vec<Event>) {
        let ours: Vec<Event> = events
            .extract_if(.., |event| is_of_netfilter(&event.observation))
            .collect();
        let Some(sender) = self.sender.as_ref().filter(|_| !ours.is_empty()) else {
            return;
        };
        let count = ours.len() as u64;
        self.stats.waiting.fetch_add(count, Ordering::Relaxed);
        if let Err(TrySendError::Full(back) | TrySendError::Disconnected(back)) = sender.try_send(ours) {
            self.stats.waiting.fetch_sub(count, Ordering::Relaxed);
            self.stats.unexplained.fetch_add(count, Ordering::Relaxed);
            events.extend(back);
        }
    }

    pub fn stats(&self) -> Arc<Stats> {
        Arc::clone(&self.stats)
    }

    /// To change it while the thread runs.
    pub fn tracing(&self) -> Tracing {
        self.tracing.clone()
    }
}

impl Drop for Explainer {
    fn drop(&mut self) {
        self.sender = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The function that dropped the packet, without its offset and what the compiler added.
fn dropped_in(seen: &Observation) -> &str {
    let location = attribute(seen, "location").unwrap_or_default();
    location.split(['+', '.']).next().unwrap_or_default()
}

fn is_of_netfilter(seen: &Observation) -> bool {
    seen.probe == SPEC.name
        && match seen.reason.as_deref() {
            Some("NETFILTER_DROP") => true,
            // Below Linux 5.17 there are no reasons.
            Some("NOT_SPECIFIED") => matches!(dropped_in(seen), "nft_do_chain" | "nf_hook_slow" | "nf_hook_slow_list"),
            _ => false,
        }
}

/// Who of netfilter it can have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dropper {
    Nft,
    /// Not nftables.
    Other,
    Any,
}

impl Dropper {
    /// `tells_nft`: nftables drops by itself (Linux 6.7), and not through the function that calls all of netfilter.
    fn of(seen: &Observation, tells_nft: bool) -> Self {
        match dropped_in(seen) {
            "nft_do_chain" => Self::Nft,
            "nf_hook_slow" | "nf_hook_slow_list" if tells_nft => Self::Other,
            _ => Self::Any,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Other => "iptables-legacy, conntrack or other",
            Self::Any => "nft, iptables-legacy, conntrack or other",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Subject;
    use parking_lot::Mutex;
    use std::sync::mpsc::channel;

    fn event(reason: &str, location: &str) -> Event {
        Event {
            time_ns: 1,
            subject: Subject::Unknown,
            peer: None,
            observation: Observation {
                probe: SPEC.name,
                reason: Some(reason.into()),
                attributes: vec![("location", location.into())],
                ..Observation::default()
            },
        }
    }

    #[test]
    fn drops_of_netfilter_are_told_from_others_and_by_who_it_can_have_been() {
        let is_ours = |reason, location| is_of_netfilter(&event(reason, location).observation);
        assert!(is_ours("NETFILTER_DROP", "nft_do_chain+0x4f1"));
        assert!(is_ours("NOT_SPECIFIED", "nf_hook_slow+0x1"), "no reasons below 5.17");
        assert!(!is_ours("NOT_SPECIFIED", "udp_queue_rcv_one_skb+0x1"));
        assert!(!is_ours("NO_SOCKET", "nft_do_chain+0x4f1"));
        let of = |location, tells_nft| Dropper::of(&event("NETFILTER_DROP", location).observation, tells_nft);
        assert_eq!(of("nft_do_chain.constprop.0+0x4f1", true), Dropper::Nft);
        assert_eq!(of("nf_hook_slow+0xa0", true), Dropper::Other);
        assert_eq!(of("nf_hook_slow+0xa0", false), Dropper::Any);
        assert_eq!(
            of("0xffffffff81000231", true),
            Dropper::Any,
            "kernel symbols are hidden"
        );
    }

    #[test]
    fn a_thread_that_does_not_keep_up_costs_the_explanation_and_no_event() {
        let held = Arc::new(Mutex::new(()));
        let (sender, delivered) = channel();
        let deliver = {
            let held = Arc::clone(&held);
            move |events: Vec<Event>| {
                let _wait = held.lock();
                let _ = sender.send(events.len());
            }
        };
        let explainer = Explainer::start(
            &Config::default(),
            Arc::default(),
            Arc::default(),
            Arc::default(),
            deliver,
        )
        .unwrap();
        let busy = held.lock();
        let (mut given, mut back) = (0, 0);
        while back == 0 {
            let mut events = vec![
                event("NETFILTER_DROP", "nft_do_chain+0x1"),
                event("NO_SOCKET", "udp_rcv+0x1"),
            ];
            explainer.take(&mut events);
            assert_eq!(
                events[0].observation.reason.as_deref(),
                Some("NO_SOCKET"),
                "goes its own way"
            );
            (given, back) = (given + 1, events.len() - 1);
            assert!(given < 20 * BATCHES, "it is held up");
        }
        let stats = explainer.stats();
        drop(busy);
        drop(explainer);
        let explained: usize = delivered.iter().sum();
        assert_eq!(explained, given - 1, "the end gives on what waits");
        assert_eq!(
            stats.unexplained.load(Ordering::Relaxed),
            given as u64,
            "no namespace, no rules"
        );
    }
}
