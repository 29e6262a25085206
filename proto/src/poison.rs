//! How an aggregator refuses one batch for its content, so that the collector sets aside that batch and no other.

use tonic::{Code, Status};

/// Metadata key of the refused sequence, in decimal.
pub const SEQUENCE_KEY: &str = "sonde-poison-sequence";

/// Ends the stream: this batch is never going to be accepted. All lower sequences are unaffected.
pub fn status(sequence: u64, why: impl std::fmt::Display) -> Status {
    let mut status = Status::invalid_argument(format!("batch {sequence}: {why}"));
    status.metadata_mut().insert(SEQUENCE_KEY, sequence.into());
    status
}

/// Which batch a status refuses; `None` for every other status.
pub fn sequence(status: &Status) -> Option<u64> {
    if status.code() != Code::InvalidArgument {
        return None;
    }
    status.metadata().get(SEQUENCE_KEY)?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_its_batch_and_nothing_else_does() {
        let refusal = status(42, "column 3 has 2 values for 5 rows");
        assert_eq!(sequence(&refusal), Some(42));
        assert_eq!(refusal.message(), "batch 42: column 3 has 2 values for 5 rows");
        assert_eq!(sequence(&Status::invalid_argument("hello first")), None);
        let mut other = Status::unavailable("later");
        other.metadata_mut().insert(SEQUENCE_KEY, 42u64.into());
        assert_eq!(sequence(&other), None);
    }
}
