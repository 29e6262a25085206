//! Grafana Loki's push interface: `POST /loki/api/v1/push`, protobuf `logproto.PushRequest` in a snappy block.
//!
//! Source: `pkg/push/push.proto` of grafana/loki. Labels are one text in the form of a selector, `{a="b"}`, the same for
//! all entries of a stream.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;

use crate::{Http, Outcome, Target, Timed};

/// Where it is, below the server's root.
pub const PATH: &str = "/loki/api/v1/push";
const CONTENT_TYPE: &str = "application/x-protobuf";

/// `logproto.PushRequest`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PushRequest {
    #[prost(message, repeated, tag = "1")]
    pub streams: Vec<Stream>,
}

/// `logproto.StreamAdapter`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Stream {
    #[prost(string, tag = "1")]
    pub labels: String,
    #[prost(message, repeated, tag = "2")]
    pub entries: Vec<Entry>,
}

/// `logproto.EntryAdapter`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Entry {
    #[prost(message, optional, tag = "1")]
    pub timestamp: Option<Timestamp>,
    #[prost(string, tag = "2")]
    pub line: String,
}

/// `google.protobuf.Timestamp`.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Timestamp {
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

/// Makes lines of items.
pub trait Lines: Send + 'static {
    type Item: Timed + Send + Sync + 'static;

    /// The stream that the item belongs to, see [`labels`].
    fn labels(&self, item: &Self::Item) -> String;
    fn line(&self, item: &Self::Item) -> String;
}

/// A label set as Loki wants it. Names must be `[a-zA-Z_][a-zA-Z0-9_]*`; empty values are no labels.
pub fn labels<'a>(labels: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut text = String::from("{");
    for (name, value) in labels.into_iter().filter(|(_, value)| !value.is_empty()) {
        if text.len() > 1 {
            text.push_str(", ");
        }
        let _ = write!(text, "{name}=\"");
        for c in value.chars() {
            match c {
                '"' | '\\' => text.extend(['\\', c]),
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                '\t' => text.push_str("\\t"),
                c if c.is_control() => {
                    let _ = write!(text, "\\u{:04x}", u32::from(c));
                }
                c => text.push(c),
            }
        }
        text.push('"');
    }
    text.push('}');
    text
}

/// Puts what `part` gives for each `${NAME}` of a label's text, as `labels` in the configuration has them.
pub fn fill<'a>(text: &str, part: impl Fn(&str) -> &'a str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let (name, next) = after.split_once('}').unwrap_or((after, ""));
        out.push_str(before);
        out.push_str(part(name));
        rest = next;
    }
    out + rest
}

/// The items as one request, in the order of time within each stream.
pub fn request<L: Lines>(lines: &L, items: &[L::Item]) -> PushRequest {
    let mut streams: BTreeMap<String, Vec<(u64, String)>> = BTreeMap::new();
    for item in items {
        let stream = streams.entry(lines.labels(item)).or_default();
        stream.push((item.time_ns(), lines.line(item)));
    }
    let stream = |(labels, mut entries): (String, Vec<(u64, String)>)| {
        entries.sort_by_key(|(time_ns, _)| *time_ns);
        let entries = entries.into_iter().map(|(time_ns, line)| Entry {
            timestamp: Some(Timestamp {
                seconds: (time_ns / 1_000_000_000) as i64,
                nanos: (time_ns % 1_000_000_000) as i32,
            }),
            line,
        });
        Stream {
            labels,
            entries: entries.collect(),
        }
    };
    PushRequest {
        streams: streams.into_iter().map(stream).collect(),
    }
}

/// A server of Loki's.
#[derive(Debug)]
pub struct Loki<L> {
    http: Http,
    lines: L,
}

impl<L: Lines> Loki<L> {
    /// `http` knows path, credentials and tenant.
    pub const fn new(http: Http, lines: L) -> Self {
        Self { http, lines }
    }
}

impl<L: Lines + Sync> Target for Loki<L> {
    type Item = L::Item;

    /// The whole batch is one request, so that it is taken or refused as a whole.
    async fn send(&mut self, batch: &Arc<[L::Item]>, from: usize) -> Outcome {
        let message = request(&self.lines, &batch[from..]).encode_to_vec();
        let body = match snap::raw::Encoder::new().compress_vec(&message) {
            Ok(body) => Bytes::from(body),
            Err(error) => {
                return Outcome::Refused {
                    why: format!("it cannot be compressed: {error}"),
                };
            }
        };
        self.http.post(CONTENT_TYPE, body).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_written_as_a_selector() {
        assert_eq!(
            labels([("a", "x"), ("none", ""), ("b", "q\"\\\n\u{1}é")]),
            r#"{a="x", b="q\"\\\n\u0001é"}"#
        );
        assert_eq!(labels([]), "{}");
    }
}
