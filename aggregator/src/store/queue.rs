//! What waits for the writer, by node: each node has its turn, however much another one sends.
//!
//! The queue has no bound of its own: a batch that waits here holds its share of the memory for batches, see `ingest`.

use std::collections::{HashMap, VecDeque};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::batch::Batch;

/// Batches of a transaction; beyond, more of them cost more than they save.
pub(super) const MOST_BATCHES: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    /// By node, in the order in which each sent them.
    batches: HashMap<i32, VecDeque<Batch>>,
    /// Nodes that have something, in the order of their turns.
    turns: VecDeque<i32>,
    size: usize,
    count: usize,
    closed: bool,
}

/// How much waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Backlog {
    pub(super) size: usize,
    pub(super) count: usize,
    pub(super) closed: bool,
}

impl Backlog {
    /// Whether a transaction of this size would be full.
    pub(super) fn fills(&self, enough: usize) -> bool {
        self.size >= enough || self.count >= MOST_BATCHES
    }
}

impl Queue {
    /// `false`: the writer has ended, the batch is dropped.
    pub(super) fn push(&self, batch: Batch) -> bool {
        let mut waiting = self.waiting.lock();
        if waiting.closed {
            return false;
        }
        let node = batch.stream.node_id;
        waiting.size += batch.size;
        waiting.count += 1;
        let of_node = waiting.batches.entry(node).or_default();
        of_node.push_back(batch);
        if of_node.len() == 1 {
            waiting.turns.push_back(node);
        }
        drop(waiting);
        self.changed.notify_one();
        true
    }

    /// Nothing more gets in; what is there is still taken.
    pub(super) fn close(&self) {
        self.waiting.lock().closed = true;
        self.changed.notify_one();
    }

    pub(super) fn backlog(&self) -> Backlog {
        let waiting = self.waiting.lock();
        Backlog {
            size: waiting.size,
            count: waiting.count,
            closed: waiting.closed,
        }
    }

    /// Resolves when the backlog is as asked. For one task only.
    pub(super) async fn wait_for(&self, asked: impl Fn(Backlog) -> bool) {
        loop {
            let changed = self.changed.notified();
            if asked(self.backlog()) {
                return;
            }
            changed.await;
        }
    }

    /// Batches for a transaction of about `enough` bytes, each node's in its order. Every node gets as much as its equal
    /// share holds; what is left then goes to the nodes by turns, a batch each, until it is enough.
    pub(super) fn take(&self, enough: usize) -> Vec<Batch> {
        let mut waiting = self.waiting.lock();
        let nodes = waiting.turns.len().max(1);
        let (share, most) = (enough / nodes, MOST_BATCHES.div_ceil(nodes));
        let (mut group, mut size) = (Vec::new(), 0);
        for _ in 0..waiting.turns.len() {
            if group.len() >= MOST_BATCHES {
                break;
            }
            let (mut left, mut taken) = (share, 0);
            waiting.turn(
                |batch| {
                    let taken_too = batch.size <= left && taken < most;
                    if taken_too {
                        left -= batch.size;
                        taken += 1;
                    }
                    taken_too
                },
                &mut group,
            );
            size += share - left;
        }
        while size < enough && group.len() < MOST_BATCHES && !waiting.turns.is_empty() {
            let mut first = None;
            waiting.turn(
                |batch| first.is_none() && first.replace(batch.size).is_none(),
                &mut group,
            );
            size += first.unwrap_or_default();
        }
        group
    }
}

impl Waiting {
    /// The turn of the node that waits longest: moves its batches into the group as long as they are wanted.
    fn turn(&mut self, mut wanted: impl FnMut(&Batch) -> bool, group: &mut Vec<Batch>) {
        let Some(node) = self.turns.pop_front() else { return };
        let of_node = self.batches.get_mut(&node).expect("who has a turn has a batch");
        while let Some(batch) = of_node.pop_front_if(|batch| wanted(batch)) {
            self.size -= batch.size;
            self.count -= 1;
            group.push(batch);
        }
        if of_node.is_empty() {
            self.batches.remove(&node);
        } else {
            self.turns.push_back(node);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use sonde_proto::v1;
    use uuid::Uuid;

    use super::*;
    use crate::metrics::Metrics;
    use crate::store::batch::{Room, Stream};

    const KIB: usize = 1 << 10;

    fn push(queue: &Queue, node: i32, sizes: impl IntoIterator<Item = usize>) {
        let stream = Stream::new(&format!("n{node}"), node, Uuid::from_u128(1), HashMap::new(), 0);
        for (at, size) in sizes.into_iter().enumerate() {
            assert!(queue.push(Batch {
                stream: Arc::clone(&stream),
                sequence: at as u64 + 1,
                body: v1::BatchBody::default(),
                size,
                memory: Room::new(Vec::new(), 0, &Metrics::new()),
            }));
        }
    }

    /// Sequences by node, in the order of the group.
    fn take(queue: &Queue, enough: usize) -> BTreeMap<i32, Vec<u64>> {
        let mut taken: BTreeMap<i32, Vec<u64>> = BTreeMap::new();
        for batch in queue.take(enough) {
            taken.entry(batch.stream.node_id).or_default().push(batch.sequence);
        }
        taken
    }

    #[test]
    fn a_batch_of_a_quiet_node_is_in_the_next_transaction_whatever_another_node_floods() {
        for flood in [1, KIB, 60 * KIB, 100 * KIB, 64 << 20] {
            let queue = Queue::default();
            push(&queue, 1, vec![flood; 5000]);
            push(&queue, 2, [50 * KIB]);
            let taken = take(&queue, 100 * KIB);
            assert_eq!(taken[&2], [1], "with batches of {flood} bytes");
            assert!(
                !taken[&1].is_empty(),
                "and the flood goes on, with batches of {flood} bytes"
            );
        }
    }

    #[test]
    fn more_nodes_than_a_transaction_takes_batches_have_their_turns_too() {
        let queue = Queue::default();
        let nodes = MOST_BATCHES as i32 + 1000;
        for node in 0..nodes {
            push(&queue, node, [1, 1, 1]);
        }
        let first = take(&queue, 8 << 20);
        let second = take(&queue, 8 << 20);
        let served = |node: &i32| first.contains_key(node) || second.contains_key(node);
        assert_eq!(first.len(), MOST_BATCHES);
        assert!((0..nodes).all(|node| served(&node)));
    }

    #[test]
    fn nodes_whose_batches_are_larger_than_their_share_take_turns() {
        let queue = Queue::default();
        for node in 1..=4 {
            push(&queue, node, vec![100 * KIB; 10]);
        }
        let mut served = [0; 5];
        for _ in 0..8 {
            for (node, batches) in take(&queue, 100 * KIB) {
                served[node as usize] += batches.len();
            }
        }
        assert_eq!(served, [0, 2, 2, 2, 2]);
    }

    #[test]
    fn everything_comes_out_once_and_in_the_order_of_its_node() {
        let queue = Queue::default();
        for node in 1..=7 {
            push(
                &queue,
                node,
                (0..40).map(|n| (n * 37 + node as usize * 11) % 90 * KIB + 1),
            );
        }
        assert_eq!(queue.backlog().count, 280);
        let mut seen: BTreeMap<i32, Vec<u64>> = BTreeMap::new();
        while queue.backlog().count > 0 {
            let taken = take(&queue, 200 * KIB);
            assert!(!taken.is_empty());
            taken
                .into_iter()
                .for_each(|(node, batches)| seen.entry(node).or_default().extend(batches));
        }
        assert_eq!(seen.len(), 7);
        assert!(seen.values().all(|sequences| sequences.iter().copied().eq(1..=40)));
        assert_eq!(queue.backlog(), Backlog::default());
    }

    #[test]
    fn a_transaction_is_bounded_in_bytes_and_batches() {
        let queue = Queue::default();
        push(&queue, 1, vec![1; 10_000]);
        assert_eq!(queue.take(8 << 20).len(), MOST_BATCHES);
        let queue = Queue::default();
        push(&queue, 1, vec![30 * KIB; 100]);
        push(&queue, 2, vec![30 * KIB; 100]);
        let size: usize = queue.take(100 * KIB).iter().map(|b| b.size).sum();
        assert!(
            (100 * KIB..130 * KIB).contains(&size),
            "{size}: enough, and not a whole batch more"
        );
    }

    #[tokio::test]
    async fn what_is_queued_when_it_closes_is_still_taken() {
        let queue = Queue::default();
        push(&queue, 1, [1, 1]);
        queue.close();
        queue.wait_for(|backlog| backlog.closed).await;
        let stream = Stream::new("n", 1, Uuid::from_u128(1), HashMap::new(), 0);
        assert!(!queue.push(Batch {
            stream,
            sequence: 3,
            body: v1::BatchBody::default(),
            size: 1,
            memory: Room::new(Vec::new(), 0, &Metrics::new()),
        }));
        assert_eq!(queue.take(100).len(), 2);
    }
}
