//! Many collectors, one writer: who floods holds up itself.

use std::sync::Arc;

use sonde_proto::v1;

use crate::fixture::{Aggregator, Collector, batch, hello};

/// About a megabyte: a few of them fill a transaction.
fn large() -> v1::BatchBody {
    let mut body = batch(0, 1);
    let noise = |n: u32| format!("{:4000}", n);
    body.strings.extend((0..250).map(noise));
    body
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_floods_is_held_back_and_another_one_is_in_the_next_transaction() {
    let aggregator = Aggregator::start().await;
    let mut flood = Collector::connect(&aggregator, hello("flood", 1)).await.unwrap();
    let mut quiet = Collector::connect(&aggregator, hello("quiet", 1)).await.unwrap();
    // The writer waits in its first transaction, and everything queues up behind it.
    let mut lock = aggregator.db.begin().await.unwrap();
    sqlx::query("lock table sonde_store.cursors in access exclusive mode")
        .execute(&mut *lock)
        .await
        .unwrap();
    flood.send(1, &large()).await;
    aggregator.writer_waits().await;
    for sequence in 2..=60 {
        flood.send(sequence, &large()).await;
    }
    // With the one that the writer has these fill what the stream may have in flight.
    let queued = aggregator.queued(15).await;
    quiet.send(1, &batch(1, 1)).await;
    aggregator.queued(16).await;
    // One stream has at most its share of the memory in flight, whatever it sends.
    let bytes = aggregator.metrics.queued_bytes.get();
    assert!(bytes <= 66 << 20, "{bytes}");
    assert!(
        !flood.has_news() && !quiet.has_news(),
        "nothing is acknowledged that is not stored"
    );
    lock.rollback().await.unwrap();
    quiet.acked(1).await;
    flood.acked(60).await;
    // Ids of events ascend in the order of commits, and within one in the order in which batches were taken.
    let before: i64 = sqlx::query_scalar(
        "select count(*) from sonde.events where node = 'flood' \
         and id < (select id from sonde.events where node = 'quiet')",
    )
    .fetch_one(&aggregator.db)
    .await
    .unwrap();
    assert!(
        before <= 6,
        "{before} batches of the flood went first, of at least {queued} that waited"
    );
    assert_eq!(aggregator.count("sonde.events").await, 61);
    let metrics = Arc::clone(&aggregator.metrics);
    aggregator.stop().await;
    assert_eq!(metrics.queued_bytes.get(), 0, "what is stored takes no memory");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_batch_is_a_transaction_of_its_own_and_those_that_wait_share_one() {
    let aggregator = Aggregator::start().await;
    let mut collector = Collector::connect(&aggregator, hello("n1", 1)).await.unwrap();
    for sequence in 1..=5 {
        collector.send(sequence, &batch(1, 1)).await;
        collector.acked(sequence).await;
    }
    assert_eq!(aggregator.metrics.transactions.get(), 5);
    let mut lock = aggregator.db.begin().await.unwrap();
    sqlx::query("lock table sonde_store.cursors in access exclusive mode")
        .execute(&mut *lock)
        .await
        .unwrap();
    collector.send(6, &batch(1, 1)).await;
    aggregator.writer_waits().await;
    for sequence in 7..=60 {
        collector.send(sequence, &batch(1, 1)).await;
    }
    aggregator.queued(54).await;
    lock.rollback().await.unwrap();
    collector.acked(60).await;
    assert_eq!(
        aggregator.metrics.transactions.get(),
        5 + 2,
        "the one that waited, and one for all behind it"
    );
    aggregator.stop().await;
}
