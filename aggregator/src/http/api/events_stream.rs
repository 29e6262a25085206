//! `GET /api/v1/events/stream`: events as they are stored, as server-sent events.
//!
//! Ids ascend in the order in which events become visible, so "everything above the last one sent" misses nothing and
//! repeats nothing, between history and the present as well as over a reconnect.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::Stream;
use sonde_common::shutdown::Shutdown;
use tokio::sync::{OwnedSemaphorePermit, watch};
use utoipa::IntoParams;

use super::event_filter;
use super::events::{DEFAULT_RANGE, Event};
use crate::http::AppState;
use crate::http::params::{Params, micros, now_micros};
use crate::http::problem::Problem;
use crate::store::Store;
use crate::store::query::QueryError;
use crate::store::query::filter::{EventFilter, Window};

/// Events asked for at once.
const PAGE: u32 = 500;
/// A stream asks no more often than this, however many commits there are.
const PACE: Duration = Duration::from_millis(200);
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How long a stream waits when the database does not answer.
const RETRY: Duration = Duration::from_secs(2);

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
/// header `Last-Event-ID` goes on behind that event.
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
    let tail = Tail {
        store: state.store,
        filter,
        window: Window {
            from: window_from,
            to: None,
        },
        sent,
        newest,
        shutdown: state.shutdown,
        ready: VecDeque::from([sse::Event::default().id(sent.to_string()).comment("open")]),
        asked: None,
        _permit: permit,
    };
    let headers = [("x-accel-buffering", "no"), ("cache-control", "no-store")];
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    Ok((headers, Sse::new(tail.into_stream()).keep_alive(keep_alive)).into_response())
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

struct Tail {
    store: Store,
    filter: EventFilter,
    window: Window,
    /// Everything up to here was looked at.
    sent: i64,
    newest: watch::Receiver<i64>,
    shutdown: Shutdown,
    ready: VecDeque<sse::Event>,
    asked: Option<tokio::time::Instant>,
    _permit: OwnedSemaphorePermit,
}

impl Tail {
    fn into_stream(self) -> impl Stream<Item = Result<sse::Event, Infallible>> {
        futures::stream::unfold(self, |mut tail| async move { Some((Ok(tail.next().await?), tail)) })
    }

    async fn next(&mut self) -> Option<sse::Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            let mut shutdown = self.shutdown.clone();
            tokio::select! {
                () = shutdown.recv() => return None,
                more = self.more() => if !more { return None },
            }
        }
    }

    /// Waits for something newer and reads it; false when there never will be any.
    async fn more(&mut self) -> bool {
        let sent = self.sent;
        if self.newest.wait_for(|newest| *newest > sent).await.is_err() {
            return false;
        }
        if let Some(asked) = self.asked {
            tokio::time::sleep_until(asked + PACE).await;
        }
        if let Err(error) = self.ask().await {
            tracing::warn!(%error, "event stream cannot read");
            tokio::time::sleep(RETRY).await;
        }
        true
    }

    async fn ask(&mut self) -> Result<(), QueryError> {
        let newest = *self.newest.borrow_and_update();
        let rows = self
            .store
            .events_since(&self.filter, self.window, self.sent, newest, PAGE)
            .await?;
        let full = rows.len() == PAGE as usize;
        // A page that is not full was the whole of it up to the newest.
        self.sent = if full { rows[rows.len() - 1].id } else { newest };
        self.asked = (!full).then(tokio::time::Instant::now);
        for row in rows {
            let event = Event::from(row);
            let message = sse::Event::default().event("event").id(event.id.to_string());
            match message.json_data(&event) {
                Ok(message) => self.ready.push_back(message),
                Err(error) => tracing::error!(%error, "an event cannot be written"),
            }
        }
        Ok(())
    }
}
