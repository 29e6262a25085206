//! Pages of `/api/v1/events`: every event once, whatever arrives in between.

use serde_json::Value;
use sonde_common::time::now_ns;

use crate::support::{App, Batch, EventSpec, SECOND};

fn ids(answer: &Value) -> Vec<i64> {
    answer["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["id"].as_i64().unwrap())
        .collect()
}

/// Ten events; two share each time.
async fn ten_events(app: &App) -> crate::support::Collector {
    let mut collector = app.collector("n1").await;
    let mut batch = Batch::new();
    let start = now_ns() - 100 * SECOND;
    for i in 0..10 {
        batch.event(&EventSpec {
            time_ns: start + i / 2 * SECOND,
            ..Default::default()
        });
    }
    collector.send(batch).await;
    collector
}

#[tokio::test]
async fn pages_follow_one_another_in_both_orders() {
    let app = App::start().await;
    ten_events(&app).await;
    let oldest_first = ids(&app.get("/api/v1/events?order=asc").await.json());
    assert_eq!(oldest_first.len(), 10);
    let mut newest_first = oldest_first.clone();
    newest_first.reverse();
    for (order, expected) in [("asc", oldest_first), ("desc", newest_first)] {
        let (mut seen, mut sizes) = (Vec::new(), Vec::new());
        let mut path = format!("/api/v1/events?order={order}&limit=3");
        loop {
            let answer = app.get(&path).await.json();
            seen.extend(ids(&answer));
            sizes.push(ids(&answer).len());
            let Some(cursor) = answer["next_cursor"].as_str() else {
                break;
            };
            path = format!("/api/v1/events?order={order}&limit=3&cursor={cursor}");
        }
        assert_eq!(seen, expected, "{order}");
        assert_eq!(sizes, [3, 3, 3, 1], "{order}");
    }
    let whole = app.get("/api/v1/events?limit=10").await.json();
    assert_eq!(whole["next_cursor"], Value::Null, "a full last page is the last");
}

#[tokio::test]
async fn what_arrives_in_between_moves_nothing() {
    let app = App::start().await;
    let mut collector = ten_events(&app).await;
    let first = app.get("/api/v1/events?limit=4").await.json();
    // Newer ones, and one that happened long before but comes now.
    let mut late = Batch::new();
    for time_ns in [now_ns(), now_ns() - SECOND, now_ns() - 1000 * SECOND] {
        late.event(&EventSpec {
            time_ns,
            reason: "LATE",
            ..Default::default()
        });
    }
    collector.send(late).await;
    let cursor = first["next_cursor"].as_str().unwrap();
    let second = app
        .get(&format!("/api/v1/events?limit=1000&cursor={cursor}"))
        .await
        .json();
    let mut all = ids(&first);
    all.extend(ids(&second));
    let unique: std::collections::BTreeSet<_> = all.iter().collect();
    assert_eq!(
        (all.len(), unique.len()),
        (11, 11),
        "the ten, and the one whose place is behind the cursor"
    );
}

#[tokio::test]
async fn a_cursor_keeps_the_span_of_the_first_page() {
    let app = App::start().await;
    ten_events(&app).await;
    let first = app.get("/api/v1/events?order=asc&limit=9").await.json();
    let cursor = first["next_cursor"].as_str().unwrap();
    // An event after the first page's `now` is not part of the answer that the pages are of.
    let mut batch = Batch::new();
    batch.event(&EventSpec {
        time_ns: now_ns(),
        ..Default::default()
    });
    app.collector("n2").await.send(batch).await;
    let rest = app
        .get(&format!("/api/v1/events?order=asc&limit=9&cursor={cursor}"))
        .await
        .json();
    assert_eq!(ids(&rest).len(), 1);
}

#[tokio::test]
async fn a_cursor_of_another_question_is_refused() {
    let app = App::start().await;
    ten_events(&app).await;
    let first = app.get("/api/v1/events?limit=4&type=PACKETLOSS").await.json();
    let cursor = first["next_cursor"].as_str().unwrap();
    for other in [
        "",
        "type=TCPRETRANS",
        "type=PACKETLOSS&order=asc",
        "type=PACKETLOSS&from=-2h",
        "type=PACKETLOSS&pod=x",
    ] {
        let detail = app
            .get(&format!("/api/v1/events?{other}&cursor={cursor}"))
            .await
            .problem(400);
        assert!(detail.contains("another question"), "{other}: {detail}");
    }
    for spoilt in [
        &cursor[2..],
        &cursor[..cursor.len() - 2],
        "00",
        "zz",
        &format!("{cursor}30"),
    ] {
        app.get(&format!("/api/v1/events?type=PACKETLOSS&cursor={spoilt}"))
            .await
            .problem(400);
    }
}

/// A million as CI runs it.
const MANY: usize = if cfg!(debug_assertions) { 20_000 } else { 1_000_000 };

#[tokio::test]
async fn a_walk_during_ingest_meets_every_event_once() {
    let app = App::start().await;
    let mut collector = app.collector("n1").await;
    let mut random = fastrand::Rng::with_seed(3);
    let now = now_ns();
    let some = |random: &mut fastrand::Rng, count: usize, reason| {
        let mut batch = Batch::new();
        for _ in 0..count {
            batch.event(&EventSpec {
                // Many share a time.
                time_ns: now - random.u64(10..1000) * SECOND,
                reason,
                ..Default::default()
            });
        }
        batch
    };
    for _ in 0..MANY / 20_000 {
        collector.send(some(&mut random, 20_000, "BEFORE")).await;
    }
    for order in ["asc", "desc"] {
        let query = format!("/api/v1/events?order={order}&limit=1000&from=-1h");
        let (mut path, mut before, mut pages) = (query.clone(), 0, 0);
        let mut all = std::collections::BTreeSet::new();
        loop {
            let page = app.get(&path).await.json();
            for event in page["events"].as_array().unwrap() {
                assert!(
                    all.insert(event["id"].as_i64().unwrap()),
                    "{order}: {event} comes again"
                );
                before += usize::from(event["reason"] == "BEFORE");
            }
            let Some(cursor) = page["next_cursor"].as_str() else {
                break;
            };
            path = format!("{query}&cursor={cursor}");
            // Twenty times: to be acknowledged takes longer than a page.
            pages += 1;
            if pages % (MANY / 20_000) == 0 {
                collector.send(some(&mut random, 50, "MEANWHILE")).await;
            }
        }
        assert_eq!(before, MANY, "{order}");
    }
}
