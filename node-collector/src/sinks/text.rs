//! The lines of events, in either form.

use std::sync::Arc;

use sonde_common::config::EventFormat;
use sonde_common::event_text::event_text;

use super::json::EventJson;
use crate::event::Event;

/// Makes lines, without their end.
#[derive(Clone, Debug)]
pub(super) struct Format {
    pub(super) node: Arc<str>,
    pub(super) form: EventFormat,
}

impl Format {
    /// For whoever keeps the time beside the line.
    pub(super) fn line(&self, event: &Event) -> String {
        self.with(event, |_| String::new())
    }

    /// For whoever does not: text begins with the time. JSON has it anyway.
    pub(super) fn dated_line(&self, event: &Event) -> String {
        self.with(event, |json| format!("{} ", json.time))
    }

    fn with(&self, event: &Event, before: impl Fn(&EventJson<'_>) -> String) -> String {
        let json = EventJson::new(event, &self.node);
        match self.form {
            EventFormat::Json => serde_json::to_string(&json).expect("an event is plain data"),
            EventFormat::Text => {
                let value = serde_json::to_value(&json).expect("an event is plain data");
                before(&json) + &event_text(&value)
            }
        }
    }
}
