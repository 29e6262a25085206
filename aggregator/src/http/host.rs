//! Against DNS rebinding: a page of the internet whose name suddenly means 127.0.0.1 must not read what a server on
//! loopback tells its own machine. Such a request names the strange host in its Host header.

use std::net::{IpAddr, SocketAddr};

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::problem::Problem;

/// Where the server listens; on loopback only names of this machine are answered.
pub(crate) async fn check(State(bound): State<SocketAddr>, request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST);
    let named = match host {
        None => request.uri().host().unwrap_or("localhost"),
        Some(value) => value.to_str().unwrap_or("?"),
    };
    if !bound.ip().to_canonical().is_loopback() || is_own(named) {
        return next.run(request).await;
    }
    Problem::new(
        StatusCode::MISDIRECTED_REQUEST,
        "this server listens on loopback and answers only to the names of its machine, such as `localhost`",
    )
    .into_response()
}

/// `localhost`, `*.localhost`, a loopback address, or a name without dots: no such name is on the internet.
fn is_own(host: &str) -> bool {
    let name = without_port(host);
    if let Ok(address) = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        return address.to_canonical().is_loopback();
    }
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let label = |l: &str| !l.is_empty() && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    label(name.strip_suffix(".localhost").unwrap_or(&name))
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port))
            if port.bytes().all(|b| b.is_ascii_digit()) && (!name.contains(':') || name.ends_with(']')) =>
        {
            name
        }
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_this_machine_are_answered_and_no_others() {
        for own in [
            "localhost",
            "LOCALHOST:9640",
            "localhost.",
            "127.0.0.1",
            "127.0.0.1:9640",
            "127.8.9.1",
            "[::1]",
            "[::1]:9640",
            "::1",
            "[::ffff:127.0.0.1]:80",
            "aggregator:9640",
            "my-host_1",
            "sonde.localhost",
        ] {
            assert!(is_own(own), "{own}");
        }
        for strange in [
            "",
            "evil.example",
            "evil.example:9640",
            "10.1.2.3",
            "[fd00::1]:80",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            ".",
            ":80",
            "a b",
            "evil.example.",
            "[evil]",
            "a.b.localhost",
            "?",
        ] {
            assert!(!is_own(strange), "{strange}");
        }
    }
}
