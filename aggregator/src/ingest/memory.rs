//! The memory that batches may take between the wire and the commit: bounded for each stream and for all together.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::metrics::Metrics;
use crate::store::batch::Room;

/// For all streams, in KiB.
const ALL: usize = 96 << 10;
/// For one stream: the largest batch that there can be, or several smaller ones.
const OF_ONE: usize = 64 << 10;
/// Set apart for small batches of streams that have nothing else in flight: they never wait behind those that send much.
const SMALL: usize = 32 << 10;
const SMALL_BATCH: usize = 1 << 10;

/// What there is.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    all: Arc<Semaphore>,
    small: Arc<Semaphore>,
}

/// One stream's part of it.
#[derive(Debug)]
pub(super) struct StreamMemory {
    memory: Memory,
    own: Arc<Semaphore>,
}

impl Memory {
    pub(super) fn new() -> Self {
        Self {
            all: Arc::new(Semaphore::new(ALL)),
            small: Arc::new(Semaphore::new(SMALL)),
        }
    }

    pub(super) fn of_stream(&self) -> StreamMemory {
        StreamMemory {
            memory: self.clone(),
            own: Arc::new(Semaphore::new(OF_ONE)),
        }
    }
}

impl StreamMemory {
    /// Room for a batch of so many bytes. Waits until the stream's own batches, and then those of all, have left some.
    pub(super) async fn reserve(&self, bytes: usize, metrics: &Arc<Metrics>) -> Room {
        let kib = (bytes / 1024).clamp(1, OF_ONE);
        let idle = self.own.available_permits() == OF_ONE;
        let of_own = take(&self.own, kib).await;
        let small = (idle && kib <= SMALL_BATCH)
            .then(|| Arc::clone(&self.memory.small).try_acquire_many_owned(kib as u32).ok())
            .flatten();
        let of_all = match small {
            Some(small) => small,
            None => take(&self.memory.all, kib).await,
        };
        Room::new(vec![of_own, of_all], (kib as u64) << 10, metrics)
    }
}

async fn take(semaphore: &Arc<Semaphore>, kib: usize) -> OwnedSemaphorePermit {
    let permits = Arc::clone(semaphore).acquire_many_owned(kib as u32).await;
    permits.expect("the semaphore is never closed")
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn floods_leave_room_for_small_batches_of_others_and_bound_themselves() {
        let (memory, metrics) = (Memory::new(), Metrics::new());
        let now = |stream: &StreamMemory, bytes| stream.reserve(bytes, &metrics).now_or_never();
        let floods: Vec<_> = (0..4).map(|_| memory.of_stream()).collect();
        let mut held = Vec::new();
        for flood in &floods {
            while let Some(permits) = now(flood, 16 << 20) {
                held.push(permits);
            }
        }
        assert_eq!(held.len(), ALL >> 14, "each up to its own bound, all up to theirs");
        assert_eq!(metrics.queued_bytes.get(), (ALL as u64) << 10);
        let quiet = memory.of_stream();
        let first = now(&quiet, 100 << 10).expect("a small batch has room");
        assert!(
            now(&quiet, 100 << 10).is_none(),
            "one that comes behind it waits like all"
        );
        drop(first);
        assert!(now(&quiet, 100 << 10).is_some());
        assert!(now(&quiet, 16 << 20).is_none());
        held.pop();
        assert!(
            now(&quiet, 16 << 20).is_some(),
            "what a commit gives back is there for the next"
        );
        assert_eq!(metrics.queued_bytes.get(), (ALL as u64 - (16 << 10)) << 10);
        held.clear();
        assert_eq!(metrics.queued_bytes.get(), 0, "nothing is in flight");
    }

    #[test]
    fn a_batch_of_any_size_has_room_once_nothing_else_is_in_flight() {
        let (memory, metrics) = (Memory::new(), Metrics::new());
        let stream = memory.of_stream();
        for bytes in [0, 1, 64 << 20, usize::MAX] {
            assert!(stream.reserve(bytes, &metrics).now_or_never().is_some(), "{bytes}");
        }
    }
}
