//! An event as one line of text, as design and KubeSkoop have it: made from its JSON form, so that collector and command
//! line say the same.

use serde_json::Value;

/// Keys in their order, after type, pod and namespace.
const KEYS: [&str; 17] = [
    "protocol",
    "saddr",
    "sport",
    "daddr",
    "dport",
    "node",
    "workload",
    "reason",
    "direction",
    "interface",
    "latency_ns",
    "state",
    "cpu",
    "pid",
    "comm",
    "suppressed",
    "peer",
];

/// One event as `type=... pod=... namespace=...`, its stack at the end. `hostNetwork` stands for the node itself. Values
/// with blanks, quotes or `=` are quoted as in JSON; keys of attributes come after the rest.
pub fn event_text(event: &Value) -> String {
    let host = event["namespace"] == "" && event["pod"] == "";
    let mut line = String::from("type=");
    push(&mut line, &event["type"]);
    for key in ["pod", "namespace"] {
        line.extend([" ", key, "="]);
        if host {
            line.push_str("hostNetwork");
        } else {
            push(&mut line, &event[key]);
        }
    }
    for key in KEYS {
        match event.get(key) {
            None => {}
            Some(Value::Object(parts)) => {
                for (part, value) in parts {
                    line.extend([" ", key, "_", part, "="]);
                    push(&mut line, value);
                }
            }
            Some(value) => {
                line.extend([" ", key, "="]);
                push(&mut line, value);
            }
        }
    }
    for (key, value) in event["attributes"].as_object().into_iter().flatten() {
        line.extend([" ", key, "="]);
        push(&mut line, value);
    }
    if let Some(stack) = event["stack"].as_array().filter(|frames| !frames.is_empty()) {
        line.push_str(" stacktrace:");
        for (at, frame) in stack.iter().enumerate() {
            if at > 0 {
                line.push(' ');
            }
            push(&mut line, frame);
        }
    }
    line
}

/// Nothing that is told can break the line or look like another key.
fn push(line: &mut String, value: &Value) {
    match value {
        Value::Null => {}
        Value::String(text)
            if text.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, '"' | '=')) =>
        {
            line.push_str(&value.to_string());
        }
        Value::String(text) => line.push_str(text),
        other => line.push_str(&other.to_string()),
    }
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

    #[test]
    fn what_a_process_is_called_cannot_make_a_line_or_a_key() {
        let event = json!({"type": "X", "pod": "p", "namespace": "n", "comm": "a b\ntype=Y pod=\"q", "latency_ns": 5,
            "peer": {"namespace": "", "pod": ""}, "attributes": {"hook": "output"}});
        assert_eq!(
            event_text(&event),
            "type=X pod=p namespace=n latency_ns=5 comm=\"a b\\ntype=Y pod=\\\"q\" peer_namespace= peer_pod= hook=output"
        );
        assert_eq!(
            event_text(&json!({"type": "X"})),
            "type=X pod= namespace=",
            "of nobody's namespace"
        );
    }
}
