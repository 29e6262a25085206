//! `GET /api/v1/events/export`, and what searches may take.

use serde_json::Value;
use sonde_common::time::now_ns;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{App, Batch, EventSpec, SECOND};

/// More than one page of an export; each reason is that of a tenth.
async fn many(app: &App, count: u64) {
    let mut batch = Batch::new();
    let start = now_ns() - 600 * SECOND;
    for i in 0..count {
        batch.event(&EventSpec {
            // Several share a time.
            time_ns: start + i / 7 * 1_000_000,
            reason: &format!("R{}", i % 10),
            ..Default::default()
        });
    }
    app.collector("n1").await.send(batch).await;
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

fn ids(events: &[Value]) -> Vec<i64> {
    events.iter().map(|e| e["id"].as_i64().unwrap()).collect()
}

#[tokio::test]
async fn an_export_has_every_event_of_a_search_once_and_in_order() {
    let app = App::start().await;
    many(&app, 12_000).await;
    for (order, first) in [("asc", 1), ("desc", 12_000)] {
        let answer = app.get(&format!("/api/v1/events/export?order={order}")).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.header("content-type"), "application/x-ndjson");
        let seen = ids(&lines(answer.text()));
        assert_eq!((seen.len(), seen[0]), (12_000, first), "{order}");
        let ordered = match order {
            "asc" => seen.is_sorted_by(|a, b| a + 1 == *b),
            _ => seen.is_sorted_by(|a, b| a - 1 == *b),
        };
        assert!(ordered, "{order}");
    }
    let filtered = app.get("/api/v1/events/export?reason=R3&reason=!R4").await;
    let events = lines(filtered.text());
    assert_eq!(events.len(), 1200);
    assert!(events.iter().all(|e| e["reason"] == "R3"));
    let page = app.get("/api/v1/events?limit=1000&reason=R3").await.json();
    assert_eq!(page["events"].as_array().unwrap()[..], events[..1000], "as in a page");
    for (limit, count) in [(1, 1), (5000, 5000), (5001, 5001), (12_001, 12_000)] {
        let answer = app.get(&format!("/api/v1/events/export?limit={limit}")).await;
        assert_eq!(answer.text().lines().count(), count, "{limit}");
    }
    let nothing = app.get("/api/v1/events/export?reason=NONE").await;
    assert_eq!((nothing.status.as_u16(), nothing.body.len()), (200, 0));
}

#[tokio::test]
async fn csv_has_titles_and_quotes_what_needs_it() {
    let app = App::start().await;
    let mut batch = Batch::new();
    let web = batch.pod("web", "10.0.0.1", now_ns() - 60 * SECOND);
    batch.event(&EventSpec {
        time_ns: 1_795_344_717_123_456_000.max(now_ns() - SECOND) / 1000 * 1000,
        subject: web,
        reason: "R",
        protocol: "TCP",
        from: Some(("10.0.0.1", 7)),
        to: Some(("fd00::1", 8)),
        latency_ns: Some(5),
        comm: "a \"b\", c",
        stack: &["f+0x1", "g+0x2"],
        attributes: &[("rule", "x,y\nz")],
        ..Default::default()
    });
    app.collector("n1").await.send(batch).await;
    let answer = app.get("/api/v1/events/export?format=csv").await;
    assert_eq!(answer.header("content-type"), "text/csv; charset=utf-8; header=present");
    let mut reader = csv::Reader::from_reader(answer.body.as_slice());
    let titles = reader.headers().unwrap().clone();
    let record = reader.records().next().unwrap().unwrap();
    let field = |name: &str| &record[titles.iter().position(|t| t == name).unwrap()];
    for (name, value) in [
        ("node", "n1"),
        ("namespace", "shop"),
        ("pod", "web"),
        ("workload", "web-app"),
        ("saddr", "10.0.0.1"),
        ("dport", "8"),
        ("latency_ns", "5"),
        ("comm", "a \"b\", c"),
        ("state", ""),
        ("suppressed", "0"),
        ("stack", "f+0x1\ng+0x2"),
        ("attributes", "{\"rule\":\"x,y\\nz\"}"),
        ("peer_pod", ""),
    ] {
        assert_eq!(field(name), value, "{name}");
    }
    let event = &app.get("/api/v1/events").await.json()["events"][0];
    assert_eq!(field("time"), event["time"].as_str().unwrap());
    // Every key of the JSON has a column.
    for key in event.as_object().unwrap().keys() {
        assert!(titles.iter().any(|t| t == key), "{key}");
    }
    assert_eq!(reader.records().count(), 0);
    let nothing = app.get("/api/v1/events/export?format=csv&reason=NONE").await;
    assert_eq!(nothing.text().lines().count(), 1, "the titles");
}

#[tokio::test]
async fn what_is_wrong_is_a_problem_before_the_export_begins() {
    let app = App::start().await;
    for (query, expected) in [
        ("format=xml", "expected one of ndjson, csv"),
        ("cursor=00", "unknown parameter `cursor`"),
        ("limit=0", "a whole number from 1"),
        ("from=now&to=-1h", "not before"),
        ("ip=10.0.0.0/33", "expected an address"),
        ("min_latency=long", "expected a duration"),
    ] {
        let detail = app.get(&format!("/api/v1/events/export?{query}")).await.problem(400);
        assert!(detail.contains(expected), "{query}: {detail}");
    }
}

/// Asks, and reads nothing but the head of the answer.
async fn ask(app: &App, path: &str) -> TcpStream {
    let address = app.url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

async fn begun(stream: &mut TcpStream) {
    let mut head = [0; 12];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
}

#[tokio::test]
async fn exports_have_a_number_and_those_who_go_make_room() {
    let app = App::start().await;
    // More than sockets and buffers hold of one, so that it is still under way.
    many(&app, 40_000).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut stream = ask(&app, "/api/v1/events/export").await;
        begun(&mut stream).await;
        open.push(stream);
    }
    let detail = app.get("/api/v1/events/export").await.problem(503);
    assert!(detail.contains("too many exports"), "{detail}");
    assert_eq!(app.get("/api/v1/events?limit=1").await.status, 200, "searches go on");
    open.pop();
    app.until("an export makes room", async || {
        (app.get("/api/v1/events/export?limit=1").await.status == 200).then_some(())
    })
    .await;
}

/// Somebody holds the table: searches wait, as they would for a slow disk.
#[tokio::test]
async fn searches_have_a_number_and_end_with_those_who_asked() {
    let app = App::start().await;
    many(&app, 10).await;
    let mut lock = app.db.begin().await.unwrap();
    sqlx::query("lock table sonde_store.events in access exclusive mode")
        .execute(&mut *lock)
        .await
        .unwrap();
    let waiting = async || -> i64 {
        sqlx::query_scalar(
            "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' \
             and application_name = 'sonde-aggregator reader'",
        )
        .fetch_one(&app.db)
        .await
        .unwrap()
    };
    let mut open = Vec::new();
    for _ in 0..4 {
        open.push(ask(&app, "/api/v1/events").await);
    }
    app.until("four searches wait", async || (waiting().await == 4).then_some(()))
        .await;
    let detail = app.get("/api/v1/events").await.problem(503);
    assert!(detail.contains("too many searches"), "{detail}");
    assert_eq!(
        app.get("/api/v1/nodes").await.status,
        200,
        "other questions are answered"
    );
    drop(open);
    app.until("their queries have ended", async || {
        (waiting().await == 0).then_some(())
    })
    .await;
    lock.rollback().await.unwrap();
    let answered = async || (app.get("/api/v1/events?limit=1").await.status == 200).then_some(());
    app.until("searches are answered again", answered).await;
}
