//! Who is connected: at most one live stream for each node.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// All live streams of this aggregator.
#[derive(Clone, Debug, Default)]
pub struct Streams {
    live: Arc<Mutex<HashMap<String, Live>>>,
    /// Of nodes whose stream ended here: the spool it was of.
    left: Arc<Mutex<HashMap<String, Uuid>>>,
}

/// Nodes that left and are remembered.
const MOST_LEFT: usize = 100_000;

#[derive(Debug)]
struct Live {
    id: u64,
    epoch: Uuid,
    node_id: Option<i32>,
    superseded: CancellationToken,
}

/// A place among the live streams; given up when dropped.
#[derive(Debug)]
pub struct Place {
    streams: Streams,
    node: String,
    id: u64,
    superseded: CancellationToken,
}

/// Another collector of the same name is connected.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "node {node} is connected already with another spool (epoch {other}): each node needs a name of its own; if that collector is gone, its place becomes free within 20 seconds"
)]
pub struct Taken {
    pub node: String,
    pub other: Uuid,
}

impl Streams {
    /// The same spool on a new connection takes over: its old connection is dead or about to be, and cannot do harm,
    /// since cursors drop what comes twice. Another spool under the same name waits until the older one is gone: were
    /// the newer one to win, two nodes with one name would throw each other out for ever, and neither would be told.
    pub fn enter(&self, node: &str, epoch: Uuid) -> Result<Place, Taken> {
        let mut live = self.live.lock();
        let mut id = 1;
        if let Some(old) = live.get(node) {
            if old.epoch != epoch {
                return Err(Taken {
                    node: node.to_owned(),
                    other: old.epoch,
                });
            }
            old.superseded.cancel();
            id = old.id + 1;
        }
        let superseded = CancellationToken::new();
        live.insert(
            node.to_owned(),
            Live {
                id,
                epoch,
                node_id: None,
                superseded: superseded.clone(),
            },
        );
        Ok(Place {
            streams: self.clone(),
            node: node.to_owned(),
            id,
            superseded,
        })
    }

    pub fn len(&self) -> usize {
        self.live.lock().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Numbers of the nodes that are connected and known to the database, and their spools.
    pub(super) fn known(&self) -> Vec<(i32, Uuid)> {
        let live = self.live.lock();
        live.values().filter_map(|l| Some((l.node_id?, l.epoch))).collect()
    }

    /// Whether the stream of this spool was here and ended.
    pub(super) fn has_left(&self, node: &str, epoch: Uuid) -> bool {
        self.left.lock().get(node) == Some(&epoch)
    }
}

impl Place {
    /// The database knows the node by this number.
    pub fn known_as(&self, node_id: i32) {
        if let Some(live) = self.streams.live.lock().get_mut(&self.node)
            && live.id == self.id
        {
            live.node_id = Some(node_id);
        }
    }

    /// Resolves when a newer stream of the same spool has taken this place.
    pub fn superseded(&self) -> CancellationToken {
        self.superseded.clone()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut live = self.streams.live.lock();
        if live.get(&self.node).is_some_and(|l| l.id == self.id)
            && let Some(ended) = live.remove(&self.node)
        {
            let mut left = self.streams.left.lock();
            if left.len() >= MOST_LEFT {
                left.clear();
            }
            left.insert(self.node.clone(), ended.epoch);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_spool_takes_over_and_another_one_waits() {
        let streams = Streams::default();
        let (a, b) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let first = streams.enter("n", a).unwrap();
        let second = streams.enter("n", a).unwrap();
        assert!(first.superseded().is_cancelled() && !second.superseded().is_cancelled());
        assert_eq!(streams.enter("n", b).unwrap_err().other, a);
        drop(first);
        assert_eq!(streams.len(), 1, "the old stream does not give up the new one's place");
        second.known_as(5);
        assert_eq!(streams.known(), [(5, a)]);
        assert!(!streams.has_left("n", a));
        drop(second);
        assert!(streams.has_left("n", a) && !streams.has_left("n", b));
        assert!(streams.enter("n", b).is_ok() && streams.is_empty());
    }
}
