//! Tables, JSON, and the text form of events.

use serde_json::Value;

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
    Text,
}

/// `-o table|json|text`.
#[derive(clap::Args, Clone)]
pub(crate) struct Output {
    #[arg(short = 'o', long = "output", default_value = "table", value_name = "FORMAT")]
    pub(crate) format: Format,
}

/// The text of a JSON value as a person reads it.
pub(crate) fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

/// Columns as wide as their widest cell; the last one is not padded.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .chain([head[column].len()])
            .max()
            .unwrap_or_default()
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let print = |cells: &[&str]| {
        let line: Vec<String> = cells
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        println!("{}", line.join("  ").trim_end());
    };
    print(head);
    for row in rows {
        print(&row.iter().map(String::as_str).collect::<Vec<_>>());
    }
}

/// One event as `type=... pod=... namespace=...`, its stack at the end.
pub(crate) fn event_text(event: &Value) -> String {
    let host = event["namespace"] == "" && event["pod"] == "";
    let mut line = format!("type={}", cell(&event["type"]));
    for (name, key) in [("pod", "pod"), ("namespace", "namespace")] {
        let value = if host {
            "hostNetwork".to_owned()
        } else {
            cell(&event[key])
        };
        line.push_str(&format!(" {name}={value}"));
    }
    for key in [
        "protocol",
        "saddr",
        "sport",
        "daddr",
        "dport",
        "node",
        "reason",
        "direction",
        "interface",
        "latency_ns",
        "state",
        "pid",
        "comm",
        "suppressed",
    ] {
        if let Some(value) = event.get(key) {
            line.push_str(&format!(" {key}={}", cell(value)));
        }
    }
    if let Some(stack) = event["stack"].as_array().filter(|frames| !frames.is_empty()) {
        let frames: Vec<String> = stack.iter().map(cell).collect();
        line.push_str(&format!(" stacktrace:{}", frames.join(" ")));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_event_of_the_host_says_host_network() {
        let event = json!({"type": "PACKETLOSS", "namespace": "", "pod": "", "node": "n1", "reason": "NO_SOCKET", "dport": 80,
            "stack": ["tcp_v4_rcv+0xA3", "ip_rcv+0xE"]});
        assert_eq!(
            event_text(&event),
            "type=PACKETLOSS pod=hostNetwork namespace=hostNetwork dport=80 node=n1 reason=NO_SOCKET stacktrace:tcp_v4_rcv+0xA3 ip_rcv+0xE"
        );
    }
}
