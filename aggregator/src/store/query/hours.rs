//! In which hours wanted events can be: the digest of events says so for most of what is filtered by. Where the nearest minutes have
//! none, a search goes on where there are some, in place of fetching all that the index finds in the window.

use std::collections::BTreeSet;

use sqlx::{PgConnection, Postgres, QueryBuilder};

use super::events::Order;
use super::filter::{Pods, Resolved, Window};
use super::{Micros, QueryError, rfc3339};

const HOUR: Micros = 3_600_000_000;
/// Addresses are looked up for each hour: so often at most.
const MOST_LOOKUPS: usize = 3000;

/// Hours since 1970 that have all of what is asked for, though maybe of different events.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Hours(BTreeSet<i32>);

impl Hours {
    /// Of events that are in the digest. None: it does not know.
    pub(super) async fn find(
        db: &mut PgConnection,
        resolved: &Resolved<'_>,
        window: Window,
    ) -> Result<Option<Self>, QueryError> {
        let known = [
            kinds(db, resolved, window).await?,
            subjects(db, resolved, window).await?,
            addresses(db, resolved, window).await?,
        ];
        let all = known.into_iter().flatten().reduce(|a, b| &a & &b);
        Ok(all.map(Self))
    }

    /// The first instant, in that order from `start`, at which there can be an event.
    pub(super) fn next(&self, order: Order, start: Micros) -> Option<Micros> {
        let of =
            |time: Micros| i32::try_from(time.div_euclid(HOUR)).unwrap_or(if time < 0 { i32::MIN } else { i32::MAX });
        match order {
            Order::Asc => {
                let hour = self.0.range(of(start)..).next()?;
                Some(start.max(Micros::from(*hour) * HOUR))
            }
            Order::Desc => {
                let hour = self.0.range(..=of(start)).next_back()?;
                Some(start.min((Micros::from(*hour) + 1) * HOUR - 1))
            }
        }
    }
}

async fn hours(db: &mut PgConnection, mut sql: QueryBuilder<Postgres>) -> Result<BTreeSet<i32>, QueryError> {
    let hours: Vec<i32> = sql.build_query_scalar().persistent(false).fetch_all(db).await?;
    Ok(hours.into_iter().collect())
}

const DISTINCT: &str = "select distinct floor(extract(epoch from e.time) / 3600)::int";

async fn kinds(
    db: &mut PgConnection,
    resolved: &Resolved<'_>,
    window: Window,
) -> Result<Option<BTreeSet<i32>>, QueryError> {
    let filter = resolved.filter();
    let none = [&filter.probe, &filter.kind, &filter.reason, &filter.protocol]
        .iter()
        .all(|terms| terms.is_empty());
    if none {
        return Ok(None);
    }
    let mut sql = QueryBuilder::new(DISTINCT);
    sql.push(" from sonde_store.event_kinds_10m e where true");
    window.push_buckets(&mut sql, "10 minutes");
    resolved.push_kinds(&mut sql);
    hours(db, sql).await.map(Some)
}

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

async fn addresses(
    db: &mut PgConnection,
    resolved: &Resolved<'_>,
    window: Window,
) -> Result<Option<BTreeSet<i32>>, QueryError> {
    let (Some(addresses), Some(from), Some(to)) = (resolved.addresses(), window.from, window.to) else {
        return Ok(None);
    };
    let (first, last) = (from.div_euclid(HOUR), to.div_euclid(HOUR));
    let count = last - first + 1;
    let few = usize::try_from(count).is_ok_and(|count| count.saturating_mul(addresses.len()) <= MOST_LOOKUPS);
    // Of what was summed up before there was this table it says nothing.
    let since: i64 = sqlx::query_scalar("select values_after from sonde_store.event_digest")
        .fetch_one(&mut *db)
        .await?;
    if !few || since > 0 {
        return Ok(None);
    }
    let times: Vec<String> = (first..=last).map(|hour| rfc3339(hour * HOUR)).collect();
    let mut sql = QueryBuilder::new(DISTINCT);
    sql.push(" from unnest(").push_bind(times);
    sql.push("::text[]::timestamptz[]) asked(time) cross join unnest(")
        .push_bind(addresses);
    sql.push(
        "::text[]::inet[]) wanted(address) cross join (values (1::smallint), (2)) ends(field) \
         join sonde_store.event_ends_1h e \
         on e.field = ends.field and e.type = 0 and e.time = asked.time and e.address = wanted.address",
    );
    hours(db, sql).await.map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_instant_is_in_the_next_hour_that_has_some() {
        let hours = Hours(BTreeSet::from([2, 5]));
        for (order, start, expected) in [
            (Order::Asc, HOUR, Some(2 * HOUR)),
            (Order::Asc, 2 * HOUR + 7, Some(2 * HOUR + 7)),
            (Order::Asc, 3 * HOUR, Some(5 * HOUR)),
            (Order::Asc, 6 * HOUR, None),
            (Order::Desc, 9 * HOUR, Some(6 * HOUR - 1)),
            (Order::Desc, 5 * HOUR + 7, Some(5 * HOUR + 7)),
            (Order::Desc, 4 * HOUR, Some(3 * HOUR - 1)),
            (Order::Desc, 2 * HOUR - 1, None),
        ] {
            assert_eq!(hours.next(order, start), expected, "{order:?} from {start}");
        }
        assert_eq!(Hours::default().next(Order::Desc, i64::MAX), None);
    }
}
