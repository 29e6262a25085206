//! `GET /api/v1/events/stream`: nothing missed, nothing twice.

use sonde_common::time::now_ns;

use crate::support::{App, Batch, Collector, EventSpec, SECOND};

async fn send(collector: &mut Collector, count: u64, reason: &str) {
    let mut batch = Batch::new();
    for i in 0..count {
        batch.event(&EventSpec {
            time_ns: now_ns() - SECOND - i,
            reason,
            ..Default::default()
        });
    }
    collector.send(batch).await;
}

async fn newest(app: &App) -> i64 {
    *app.store.newest_event().borrow()
}

#[tokio::test]
async fn a_stream_begins_with_the_next_event() {
    let app = App::start().await;
    let mut collector = app.collector("n1").await;
    send(&mut collector, 3, "A").await;
    let before = newest(&app).await;
    let mut stream = app.stream("/api/v1/events/stream", &[]).await;
    send(&mut collector, 2, "B").await;
    assert_eq!(stream.ids(2).await, [before + 1, before + 2]);
    let (_, event) = {
        send(&mut collector, 1, "C").await;
        stream.next().await.unwrap()
    };
    assert_eq!((&event["reason"], &event["node"]), (&"C".into(), &"n1".into()));
}

#[tokio::test]
async fn history_and_present_join_without_a_seam() {
    let app = App::start().await;
    let mut collector = app.collector("n1").await;
    send(&mut collector, 1200, "A").await;
    let mut stream = app.stream("/api/v1/events/stream?from=-10m", &[]).await;
    for _ in 0..10 {
        send(&mut collector, 7, "B").await;
    }
    let ids = stream.ids(1270).await;
    assert!(ids.is_sorted_by(|a, b| a + 1 == *b), "each once, in order");
}

#[tokio::test]
async fn a_reconnect_goes_on_behind_the_last_event() {
    let app = App::start().await;
    let mut collector = app.collector("n1").await;
    let mut stream = app.stream("/api/v1/events/stream", &[]).await;
    send(&mut collector, 5, "A").await;
    let last = stream.ids(3).await[2];
    drop(stream);
    send(&mut collector, 2, "B").await;
    let mut stream = app
        .stream("/api/v1/events/stream", &[("last-event-id", &last.to_string())])
        .await;
    assert_eq!(stream.ids(4).await, [last + 1, last + 2, last + 3, last + 4]);
    // An id that this database never gave out: from now on.
    let mut stream = app
        .stream("/api/v1/events/stream", &[("last-event-id", "999999999")])
        .await;
    let before = newest(&app).await;
    send(&mut collector, 1, "C").await;
    assert_eq!(stream.ids(1).await, [before + 1]);
}

#[tokio::test]
async fn a_filter_learns_words_and_pods_that_come_later() {
    let app = App::start().await;
    let mut collector = app.collector("n1").await;
    let mut stream = app
        .stream("/api/v1/events/stream?reason=NEW_WORD&pod=newcomer", &[])
        .await;
    send(&mut collector, 3, "OTHER").await;
    let mut batch = Batch::new();
    let newcomer = batch.pod("newcomer", "10.0.0.7", now_ns() - 60 * SECOND);
    let event = EventSpec {
        time_ns: now_ns() - SECOND,
        subject: newcomer,
        ..Default::default()
    };
    batch.event(&EventSpec {
        reason: "OTHER",
        ..event.clone()
    });
    batch.event(&EventSpec {
        reason: "NEW_WORD",
        ..event.clone()
    });
    batch.event(&EventSpec {
        reason: "NEW_WORD",
        subject: 0,
        ..event
    });
    collector.send(batch).await;
    let (_, event) = stream.next().await.unwrap();
    assert_eq!(
        (&event["reason"], &event["pod"]),
        (&"NEW_WORD".into(), &"newcomer".into())
    );
}

#[tokio::test]
async fn events_that_happened_long_ago_come_when_they_are_asked_for() {
    let app = App::start().await;
    let mut collector = app.collector("n1").await;
    let mut recent = app.stream("/api/v1/events/stream", &[]).await;
    let mut all = app.stream("/api/v1/events/stream?from=-3h", &[]).await;
    let mut batch = Batch::new();
    batch.event(&EventSpec {
        time_ns: now_ns() - 7200 * SECOND,
        reason: "OLD",
        ..Default::default()
    });
    batch.event(&EventSpec {
        time_ns: now_ns() - SECOND,
        reason: "NOW",
        ..Default::default()
    });
    collector.send(batch).await;
    assert_eq!(recent.next().await.unwrap().1["reason"], "NOW");
    assert_eq!(all.next().await.unwrap().1["reason"], "OLD");
    assert_eq!(all.next().await.unwrap().1["reason"], "NOW");
}

#[tokio::test]
async fn a_stream_ends_with_the_server() {
    let app = App::start().await;
    let mut stream = app.stream("/api/v1/events/stream", &[]).await;
    app.shut_down();
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn bad_parameters_are_refused_before_the_stream_begins() {
    let app = App::start().await;
    for (query, expected) in [
        ("to=now", "unknown parameter `to`"),
        ("limit=5", "unknown parameter `limit`"),
        ("order=asc", "unknown parameter `order`"),
        ("ip=x", "expected an address"),
        ("from=x", "expected RFC 3339"),
    ] {
        let detail = app.get(&format!("/api/v1/events/stream?{query}")).await.problem(400);
        assert!(detail.contains(expected), "{query}: {detail}");
    }
    for id in ["x", "-1", "1.5", "99999999999999999999", ""] {
        let answer = app.get_with("/api/v1/events/stream", &[("last-event-id", id)]).await;
        assert!(answer.problem(400).contains("Last-Event-ID"), "{id}");
    }
}
