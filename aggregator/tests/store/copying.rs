//! Every kind of value through binary COPY and back out of the views.

use sonde_common::time::now_ns;
use sonde_proto::{ABSENT, v1};
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use crate::fixture::{Aggregator, Collector, batch, hello, pod};

async fn stored(body: &v1::BatchBody) -> Aggregator {
    let aggregator = Aggregator::start().await;
    let mut collector = Collector::connect(&aggregator, hello("n1", 1)).await.unwrap();
    collector.send(1, body).await;
    collector.acked(1).await;
    aggregator
}

async fn row(aggregator: &Aggregator, sql: &'static str) -> PgRow {
    sqlx::query(sql).fetch_one(&aggregator.db).await.unwrap()
}

/// Microseconds: what PostgreSQL keeps.
fn micros(ns: u64) -> i64 {
    (ns / 1000) as i64
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_are_absent_are_null_and_others_have_their_unit() {
    let mut body = batch(2, 0);
    let rows = &mut body.rows[0];
    rows.columns[0].values = vec![ABSENT, i64::MAX];
    rows.columns[1].values = vec![-2_500_000_000, ABSENT];
    rows.columns[2].values = vec![ABSENT, ABSENT, ABSENT, ABSENT, 1, ABSENT, 3, 4];
    let time = micros(rows.time_ns);
    let aggregator = stored(&body).await;
    let sql = "select (extract(epoch from time) * 1000000)::bigint as time, node, device, receive_bytes, wait_seconds, \
               latency_seconds from sonde.netdev where pod = $1";
    let get = async |pod: &str| {
        let row = sqlx::query(sql)
            .bind(pod.to_owned())
            .fetch_one(&aggregator.db)
            .await
            .unwrap();
        assert_eq!(
            (
                row.get::<i64, _>("time"),
                row.get::<&str, _>("node"),
                row.get::<&str, _>("device")
            ),
            (time, "n1", "eth0")
        );
        (
            row.get::<Option<i64>, _>("receive_bytes"),
            row.get::<Option<f64>, _>("wait_seconds"),
            row.get::<Option<Vec<Option<i64>>>, _>("latency_seconds"),
        )
    };
    assert_eq!(get("").await, (None, Some(-2.5), None));
    assert_eq!(
        get("server").await,
        (Some(i64::MAX), None, Some(vec![Some(1), None, Some(3), Some(4)]))
    );
    aggregator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_that_a_batch_leaves_out_are_null() {
    let mut body = batch(1, 0);
    body.rows[0].columns.truncate(1);
    let aggregator = stored(&body).await;
    let rows =
        aggregator.count("sonde.netdev where receive_bytes = 0 and wait_seconds is null and latency_seconds is null");
    assert_eq!(rows.await, 1);
    aggregator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_comes_back_with_every_field() {
    let mut body = batch(0, 1);
    body.strings.extend(
        [
            "comm\"\\'é",
            "ESTABLISHED",
            "nft_do_chain+0x4f1",
            "ip_rcv+0x1",
            "key",
            "va\"lue\n{}",
        ]
        .map(String::from),
    );
    body.stacks.push(v1::Stack { frames: vec![8, 9] });
    body.pods.push(pod("sandbox-2", "demo", "client", &[0xfd; 16]));
    body.events[0] = v1::Event {
        time_ns: now_ns(),
        subject: 1,
        probe: 1,
        r#type: 2,
        reason: 3,
        protocol: 4,
        saddr: vec![0xfd; 16],
        sport: 65_535,
        daddr: [&[0; 10][..], &[0xff, 0xff, 10, 0, 0, 2]].concat(),
        dport: 1,
        peer: 3,
        direction: v1::Direction::Forward.into(),
        latency_ns: Some(i64::MAX as u64),
        cpu: Some(0),
        pid: 4_194_304,
        comm: 6,
        state: 7,
        interface: 5,
        suppressed: 12,
        stack: 1,
        attributes: vec![v1::Attribute { key: 10, value: 11 }],
        ..Default::default()
    };
    let aggregator = stored(&body).await;
    let shown: serde_json::Value = row(
        &aggregator,
        "select to_jsonb(e) - 'time' || jsonb_build_object('time', (extract(epoch from time) * 1000000)::bigint) as event \
         from sonde.events e",
    )
    .await
    .get("event");
    let expected = serde_json::json!({
        "time": micros(body.events[0].time_ns), "id": 1, "node": "n1", "namespace": "demo", "pod": "server", "workload": "",
        "probe": "netdev", "type": "PACKETLOSS", "reason": "NETFILTER_DROP", "protocol": "TCP",
        "saddr": "fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd", "sport": 65535, "daddr": "10.0.0.2", "dport": 1,
        "peer_node": "n1", "peer_namespace": "demo", "peer_pod": "client", "peer_workload": "", "peer_service": null,
        "direction": "forward", "latency_ns": i64::MAX, "cpu": 0, "pid": 4_194_304, "comm": "comm\"\\'é",
        "state": "ESTABLISHED", "interface": "eth0", "suppressed": 12,
        "stack": ["nft_do_chain+0x4f1", "ip_rcv+0x1"], "attributes": {"key": "va\"lue\n{}"},
    });
    assert_eq!(shown, expected);
    aggregator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_event_does_not_say_is_null_and_its_subject_may_be_the_node_or_unknown() {
    let mut body = batch(0, 2);
    for event in &mut body.events {
        *event = v1::Event {
            time_ns: event.time_ns,
            probe: 1,
            r#type: 2,
            ..Default::default()
        };
    }
    body.events[1].subject_unknown = true;
    // Means nothing then, whatever it is.
    body.events[1].subject = 99;
    let aggregator = stored(&body).await;
    let bare = "reason is null and protocol is null and saddr is null and sport is null and daddr is null and dport is null \
                and peer_pod is null and direction is null and latency_ns is null and cpu is null and pid is null and comm is \
                null and state is null and interface is null and suppressed = 0 and stack is null and attributes is null";
    let count = async |subject: &str| {
        let sql = format!("select count(*) from sonde.events where {bare} and {subject}");
        sqlx::query_scalar::<_, i64>(sqlx::AssertSqlSafe(sql))
            .fetch_one(&aggregator.db)
            .await
            .unwrap()
    };
    assert_eq!(count("namespace = '' and pod = ''").await, 1);
    assert_eq!(count("namespace is null and pod is null").await, 1);
    aggregator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_other_end_is_looked_up_by_its_address_over_the_whole_cluster() {
    let aggregator = Aggregator::start().await;
    let mut other = Collector::connect(&aggregator, hello("n2", 2)).await.unwrap();
    let client = v1::BatchBody {
        pods: vec![pod("far", "shop", "client", &[10, 0, 0, 1])],
        ..Default::default()
    };
    other.send(1, &client).await;
    other.acked(1).await;

    let mut collector = Collector::connect(&aggregator, hello("n1", 1)).await.unwrap();
    // 10.0.0.1 to 10.0.0.2, which is the subject's own: so the source is the other end.
    let mut body = batch(0, 3);
    // Before the client was there.
    body.events[1].time_ns -= 3_600_000_000_000;
    // Nobody's address.
    body.events[2].saddr = vec![10, 9, 9, 9];
    collector.send(1, &body).await;
    collector.acked(1).await;
    let peers: Vec<(Option<String>, Option<String>)> =
        sqlx::query_as("select peer_node, peer_pod from sonde.events order by time desc")
            .fetch_all(&aggregator.db)
            .await
            .unwrap();
    let text = |t: &str| Some(t.to_owned());
    assert_eq!(peers, [(text("n2"), text("client")), (None, None), (None, None)]);
    aggregator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_becomes_known_late_is_named_in_the_events_before() {
    let aggregator = Aggregator::start().await;
    let mut collector = Collector::connect(&aggregator, hello("n1", 1)).await.unwrap();
    let mut body = batch(0, 4);
    // Before the client was there, nobody's address, and one that two pods will have had.
    body.events[1].time_ns -= 600_000_000_000;
    body.events[2].saddr = vec![10, 9, 9, 9];
    body.events[3].saddr = vec![10, 0, 0, 3];
    collector.send(1, &body).await;
    collector.acked(1).await;
    assert_eq!(aggregator.count("sonde.events where peer_pod is not null").await, 0);

    let mut other = Collector::connect(&aggregator, hello("n2", 2)).await.unwrap();
    let late = v1::BatchBody {
        pods: vec![
            pod("far", "shop", "client", &[10, 0, 0, 1]),
            pod("one", "shop", "one", &[10, 0, 0, 3]),
            pod("two", "shop", "two", &[10, 0, 0, 3]),
        ],
        ..Default::default()
    };
    other.send(1, &late).await;
    other.acked(1).await;
    // Upkeep may have been first.
    aggregator.store.repair_peers().await.unwrap();
    assert_eq!(aggregator.store.repair_peers().await.unwrap(), 0);
    let named =
        "sonde.events where time = (select max(time) from sonde.events) and peer_node = 'n2' and peer_pod = 'client'";
    assert_eq!(aggregator.count(named).await, 1);
    assert_eq!(aggregator.count("sonde.events where peer_pod is not null").await, 1);
    aggregator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_keeps_its_history_and_its_newest_state() {
    let mut body = batch(1, 1);
    let known = &mut body.pods[0];
    known.netns_cookie = u64::MAX;
    known.netns_inode = 4_026_531_840;
    known.workload = "shop".into();
    known.workload_kind = "Deployment".into();
    known.labels = [("app".to_owned(), "a\"b".to_owned())].into();
    known.ips.push(vec![0xfe; 16]);
    let aggregator = Aggregator::start().await;
    let mut collector = Collector::connect(&aggregator, hello("n1", 1)).await.unwrap();
    collector.send(1, &body).await;
    body.pods[0].valid_to_ns = now_ns();
    collector.send(2, &body).await;
    collector.acked(2).await;
    let shown: serde_json::Value = row(
        &aggregator,
        "select to_jsonb(p) - 'valid_from' - 'valid_to' || jsonb_build_object('to', \
         (extract(epoch from valid_to) * 1000000)::bigint) as pod from sonde.pods p",
    )
    .await
    .get("pod");
    let expected = serde_json::json!({
        "node": "n1", "namespace": "demo", "pod": "server", "uid": "", "workload": "shop", "workload_kind": "Deployment",
        "sandbox": "sandbox-1", "ips": ["10.0.0.2", "fefe:fefe:fefe:fefe:fefe:fefe:fefe:fefe"], "labels": {"app": "a\"b"},
        "host_network": false, "netns_inode": 4_026_531_840_u64, "netns_cookie": u64::MAX, "to": micros(body.pods[0].valid_to_ns),
    });
    assert_eq!(shown, expected);
    aggregator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gaps_are_shown_like_data() {
    let mut body = batch(0, 0);
    let now = now_ns();
    let gap = v1::Gap {
        probe: "netdev".into(),
        cause: "ring_full".into(),
        from_ns: now - 2_000_000_000,
        to_ns: now,
        count: 7,
        subject: 1,
        detail: "because".into(),
        ..Default::default()
    };
    body.gaps = vec![
        v1::Gap {
            probe: String::new(),
            subject: 0,
            ..gap.clone()
        },
        v1::Gap {
            subject_unknown: true,
            ..gap.clone()
        },
        gap,
    ];
    let aggregator = stored(&body).await;
    type Gap = (String, Option<String>, String, String, i64, String, f64);
    let gaps: Vec<Gap> = sqlx::query_as(
        "select node, pod, probe, cause, count, detail, extract(epoch from end_time - time)::float8 from sonde.gaps order by pod",
    )
    .fetch_all(&aggregator.db)
    .await
    .unwrap();
    let expected = |pod: Option<&str>, probe: &str| {
        (
            "n1".into(),
            pod.map(Into::into),
            probe.into(),
            "ring_full".into(),
            7,
            "because".into(),
            2.0,
        )
    };
    assert_eq!(
        gaps,
        [
            expected(Some(""), ""),
            expected(Some("server"), "netdev"),
            expected(None, "netdev")
        ]
    );
    aggregator.stop().await;
}
