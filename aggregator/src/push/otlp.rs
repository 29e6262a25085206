//! Events as log records, with the attributes that OpenTelemetry's semantic conventions have for them.

use serde_json::Value;
use sonde_push::otlp::{Logs, Record};

use super::events::Stored;

/// Keys of an event for which there is a convention.
const CONVENTIONS: [(&str, &str); 10] = [
    ("namespace", "k8s.namespace.name"),
    ("pod", "k8s.pod.name"),
    ("protocol", "network.transport"),
    ("saddr", "source.address"),
    ("sport", "source.port"),
    ("daddr", "destination.address"),
    ("dport", "destination.port"),
    ("interface", "network.interface.name"),
    ("pid", "process.pid"),
    ("comm", "process.executable.name"),
];

/// Told in another way.
const ELSEWHERE: [&str; 2] = ["time", "node"];

#[derive(Debug)]
pub(super) struct Records;

impl Logs for Records {
    type Item = Stored;

    fn node<'a>(&self, item: &'a Stored) -> &'a str {
        item.text("node")
    }

    fn record(&self, item: &Stored, record: &mut Record<'_>) {
        record.body(&item.line());
        record.name(&format!("sonde.{}", item.text("type")));
        let Value::Object(event) = item.json() else { return };
        for (key, value) in event {
            if ELSEWHERE.contains(&key.as_str()) {
                continue;
            }
            let convention = CONVENTIONS.iter().find(|(ours, _)| ours == key);
            let name = convention.map_or_else(|| format!("sonde.{key}"), |(_, theirs)| (*theirs).to_owned());
            put(record, &name, value);
        }
    }
}

/// Values that hold others have a name for each: `sonde.peer.pod`.
fn put(record: &mut Record<'_>, name: &str, value: &Value) {
    match value {
        // As the convention writes transports.
        Value::String(text) if name == "network.transport" => record.text(name, &text.to_ascii_lowercase()),
        Value::String(text) => record.text(name, text),
        Value::Number(number) => match number.as_i64() {
            Some(number) => record.int(name, number),
            None => record.text(name, &number.to_string()),
        },
        Value::Array(frames) => {
            let frames: Vec<&str> = frames.iter().filter_map(Value::as_str).collect();
            record.text(name, &frames.join("\n"));
        }
        Value::Object(parts) => {
            for (key, value) in parts {
                put(record, &format!("{name}.{key}"), value);
            }
        }
        Value::Bool(_) | Value::Null => {}
    }
}
