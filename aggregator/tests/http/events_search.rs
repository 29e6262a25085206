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

/// The plan, by nodes, for events of that condition. An index is used where there is one.
async fn explain(app: &App, how: &str, condition: &str) -> Vec<Value> {
    let mut tx = app.db.begin().await.unwrap();
    sqlx::query("set local enable_seqscan = off")
        .execute(&mut *tx)
        .await
        .unwrap();
    let sql = format!("explain ({how}format json) select from sonde_store.events where {condition}");
    let plan: Value = sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
        .fetch_one(&mut *tx)
        .await
        .unwrap();
    let (mut nodes, mut at) = (vec![plan[0]["Plan"].clone()], 0);
    while let Some(node) = nodes.get(at) {
        let below = node["Plans"].as_array().cloned().unwrap_or_default();
        nodes.extend(below);
        at += 1;
    }
    nodes
}

#[tokio::test]
async fn the_newest_events_are_found_without_those_of_the_last_minutes() {
    let app = App::start().await;
    let mut random = fastrand::Rng::with_seed(12);
    send(&app, &mut random, "n1", 50).await;
    send(&app, &mut random, "n2", 50).await;
    words(&app).await;
    sqlx::query("analyze sonde_store.events")
        .execute(&app.db)
        .await
        .unwrap();
    // What is new from now on the server's own upkeep has not seen yet.
    noise(&app, 15_000).await;
    summed_up(&app, 100 + 2 * 15_000).await;

    let newest = explain(&app, "analyze, ", &format!("id > {}", 2 * 15_000)).await;
    assert_eq!(newest[0]["Actual Rows"], 100, "{newest:?}");
    let looked_into = |node: &Value| node["Rows Removed by Index Recheck"].as_i64().unwrap_or(0);
    // Two ranges of 32 blocks in each of two days: the last full one, and the one that is not. A block has fewer than 100 events.
    let sum = newest.iter().map(looked_into).sum::<i64>();
    assert!(sum < 2 * 2 * 32 * 100, "{sum}: {newest:?}");

    // A slot that no statistics have seen is not taken to be empty.
    let slot = "floor(extract(epoch from time at time zone 'UTC') / 600)::int = 10000000";
    let unseen = explain(&app, "", slot).await;
    assert!(unseen[0]["Plan Rows"].as_f64() > Some(50.0), "{unseen:?}");
}
