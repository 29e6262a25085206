//! Events as lines of Grafana Loki's streams.

use sonde_common::config::{EventFormat, LokiSink};
use sonde_push::loki::{self, Lines};

use super::events::Stored;

#[derive(Debug)]
pub(super) struct Streams {
    labels: Vec<(String, String)>,
    format: EventFormat,
}

impl Streams {
    pub(super) fn new(settings: &LokiSink) -> Self {
        Self {
            labels: settings.labels.clone().into_iter().collect(),
            format: settings.format,
        }
    }
}

impl Lines for Streams {
    type Item = Stored;

    /// Parts have the names of an event's keys.
    fn labels(&self, item: &Stored) -> String {
        let values: Vec<(&str, String)> = self
            .labels
            .iter()
            .map(|(name, text)| (name.as_str(), loki::fill(text, |part| item.text(part))))
            .collect();
        loki::labels(values.iter().map(|(name, value)| (*name, value.as_str())))
    }

    fn line(&self, item: &Stored) -> String {
        match self.format {
            EventFormat::Text => item.line(),
            EventFormat::Json => item.json().to_string(),
        }
    }
}
