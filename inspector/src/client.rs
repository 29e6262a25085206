//! The aggregator's REST interface over plain HTTP.

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::client::legacy::Client as Http;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

/// Where the aggregator is.
#[derive(clap::Args, Clone)]
pub(crate) struct Server {
    /// Address of the aggregator's HTTP interface
    #[arg(
        long,
        env = "SONDE_SERVER",
        default_value = "http://127.0.0.1:9640",
        value_name = "URL"
    )]
    pub(crate) server: String,
}

pub(crate) struct Client {
    http: Http<HttpConnector, Empty<Bytes>>,
    base: String,
}

/// A query string built from names and values.
#[derive(Default)]
pub(crate) struct Query(String);

impl Query {
    pub(crate) fn add(&mut self, name: &str, value: &str) {
        self.0.push(if self.0.is_empty() { '?' } else { '&' });
        self.0.push_str(name);
        self.0.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                self.0.push(byte as char);
            } else {
                self.0.push_str(&format!("%{byte:02X}"));
            }
        }
    }
}

impl Client {
    pub(crate) fn new(base: &str) -> Self {
        Self {
            http: Http::builder(TokioExecutor::new()).build_http(),
            base: base.trim_end_matches('/').to_owned(),
        }
    }

    /// Body of a 200; a problem document becomes an error with its detail.
    pub(crate) async fn get(&self, path: &str, query: &Query) -> anyhow::Result<Value> {
        let (status, body) = self.get_raw(path, query).await?;
        let value: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        if !status.is_success() {
            bail!("{path}: {}", value["detail"].as_str().unwrap_or(status.as_str()));
        }
        Ok(value)
    }

    pub(crate) async fn get_raw(&self, path: &str, query: &Query) -> anyhow::Result<(http::StatusCode, Bytes)> {
        let response = self.send(path, query).await?;
        let status = response.status();
        Ok((status, response.into_body().collect().await?.to_bytes()))
    }

    /// Hands each event of an endless stream (SSE) to `each`, until the stream ends.
    pub(crate) async fn follow(&self, path: &str, query: &Query, mut each: impl FnMut(Value)) -> anyhow::Result<()> {
        let mut response = self.send(path, query).await?;
        if !response.status().is_success() {
            let body = response.into_body().collect().await?.to_bytes();
            let value: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
            bail!("{path}: {}", value["detail"].as_str().unwrap_or("refused"));
        }
        let mut pending = Vec::new();
        let mut ends = false;
        while let Some(frame) = response.body_mut().frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            pending.extend_from_slice(&data);
            while let Some(end) = pending.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = pending.drain(..=end).collect();
                if let Some(event) = line.strip_prefix(b"event:") {
                    ends = event.trim_ascii() == b"end";
                }
                if let Some(json) = line.strip_prefix(b"data:") {
                    let data: Value = serde_json::from_slice(json.trim_ascii())
                        .context("the stream sent something that is not JSON")?;
                    if ends {
                        bail!("the stream was ended: {}", data["reason"].as_str().unwrap_or("?"));
                    }
                    each(data);
                }
            }
        }
        Ok(())
    }

    async fn send(&self, path: &str, query: &Query) -> anyhow::Result<http::Response<hyper::body::Incoming>> {
        let uri = format!("{}{path}{}", self.base, query.0);
        let request = Request::get(&uri)
            .body(Empty::new())
            .with_context(|| format!("{uri} is not an address"))?;
        self.http
            .request(request)
            .await
            .with_context(|| format!("no answer from {} (is `sonde up` running?)", self.base))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_escapes_what_is_not_plain() {
        let mut query = Query::default();
        query.add("pod", "!a b&c");
        query.add("ip", "fd00::1");
        assert_eq!(query.0, "?pod=%21a%20b%26c&ip=fd00%3A%3A1");
    }
}
