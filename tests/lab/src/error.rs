//! What can go wrong in the lab: always with the command or the place.

use std::io;

#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A program ended with a status other than 0.
    #[error("{place}: `{command}`: {status}: {stderr}")]
    Command {
        place: String,
        command: String,
        status: String,
        stderr: String,
    },
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    /// Something the kernel or a program said that we cannot read.
    #[error("{what}: expected {expected}, found {found:?}")]
    Unexpected {
        what: String,
        expected: &'static str,
        found: String,
    },
    #[error("waited {seconds} s for {what}; last seen: {last}")]
    Timeout { what: String, seconds: u64, last: String },
}

pub type Result<T, E = LabError> = std::result::Result<T, E>;

/// Adds the place to an [`io::Error`] (or an errno).
pub(crate) trait At<T> {
    fn at(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> At<T> for std::result::Result<T, E> {
    fn at(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| LabError::Io {
            what: what(),
            source: e.into(),
        })
    }
}
