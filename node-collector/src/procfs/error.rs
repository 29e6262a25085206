//! Why a file gave nothing. The kind goes to metrics, the message to the log.

use std::io;

use crate::netlink::dump::DumpError;

/// A text that is not what the kernel writes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("line {line}: expected a number, found {found:?}")]
    NotANumber { line: usize, found: String },
    #[error("line {line}: {names} names but {values} values")]
    Uneven { line: usize, names: usize, values: usize },
    #[error("line {line}: {what}")]
    Shape { line: usize, what: &'static str },
}

impl ParseError {
    pub(super) fn not_a_number(line: usize, found: &[u8]) -> Self {
        let found = String::from_utf8_lossy(&found[..found.len().min(40)]).into_owned();
        Self::NotANumber { line, found }
    }
}

/// A file that could not be read or understood. That the kernel does not have it is no error: it is absent.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("network namespace cannot be entered: {0}")]
    Enter(io::Error),
    #[error("{file}: cannot be opened: {source}")]
    Open { file: &'static str, source: io::Error },
    #[error("{file}: vanished while it was read: {source}")]
    Vanished { file: &'static str, source: io::Error },
    #[error("{file}: cannot be read: {source}")]
    Read { file: &'static str, source: io::Error },
    #[error("{file}: {source}")]
    Parse { file: &'static str, source: ParseError },
    #[error("{what}: {source}")]
    Dump { what: &'static str, source: DumpError },
}

impl ReadError {
    /// All kinds, as the metric label has them.
    pub const KINDS: [&str; 8] = [
        "enter",
        "open",
        "vanished",
        "read",
        "parse",
        "dump_interrupted",
        "dump_overrun",
        "dump_truncated",
    ];

    pub const fn kind(&self) -> &'static str {
        Self::KINDS[self.kind_index()]
    }

    /// Place of the kind in [`Self::KINDS`].
    pub const fn kind_index(&self) -> usize {
        match self {
            Self::Enter(_) => 0,
            Self::Open { .. } => 1,
            Self::Vanished { .. } => 2,
            Self::Read { .. } => 3,
            Self::Parse { .. } => 4,
            Self::Dump { source, .. } => match source {
                DumpError::Refused(_) => 3,
                DumpError::Malformed(_) => 4,
                DumpError::Interrupted => 5,
                DumpError::Overrun => 6,
                DumpError::Truncated => 7,
            },
        }
    }
}
