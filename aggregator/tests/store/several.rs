//! Several aggregators on one database.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sonde_aggregator::testing::Database;
use sonde_common::config::Storage;

use crate::fixture::{Aggregator, Collector, PATIENCE, batch, hello};

async fn pair() -> (Aggregator, Aggregator) {
    let database = Database::migrated().await;
    (
        Aggregator::on(&database, Storage::default()).await,
        Aggregator::on(&database, Storage::default()).await,
    )
}

async fn each_is_there_once(aggregator: &Aggregator, batches: u64) {
    assert_eq!(aggregator.count("sonde.events").await, batches as i64);
    assert_eq!(aggregator.count("sonde.netdev").await, 2 * batches as i64);
}

#[tokio::test(flavor = "multi_thread")]
async fn those_that_start_at_once_on_an_empty_database_set_it_up_together() {
    let database = Database::empty().await;
    let start = || Aggregator::on(&database, Storage::default());
    let (a, b, c) = tokio::join!(start(), start(), start());
    for (n, aggregator) in [&a, &b, &c].into_iter().enumerate() {
        let mut collector = Collector::connect(aggregator, hello(&format!("n{n}"), 1))
            .await
            .unwrap();
        collector.send(1, &batch(2, 1)).await;
        collector.acked(1).await;
    }
    each_is_there_once(&a, 3).await;
    for aggregator in [a, b, c] {
        aggregator.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_of_them_keep_partitions_and_nobody_minds_the_others() {
    let database = Database::migrated().await;
    let db = database.pool();
    sqlx::raw_sql(
        "create table sonde_parts.events_20240101 (like sonde_store.events including defaults); \
         alter table sonde_store.events attach partition sonde_parts.events_20240101 \
         for values from ('2024-01-01 00:00:00+00') to ('2024-01-02 00:00:00+00')",
    )
    .execute(&db)
    .await
    .unwrap();
    let start = || Aggregator::on(&database, Storage::default());
    let (a, b, c) = tokio::join!(start(), start(), start());
    assert_eq!(a.count("pg_class where relname = 'events_20240101'").await, 0);
    let twice = "(select relname from pg_class c join pg_namespace n on n.oid = c.relnamespace \
                 where nspname = 'sonde_parts' and relkind = 'r' and relname like 'events_%') leaf";
    assert_eq!(a.count(twice).await, 2, "of today and tomorrow");
    let dropped = [&a, &b, &c].map(|aggregator| aggregator.metrics.dropped_partitions.get());
    assert_eq!(dropped.iter().sum::<u64>(), 1, "one of them did it: {dropped:?}");
    for aggregator in [a, b, c] {
        aggregator.up().await;
        aggregator.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_stream_has_sent_is_not_stored_once_a_newer_one_has_heard_how_far_it_is() {
    let (a, b) = pair().await;
    let mut before = Collector::connect(&a, hello("n1", 1)).await.unwrap();
    let mut lock = a.db.begin().await.unwrap();
    sqlx::query("lock table sonde_store.strings in exclusive mode")
        .execute(&mut *lock)
        .await
        .unwrap();
    before.send(1, &batch(2, 1)).await;
    a.writer_waits().await;
    let mut after = Collector::connect(&b, hello("n1", 1)).await.unwrap();
    assert_eq!(after.durable, 0);
    lock.rollback().await.unwrap();
    let status = before.refused().await;
    assert_eq!(status.code(), tonic::Code::Aborted, "{status}");
    assert_eq!(a.count("sonde.events").await, 0);
    // Its spool has dropped the first one by now.
    after.send(2, &batch(2, 1)).await;
    after.acked(2).await;
    each_is_there_once(&a, 1).await;
    a.stop().await;
    b.stop().await;
}

/// Server processes that write for aggregators.
async fn writers(aggregator: &Aggregator) -> Vec<i32> {
    let sql = "select pid from pg_stat_activity where datname = current_database() \
               and application_name = 'sonde-aggregator writer'";
    sqlx::query_scalar(sql).fetch_all(&aggregator.db).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_moves_while_its_batches_are_held_elsewhere_has_each_stored_once() {
    let (a, b) = pair().await;
    let mut first = Collector::connect(&a, hello("n1", 1)).await.unwrap();
    for sequence in 1..=5 {
        first.send(sequence, &batch(2, 1)).await;
    }
    first.acked(5).await;
    // The server does not answer the first aggregator's writer any more.
    let writers = writers(&a).await;
    let [writer] = writers[..] else { panic!("{writers:?}") };
    kill(Pid::from_raw(writer), Signal::SIGSTOP).unwrap();
    for sequence in 6..=8 {
        first.send(sequence, &batch(2, 1)).await;
    }
    // The writer takes all that is there when it wakes: one more, until one has to wait for it.
    let mut last = 8;
    let held = async {
        while a.metrics.queued_bytes.get() == 0 || a.metrics.queued_batches.get() == 0 {
            if last < 12 {
                last += 1;
                first.send(last, &batch(2, 1)).await;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, held)
        .await
        .expect("they are with the first one");

    let mut second = Collector::connect(&b, hello("n1", 1)).await.unwrap();
    assert_eq!(second.durable, 5);
    for sequence in 6..=8 {
        second.send(sequence, &batch(2, 1)).await;
    }
    second.acked(8).await;
    // Now both have the rest, and the first one also what is there already.
    kill(Pid::from_raw(writer), Signal::SIGCONT).unwrap();
    for sequence in 9..=12 {
        second.send(sequence, &batch(2, 1)).await;
    }
    second.acked(12).await;
    // Whatever was not there by then was refused.
    loop {
        match first.next().await {
            Ok(acked) if acked < last => {}
            Ok(_) => break,
            Err(status) => {
                assert_eq!(status.code(), tonic::Code::Aborted, "{status}");
                break;
            }
        }
    }
    each_is_there_once(&a, 12).await;
    assert!(a.metrics.resent.get() >= 3, "{}", a.metrics.resent.get());
    assert_eq!(a.metrics.batches.get() + b.metrics.batches.get(), 12);
    a.stop().await;
    b.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spool_that_is_sent_through_both_by_turns_and_at_once_is_stored_once() {
    let (a, b) = pair().await;
    let mut next = 1;
    for round in 0..20 {
        // Sends without listening, and goes; what it sent is stored, queued or lost. Some of it is sent again elsewhere.
        let aggregator = if round % 2 == 0 { &a } else { &b };
        let deaf = Collector::connect(aggregator, hello("n1", 1)).await.unwrap();
        next = deaf.durable + 1;
        for sequence in next..next + 4 {
            deaf.send(sequence, &batch(2, 1)).await;
        }
        if round % 3 == 0 {
            let other = if round % 2 == 0 { &b } else { &a };
            let twin = Collector::connect(other, hello("n1", 1)).await.unwrap();
            for sequence in twin.durable + 1..next + 4 {
                twin.send(sequence, &batch(2, 1)).await;
            }
        }
    }
    let last = next + 10;
    let through_a = Collector::connect(&a, hello("n1", 1)).await.unwrap();
    for sequence in through_a.durable + 1..=last {
        through_a.send(sequence, &batch(2, 1)).await;
    }
    let mut through_b = Collector::connect(&b, hello("n1", 1)).await.unwrap();
    for sequence in through_b.durable + 1..=last {
        through_b.send(sequence, &batch(2, 1)).await;
    }
    // The other one may have stored all of it before it was taken over.
    if through_b.durable < last {
        through_b.acked(last).await;
    }
    each_is_there_once(&a, last).await;
    let missing = a.metrics.missing_sequences.get() + b.metrics.missing_sequences.get();
    assert_eq!(missing, 0, "nothing was passed over");
    a.stop().await;
    b.stop().await;
}
