//! What one would do without thinking: a row a sample, binary COPY, an index by series and time. In the same server, right
//! after.

use std::time::{Duration, Instant};

use bytes::{BufMut as _, BytesMut};
use sqlx::Executor as _;

use crate::report::{Report, thousands};
use crate::store::Store;

const SERIES: i32 = 500_000;
/// Of all series.
const READINGS: i32 = 8;
const ROWS_A_TRANSACTION: i32 = 250_000;

pub(crate) async fn run(report: &mut Report, store: &Store) -> anyhow::Result<()> {
    let mut database = store.database().await?;
    database
        .execute(
            "create schema bench; \
             create table bench.samples (time timestamptz not null, series int not null, value bigint); \
             create index on bench.samples (series, time)",
        )
        .await?;
    let before = store.usage()?;
    let started = Instant::now();
    let mut rng = fastrand::Rng::with_seed(1);
    for reading in 0..READINGS {
        for first in (0..SERIES).step_by(ROWS_A_TRANSACTION as usize) {
            let rows = chunk(reading, first..(first + ROWS_A_TRANSACTION).min(SERIES), &mut rng);
            let mut copy = database
                .copy_in_raw("copy bench.samples from stdin with (format binary)")
                .await?;
            copy.send(rows).await?;
            copy.finish().await?;
        }
    }
    let elapsed = started.elapsed();
    database.execute("checkpoint").await?;
    let used = store.usage()? - before;
    let bytes: i64 = sqlx::query_scalar("select pg_total_relation_size('bench.samples')")
        .fetch_one(&mut database)
        .await?;
    let samples = f64::from(SERIES) * f64::from(READINGS);
    let each = |time: Duration| format!("{:.2} s", time.as_secs_f64() / samples * 1e6);
    report.row(
        "for comparison, binary COPY of a row a sample: samples a second",
        thousands(samples / elapsed.as_secs_f64()),
    );
    report.row("the same: CPU of PostgreSQL for a million samples", each(used.postgres));
    report.row(
        "the same: bytes a sample, indexes included",
        format!("{:.2}", bytes as f64 / samples),
    );
    database.execute("drop schema bench cascade").await?;
    Ok(())
}

/// In PostgreSQL's binary COPY format.
fn chunk(reading: i32, series: std::ops::Range<i32>, rng: &mut fastrand::Rng) -> BytesMut {
    let mut out = BytesMut::with_capacity(series.len() * 34 + 32);
    out.put_slice(b"PGCOPY\n\xff\r\n\0");
    out.put_u64(0);
    for series in series {
        out.put_i16(3);
        out.put_i32(8);
        // Microseconds since 2000: five seconds from one reading to the next.
        out.put_i64(800_000_000_000_000 + i64::from(reading) * 5_000_000);
        out.put_i32(4);
        out.put_i32(series);
        out.put_i32(8);
        out.put_i64(rng.i64(0..1_000_000_000));
    }
    out.put_i16(-1);
    out
}
