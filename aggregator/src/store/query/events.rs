//! Events by time, and events as they become visible.

use serde_json::{Map, Value};
use sqlx::types::Json;

use super::filter::{EventFilter, Window};
use super::names::named;
use super::page::{Question, page};
use super::search::{Asker, Running};
use super::{Micros, QueryError, micros};
use crate::store::Store;

/// One event with names in place of ids.
#[derive(Clone, Debug, Default)]
pub struct EventRow {
    pub time: Micros,
    pub id: i64,
    pub node: String,
    /// Empty: the node itself; none: a network namespace of no known pod.
    pub namespace: Option<String>,
    pub pod: Option<String>,
    pub workload: Option<String>,
    pub probe: String,
    pub kind: String,
    pub reason: Option<String>,
    pub protocol: Option<String>,
    pub saddr: Option<String>,
    pub sport: Option<i32>,
    pub daddr: Option<String>,
    pub dport: Option<i32>,
    pub peer_node: Option<String>,
    pub peer_namespace: Option<String>,
    pub peer_pod: Option<String>,
    pub peer_workload: Option<String>,
    pub peer_service: Option<String>,
    pub direction: i16,
    pub latency_ns: Option<i64>,
    pub cpu: Option<i32>,
    pub pid: Option<i32>,
    pub comm: Option<String>,
    pub state: Option<String>,
    pub interface: Option<String>,
    pub suppressed: i64,
    pub stack: Option<Vec<String>>,
    pub attributes: Option<Json<Map<String, Value>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    Asc,
    Desc,
}

/// Where a page ended. Events that arrive later do not move it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub time: Micros,
    pub id: i64,
}

/// Which part of what matches.
pub(super) enum Slice {
    ByTime(Order, Option<Position>),
    ById { after: i64, up_to: i64 },
}

impl Store {
    /// One page, in order of (time, id). `after` is the position of the last event of the page before.
    pub async fn events(
        &self,
        filter: &EventFilter,
        window: Window,
        order: Order,
        after: Option<Position>,
        limit: u32,
    ) -> Result<Vec<EventRow>, QueryError> {
        let db = self.begin_search(Asker::Search).await?;
        event_slice(db, filter, window, &Slice::ByTime(order, after), limit).await
    }

    /// Events that became visible after `after` and not after `up_to`, in the order in which they did.
    pub async fn events_since(
        &self,
        filter: &EventFilter,
        window: Window,
        after: i64,
        up_to: i64,
        limit: u32,
    ) -> Result<Vec<EventRow>, QueryError> {
        let db = self.begin_search(Asker::Stream).await?;
        event_slice(db, filter, window, &Slice::ById { after, up_to }, limit).await
    }

    /// When an event happened; None: there is no such event (any more).
    pub async fn event_time(&self, id: i64) -> Result<Option<Micros>, QueryError> {
        let sql = concat!("select ", micros!("time"), " from sonde_store.events where id = $1");
        let mut running = self.begin_search(Asker::Stream).await?;
        let time = sqlx::query_scalar(sql).bind(id).fetch_optional(running.db()).await?;
        running.done();
        Ok(time)
    }
}

async fn event_slice(
    mut running: Running,
    filter: &EventFilter,
    window: Window,
    slice: &Slice,
    limit: u32,
) -> Result<Vec<EventRow>, QueryError> {
    let db = running.db();
    let resolved = filter.resolve(db, window).await?;
    let question = Question {
        resolved: &resolved,
        window,
        slice,
        limit,
    };
    let page = match slice {
        Slice::ByTime(order, after) if !filter.is_empty() => page(db, &question, *order, *after).await?,
        _ => question.whole(db).await?,
    };
    let rows = named(db, page).await?;
    running.done();
    Ok(rows)
}
