//! GET, blocking.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub content_type: String,
    pub body: String,
}

/// `query` in plain text: names and values are escaped here.
pub fn get(address: SocketAddr, path: &str, query: &[(&str, &str)]) -> Result<Response> {
    let uri = format!("http://{address}{path}{}", render(query));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let exchange = async {
        let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
        let request = http::Request::get(&uri).body(Empty::new())?;
        let (head, body) = client.request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        let content_type = head.headers.get(http::header::CONTENT_TYPE);
        Ok::<_, anyhow::Error>(Response {
            status: head.status.as_u16(),
            content_type: content_type.map_or("", |v| v.to_str().unwrap_or_default()).to_owned(),
            body: String::from_utf8(body.to_vec())?,
        })
    };
    runtime
        .block_on(async { tokio::time::timeout(LIMIT, exchange).await })
        .with_context(|| format!("{uri}: no answer within {} s", LIMIT.as_secs()))?
        .with_context(|| uri.clone())
}

/// The JSON of a 200.
pub fn json(address: SocketAddr, path: &str, query: &[(&str, &str)]) -> Result<Value> {
    let response = get(address, path, query)?;
    if response.status != 200 {
        bail!("{path} {query:?}: status {}: {}", response.status, response.body);
    }
    serde_json::from_str(&response.body).with_context(|| format!("{path}: {}", response.body))
}

fn render(query: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (name, value) in query {
        text.push(if text.is_empty() { '?' } else { '&' });
        text.push_str(&escape(name));
        text.push('=');
        text.push_str(&escape(value));
    }
    text
}

fn escape(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_escaped() {
        assert_eq!(
            render(&[("match[]", "{a=~\"b.+\"}"), ("x", "é")]),
            "?match%5B%5D=%7Ba%3D~%22b.%2B%22%7D&x=%C3%A9"
        );
        assert_eq!(render(&[]), "");
    }
}
