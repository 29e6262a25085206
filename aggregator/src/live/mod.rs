//! The newest row of each series in memory.

use std::sync::Arc;

use sonde_proto::v1;

#[derive(Debug, Default)]
pub struct LiveTable {}

impl LiveTable {
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// A collector's stream began: what it can send, and how often.
    pub fn hello(&self, _node: &str, _catalogue: &v1::Catalogue, _interval_ns: u64) {}

    /// A batch of this node has committed. Called in order.
    pub fn apply(&self, _node: &str, _body: &v1::BatchBody) {}

    /// A collector's stream ended; called once for each `hello`.
    pub fn disconnected(&self, _node: &str) {}
}
