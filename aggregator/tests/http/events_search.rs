//! Searches whose matches are far from where a page begins, so that they are found by the index and not on the way: the same
//! events in the same order as one who reads all events finds.

use serde_json::Value;
use sonde_common::time::{now_ns, rfc3339};

use crate::events_digest::{all_events, hold, send, summed_up};
use crate::support::{App, SECOND};

/// More than are looked through before an index is asked, at both ends of the time that has events: there are partitions.
async fn noise(app: &App, events: u32) {
    for end in [
        "now() - interval '1 minute'",
        "(select min(time) from sonde_store.events)",
    ] {
        let sql = format!(
            "with word as (select text, id from sonde_store.strings), \
             last as (update sonde_store.event_ids set last = last + {events} returning last - {events} as before) \
             insert into sonde_store.events (time, id, node_id, pod_id, probe, type, reason, direction, suppressed, attributes) \
             select {end} + n * interval '1 millisecond', before + n, nodes.id, \
                    (select min(id) from sonde_store.pods where name = 'noisy'), \
                    (select id from word where text = 'loud'), (select id from word where text = 'NOISE'), \
                    (select id from word where text = 'NOISY'), 1, 0, jsonb_build_object('length', '99', 'noise', 'hum') \
             from last, generate_series(1, {events}) n, sonde_store.nodes where nodes.name = 'n2'"
        );
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&app.db).await.unwrap();
    }
}

/// Words that noise has, and nothing else.
async fn words(app: &App) {
    sqlx::raw_sql(
        "insert into sonde_store.strings (id, text) values (1000001, 'loud'), (1000002, 'NOISE'), (1000003, 'NOISY'); \
         insert into sonde_store.pods (id, node_id, sandbox, namespace, name, workload, valid_from) \
         select 1000001, id, 'noisy', 'noise', 'noisy', 'noise', now() - interval '1 day' from sonde_store.nodes where name = 'n2'",
    )
    .execute(&app.db)
    .await
    .unwrap();
}

fn text(event: &Value, key: &str) -> String {
    event[key].as_str().unwrap_or_default().to_owned()
}

fn attribute(event: &Value, key: &str) -> String {
    text(&event["attributes"], key)
}

type Filter = (&'static str, fn(&Value) -> bool);

const FILTERS: [Filter; 28] = [
    ("min_latency=5ms", |e| e["latency_ns"].as_i64() >= Some(5_000_000)),
    ("node=n1", |e| text(e, "node") == "n1"),
    ("pod=pod-2&pod=pod-3", |e| {
        ["pod-2", "pod-3"].contains(&&*text(e, "pod"))
    }),
    ("ip=10.3.0.7", |e| text(e, "daddr") == "10.3.0.7"),
    ("type=!NOISE", |_| true),
    ("type=TCPRETRANS", |e| text(e, "type") == "TCPRETRANS"),
    ("probe=netdev", |_| true),
    ("probe=!loud", |_| true),
    ("reason=", |e| text(e, "reason").is_empty()),
    ("reason=!NOISY", |_| true),
    ("reason=!NOISY&reason=!A", |e| text(e, "reason") != "A"),
    ("reason=&reason=B", |e| ["", "B"].contains(&&*text(e, "reason"))),
    ("protocol=UDP", |e| text(e, "protocol") == "UDP"),
    ("protocol=!TCP&protocol=!", |e| text(e, "protocol") == "UDP"),
    ("protocol=!TCP&type=!NOISE", |e| text(e, "protocol") != "TCP"),
    ("node=!n2", |e| text(e, "node") != "n2"),
    ("pod=!noisy", |_| true),
    ("namespace=!noise&namespace=!shop", |e| text(e, "namespace") != "shop"),
    ("namespace=!noise&node=n2", |e| text(e, "node") == "n2"),
    ("pod=pod-1&reason=B", |e| {
        text(e, "pod") == "pod-1" && text(e, "reason") == "B"
    }),
    ("q=AMEND", |e| attribute(e, "rule") == "amend"),
    ("q=rule%20drop", |e| attribute(e, "rule") == "drop it"),
    ("q=th%2015", |e| attribute(e, "length") == "1500"),
    ("q=fun_one&q=yam", |e| {
        text(e, "comm") == "yam" || e["stack"].to_string().contains("fun_one")
    }),
    ("q=fun_two", |e| e["stack"].to_string().contains("fun_two")),
    ("q=yam&node=n1", |e| text(e, "comm") == "yam" && text(e, "node") == "n1"),
    ("q=no%20such%20thing", |_| false),
    ("ip=10.2.0.0/16&reason=!NOISY", |e| {
        text(e, "daddr").starts_with("10.2.")
    }),
];

/// All pages of a search.
async fn walk(app: &App, window: &str, query: &str, limit: usize) -> Vec<i64> {
    let (mut ids, mut cursor) = (Vec::new(), String::new());
    loop {
        let path = format!("/api/v1/events?{window}&{query}&limit={limit}{cursor}");
        let page = app.get(&path).await.json();
        ids.extend(
            page["events"]
                .as_array()
                .unwrap()
                .iter()
                .map(|e| e["id"].as_i64().unwrap()),
        );
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return ids,
        }
    }
}

/// All that is not noise, in order of time.
async fn events(app: &App) -> Vec<Value> {
    let mut events = all_events(app).await;
    events.retain(|event| event["type"] != "NOISE");
    events.sort_by_key(|event| (text(event, "time"), event["id"].as_i64()));
    events
}

/// Times are those of all events and little more, or many hours more on either side.
async fn compare(app: &App, events: &[Value], when: &str, limits: &[usize]) {
    let now = now_ns();
    let hours = |hours: u64| hours * 3600 * SECOND;
    let wide = format!("from={}&to={}", rfc3339(now - hours(30)), rfc3339(now + hours(30)));
    for (query, wanted) in FILTERS {
        let mut expected: Vec<i64> = events
            .iter()
            .filter(|e| wanted(e))
            .map(|e| e["id"].as_i64().unwrap())
            .collect();
        for order in ["asc", "desc"] {
            for limit in limits {
                for window in ["from=-300m", &wide] {
                    let found = walk(app, window, &format!("{query}&order={order}"), *limit).await;
                    assert_eq!(found, expected, "{when}: {window} {query} {order}, {limit} a page");
                }
            }
            expected.reverse();
        }
    }
}

#[tokio::test]
async fn what_is_far_from_the_end_is_found_whatever_is_asked() {
    let app = App::start().await;
    let mut random = fastrand::Rng::with_seed(11);
    send(&app, &mut random, "n1", 200).await;
    send(&app, &mut random, "n2", 150).await;
    words(&app).await;
    noise(&app, 10_000).await;
    summed_up(&app, 200 + 150 + 2 * 10_000).await;
    compare(&app, &events(&app).await, "all is in the digest", &[120, 1000]).await;
    // What is newer than the digest is found too, whatever the digest says.
    let held = hold(&app).await;
    send(&app, &mut random, "n3", 100).await;
    let all = events(&app).await;
    compare(&app, &all, "part is in the digest", &[200]).await;
    // So much is newer that it is not looked through at once.
    noise(&app, 101_000).await;
    compare(&app, &all, "little is in the digest", &[1000]).await;
    held.rollback().await.unwrap();
}
