//! Bounded polling: a test waits for a state, never for a time.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::error::{LabError, Result};

/// What a look at the world found.
pub enum Look<T> {
    Found(T),
    /// Not there yet; shown when the wait ends in vain.
    NotYet(String),
}

/// Looks again and again until `look` finds it, fails, or `limit` has passed.
pub fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<Look<T>>) -> Result<T> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        match look()? {
            Look::Found(found) => return Ok(found),
            Look::NotYet(last) if start.elapsed() > limit => {
                return Err(LabError::Timeout {
                    what: what.to_owned(),
                    seconds: limit.as_secs(),
                    last,
                });
            }
            Look::NotYet(_) => sleep(pause),
        }
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// [`until`] `condition` gives no word of what is missing.
pub fn until_true(what: &str, limit: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    until(what, limit, || {
        Ok(match condition()? {
            true => Look::Found(()),
            false => Look::NotYet("not so".into()),
        })
    })
}
