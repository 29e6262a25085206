//! What an index can find where a filter only rules out, or wants what no index has: the digest of events says what there is
//! besides, and each such list is a filter that finds. It is asked beside the filter itself. Making the lists takes some
//! milliseconds, so that it is done only where the nearest events did not fill a page.

use std::collections::BTreeSet;

use sqlx::{PgConnection, Postgres, QueryBuilder};

use super::QueryError;
use super::filter::{Pods, Resolved, Terms, Window};

/// Longer lists are not looked for one by one: so much is frequent enough to be met on the way.
const MOST: usize = 3000;

/// Lists of what wanted events may have, of those that are in the digest.
#[derive(Debug, Default)]
pub(super) struct Narrowed {
    lists: Vec<List>,
}

/// Wanted events have one of these; those that have nothing there have one of the others.
#[derive(Debug)]
struct List {
    column: &'static str,
    ids: BTreeSet<i32>,
    others: (&'static str, BTreeSet<i32>),
}

impl List {
    fn len(&self) -> usize {
        self.ids.len() + self.others.1.len()
    }
}

impl Narrowed {
    pub(super) async fn find(
        db: &mut PgConnection,
        resolved: &Resolved<'_>,
        window: Window,
    ) -> Result<Self, QueryError> {
        let mut lists = kinds(db, resolved, window).await?;
        lists.extend(nodes(db, resolved).await?);
        lists.extend(pods(db, resolved, window).await?);
        lists.retain(|list| list.len() <= MOST);
        Ok(Self { lists })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lists.is_empty()
    }

    /// See [`Resolved::lookups`].
    pub(super) fn lookups(&self) -> usize {
        self.lists.iter().map(List::len).max().unwrap_or(0)
    }

    /// ` and ...` for the table of events under the alias `e`.
    pub(super) fn push(&self, sql: &mut QueryBuilder<Postgres>) {
        for list in &self.lists {
            let mut before = " and (";
            for (column, ids) in [(list.column, &list.ids), (list.others.0, &list.others.1)] {
                if !ids.is_empty() {
                    let ids: Vec<i32> = ids.iter().copied().collect();
                    sql.push(before).push(column).push(" = any(").push_bind(ids).push(")");
                    before = " or ";
                }
            }
            sql.push(if before == " or " { ")" } else { " and false" });
        }
    }
}

/// Whether a list finds more than the filter: values that are ruled out, or that there is none.
fn rules_out(terms: &Terms<String>) -> bool {
    !terms.none.is_empty() || terms.any.iter().any(String::is_empty)
}

/// Types, reasons and protocols of what has the wanted ones. In the digest 0 is none.
async fn kinds(db: &mut PgConnection, resolved: &Resolved<'_>, window: Window) -> Result<Vec<List>, QueryError> {
    let filter = resolved.filter();
    let wanted = [
        !filter.probe.is_empty() || rules_out(&filter.kind),
        rules_out(&filter.reason),
        rules_out(&filter.protocol),
    ];
    if wanted == [false; 3] {
        return Ok(Vec::new());
    }
    let mut sql =
        QueryBuilder::new("select distinct type, reason, protocol from sonde_store.event_kinds_10m e where true");
    window.push_buckets(&mut sql, "10 minutes");
    resolved.push_kinds(&mut sql);
    let kinds: Vec<(i32, i32, i32)> = sql.build_query_as().persistent(false).fetch_all(db).await?;
    let list = |column, id: fn(&(i32, i32, i32)) -> i32| {
        let without = kinds.iter().filter(|kind| id(kind) == 0).map(|(kind, _, _)| *kind);
        List {
            column,
            ids: kinds.iter().map(id).filter(|id| *id != 0).collect(),
            others: ("e.type", without.collect()),
        }
    };
    let all = [
        list("e.type", |kind| kind.0),
        list("e.reason", |kind| kind.1),
        list("e.protocol", |kind| kind.2),
    ];
    Ok(all
        .into_iter()
        .zip(wanted)
        .filter(|(_, wanted)| *wanted)
        .map(|(list, _)| list)
        .collect())
}

async fn nodes(db: &mut PgConnection, resolved: &Resolved<'_>) -> Result<Option<List>, QueryError> {
    let none = &resolved.filter().node.none;
    if none.is_empty() {
        return Ok(None);
    }
    let ids: Vec<i32> = sqlx::query_scalar("select id from sonde_store.nodes where name <> all($1)")
        .bind(none)
        .fetch_all(db)
        .await?;
    Ok(Some(List {
        column: "e.node_id",
        ids: ids.into_iter().collect(),
        others: ("e.node_id", BTreeSet::new()),
    }))
}

/// In the digest -1 is a network namespace of no known pod.
async fn pods(db: &mut PgConnection, resolved: &Resolved<'_>, window: Window) -> Result<Option<List>, QueryError> {
    let Pods::Not(ids) = resolved.pods() else {
        return Ok(None);
    };
    let mut sql = QueryBuilder::new(
        "select distinct pod_id, case when pod_id = -1 then node_id else 0 end from sonde_store.event_subjects_1h e \
         where pod_id <> all(",
    );
    sql.push_bind(ids.clone()).push(")");
    window.push_buckets(&mut sql, "1 hour");
    resolved.push_nodes(&mut sql);
    let subjects: Vec<(i32, i32)> = sql.build_query_as().persistent(false).fetch_all(db).await?;
    let (unknown, known): (Vec<_>, Vec<_>) = subjects.into_iter().partition(|(pod, _)| *pod == -1);
    Ok(Some(List {
        column: "e.pod_id",
        ids: known.into_iter().map(|(pod, _)| pod).collect(),
        others: ("e.node_id", unknown.into_iter().map(|(_, node)| node).collect()),
    }))
}
