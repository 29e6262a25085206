//! At least once on the wire, exactly once in the tables.

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
