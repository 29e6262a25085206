//! What people and Prometheus ask: query strings, cursors and selectors.

use std::collections::HashSet;
use std::sync::{Arc, LazyLock};

use sonde_common::prom::{EOF, Format};
use sonde_common::time::Span;
use sonde_mutate::Target;
use utoipa::IntoParams;

use super::api::{cursor, event_filter};
use super::federate;
use super::params::Params;
use crate::ingest::fuzz::{good_body, good_hello};
use crate::live::LiveTable;
use crate::store::query::events::EventRow;
use crate::store::query::filter::EventFilter;
use crate::store::query::matches::Candidate;

pub(crate) const TARGETS: [Target; 3] = [
    Target {
        name: "query",
        seeds: || {
            let queries = [
                "from=-15m&to=now&probe=packetloss&probe=!dns&ip=10.0.0.0/8&ip=!fd00::1&port=443&min_latency=10ms&q=a%20b",
                "from=2026-01-31T10:00:00+01:00&order=asc&limit=1000&flag=true&bucket=1h&pod=&cursor=310a",
            ];
            queries.map(|query| query.as_bytes().to_vec()).into()
        },
        run: query,
    },
    Target {
        name: "cursor",
        seeds: || vec![b"1700000000000000\n1700000000000001\n1\n7".to_vec()],
        run: page,
    },
    Target {
        name: "selectors",
        seeds: || {
            let queries = [
                "match[]={__name__=~\"sonde_.+\",k8s_pod!=\"\"}&match[]=up",
                "match%5B%5D=sonde_lat_wait_seconds_bucket%7Ble%3D~%22%5B0-9.%5D%7B1%2C3%7D%22%7D&other=1",
                "match[]={k8s_pod=~'a|b', le!~\"(?i)x{2}\"}",
                "match[]={%22sonde_lat_wait_seconds_count%22,%22k8s.node%22=%22%22}&match[]={__name__!~`sonde_lat_.*_(sum|count)`,k8s_node!='\\x6e1'}",
                "match[]=sonde_lat_wait_seconds_bucket{le=\"\\u0031\"}",
            ];
            queries.map(|query| query.as_bytes().to_vec()).into()
        },
        run: selectors,
    },
];

#[derive(IntoParams)]
#[expect(dead_code, reason = "documents parameters")]
struct Known {
    from: String,
    to: String,
    order: String,
    limit: String,
    cursor: String,
    flag: String,
    bucket: String,
}

/// Instants that PostgreSQL and JavaScript can read: up to the year 9999.
const LATEST: i64 = 253_402_300_799_999_999;

fn query(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let Ok(params) = Params::read_both::<Known, event_filter::EventFilterParams>(Some(&text)) else {
        return;
    };
    if let Ok(filter) = event_filter::read(&params) {
        assert!(filter.min_latency_ns.is_none_or(|ns| ns >= 0));
        // As streams look at it; an event that has nothing fits what nothing is wanted of.
        let nothing = Candidate::from(EventRow::default());
        if filter == EventFilter::default() {
            assert!(nothing.matches(&filter));
        }
        let _ = nothing.matches(&filter);
        for network in filter.ip.any.iter().chain(&filter.ip.none) {
            assert!(network.prefix <= if network.address.is_ipv4() { 32 } else { 128 });
        }
    }
    let _ = params.choice("order", &[("desc", 0), ("asc", 1)]);
    assert!(
        params
            .number("limit", 100, 1000)
            .is_ok_and(|limit| (1..=1000).contains(&limit))
            || params.one("limit").is_ok_and(|limit| limit.is_some())
            || params.one("limit").is_err()
    );
    let _ = (params.flag("flag"), params.span("bucket"));
    if let Ok((from, to)) = params.range(Span::from_secs(3600)) {
        assert!(
            from < to && (0..=LATEST).contains(&to) && from >= -3_600_000_000,
            "{from} {to}"
        );
    }
    let digest = cursor::digest("events", &params);
    if let Ok(Some(fields)) = cursor::read::<4>(digest, &params)
        && let Some(numbers) = cursor::numbers(&fields)
    {
        assert!(numbers[..3].iter().all(|time| (0..=LATEST).contains(time)));
    }
}

/// Lines are the fields of a cursor: written, read back, and refused when anything of it is changed.
fn page(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let fields: Vec<&str> = text.split('\n').collect();
    let Ok(fields) = <[&str; 4]>::try_from(fields) else {
        return;
    };
    let written = cursor::write(7, &fields);
    let read = |cursor: &str| {
        let params = Params::read::<Known>(Some(&format!("cursor={cursor}"))).ok()?;
        cursor::read::<4>(7, &params).ok().flatten()
    };
    // Longer than a parameter may be.
    if written.len() > 1024 {
        return;
    }
    let back = read(&written).expect("what was just written");
    assert_eq!(back.each_ref().map(String::as_str), fields);
    let _ = cursor::numbers(&back);
    let at = input.len() % written.len();
    let digit = if written.as_bytes()[at] == b'0' { "1" } else { "0" };
    let mut spoilt = written;
    spoilt.replace_range(at..=at, digit);
    assert!(read(&spoilt).is_none_or(|other| other == back), "{spoilt}");
}

static LIVE: LazyLock<Arc<LiveTable>> = LazyLock::new(|| {
    let live = LiveTable::new();
    live.hello("n1", &good_hello().catalogue.unwrap_or_default(), 5_000_000_000);
    let mut body = good_body();
    // Rows that are old are not shown.
    body.rows[0].time_ns = sonde_common::time::now_ns();
    live.apply("n1", &body);
    live
});

/// Each format is written; a page is a page of its format, whatever was asked for.
fn selectors(input: &[u8]) {
    let Ok(selectors) = federate::selectors(&String::from_utf8_lossy(input)) else {
        return;
    };
    let mut samples = [0, 0];
    for format in Format::ALL {
        let mut page = String::new();
        assert!(LIVE.federate(&selectors, format, &mut |piece| {
            page.push_str(&piece);
            true
        }));
        let lines = page.lines().filter(|line| !line.starts_with('#'));
        let once: HashSet<&str> = lines
            .clone()
            .filter_map(|line| line.split_once("} "))
            .map(|(series, _)| series)
            .collect();
        samples[format as usize] = once.len();
        assert!(lines.clone().all(|line| line.starts_with("sonde_lat_")), "{page}");
        assert_eq!(lines.count(), once.len(), "each series once: {page}");
        assert_eq!(page.ends_with(EOF), format == Format::OpenMetrics, "{page}");
    }
    assert_eq!(samples[0], samples[1]);
}
