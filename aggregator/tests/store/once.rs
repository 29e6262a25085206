//! At least once on the wire, exactly once in the tables.

use sonde_proto::v1;
use tonic::Code;

use crate::fixture::{Aggregator, Collector, batch, hello};

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_in_the_views_when_its_ack_comes() {
    let aggregator = Aggregator::start().await;
    let mut collector = Collector::connect(&aggregator, hello("n1", 1)).await.unwrap();
    assert_eq!(collector.durable, 0);
    collector.send(1, &batch(4, 2)).await;
    collector.acked(1).await;
    assert_eq!(
        aggregator
            .count("sonde.netdev where pod = 'server' and device = 'eth0'")
            .await,
        2
    );
    assert_eq!(
        aggregator
            .count("sonde.netdev where pod = '' and wait_seconds = 1.5")
            .await,
        2
    );
    assert_eq!(
        aggregator
            .count("sonde.events where namespace = 'demo' and reason = 'NETFILTER_DROP'")
            .await,
        2
    );
    assert_eq!(*aggregator.store.newest_event().borrow(), 2);
    aggregator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_again_is_acknowledged_again_and_stored_once() {
    let aggregator = Aggregator::start().await;
    let mut collector = Collector::connect(&aggregator, hello("n1", 1)).await.unwrap();
    collector.send(1, &batch(1, 1)).await;
    collector.send(2, &batch(1, 1)).await;
    collector.acked(2).await;
    drop(collector);

    let mut again = Collector::connect(&aggregator, hello("n1", 1)).await.unwrap();
    assert_eq!(again.durable, 2);
    again.send(1, &batch(1, 1)).await;
    assert_eq!(again.next().await.unwrap(), 2);
    again.send(3, &batch(1, 1)).await;
    again.acked(3).await;
    assert_eq!(
        (
            aggregator.count("sonde.events").await,
            aggregator.count("sonde.netdev").await
        ),
        (3, 3)
    );
    assert_eq!(aggregator.metrics.resent.get(), 1);
    aggregator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_breaks_before_its_ack_leaves_each_batch_once() {
    let aggregator = Aggregator::start().await;
    let mut sequence = 1;
    for _ in 0..20 {
        // Sends without ever listening, and goes: some of it is stored, some queued, some lost.
        let deaf = Collector::connect(&aggregator, hello("n1", 1)).await.unwrap();
        sequence = sequence.max(deaf.durable + 1);
        for next in sequence..sequence + 3 {
            deaf.send(next, &batch(1, 1)).await;
        }
    }
    let mut collector = Collector::connect(&aggregator, hello("n1", 1)).await.unwrap();
    let last = collector.durable + 5;
    for next in collector.durable + 1..=last {
        collector.send(next, &batch(1, 1)).await;
    }
    collector.acked(last).await;
    assert_eq!(aggregator.count("sonde.events").await, last as i64);
    assert_eq!(aggregator.count("sonde.netdev").await, last as i64);
    aggregator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_that_were_passed_over_are_counted() {
    let aggregator = Aggregator::start().await;
    let mut collector = Collector::connect(&aggregator, hello("n1", 1)).await.unwrap();
    collector.send(1, &batch(0, 1)).await;
    collector.send(5, &batch(0, 1)).await;
    collector.acked(5).await;
    assert_eq!(aggregator.count("sonde.events").await, 2);
    assert_eq!(aggregator.metrics.missing_sequences.get(), 3);
    aggregator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_stream_of_a_spool_wins() {
    let aggregator = Aggregator::start().await;
    let mut old = Collector::connect(&aggregator, hello("n1", 1)).await.unwrap();
    let mut new = Collector::connect(&aggregator, hello("n1", 1)).await.unwrap();
    assert_eq!(old.refused().await.code(), Code::Aborted);
    new.send(1, &batch(0, 1)).await;
    new.acked(1).await;
    aggregator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_spool_of_the_same_name_waits_until_the_first_is_gone() {
    let aggregator = Aggregator::start().await;
    let mut first = Collector::connect(&aggregator, hello("n1", 1)).await.unwrap();
    let Err(status) = Collector::connect(&aggregator, hello("n1", 2)).await else {
        panic!("two nodes of one name are let in");
    };
    assert_eq!(status.code(), Code::AlreadyExists);
    assert!(status.message().contains("node n1 is connected already"), "{status}");
    first.send(1, &batch(0, 1)).await;
    first.acked(1).await;
    drop(first);

    let mut second = loop {
        match Collector::connect(&aggregator, hello("n1", 2)).await {
            Ok(second) => break second,
            Err(status) => assert_eq!(status.code(), Code::AlreadyExists),
        }
    };
    assert_eq!(second.durable, 0, "a new spool begins anew");
    second.send(1, &batch(0, 1)).await;
    second.acked(1).await;
    assert_eq!(aggregator.count("sonde.events").await, 2);
    aggregator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_collectors_share_transactions_and_lose_nothing() {
    const COLLECTORS: usize = 20;
    const BATCHES: u64 = 30;
    let aggregator = Aggregator::start().await;
    let collectors = (0..COLLECTORS).map(|n| {
        let address = aggregator.address;
        tokio::spawn(async move {
            let mut collector = Collector::connect_to(address, hello(&format!("n{n}"), 1))
                .await
                .unwrap();
            for sequence in 1..=BATCHES {
                collector.send(sequence, &batch(2, 3)).await;
            }
            collector.acked(BATCHES).await;
        })
    });
    for collector in collectors.collect::<Vec<_>>() {
        collector.await.unwrap();
    }
    let batches = COLLECTORS as i64 * BATCHES as i64;
    assert_eq!(aggregator.count("sonde.netdev").await, 2 * batches);
    let (events, ids, last): (i64, i64, i64) =
        sqlx::query_as("select count(*), count(distinct id), max(id) from sonde.events")
            .fetch_one(&aggregator.db)
            .await
            .unwrap();
    assert_eq!((events, ids, last), (3 * batches, 3 * batches, 3 * batches));
    assert_eq!(*aggregator.store.newest_event().borrow(), last);
    let metrics = &aggregator.metrics;
    assert_eq!(
        (metrics.batches.get() as i64, metrics.events.get() as i64),
        (batches, 3 * batches)
    );
    assert!((metrics.transactions.get() as i64) < batches, "they were not merged");
    aggregator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_queued_at_the_end_is_stored() {
    let aggregator = Aggregator::start().await;
    let mut collector = Collector::connect(&aggregator, hello("n1", 1)).await.unwrap();
    collector.send(1, &batch(0, 1)).await;
    collector.acked(1).await;
    for sequence in 2..10 {
        collector.send(sequence, &batch(0, 1)).await;
    }
    let db = aggregator.db.clone();
    aggregator.stop().await;
    let status = collector.refused().await;
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    // As far as the cursor says, and no further.
    let (events, cursor): (i64, i64) =
        sqlx::query_as("select (select count(*) from sonde.events), (select sequence from sonde_store.cursors)")
            .fetch_one(&db)
            .await
            .unwrap();
    assert_eq!(events, cursor);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_closes_its_side_hears_its_last_acks() {
    let aggregator = Aggregator::start().await;
    let mut collector = Collector::connect(&aggregator, hello("n1", 1)).await.unwrap();
    for sequence in 1..=5 {
        collector.send(sequence, &batch(0, 1)).await;
    }
    collector.close();
    collector.acked(5).await;
    let end: Option<v1::Down> = collector.down.message().await.unwrap();
    assert_eq!(end, None);
    aggregator.stop().await;
}
