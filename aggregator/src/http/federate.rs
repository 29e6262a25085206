//! `GET /federate`: series of the live table, as Prometheus federates them.

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use utoipa::IntoParams;

use super::AppState;
use super::problem::Problem;
use crate::live::{Selector, SelectorError};

/// Selectors that one page may have.
const MAX_SELECTORS: usize = 100;
/// Regular expressions in all of them: each may take megabytes, and a tenth of a second to compile.
const MAX_REGEXES: usize = 64;

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
        (status = 200, content_type = "text/plain", body = String, description = "Prometheus text format 0.0.4, with timestamps"),
        (status = "4XX", body = Problem)
    )
)]
pub(crate) async fn page(State(state): State<AppState>, RawQuery(query): RawQuery) -> Result<Response, Problem> {
    // Not on a thread that answers others.
    let selectors = tokio::task::spawn_blocking(move || selectors(query.as_deref().unwrap_or_default()))
        .await
        .map_err(|_| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the selectors cannot be read"))??;
    // The page is written while it is sent: no more than a few pieces of it are in memory.
    let (sender, receiver) = mpsc::channel::<String>(4);
    let live = state.live;
    tokio::task::spawn_blocking(move || live.federate(&selectors, &mut |piece| sender.blocking_send(piece).is_ok()));
    let body = Body::from_stream(ReceiverStream::new(receiver).map(Ok::<_, std::convert::Infallible>));
    Ok(([(header::CONTENT_TYPE, sonde_common::prom::CONTENT_TYPE)], body).into_response())
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
