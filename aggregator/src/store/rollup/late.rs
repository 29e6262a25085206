//! Readings that come when their hour may have been rolled up: the hour is marked, in the transaction that stores them.

use std::collections::BTreeSet;

use sonde_common::time::now_ns;
use sqlx::PgConnection;

use super::fold::HOUR;
use crate::store::batch::Batch;
use crate::store::query::{Micros, rfc3339};

/// An hour is rolled up this long after its end ...
pub(super) const SETTLED: Micros = 15 * 60_000_000;
/// ... and what is stored this long after its end is late. What lies between is for transactions that take their time and
/// clocks that do not agree.
pub(super) const LATE: Micros = 5 * 60_000_000;

/// Inside the transaction that stores these batches, after it began.
pub(in crate::store) async fn mark<'a>(
    tx: &mut PgConnection,
    stored: impl Iterator<Item = &'a Batch>,
    oldest_ns: u64,
) -> sqlx::Result<()> {
    let now = (now_ns() / 1000) as Micros;
    let mut late = BTreeSet::new();
    for batch in stored {
        for rows in batch
            .body
            .rows
            .iter()
            .filter(|r| r.time_ns >= oldest_ns && !r.subjects.is_empty())
        {
            let time = (rows.time_ns / 1000) as Micros;
            let hour = time - time.rem_euclid(HOUR);
            if hour + HOUR + LATE < now {
                late.insert((rows.probe.as_str(), hour, batch.stream.node_id));
            }
        }
    }
    if late.is_empty() {
        return Ok(());
    }
    let probes: Vec<&str> = late.iter().map(|(probe, ..)| *probe).collect();
    let hours: Vec<String> = late.iter().map(|(_, hour, _)| rfc3339(*hour)).collect();
    let nodes: Vec<i32> = late.iter().map(|(.., node)| *node).collect();
    sqlx::query(
        "insert into sonde_store.rollup_late (probe, hour, node_id) \
         select * from unnest($1::text[], $2::text[]::timestamptz[], $3::int[])",
    )
    .bind(probes)
    .bind(hours)
    .bind(nodes)
    .execute(tx)
    .await?;
    Ok(())
}
