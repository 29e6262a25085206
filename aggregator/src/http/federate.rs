//! `GET /federate`: series of the live table, as Prometheus federates them.

use std::io;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::StreamExt as _;
use sonde_common::negotiate;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use utoipa::IntoParams;

use super::AppState;
use super::problem::Problem;
use crate::live::{MAX_SELECTORS, Selector, SelectorError};

/// Regular expressions in all selectors: each may take megabytes, and a tenth of a second to compile.
const MAX_REGEXES: usize = 64;
/// Pages that may be written at once. Each holds on to the rows that it began with, and to a thread.
pub(super) const MAX_PAGES: usize = 8;
/// How long a request waits for its turn.
const TURN: Duration = Duration::from_secs(10);
/// How long a reader may take for a piece of the page, and for all of it.
const STALL: Duration = Duration::from_secs(30);
const LONGEST: Duration = Duration::from_secs(300);

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "documents what the handler takes")]
struct FederateParams {
    /// A series selector such as `{__name__=~"sonde_tcp_.+",k8s_namespace="shop"}`; series of all selectors are shown.
    #[param(rename = "match[]")]
    r#match: Vec<String>,
}

/// Newest values of the series that any selector wants
#[utoipa::path(
    get,
    path = "/federate",
    tag = "metrics",
    params(FederateParams),
    responses(
        (
            status = 200,
            description = "Prometheus text format 0.0.4 or, as `Accept` has it, OpenMetrics 1.0; with timestamps",
            content(
                (String = "text/plain"),
                (String = "application/openmetrics-text")
            )
        ),
        (status = "4XX", body = Problem),
        (status = 503, body = Problem, description = "Too many pages are being written")
    )
)]
pub(crate) async fn page(
    State(state): State<AppState>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    // Not on a thread that answers others.
    let selectors = tokio::task::spawn_blocking(move || selectors(query.as_deref().unwrap_or_default()))
        .await
        .map_err(|_| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the selectors cannot be read"))??;
    let accept: Vec<_> = headers
        .get_all(header::ACCEPT)
        .iter()
        .flat_map(|a| a.to_str())
        .collect();
    let exposition = negotiate::exposition(&accept.join(","));
    let turn = tokio::time::timeout(TURN, state.pages.acquire_owned()).await;
    let Ok(Ok(turn)) = turn else {
        let detail =
            format!("{MAX_PAGES} pages are being written; expected a scrape interval that is longer than a scrape");
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail));
    };
    let live = state.live;
    let body = streamed(STALL, move |sink| {
        let _turn = turn;
        live.federate(&selectors, exposition.format, sink)
    });
    let headers = [
        (header::CONTENT_TYPE, exposition.content_type()),
        (header::VARY, "accept".into()),
    ];
    Ok((headers, body).into_response())
}

/// A body that is written while it is sent: no more than a few pieces of it are in memory. `write` says whether it wrote all
/// of it. What is not whole ends with an error, which breaks the connection: half a page must not look like one.
fn streamed(stall: Duration, write: impl FnOnce(&mut dyn FnMut(String) -> bool) -> bool + Send + 'static) -> Body {
    let (sender, receiver) = mpsc::channel::<String>(4);
    let (runtime, ends) = (Handle::current(), Instant::now() + LONGEST);
    let writer = tokio::task::spawn_blocking(move || {
        write(&mut |piece| {
            let sent = tokio::time::timeout_at(ends.min(Instant::now() + stall), sender.send(piece));
            runtime.block_on(sent).is_ok_and(|sent| sent.is_ok())
        })
    });
    let end = futures::stream::once(async {
        match writer.await {
            Ok(true) => Ok(String::new()),
            Ok(false) => Err(io::Error::new(io::ErrorKind::TimedOut, "the reader took too long")),
            Err(_) => Err(io::Error::other("the page could not be written")),
        }
    });
    Body::from_stream(ReceiverStream::new(receiver).map(Ok).chain(end))
}

/// Parameters of other names are Prometheus' own business and are passed over, as it does.
pub(super) fn selectors(query: &str) -> Result<Vec<Selector>, Problem> {
    let refuse = |detail: String| Problem::bad("match[]", detail);
    let texts: Vec<_> = form_urlencoded::parse(query.as_bytes())
        .filter(|(name, _)| name == "match[]")
        .collect();
    if texts.is_empty() {
        return Err(refuse(
            "expected at least one match[] with a series selector, such as `match[]={__name__=~\"sonde_.+\"}`".into(),
        ));
    }
    if texts.len() > MAX_SELECTORS {
        return Err(refuse(format!("more than {MAX_SELECTORS} match[] are not taken")));
    }
    let mut selectors = Vec::with_capacity(texts.len());
    let mut regexes = 0;
    for (_, text) in &texts {
        let selector: Selector = text.parse().map_err(|e: SelectorError| refuse(e.to_string()))?;
        regexes += selector.regexes();
        if regexes > MAX_REGEXES {
            return Err(refuse(format!(
                "more than {MAX_REGEXES} regular expressions in all match[] are not taken"
            )));
        }
        selectors.push(selector);
    }
    Ok(selectors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn half_a_page_does_not_look_like_a_page() {
        let read = |body| axum::body::to_bytes(body, usize::MAX);
        let whole = streamed(STALL, |sink| sink("a 1\n".into()) && sink("b 2\n".into()));
        assert_eq!(read(whole).await.unwrap(), "a 1\nb 2\n");
        let panicked = streamed(STALL, |sink| {
            sink("a 1\n".into());
            panic!("for the test");
        });
        assert!(read(panicked).await.is_err());
        let given_up = streamed(STALL, |sink| {
            sink("a 1\n".into());
            false
        });
        assert!(read(given_up).await.is_err());
    }

    #[tokio::test]
    async fn a_reader_that_stands_still_is_left() {
        let (said, heard) = tokio::sync::oneshot::channel();
        let body = streamed(Duration::from_millis(1), move |sink| {
            let written = (0..100).take_while(|_| sink("x".into())).count();
            said.send(written).is_ok() && written == 100
        });
        let written = heard.await.unwrap();
        assert!(written < 10, "what nobody reads waits in memory: {written} pieces");
        assert!(axum::body::to_bytes(body, usize::MAX).await.is_err());
    }

    #[test]
    fn match_is_given_at_least_once_and_each_is_a_selector() {
        assert_eq!(
            selectors("match[]=up&match%5B%5D=%7Ba%3D%22b%22%7D&other=1")
                .unwrap()
                .len(),
            2
        );
        for bad in [
            "",
            "match=up",
            "match[]=",
            "match[]=up&match[]=%7B%7D",
            &"match[]=up&".repeat(101),
            &format!("match[]={{a=~\"x\"{}}}&", ",b=~\"x\"".repeat(15)).repeat(5),
        ] {
            assert!(selectors(bad).unwrap_err().detail().contains("match[]"), "{bad}");
        }
    }
}
