//! The web pages, built by `npm run build` in `aggregator/ui` and carried inside this program.

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use rust_embed::{EmbeddedFile, RustEmbed};

use super::problem::Problem;

#[derive(RustEmbed)]
#[folder = "ui/dist/"]
struct Dist;

/// Vite puts what has a hash in its name here.
const HASHED: &str = "assets/";
const INDEX: &str = "index.html";

/// Scripts, styles and data of our own files only. React and uPlot set styles through the DOM, which needs no more.
const POLICY: &str =
    "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

/// Any path that is not the interface's: a file of the pages, or the page that routes by itself.
pub(crate) async fn serve(request: Request) -> Response {
    let path = request.uri().path().trim_start_matches('/');
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Problem::new(StatusCode::METHOD_NOT_ALLOWED, "pages are read with GET").into_response();
    }
    if let Some(file) = Dist::get(path).filter(|_| !path.is_empty()) {
        return answer(&request, path, file);
    }
    // A file that is missing is missing; a place inside the application is the application's to find. Names of nodes
    // and pods have dots too, so only a dot right below the root is a file's. None of them begins with a dot: whoever
    // asks for `..` looks for a file.
    let is_file = path.starts_with(HASHED)
        || (!path.contains('/') && path.contains('.'))
        || path.split('/').any(|part| part.starts_with('.'));
    match Dist::get(INDEX) {
        Some(index) if !is_file => answer(&request, INDEX, index),
        _ => Problem::new(StatusCode::NOT_FOUND, format!("there is no page `/{path}`")).into_response(),
    }
}

fn answer(request: &Request, path: &str, file: EmbeddedFile) -> Response {
    let hash = file.metadata.sha256_hash();
    let tag: String = hash[..16].iter().map(|b| format!("{b:02x}")).collect();
    let tag = format!("\"{tag}\"");
    let cache = if path.starts_with(HASHED) {
        "public, max-age=31536000, immutable"
    } else {
        "no-cache"
    };
    let kind = match file.metadata.mimetype() {
        text if text.starts_with("text/") || text == "application/javascript" => format!("{text}; charset=utf-8"),
        other => other.to_owned(),
    };
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, cache.into()),
        (header::ETAG, tag.clone()),
    ];
    let known = request
        .headers()
        .get(header::IF_NONE_MATCH)
        .and_then(|v| v.to_str().ok());
    if known.is_some_and(|known| known.split(',').any(|k| k.trim().trim_start_matches("W/") == tag)) {
        return (StatusCode::NOT_MODIFIED, headers).into_response();
    }
    (headers, file.data).into_response()
}

/// Headers of every answer: nothing of ours is for another site to frame, sniff or script.
pub(crate) async fn guard(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let guards: [(HeaderName, &str); 5] = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    for (name, value) in guards {
        response
            .headers_mut()
            .entry(name)
            .or_insert(HeaderValue::from_static(value));
    }
    response
}
