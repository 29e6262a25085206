//! Traces under way, and what they found. Opt-in, and bounded: few at a time, each short, each connection seldom.

use std::collections::HashMap;
use std::io;
use std::time::{Duration, Instant};

use crate::event::NetnsKey;
use crate::netlink::nftables::trace::{Culprit, Trace, Tuple};

/// Traces at one time, on the node. A namespace has one, as its table has one name.
const RUNNING: usize = 4;
/// How long one waits for its packet.
const LASTS: Duration = Duration::from_secs(10);
/// How long a connection is not traced again, and what was found of it holds.
const HOLDS: Duration = Duration::from_secs(60);
/// Connections that are remembered.
const KEPT: usize = 1024;

type Key = (NetnsKey, Tuple);

#[derive(Debug, Default)]
pub(super) struct Tracer {
    running: Vec<Running>,
    /// When the connection was traced, and what was found.
    known: HashMap<Key, (Instant, Option<Culprit>)>,
}

#[derive(Debug)]
struct Running {
    key: Key,
    until: Instant,
    trace: Trace,
}

impl Tracer {
    pub(super) fn is_idle(&self) -> bool {
        self.running.is_empty()
    }

    pub(super) fn wants(&self, key: &Key) -> bool {
        let is_new = self.known.get(key).is_none_or(|(at, _)| at.elapsed() >= HOLDS);
        is_new && self.running.len() < RUNNING && self.running.iter().all(|running| running.key.0 != key.0)
    }

    /// In the network namespace of the key, which the calling thread is in. `false`: there are too many connections.
    pub(super) fn start(&mut self, key: Key) -> io::Result<bool> {
        if self.known.len() >= KEPT {
            self.known.retain(|_, (at, _)| at.elapsed() < HOLDS);
        }
        if self.known.len() >= KEPT {
            // A storm of them: those that are known already suffice.
            return Ok(false);
        }
        self.known.insert(key, (Instant::now(), None));
        let trace = Trace::start(key.1)?;
        self.running.push(Running {
            key,
            until: Instant::now() + LASTS,
            trace,
        });
        Ok(true)
    }

    /// Hears what was told, and ends what is done: a trace holds its namespace, so those that are gone end too.
    pub(super) fn poll(&mut self, buffer: &mut [u8], is_there: impl Fn(NetnsKey) -> bool) {
        let known = &mut self.known;
        self.running.retain_mut(|running| {
            if let Some(culprit) = running.trace.poll(buffer) {
                known.insert(running.key, (Instant::now(), Some(culprit)));
                return false;
            }
            Instant::now() < running.until && is_there(running.key.0)
        });
    }

    pub(super) fn found(&self, key: &Key) -> Option<&Culprit> {
        let (at, culprit) = self.known.get(key)?;
        culprit.as_ref().filter(|_| at.elapsed() < HOLDS)
    }
}
