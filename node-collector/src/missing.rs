//! What the host does not permit, said once in the log and for as long as it lasts in `/status`.

use std::collections::BTreeMap;
use std::fmt::Display;

use parking_lot::Mutex;

#[derive(Debug, Default)]
pub struct Missing(Mutex<BTreeMap<&'static str, String>>);

impl Missing {
    /// `what` cannot be had; `why` is shown with it. Logged the first time.
    pub fn say(&self, what: &'static str, why: &dyn Display) {
        let why = why.to_string();
        let before = self.0.lock().insert(what, why.clone());
        if before.as_ref() != Some(&why) {
            tracing::warn!(what, %why, "not available");
        }
    }

    /// `what` is to be had again.
    pub fn found(&self, what: &'static str) {
        if self.0.lock().remove(what).is_some() {
            tracing::info!(what, "available again");
        }
    }

    /// All of it, by what.
    pub fn list(&self) -> BTreeMap<&'static str, String> {
        self.0.lock().clone()
    }
}
