//! Names that become SQL identifiers and metric names.

use crate::limits::MAX_NAME;
use crate::v1::{ColumnDef, Kind};

/// `[a-z][a-z0-9_]*`, at most [`MAX_NAME`] bytes: safe as an SQL identifier and as part of a metric name.
pub fn is_valid(name: &str) -> bool {
    let bytes = name.as_bytes();
    !bytes.is_empty()
        && bytes.len() <= MAX_NAME
        && bytes[0].is_ascii_lowercase()
        && bytes
            .iter()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'_')
}

/// The metric family of a column: `sonde_<probe>_<column>`, counters with `_total`.
pub fn metric(probe: &str, column: &ColumnDef) -> String {
    let total = if column.kind() == Kind::Counter { "_total" } else { "" };
    format!("sonde_{probe}_{}{total}", column.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_lower_case_and_starts_with_a_letter() {
        for good in ["tcp", "a", "rx_bytes2"] {
            assert!(is_valid(good), "{good}");
        }
        for bad in [
            "",
            "2a",
            "_a",
            "Tcp",
            "a-b",
            "a b",
            "a\"",
            &"x".repeat(MAX_NAME + 1),
            "é",
        ] {
            assert!(!is_valid(bad), "{bad}");
        }
    }

    #[test]
    fn counters_end_in_total() {
        let column = |kind: Kind| ColumnDef {
            name: "receive_bytes".into(),
            kind: kind.into(),
            ..Default::default()
        };
        assert_eq!(
            metric("netdev", &column(Kind::Counter)),
            "sonde_netdev_receive_bytes_total"
        );
        assert_eq!(metric("netdev", &column(Kind::Gauge)), "sonde_netdev_receive_bytes");
    }
}
