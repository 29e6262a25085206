//! In which hours wanted events can be: the digest of events says so for most of what is filtered by. Where the nearest minutes have
//! none, a search goes on where there are some, in place of fetching all that the index finds in the window.

use std::collections::BTreeSet;

use sqlx::{PgConnection, Postgres, QueryBuilder};

use super::events::Order;
use super::filter::{Network, Pods, Resolved, Window};
use super::texts::Texts;
use super::{HOUR, Micros, QueryError, bucket};

/// In longer windows events are looked for without this.
const LONGEST: Micros = 35 * 24 * HOUR;
/// Each is looked up in each hour.
const MOST_NETWORKS: usize = 16;

/// The first instant, in that order from `start`, at which there can be an event that is in the digest: by its subject, its kind,
/// its addresses, its texts and its latency, each of which may be that of another event. None: there is none, or the window is too
/// long.
pub(super) async fn next(
    db: &mut PgConnection,
    resolved: &Resolved<'_>,
    window: Window,
    order: Order,
    start: Micros,
) -> Result<Option<Micros>, QueryError> {
    let (Some(from), Some(to)) = (window.from, window.to) else {
        return Ok(None);
    };
    if to.saturating_sub(from) > LONGEST {
        return Ok(None);
    }
    let all = match subjects(db, resolved, window).await? {
        Some(hours) => hours,
        None => (bucket(from, HOUR)..=bucket(to, HOUR)).collect(),
    };
    let begin = bucket(start, HOUR);
    let hours: Vec<i32> = match order {
        Order::Asc => all.range(begin..).copied().collect(),
        Order::Desc => all.range(..=begin).rev().copied().collect(),
    };
    let networks = networks(resolved);
    let texts = resolved.texts();
    let asks =
        resolved.names_kinds() || resolved.filter().min_latency_ns.is_some() || !networks.is_empty() || texts.is_some();
    let next = match asks {
        true => first_with(db, resolved, networks, texts, &hours).await?,
        false => hours.first().copied(),
    };
    Ok(next.map(|hour| instant(hour, order, start)))
}

/// Where a page that began at `start` goes on in this hour.
fn instant(hour: i32, order: Order, start: Micros) -> Micros {
    let begin = Micros::from(hour) * HOUR;
    match order {
        Order::Asc => start.max(begin),
        Order::Desc => start.min(begin + HOUR - 1),
    }
}

/// Networks that the digest can be asked for. Of what was summed up before there was a table of addresses that says nothing.
fn networks<'a>(resolved: &Resolved<'a>) -> &'a [Network] {
    let networks = &resolved.filter().ip.any;
    let known = networks.len() <= MOST_NETWORKS && resolved.values_after() == 0;
    if known { networks } else { &[] }
}

/// The six rows of each kind that an hour has.
const SLOTS: &str =
    "e.time = any(array(select to_timestamp(asked.hour * 3600.0 + n * 600) from generate_series(0, 5) n))";

/// With kinds, addresses and texts, from the digest, and latencies, from their index: hour by hour, as the first one often has some.
async fn first_with(
    db: &mut PgConnection,
    resolved: &Resolved<'_>,
    networks: &[Network],
    texts: Option<Texts>,
    hours: &[i32],
) -> Result<Option<i32>, QueryError> {
    // Sorted apart, so that it ends with the first one.
    let mut sql = QueryBuilder::new("select asked.hour from (select hour from unnest(");
    sql.push_bind(hours.to_vec());
    sql.push("::int[]) with ordinality all_hours(hour, place) order by place offset 0) asked where true");
    if resolved.names_kinds() {
        sql.push(" and exists (select from sonde_store.event_kinds_10m e where ")
            .push(SLOTS);
        resolved.push_kinds(&mut sql);
        sql.push(" offset 0)");
    }
    for (n, network) in networks.iter().enumerate() {
        let (first, last) = network.ends();
        sql.push(if n == 0 { " and (" } else { " or " });
        sql.push(
            "exists (select from sonde_store.event_ends_1h e where e.field = any('{1,2}') and e.type = 0 \
             and e.time = to_timestamp(asked.hour * 3600.0) and e.address between ",
        );
        sql.push_bind(first.to_string()).push("::inet and ");
        sql.push_bind(last.to_string()).push("::inet offset 0)");
    }
    if !networks.is_empty() {
        sql.push(")");
    }
    if let Some(texts) = texts {
        sql.push(" and (asked.hour = any(").push_bind(texts.hours).push(")");
        for (field, ids) in [(2i16, &texts.words), (6, &texts.stacks)] {
            if !ids.is_empty() {
                sql.push(
                    " or exists (select from sonde_store.event_words_1h e where e.type = 0 \
                     and e.time = to_timestamp(asked.hour * 3600.0) and e.field = ",
                );
                sql.push_bind(field).push(" and e.word = any(").push_bind(ids.clone());
                sql.push(") offset 0)");
            }
        }
        if !texts.words.is_empty() {
            sql.push(" or exists (select from sonde_store.event_kinds_10m e where ")
                .push(SLOTS);
            sql.push(" and e.reason = any(")
                .push_bind(texts.words)
                .push(") offset 0)");
        }
        sql.push(")");
    }
    if let Some(latency) = resolved.filter().min_latency_ns {
        sql.push(
            " and exists (select from sonde_store.events e where floor(extract(epoch from e.time at time zone 'UTC') / 600)::int = \
             any(array(select asked.hour * 6 + n from generate_series(0, 5) n)) and e.latency_ns >= ",
        );
        sql.push_bind(latency).push(" offset 0)");
    }
    sql.push(" limit 1");
    Ok(sql.build_query_scalar().persistent(false).fetch_optional(db).await?)
}

async fn hours(db: &mut PgConnection, mut sql: QueryBuilder<Postgres>) -> Result<BTreeSet<i32>, QueryError> {
    let hours: Vec<i32> = sql.build_query_scalar().persistent(false).fetch_all(db).await?;
    Ok(hours.into_iter().collect())
}

const DISTINCT: &str = "select distinct floor(extract(epoch from e.time) / 3600)::int";

/// By pod in hours; by node in six hours at once, as there is no index of nodes.
async fn subjects(
    db: &mut PgConnection,
    resolved: &Resolved<'_>,
    window: Window,
) -> Result<Option<BTreeSet<i32>>, QueryError> {
    let mut sql = QueryBuilder::new(DISTINCT);
    let whole = match resolved.pods() {
        Pods::Only(ids) => {
            sql.push(" from sonde_store.event_subjects_1h e where e.pod_id = any(");
            sql.push_bind(ids.clone()).push(")");
            window.push_buckets(&mut sql, "1 hour");
            1
        }
        _ if resolved.filter().node.is_empty() => return Ok(None),
        _ => {
            sql.push(" from sonde_store.event_subjects_6h e where true");
            window.push_buckets(&mut sql, "6 hours");
            6
        }
    };
    resolved.push_nodes(&mut sql);
    let first = hours(db, sql).await?;
    Ok(Some(first.into_iter().flat_map(|hour| hour..hour + whole).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_goes_on_at_the_near_end_of_an_hour() {
        for (order, hour, start, expected) in [
            (Order::Asc, 2, HOUR, 2 * HOUR),
            (Order::Asc, 2, 2 * HOUR + 7, 2 * HOUR + 7),
            (Order::Desc, 5, 9 * HOUR, 6 * HOUR - 1),
            (Order::Desc, 5, 5 * HOUR + 7, 5 * HOUR + 7),
            (Order::Desc, -1, HOUR, -1),
        ] {
            assert_eq!(
                instant(hour, order, start),
                expected,
                "{order:?} from {start} in {hour}"
            );
            assert_eq!(bucket(expected, HOUR), hour);
        }
    }
}
