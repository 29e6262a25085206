//! Statistics and networks from the digest of events: the same answers as from the events, wherever the digest has got to.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use sonde_common::time::{now_ns, rfc3339};

use crate::support::{App, Batch, EventSpec, SECOND};

const MINUTE: u64 = 60 * SECOND;

/// Events of the last four hours, a few kinds of some pods, the node itself and nobody known.
pub(crate) async fn send(app: &App, random: &mut fastrand::Rng, node: &str, count: usize) {
    let mut batch = Batch::new();
    let now = now_ns();
    let pods: Vec<u32> = (0..4)
        .map(|i| {
            batch.pod_of(
                ["shop", "ops"][i % 2],
                &format!("pod-{i}"),
                &format!("10.0.0.{i}"),
                now - 300 * MINUTE,
                0,
            )
        })
        .collect();
    for _ in 0..count {
        let subject = random.usize(..6);
        let kind = random.usize(..4);
        let far = format!("10.{}.0.{}", random.u8(1..4), random.u8(..20));
        batch.event(&EventSpec {
            time_ns: now - random.u64(1..240 * MINUTE),
            subject: pods.get(subject).copied().unwrap_or(0),
            unknown: subject == 5,
            kind: ["PACKETLOSS", "TCPRETRANS"][kind % 2],
            reason: ["", "A", "B", "A"][kind],
            protocol: ["TCP", "UDP", ""][random.usize(..3)],
            direction: random.i32(0..4).try_into().unwrap(),
            from: Some(("10.0.0.1", 1)),
            to: (subject != 3).then_some((&far, 2 + kind as u32)),
            latency_ns: (kind == 3).then(|| random.u64(1..10_000_000)),
            comm: ["x", "yam"][random.usize(..2)],
            stack: [&["fun_one+0x1"][..], &["fun_two+0x2", "amber+0x3"], &[]][random.usize(..3)],
            attributes: &[
                ("length", ["60", "1500"][random.usize(..2)]),
                ("rule", ["amend", "drop it"][kind % 2]),
                (
                    "note",
                    ["say \"hi\\you\"", "gr\u{f6}\u{df}er f", "tab\there"][random.usize(..3)],
                ),
            ],
            ..Default::default()
        });
    }
    app.collector(node).await.send(batch).await;
}

pub(crate) async fn all_events(app: &App) -> Vec<Value> {
    let text = app.get("/api/v1/events/export?from=-1d").await;
    text.text().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// By value and by step, as one who reads all events counts.
type Counted = (BTreeMap<Option<String>, i64>, BTreeMap<String, i64>);

fn count(events: &[Value], wanted: impl Fn(&Value) -> bool, by: &str, buckets: &[Value]) -> Counted {
    let (mut top, mut steps) = (BTreeMap::new(), BTreeMap::new());
    for event in events.iter().filter(|e| wanted(e)) {
        let value = match &event[by] {
            Value::Number(port) => Some(port.to_string()),
            value => value.as_str().map(str::to_owned),
        };
        *top.entry(value).or_default() += 1;
        let time = event["time"].as_str().unwrap();
        let step = buckets
            .iter()
            .filter_map(|b| b["time"].as_str())
            .rfind(|begin| *begin <= time);
        *steps.entry(step.unwrap().to_owned()).or_default() += 1;
    }
    (top, steps)
}

/// Asks for many spans, steps, filters and fields.
async fn compare(app: &App, random: &mut fastrand::Rng, when: &str) {
    let events = all_events(app).await;
    type Filter = (&'static str, fn(&Value) -> bool);
    let filters: [Filter; 8] = [
        ("", |_| true),
        ("type=TCPRETRANS", |e| e["type"] == "TCPRETRANS"),
        ("reason=!A", |e| e["reason"] != "A"),
        ("reason=&protocol=TCP", |e| {
            e.get("reason").is_none() && e["protocol"] == "TCP"
        }),
        ("namespace=shop&type=PACKETLOSS", |e| {
            e["namespace"] == "shop" && e["type"] == "PACKETLOSS"
        }),
        ("namespace=!shop", |e| e["namespace"] != "shop"),
        ("node=n1&pod=", |e| e["node"] == "n1" && e["pod"] == ""),
        ("pod=pod-1&reason=B", |e| e["pod"] == "pod-1" && e["reason"] == "B"),
    ];
    let fields = [
        "type",
        "reason",
        "probe",
        "protocol",
        "node",
        "namespace",
        "pod",
        "workload",
        "comm",
        "direction",
        "interface",
        "state",
        "saddr",
        "daddr",
        "sport",
        "dport",
    ];
    for i in 0..80 {
        let mut to = now_ns() / 1000 * 1000 - if i % 2 == 0 { 0 } else { random.u64(..100 * MINUTE) };
        let from = to - random.u64(MINUTE..150 * MINUTE) / 1000 * 1000;
        if i % 5 == 0 {
            // The six hours of now are whole in it.
            to += (6 * 60 + random.u64(100..200)) * MINUTE / 1000 * 1000;
        }
        let (query, wanted) = filters[i % filters.len()];
        let by = fields[random.usize(..fields.len())];
        let step = ["30s", "1m", "10m", "1h", "7m"][random.usize(..5)];
        let (from, to) = (rfc3339(from), rfc3339(to));
        let path = format!("/api/v1/events/stats?from={from}&to={to}&by={by}&step={step}&limit=1000&{query}");
        let answer = app.get(&path).await.json();
        let within = |e: &Value| {
            let time = e["time"].as_str().unwrap();
            from.as_str() <= time && time < to.as_str() && wanted(e)
        };
        let buckets = answer["buckets"].as_array().unwrap();
        let (top, steps) = count(&events, within, by, buckets);
        let shown: BTreeMap<_, _> = answer["top"]
            .as_array()
            .unwrap()
            .iter()
            .map(|t| (t["value"].as_str().map(str::to_owned), t["count"].as_i64().unwrap()))
            .collect();
        assert_eq!(shown, top, "{when}: {path}");
        let shown: BTreeMap<_, _> = buckets
            .iter()
            .filter(|b| b["count"] != 0)
            .map(|b| (b["time"].as_str().unwrap().to_owned(), b["count"].as_i64().unwrap()))
            .collect();
        assert_eq!(shown, steps, "{when}: {path}");
    }
    for text in [
        "YAM",
        "am",
        "fun_",
        "one",
        "rule a",
        "h 15",
        "gth 6",
        "60",
        "0",
        "length",
        "nosuch",
        "x",
        "note",
        "e SAY \"h",
        "i\\y",
        "\"",
        "gr\u{f6}",
        "\u{f6}\u{df}er F",
        "tab\th",
        "t",
    ] {
        let answer = app
            .get(&App::path("/api/v1/events/export", &[("from", "-1d"), ("q", text)]))
            .await;
        let text = text.to_lowercase();
        let holds = |e: &&Value| {
            let words = ["reason", "comm"].map(|key| e[key].as_str().unwrap_or_default().to_lowercase());
            let frames: Vec<&str> = e["stack"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            let attributes = e["attributes"].as_object().unwrap();
            words.iter().any(|word| word.contains(&text))
                || frames.join("\n").contains(&text)
                || attributes
                    .iter()
                    .any(|(k, v)| format!("{k} {}", v.as_str().unwrap()).contains(&text))
        };
        let found = answer.text().lines().count();
        assert_eq!(found, events.iter().filter(holds).count(), "{when}: {text}");
    }
    for network in ["10.2.0.0/16", "10.3.0.0/29", "0.0.0.0/0", "172.16.0.0/12"] {
        let answer = app
            .get(&App::path("/api/v1/events/export", &[("from", "-1d"), ("ip", network)]))
            .await;
        let is = |e: &&Value| {
            let address = e["daddr"].as_str().unwrap_or("10.0.0.1");
            match network {
                "10.2.0.0/16" => address.starts_with("10.2."),
                "10.3.0.0/29" => (0..8).any(|i| address == format!("10.3.0.{i}")),
                other => other == "0.0.0.0/0",
            }
        };
        assert_eq!(
            answer.text().lines().count(),
            events.iter().filter(is).count(),
            "{when}: {network}"
        );
    }
}

/// Nobody sums up while this is held: what is stored meanwhile has to come from the events.
pub(crate) async fn hold(app: &App) -> sqlx::Transaction<'static, sqlx::Postgres> {
    let mut held = app.db.begin().await.unwrap();
    sqlx::query("select from sonde_store.event_digest for update")
        .execute(&mut *held)
        .await
        .unwrap();
    held
}

/// The aggregator may be at it itself: then there is nothing to do for others, and it is not done yet either.
pub(crate) async fn summed_up(app: &App, last: i64) {
    app.until("events to be in the digest", async || {
        app.store.digest_events().await.unwrap();
        (through(app).await == last).then_some(())
    })
    .await;
}

async fn through(app: &App) -> i64 {
    sqlx::query_scalar("select through from sonde_store.event_digest")
        .fetch_one(&app.db)
        .await
        .unwrap()
}

/// An attribute was seen in the hours of its events; where that was not known, in all.
async fn hours_of_attributes(app: &App) {
    let sql = "select count(*) filter (where hours = seen), count(*) from sonde_store.event_attributes join ( \
                   select date_trunc('day', e.time, 'UTC') as time, a.key || ' ' || a.value as text, \
                       bit_or(1 << extract(hour from e.time at time zone 'UTC')::int) as seen \
                   from sonde_store.events e cross join lateral jsonb_each_text(e.attributes) a group by 1, 2) events using (time, text) \
               where hours <> 16777215";
    let (right, all): (i64, i64) = sqlx::query_as(sql).fetch_one(&app.db).await.unwrap();
    assert_eq!(right, all);
    let wrong = "select count(*) from sonde_store.event_attributes where hours = 0 or hours > 16777215";
    assert_eq!(sqlx::query_scalar::<_, i64>(wrong).fetch_one(&app.db).await.unwrap(), 0);
    let there = "select count(*) from sonde_store.event_attributes";
    assert!(sqlx::query_scalar::<_, i64>(there).fetch_one(&app.db).await.unwrap() >= 4);
}

#[tokio::test]
async fn counts_are_right_wherever_the_digest_has_got_to() {
    let app = App::start().await;
    let mut random = fastrand::Rng::with_seed(7);
    let held = hold(&app).await;
    send(&app, &mut random, "n1", 1500).await;
    let before = through(&app).await;
    compare(&app, &mut random, "nothing of it is in the digest").await;
    assert_eq!(through(&app).await, before);
    held.rollback().await.unwrap();

    summed_up(&app, 1500).await;
    compare(&app, &mut random, "all is in it").await;

    hours_of_attributes(&app).await;

    // As in a database that is older than the tables of values.
    sqlx::raw_sql(
        "delete from sonde_store.event_words_1h; delete from sonde_store.event_words_6h; \
         delete from sonde_store.event_ends_1h; delete from sonde_store.event_ends_6h; \
         update sonde_store.event_digest set values_after = through, sports_after = through; \
         update sonde_store.event_attributes set hours = 16777215",
    )
    .execute(&app.db)
    .await
    .unwrap();
    compare(&app, &mut random, "all but values is in it").await;

    // Late ones too, into buckets that are there.
    let held = hold(&app).await;
    send(&app, &mut random, "n2", 700).await;
    compare(&app, &mut random, "part of it is in it").await;
    held.rollback().await.unwrap();
    summed_up(&app, 2200).await;
    compare(&app, &mut random, "late ones are in it").await;

    // The tables themselves: each event once in each of them.
    for table in ["kinds_1m", "kinds_10m", "subjects_10m", "subjects_1h", "subjects_6h"] {
        let sql = format!("select sum(n)::bigint from sonde_store.event_{table}");
        let n: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
            .fetch_one(&app.db)
            .await
            .unwrap();
        assert_eq!(n, 2200, "{table}");
    }
    // Those of the second batch, by four fields and by two, once by type and once all together; by two more all together.
    for (table, expected) in [
        ("words_1h", 700 * (4 * 2 + 2)),
        ("words_6h", 700 * 5),
        ("ends_1h", 700 * 2 * 2),
        ("ends_6h", 700 * 2),
    ] {
        let sql = format!("select sum(n)::bigint from sonde_store.event_{table}");
        let n: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
            .fetch_one(&app.db)
            .await
            .unwrap();
        assert_eq!(n, expected, "{table}");
    }
    hours_of_attributes(&app).await;
    let known: Vec<String> = sqlx::query_scalar("select distinct host(address) from sonde_store.event_addresses")
        .fetch_all(&app.db)
        .await
        .unwrap();
    let events = all_events(&app).await;
    let ends = events.iter().flat_map(|e| [&e["saddr"], &e["daddr"]]);
    let ends: BTreeSet<&str> = ends.filter_map(Value::as_str).collect();
    assert_eq!(known.iter().map(String::as_str).collect::<BTreeSet<_>>(), ends);
}
