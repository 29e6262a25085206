//! `GET /api/v1/events/stream`: events as they are stored, as server-sent events.
//!
//! Ids ascend in the order in which events become visible, so "everything above the last one sent" misses nothing and
//! repeats nothing, between history and the present as well as over a reconnect.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use sonde_common::shutdown::Shutdown;
use tokio::sync::OwnedSemaphorePermit;
use utoipa::IntoParams;

use super::event_filter;
use super::events::{DEFAULT_RANGE, Event};
use crate::http::AppState;
use crate::http::params::{Params, micros, now_micros};
use crate::http::pieces::{self, End, Out, Stopped};
use crate::http::problem::Problem;
use crate::http::tail::{self, Newest, Next};
use crate::store::Store;
use crate::store::query::QueryError;
use crate::store::query::filter::{EventFilter, Window};

/// A stream that has nothing to say says where it is.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How long a stream waits when the database does not answer.
const RETRY: Duration = Duration::from_secs(2);
/// A reader that takes nothing for so long is left. It finds why behind what it was sent before, and can go on from there.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "documents what the handler takes")]
struct StreamParams {
    /// Begin with the events since then, RFC 3339 or a time ago such as `-15m`. Default: only new ones.
    from: Option<String>,
}

/// Events as they are stored
///
/// Server-sent events: `event: event`, `id: <id>`, `data: <one event as /api/v1/events shows it>`. A request with the
/// header `Last-Event-ID` goes on behind that event. A reader that takes nothing for a minute finds `event: end` with the
/// reason behind what it was sent, and can go on from there.
#[utoipa::path(
    get,
    path = "/api/v1/events/stream",
    tag = "events",
    params(
        StreamParams,
        event_filter::EventFilterParams,
        ("Last-Event-ID" = Option<i64>, Header, description = "Id of the last event that was received")
    ),
    responses(
        (status = 200, content_type = "text/event-stream", body = Event),
        (status = "4XX", body = Problem),
        (status = "5XX", body = Problem)
    )
)]
pub(crate) async fn stream(
    State(state): State<AppState>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let params = Params::read_both::<StreamParams, event_filter::EventFilterParams>(query.as_deref())?;
    let filter = event_filter::read(&params)?;
    let from = params.time("from", now_micros())?;
    let resume = last_event_id(&headers)?;
    let Ok(permit) = Arc::clone(&state.streams).try_acquire_owned() else {
        return Err(Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "too many event streams are open",
        ));
    };
    let newest = state.store.newest_event();
    let now = *newest.borrow();
    let (sent, window_from) = match (resume, from) {
        (Some(last), from) => {
            let time = state.store.event_time(last).await?;
            // An id of the future that is nowhere is of another database: begin now rather than wait for it to come.
            let last = if time.is_some() { last } else { last.min(now) };
            (last, from.or(time.map(|time| time - micros(DEFAULT_RANGE))))
        }
        (None, Some(from)) => (0, Some(from)),
        (None, None) => (now, Some(now_micros() - micros(DEFAULT_RANGE))),
    };
    let follow = Follow {
        newest: state.tail.join(&state.store),
        store: state.store,
        filter,
        window: Window {
            from: window_from,
            to: None,
        },
        seen: sent,
        shutdown: state.shutdown,
        _permit: permit,
    };
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    let body = pieces::body(PATIENCE, |out| follow.run(out));
    Ok((headers, body).into_response())
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<i64>, Problem> {
    let Some(value) = headers.get("last-event-id") else {
        return Ok(None);
    };
    let id = value
        .to_str()
        .ok()
        .and_then(|text| text.parse().ok())
        .filter(|id| *id >= 0);
    id.map(Some)
        .ok_or_else(|| Problem::bad("Last-Event-ID", "`Last-Event-ID`: expected the id of an event"))
}

struct Follow {
    store: Store,
    filter: EventFilter,
    window: Window,
    /// Everything up to here was looked at.
    seen: i64,
    newest: Arc<Newest>,
    shutdown: Shutdown,
    _permit: OwnedSemaphorePermit,
}

impl Follow {
    async fn run(mut self, out: Out) -> End {
        let mut shutdown = self.shutdown.clone();
        let stopped = tokio::select! {
            stopped = self.send_all(&out) => stopped,
            () = out.gone() => Stopped::Gone,
            () = shutdown.recv() => return End::Whole,
        };
        match stopped {
            Stopped::Gone => End::Whole,
            Stopped::Slow => End::Last(slow(self.seen)),
        }
    }

    async fn send_all(&mut self, out: &Out) -> Stopped {
        let mut changes = self.newest.changes();
        let mut messages = place(self.seen, "open");
        let mut seen = self.seen;
        loop {
            if !messages.is_empty()
                && let Err(stopped) = out.send(messages).await
            {
                return stopped;
            }
            // Only what is on its way counts for a reader that is told where to go on.
            self.seen = seen;
            changes.mark_unchanged();
            (messages, seen) = match self.newest.next(seen, &self.filter, self.window.from) {
                Next::Messages(messages, through) => (messages, through),
                Next::Behind => match self.catch_up().await {
                    Ok(next) => next,
                    Err(error) => {
                        tracing::warn!(%error, "event stream cannot read");
                        tokio::time::sleep(RETRY).await;
                        (Bytes::new(), seen)
                    }
                },
                Next::Nothing => {
                    let new = tokio::time::timeout(KEEP_ALIVE, changes.changed()).await;
                    let message = match new {
                        Ok(_) => Bytes::new(),
                        Err(_) => place(seen, ""),
                    };
                    (message, seen)
                }
            };
        }
    }

    async fn catch_up(&self) -> Result<(Bytes, i64), QueryError> {
        tail::on_its_own(&self.store, &self.filter, self.window, self.seen).await
    }
}

/// No event, but clients remember the id: a reconnect need not look through what was looked through.
fn place(seen: i64, comment: &str) -> Bytes {
    format!(":{comment}\nid: {seen}\n\n").into()
}

fn slow(seen: i64) -> Bytes {
    let why = format!(
        "nothing was read for {} s; connect again to go on behind event {seen}",
        PATIENCE.as_secs()
    );
    format!(
        "event: end\nid: {seen}\ndata: {}\n\n",
        serde_json::json!({ "reason": why })
    )
    .into()
}
