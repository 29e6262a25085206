//! Collectors and databases of other versions.

use sonde_proto::v1;

use crate::fixture::{Aggregator, Collector, batch, column, hello};
use crate::hellos::probe;
use crate::refusals::gap;

#[tokio::test(flavor = "multi_thread")]
async fn what_only_newer_collectors_know_is_left_out_and_the_rest_is_stored() {
    let aggregator = Aggregator::start().await;
    let mut newer = hello("n1", 1);
    let mut strange = column("strange", v1::Kind::Gauge, "", 0.0, &[]);
    strange.kind = 17;
    probe(&mut newer).columns.insert(1, strange);
    let mut collector = Collector::connect(&aggregator, newer).await.unwrap();
    collector.send_message(v1::Up { message: None }).await;
    let mut body = batch(2, 2);
    body.rows[0].columns.insert(1, v1::Column { values: vec![1; 14] });
    body.events[0].direction = 9;
    body.events[1].direction = 1;
    body.strings.push("NEWTYPE".into());
    body.events[1].r#type = 6;
    body.gaps.push(gap("new_cause", 1, 2));
    collector.send(1, &body).await;
    collector.acked(1).await;
    for (count, from) in [
        (2, "sonde.netdev where wait_seconds = 1.5"),
        (1, "sonde.events where direction is null and type = 'PACKETLOSS'"),
        (1, "sonde.events where direction = 'ingress' and type = 'NEWTYPE'"),
        (1, "sonde.gaps where cause = 'new_cause'"),
        (0, "information_schema.columns where column_name = 'strange'"),
    ] {
        assert_eq!(aggregator.count(from).await, count, "{from}");
    }
    aggregator.stop().await;
}
