//! Why the server does not run, in its own words: whoever is refused a connection hears no more than that.

use std::sync::Arc;

use parking_lot::Mutex;

/// Nothing while the server runs.
#[derive(Clone, Debug, Default)]
pub struct Complaint(Arc<Mutex<Option<String>>>);

impl Complaint {
    pub fn get(&self) -> Option<String> {
        self.0.lock().clone()
    }

    pub(super) fn set(&self, why: String) {
        *self.0.lock() = Some(why);
    }

    /// A line of the server's log. What ends one session (a wrong password) is not why the server ends.
    pub(super) fn hear(&self, level: &str, message: &str) {
        match level {
            "PANIC" => self.set(message.to_owned()),
            "LOG" if message == "database system is ready to accept connections" => *self.0.lock() = None,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_took_the_server_down_is_known_until_it_is_up() {
        let complaint = Complaint::default();
        complaint.hear("FATAL", "the database system is in recovery mode");
        assert_eq!(complaint.get(), None);
        complaint.hear("PANIC", "could not write to file \"pg_wal/xlogtemp.1\"");
        complaint.hear("LOG", "database system was interrupted");
        assert!(complaint.get().is_some_and(|why| why.contains("pg_wal")));
        complaint.hear("LOG", "database system is ready to accept connections");
        assert_eq!(complaint.get(), None);
    }
}
