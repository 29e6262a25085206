//! `GET /api/v1/events/export`: all events of a search, as lines of JSON or as CSV, for as long as the reader reads.
//!
//! A page at a time is read and written, so memory does not grow with the answer, no transaction stays open, and what a slow
//! reader does not take is not asked for. An answer that breaks off ends without its last chunk: clients see that.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use sonde_common::shutdown::Shutdown;
use tokio::sync::OwnedSemaphorePermit;
use utoipa::IntoParams;

use super::event_filter;
use super::events::{DEFAULT_RANGE, Event};
use crate::http::AppState;
use crate::http::params::Params;
use crate::http::pieces::{self, End, Out, Stopped};
use crate::http::problem::Problem;
use crate::store::Store;
use crate::store::query::events::{EventRow, Order, Position};
use crate::store::query::filter::{EventFilter, Window};

/// Events that are read at once, some megabytes.
const PAGE: u32 = 5000;
/// A reader that takes nothing for so long makes room for another export.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "documents what the handler takes")]
struct ExportParams {
    /// `ndjson`: a line of JSON for each event, the default; `csv`: RFC 4180, with a line of titles.
    format: Option<String>,
    /// Beginning, inclusive: RFC 3339, `now`, or a time ago such as `-15m`. Default: an hour before the end.
    from: Option<String>,
    /// End, exclusive. Default: now.
    to: Option<String>,
    /// `desc`: newest first, the default; `asc`: oldest first.
    order: Option<String>,
    /// At most so many events. Default: all.
    limit: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Ndjson,
    Csv,
}

impl Format {
    const fn content_type(self) -> &'static str {
        match self {
            Self::Ndjson => "application/x-ndjson",
            Self::Csv => "text/csv; charset=utf-8; header=present",
        }
    }

    const fn file(self) -> &'static str {
        match self {
            Self::Ndjson => "attachment; filename=\"sonde-events.ndjson\"",
            Self::Csv => "attachment; filename=\"sonde-events.csv\"",
        }
    }
}

/// All events of a search, as NDJSON or CSV
///
/// In order of time, each once. What arrives for the span while it is read may be in it or not. In CSV, frames of `stack` are
/// parted by line feeds and `attributes` is JSON.
#[utoipa::path(
    get,
    path = "/api/v1/events/export",
    tag = "events",
    params(ExportParams, event_filter::EventFilterParams),
    responses(
        (status = 200, description = "Events, one a line", content(
            (Event = "application/x-ndjson"),
            (String = "text/csv")
        )),
        (status = "4XX", body = Problem),
        (status = "5XX", body = Problem)
    )
)]
pub(crate) async fn export(State(state): State<AppState>, RawQuery(query): RawQuery) -> Result<Response, Problem> {
    let params = Params::read_both::<ExportParams, event_filter::EventFilterParams>(query.as_deref())?;
    let filter = event_filter::read(&params)?;
    let format = params.choice("format", &[("ndjson", Format::Ndjson), ("csv", Format::Csv)])?;
    let order = params.choice("order", &[("desc", Order::Desc), ("asc", Order::Asc)])?;
    let left = params.number("limit", u32::MAX, u32::MAX)?;
    let (from, to) = params.range(DEFAULT_RANGE)?;
    let Ok(permit) = Arc::clone(&state.exports).try_acquire_owned() else {
        return Err(Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "too many exports are under way; ask again when one of them has ended",
        ));
    };
    let mut export = Export {
        store: state.store,
        filter,
        window: Window {
            from: Some(from),
            to: Some(to),
        },
        order,
        format,
        after: None,
        left,
        shutdown: state.shutdown,
        _permit: permit,
    };
    // The first page before the status is sent: what is wrong is a problem then, and not an answer that breaks off.
    let first = export.page().await?;
    let headers = [
        (header::CONTENT_TYPE, format.content_type()),
        (header::CONTENT_DISPOSITION, format.file()),
        (header::CACHE_CONTROL, "no-store"),
    ];
    let body = pieces::body(PATIENCE, |out| export.run(first, out));
    Ok((headers, body).into_response())
}

struct Export {
    store: Store,
    filter: EventFilter,
    window: Window,
    order: Order,
    format: Format,
    after: Option<Position>,
    /// Events that are still wanted.
    left: u32,
    shutdown: Shutdown,
    _permit: OwnedSemaphorePermit,
}

impl Export {
    /// The next events as text; `None` after the last.
    async fn page(&mut self) -> Result<Option<Bytes>, Problem> {
        let titles = self.after.is_none() && self.format == Format::Csv;
        let limit = self.left.min(PAGE);
        if limit == 0 {
            return Ok(None);
        }
        let rows = self
            .store
            .events(&self.filter, self.window, self.order, self.after, limit)
            .await?;
        // A page that is not full is the last one.
        self.left = if rows.len() < limit as usize {
            0
        } else {
            self.left - limit
        };
        self.after = rows.last().map(|row| Position {
            time: row.time,
            id: row.id,
        });
        if rows.is_empty() && !titles {
            return Ok(None);
        }
        let text = match self.format {
            Format::Ndjson => ndjson(rows),
            Format::Csv => csv(rows, titles),
        };
        text.map(|text| Some(text.into())).map_err(|error| {
            tracing::error!(%error, "events cannot be written");
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "an event cannot be written")
        })
    }

    async fn run(mut self, first: Option<Bytes>, out: Out) -> End {
        let mut shutdown = self.shutdown.clone();
        // A reader that goes ends the query that is under way.
        tokio::select! {
            end = self.send_all(first, &out) => end,
            () = out.gone() => End::Whole,
            () = shutdown.recv() => End::Cut("the aggregator ends".into()),
        }
    }

    async fn send_all(&mut self, first: Option<Bytes>, out: &Out) -> End {
        let mut page = first;
        while let Some(text) = page {
            match out.send(text).await {
                Ok(()) => {}
                Err(Stopped::Gone) => return End::Whole,
                Err(Stopped::Slow) => return End::Cut("its reader takes nothing".into()),
            }
            page = match self.page().await {
                Ok(page) => page,
                Err(problem) => {
                    tracing::warn!(why = problem.detail(), "an export breaks off");
                    return End::Cut(problem.detail().to_owned());
                }
            };
        }
        End::Whole
    }
}

fn ndjson(rows: Vec<EventRow>) -> io::Result<Vec<u8>> {
    let mut text = Vec::with_capacity(rows.len() * 400);
    for row in rows {
        serde_json::to_writer(&mut text, &Event::from(row))?;
        text.push(b'\n');
    }
    Ok(text)
}

fn csv(rows: Vec<EventRow>, titles: bool) -> io::Result<Vec<u8>> {
    let mut writer = csv::WriterBuilder::new()
        .terminator(csv::Terminator::CRLF)
        .from_writer(Vec::with_capacity(rows.len() * 250));
    if titles {
        writer.write_record(Event::CSV_TITLES)?;
    }
    for row in rows {
        writer.write_record(Event::from(row).csv_fields().iter().map(|field| field.as_bytes()))?;
    }
    writer.into_inner().map_err(|e| io::Error::other(e.to_string()))
}
