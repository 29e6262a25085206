//! `GET /federate`: series of the live table, as Prometheus federates them.

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use utoipa::IntoParams;

use super::AppState;
use super::problem::Problem;
use crate::live::Selector;

/// Selectors that one page may have.
const MAX_SELECTORS: usize = 100;

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
    let selectors = selectors(query.as_deref().unwrap_or_default())?;
    // The page is written while it is sent: no more than a few pieces of it are in memory.
    let (sender, receiver) = mpsc::channel::<String>(4);
    let live = state.live;
    tokio::task::spawn_blocking(move || live.federate(&selectors, &mut |piece| sender.blocking_send(piece).is_ok()));
    let body = Body::from_stream(ReceiverStream::new(receiver).map(Ok::<_, std::convert::Infallible>));
    Ok(([(header::CONTENT_TYPE, sonde_common::prom::CONTENT_TYPE)], body).into_response())
}

/// Parameters of other names are Prometheus' own business and are passed over, as it does.
fn selectors(query: &str) -> Result<Vec<Selector>, Problem> {
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
    texts
        .iter()
        .map(|(_, text)| {
            text.parse()
                .map_err(|e: crate::live::SelectorError| refuse(e.to_string()))
        })
        .collect()
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
        ] {
            assert!(selectors(bad).unwrap_err().detail().contains("match[]"), "{bad}");
        }
    }
}
