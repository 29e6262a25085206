//! Numbers of the advisory locks that aggregators on one database take: "sonde" in ASCII and a count. All of them are here,
//! since two with one number would wait for each other.

const fn number(count: i64) -> i64 {
    0x736f_6e64_6500_0000 + count
}

/// Held in transactions that make or change probe tables and partitions, so that several aggregators take turns.
pub(super) const SCHEMA: i64 = number(1);

/// Held by the session that writes what the Kubernetes API says.
pub(super) const LEADER: i64 = number(2);

/// Held, shared, by every transaction that writes, and alone by whoever migrates: nothing is ever written into a schema
/// that changed since it was looked at.
pub(super) const VERSION: i64 = number(3);

/// Held by the session that rolls up, while it does.
pub(super) const ROLLUP: i64 = number(4);

/// Held by the session that sends events on to another system; each of these has a number of its own.
pub(super) const fn push(target: super::PushTarget) -> i64 {
    number(0x10 + target as i64)
}
