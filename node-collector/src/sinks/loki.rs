//! Grafana Loki. Queue, retries and the wire are `sonde_push`'s; here is what the streams are.

use sonde_common::config::LokiSink;
use sonde_push::loki::{self, Lines, Loki};
use sonde_push::{BadSetting, Http};

use super::Shared;
use super::text::Format;
use crate::event::{Event, Subject};

/// Lines of streams whose labels the configuration gives.
pub(super) struct Streams {
    labels: Vec<(String, String)>,
    format: Format,
}

/// Connects to nothing yet.
pub(super) fn target(settings: &LokiSink, format: Format) -> Result<Loki<Streams>, BadSetting> {
    let http = http(settings)?;
    let labels = settings.labels.clone().into_iter().collect();
    Ok(Loki::new(http, Streams { labels, format }))
}

/// As it can be had from the configuration alone.
pub(super) fn http(settings: &LokiSink) -> Result<Http, BadSetting> {
    sonde_push::server("sinks.loki", &settings.access(), loki::PATH)
}

impl Lines for Streams {
    type Item = Shared;

    fn labels(&self, item: &Shared) -> String {
        let values: Vec<(&str, String)> = self
            .labels
            .iter()
            .map(|(name, text)| (name.as_str(), fill(text, &self.format.node, &item.0)))
            .collect();
        loki::labels(values.iter().map(|(name, value)| (*name, value.as_str())))
    }

    fn line(&self, item: &Shared) -> String {
        self.format.line(&item.0)
    }
}

/// Of the node itself the namespace is empty, and a label that is empty is none.
fn fill(text: &str, node: &str, event: &Event) -> String {
    let namespace = match &event.subject {
        Subject::Pod(pod) => pod.namespace.as_str(),
        Subject::Node | Subject::Unknown => "",
    };
    loki::fill(text, |part| match part {
        "node" => node,
        "probe" => event.observation.probe,
        "type" => event.observation.kind,
        "namespace" => namespace,
        _ => "",
    })
}
