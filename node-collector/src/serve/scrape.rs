//! `/metrics`: the page in the format and packing that the scraper asks for.
//!
//! The series of a round are rendered once for each format and packing, when somebody first asks; who asks next gets the
//! same bytes, until the next round or until a pod ends. What the collector tells of itself is rendered for
//! each request, so that a round that hangs shows its age.

use std::sync::Arc;

use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use parking_lot::Mutex;
use sonde_common::negotiate;
use sonde_common::prom::{EOF, Format, Page};

use super::gzip::{self, Packed, Packer};
use super::{Shared, State, own};
use crate::reading::Snapshot;

/// What a scraper asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wanted {
    format: Format,
    gzip: bool,
}

/// Pages of one snapshot, each with how many pods had ended when it was rendered. They go when it goes.
#[derive(Debug, Default)]
pub struct Pages(Mutex<Vec<(Wanted, u64, Arc<Series>)>>);

/// The series of a page.
#[derive(Debug)]
enum Series {
    Plain(String),
    Packed(Packed),
}

pub(super) async fn metrics(state: Shared, headers: HeaderMap) -> Response {
    let all = |name: HeaderName| {
        let values: Vec<&str> = headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .collect();
        values.join(",")
    };
    let wanted = Wanted {
        format: negotiate::format(&all(header::ACCEPT)),
        gzip: negotiate::gzip(&all(header::ACCEPT_ENCODING)),
    };
    // A thousand pods are a second's work in a debug build: not on the threads that answer others.
    let Ok(body) = tokio::task::spawn_blocking(move || body(&state, wanted)).await else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let mut response = (
        [
            (header::CONTENT_TYPE, wanted.format.content_type()),
            (header::VARY, "accept, accept-encoding"),
        ],
        body,
    )
        .into_response();
    if wanted.gzip {
        let gzip = header::HeaderValue::from_static("gzip");
        response.headers_mut().insert(header::CONTENT_ENCODING, gzip);
    }
    response
}

fn body(state: &State, wanted: Wanted) -> Bytes {
    let (snapshot, mut page) = (state.rounds.snapshot(), Page::of(wanted.format));
    if let Some(snapshot) = &snapshot {
        page.append(&snapshot.kernel_metrics[wanted.format as usize]);
    }
    own::render(&mut page, state);
    let mut rest = page.finish();
    if wanted.format == Format::OpenMetrics {
        rest.push_str(EOF);
    }
    let series = match &snapshot {
        Some(snapshot) => series(state, snapshot, wanted),
        None if wanted.gzip => Arc::new(Series::Packed(Packer::new().part())),
        None => Arc::default(),
    };
    match &*series {
        Series::Plain(text) => (text.clone() + &rest).into(),
        Series::Packed(packed) => gzip::member(packed, &rest).into(),
    }
}

/// Those that were rendered before, or rendered now. Who comes meanwhile waits.
fn series(state: &State, snapshot: &Snapshot, wanted: Wanted) -> Arc<Series> {
    let mut pages = snapshot.pages.0.lock();
    // Asked before rendering: a pod that ends meanwhile makes the page old.
    let ended = state.index.ended();
    pages.retain(|(_, of, _)| *of == ended);
    if let Some((_, _, series)) = pages.iter().find(|(of, ..)| *of == wanted) {
        return Arc::clone(series);
    }
    let series = Arc::new(render(state, snapshot, wanted));
    state.renderings.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    pages.push((wanted, ended, Arc::clone(&series)));
    series
}

fn render(state: &State, snapshot: &Snapshot, wanted: Wanted) -> Series {
    let (tables, format) = (&snapshot.tables, wanted.format);
    if wanted.gzip {
        let mut packer = Packer::new();
        state.exposition.write(tables, format, &mut |text| packer.add(text));
        Series::Packed(packer.part())
    } else {
        let mut text = String::new();
        state
            .exposition
            .write(tables, format, &mut |piece| text.push_str(piece));
        Series::Plain(text)
    }
}

impl Default for Series {
    fn default() -> Self {
        Self::Plain(String::new())
    }
}
