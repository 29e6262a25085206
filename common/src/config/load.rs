//! File and environment into a checked [`Config`]. Read once, before anything binds.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Config, MaxSeries, outlets_check};
use crate::time::Span;

/// What is wrong, where, and what was expected. One line.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{}: cannot be read: {source}", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{}: {what}", path.display())]
    File { path: PathBuf, what: String },
    #[error("{variable}=`{value}`: {what}")]
    Environment {
        variable: String,
        value: String,
        what: String,
    },
    #[error("{key}: `{value}`: {what}")]
    Value { key: String, value: String, what: String },
}

/// `file` may be absent; `env` is the process's environment, or a test's.
pub fn load(file: Option<&Path>, env: impl Fn(&str) -> Option<String>) -> Result<Config, ConfigError> {
    let from_file = match file {
        Some(path) => parse_file(path)?,
        None => Config::default(),
    };
    let mut tree = serde_json::to_value(&from_file).expect("the configuration is plain data");
    let mut keys = Vec::new();
    leaves(&tree, &mut Vec::new(), &mut keys);
    let mut config = from_file;
    for key in keys {
        let variable = format!("SONDE_{}", key.join("_").to_ascii_uppercase());
        let Some(value) = env(&variable).filter(|v| !v.is_empty()) else {
            continue;
        };
        let fail = |what: String| ConfigError::Environment {
            variable: variable.clone(),
            value: value.clone(),
            what,
        };
        let slot = key.iter().fold(&mut tree, |node, part| &mut node[part]);
        *slot = from_text(&value, slot).map_err(fail)?;
        config = serde_json::from_value(tree.clone()).map_err(|e| fail(e.to_string()))?;
    }
    if config.node.name.is_empty() {
        config.node.name = env("NODE_NAME").filter(|n| !n.is_empty()).unwrap_or_else(hostname);
    }
    if config.pods.cri.endpoint.is_empty() {
        config.pods.cri.endpoint = env("RUNTIME_SOCK").unwrap_or_default();
    }
    // An empty variable says nothing, so there must be a word for none.
    if config.collector.aggregator.0 == ["none"] {
        config.collector.aggregator.0.clear();
    }
    check(&config)?;
    Ok(config)
}

fn parse_file(path: &Path) -> Result<Config, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    if text
        .lines()
        .all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'))
    {
        return Ok(Config::default());
    }
    serde_saphyr::from_str(&text).map_err(|e| ConfigError::File {
        path: path.to_owned(),
        what: explain(&text, one_line(&e.to_string())),
    })
}

/// The YAML parser knows the place; a second look at the same text as plain data knows the key, the value and what was
/// expected.
fn explain(text: &str, first: String) -> String {
    let Some((place, _)) = first.split_once(": ").filter(|(place, _)| place.starts_with("line ")) else {
        return first;
    };
    let Ok(data) = serde_saphyr::from_str::<Value>(text) else {
        return first;
    };
    match serde_path_to_error::deserialize::<_, Config>(data) {
        Err(e) => format!("{place}: {}: {}", e.path(), e.inner()),
        Ok(_) => first,
    }
}

/// The first line of a parser's message: the rest is a picture of the place.
fn one_line(message: &str) -> String {
    let first = message
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .unwrap_or(message);
    first.trim_start_matches("error: ").to_owned()
}

/// Keys that hold a map of the user's own: a variable replaces it whole.
const MAPS: [&[&str]; 5] = [
    &["probes"],
    &["metrics", "labels"],
    &["sinks", "loki", "labels"],
    &["push", "loki", "labels"],
    &["push", "remote_write", "labels"],
];

/// Paths of all keys that hold a value.
fn leaves(node: &Value, path: &mut Vec<String>, out: &mut Vec<Vec<String>>) {
    match node {
        Value::Object(map) if MAPS.iter().all(|map| path.as_slice() != *map) => {
            for (key, value) in map {
                path.push(key.clone());
                leaves(value, path, out);
                path.pop();
            }
        }
        _ => out.push(path.clone()),
    }
}

/// The text of a variable as a value of the kind that is there now.
fn from_text(text: &str, now: &Value) -> Result<Value, String> {
    match now {
        Value::String(_) => Ok(Value::String(text.to_owned())),
        Value::Array(_) if !text.trim_start().starts_with('[') => Ok(text
            .split(',')
            .map(|item| Value::String(item.trim().to_owned()))
            .collect()),
        _ => serde_saphyr::from_str::<Value>(text).map_err(|e| one_line(&e.to_string())),
    }
}

fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").map_or_else(|_| "localhost".into(), |name| name.trim().into())
}

/// What the types cannot say.
fn check(config: &Config) -> Result<(), ConfigError> {
    let fail = |key: &str, value: &dyn std::fmt::Display, what: &str| {
        Err(ConfigError::Value {
            key: key.to_owned(),
            value: value.to_string(),
            what: what.to_owned(),
        })
    };
    let name = &config.node.name;
    let part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if name.is_empty() || name.len() > 253 || !name.chars().all(part) {
        return fail("node.name", name, "expected 1 to 253 letters, digits, `-`, `.` or `_`");
    }
    let interval = config.collector.interval;
    if interval < Span(std::time::Duration::from_millis(100)) || interval > Span::from_secs(600) {
        return fail("collector.interval", &interval, "expected 100ms to 10m");
    }
    let endpoint = &config.pods.cri.endpoint;
    let socket = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
    if !endpoint.is_empty() && !socket.starts_with('/') {
        return fail("pods.cri.endpoint", endpoint, "expected `/PATH` or `unix:///PATH`");
    }
    let interval = config.pods.cri.interval;
    if interval < Span(std::time::Duration::from_millis(100)) || interval > Span::from_secs(60) {
        return fail("pods.cri.interval", &interval, "expected 100ms to 1m");
    }
    let mut targets = config.collector.aggregator.0.iter();
    if let Some(target) = targets.find(|target| !target.starts_with("http://")) {
        return fail(
            "collector.aggregator",
            target,
            "expected `http://HOST:PORT`, a list of such, or `none` to work alone",
        );
    }
    if config.events.rate == 0 || config.events.burst == 0 {
        return fail(
            "events.rate",
            &config.events.rate,
            "expected rate and burst of at least 1",
        );
    }
    outlets_check::check(&config.sinks)?;
    outlets_check::check_push(&config.push)?;
    if config.metrics.names.is_empty() {
        return fail("metrics.names", &"[]", "expected `sonde`, `kubeskoop` or both");
    }
    let MaxSeries {
        per_probe,
        per_namespace,
    } = config.metrics.max_series;
    for (key, series) in [
        ("metrics.max_series.per_probe", per_probe),
        ("metrics.max_series.per_namespace", per_namespace),
    ] {
        if series < 100 {
            return fail(key, &series, "expected at least 100");
        }
    }
    if config.spool.max_bytes < 1 << 20 {
        return fail(
            "spool.max_bytes",
            &config.spool.max_bytes,
            "expected at least 1048576 (1 MiB)",
        );
    }
    let url = &config.storage.database_url;
    if !url.is_empty() && !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return fail(
            "storage.database_url",
            &"...",
            "expected `postgres://USER:PASSWORD@HOST:PORT/DATABASE`",
        );
    }
    for (key, keep) in [
        ("storage.keep_rows", config.storage.keep_rows),
        ("storage.keep_events", config.storage.keep_events),
        ("storage.keep_rollups_1m", config.storage.keep_rollups_1m),
        ("storage.keep_rollups_1h", config.storage.keep_rollups_1h),
    ] {
        if keep < Span::from_secs(86_400) {
            return fail(key, &keep, "expected at least `1d`: partitions are days");
        }
    }
    let kubernetes = &config.kubernetes;
    if !kubernetes.context.is_empty() && kubernetes.kubeconfig.as_os_str().is_empty() {
        return fail(
            "kubernetes.context",
            &kubernetes.context,
            "expected nothing: a context belongs to a `kubernetes.kubeconfig`, and none is given",
        );
    }
    // They become parts of paths of the API.
    let bad = |n: &&String| n.is_empty() || n.len() > 63 || !n.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if let Some(bad) = kubernetes.namespaces.iter().find(bad) {
        return fail(
            "kubernetes.namespaces",
            bad,
            "expected names of 1 to 63 letters, digits or `-`",
        );
    }
    for (key, address) in listeners(config) {
        if !address.ip().is_loopback() && !config.insecure.listen {
            return fail(
                key,
                &address,
                "expected a loopback address: nothing asks for credentials yet (`insecure.listen: true` permits it all the same)",
            );
        }
    }
    Ok(())
}

fn listeners(config: &Config) -> [(&'static str, SocketAddr); 3] {
    [
        ("collector.http", config.collector.http),
        ("aggregator.http", config.aggregator.http),
        ("aggregator.grpc", config.aggregator.grpc),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MetricNames;
    use std::collections::HashMap;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn load_text(text: &str, env: &[(&str, &str)]) -> Result<Config, String> {
        // Tests run at the same time.
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("sonde-config-{}-{number}", std::process::id()));
        std::fs::write(&dir, text).unwrap();
        let env: HashMap<String, String> = env.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        let result = load(Some(&dir), |key| env.get(key).cloned()).map_err(|e| e.to_string());
        std::fs::remove_file(&dir).unwrap();
        result
    }

    #[test]
    fn file_then_environment() {
        let text =
            "node: {name: a}\npods:\n  netns:\n    include: [\"demo.*\"]\nprobes: {packetloss: {stacks: false}}\n";
        let config = load_text(text, &[]).unwrap();
        assert_eq!(
            (config.node.name.as_str(), config.pods.netns.include[0].as_str()),
            ("a", "demo.*")
        );
        assert!(!config.probes["packetloss"].stacks && config.probes["packetloss"].enabled.is_none());

        let env = [
            ("SONDE_NODE_NAME", "b"),
            ("SONDE_PODS_NETNS_INCLUDE", "x.*,y"),
            ("SONDE_PODS_INCLUDE_HOST", "false"),
            ("SONDE_COLLECTOR_INTERVAL", "2s"),
            ("SONDE_SERVICE_HOST", "10.0.0.1"),
        ];
        let config = load_text(text, &env).unwrap();
        assert_eq!(config.node.name, "b");
        assert_eq!(config.pods.netns.include, ["x.*", "y"]);
        assert!(!config.pods.include_host);
        assert_eq!(config.collector.interval, Span::from_secs(2));
    }

    #[test]
    fn a_probe_keeps_its_own_defaults_for_what_is_not_said() {
        let text = "probes:\n  a: {threshold: 50ms, sample: 64}\n  b: {enabled: false}\n";
        let config = load_text(text, &[]).unwrap();
        let a = &config.probes["a"];
        let threshold = Some(Span(std::time::Duration::from_millis(50)));
        assert_eq!((a.threshold, a.sample.map(u32::from)), (threshold, Some(64)));
        assert!(a.events && a.stacks);
        for default in [true, false] {
            assert_eq!(config.is_enabled("a", default), default);
            assert_eq!(config.is_enabled("c", default), default);
            assert!(!config.is_enabled("b", default));
        }
        let env = [("SONDE_PROBES", "{b: {enabled: true}}")];
        assert!(load_text(text, &env).unwrap().is_enabled("b", false));
        let error = load_text("probes: {a: {sample: 0}}\n", &[]).unwrap_err();
        assert!(error.contains("sample") && error.contains("nonzero"), "{error}");
    }

    #[test]
    fn an_unknown_key_names_itself_its_place_and_what_is_known() {
        let error = load_text("pods:\n  netnss: {}\n", &[]).unwrap_err();
        assert!(
            error.contains("netnss") && error.contains("include_host") && error.contains("line 2"),
            "{error}"
        );
    }

    #[test]
    fn a_bad_value_names_itself_its_place_and_what_was_expected() {
        let error = load_text("collector:\n  interval: 15\n", &[]).unwrap_err();
        assert!(
            error.contains("`15` has no unit, try `15s`") && error.contains("line 2"),
            "{error}"
        );
        let error = load_text("pods: {include_host: maybe}\n", &[]).unwrap_err();
        assert!(error.contains("bool") && error.contains("line 1"), "{error}");
        let error = load_text("events: {rate: many}\n", &[]).unwrap_err();
        let expected = "line 1 column 16: events.rate: invalid type: string \"many\", expected u32";
        assert!(error.ends_with(expected), "{error}");
        let error = load_text("a: [\n", &[]).unwrap_err();
        assert!(error.contains("line"), "{error}");
    }

    #[test]
    fn a_bad_variable_names_itself() {
        let error = load_text("", &[("SONDE_COLLECTOR_INTERVAL", "15")]).unwrap_err();
        assert_eq!(error, "SONDE_COLLECTOR_INTERVAL=`15`: `15` has no unit, try `15s`");
    }

    #[test]
    fn labels_of_metrics_come_from_file_or_variable_whole() {
        let text = "metrics:\n  names: [sonde, kubeskoop]\n  labels: {team: \"${labels:team}\"}\n  additionalLabels: [\"a=b=c\"]\n";
        let config = load_text(text, &[]).unwrap();
        assert_eq!(config.metrics.names, [MetricNames::Sonde, MetricNames::Kubeskoop]);
        assert_eq!(config.metrics.labels["team"], "${labels:team}");
        assert_eq!(config.metrics.additional_labels, ["a=b=c"]);
        let env = [
            ("SONDE_METRICS_LABELS", "{app: \"${annotations:app}\"}"),
            ("SONDE_METRICS_NAMES", "kubeskoop"),
            ("SONDE_METRICS_MAX_SERIES_PER_PROBE", "1000"),
        ];
        let config = load_text(text, &env).unwrap();
        assert_eq!(config.metrics.labels.keys().collect::<Vec<_>>(), ["app"]);
        assert_eq!(config.metrics.names, [MetricNames::Kubeskoop]);
        assert_eq!(config.metrics.max_series.per_probe, 1000);
        let error = load_text("metrics: {names: []}\n", &[]).unwrap_err();
        assert_eq!(error, "metrics.names: `[]`: expected `sonde`, `kubeskoop` or both");
        let error = load_text("metrics: {max_series: {per_namespace: 0}}\n", &[]).unwrap_err();
        assert_eq!(error, "metrics.max_series.per_namespace: `0`: expected at least 100");
    }

    #[test]
    fn a_runtime_socket_is_a_path() {
        let error = load_text("pods: {cri: {endpoint: \"tcp://x\"}}\n", &[]).unwrap_err();
        assert_eq!(
            error,
            "pods.cri.endpoint: `tcp://x`: expected `/PATH` or `unix:///PATH`"
        );
        let error = load_text("pods: {cri: {interval: 1ms}}\n", &[]).unwrap_err();
        assert!(error.starts_with("pods.cri.interval: `1ms`"), "{error}");
        let endpoint = |text, env: &[(&str, &str)]| load_text(text, env).unwrap().pods.cri.endpoint;
        let other = [("RUNTIME_SOCK", "unix:///run/other.sock")];
        assert_eq!(endpoint("", &other), "unix:///run/other.sock");
        let own = "pods: {cri: {endpoint: /run/own.sock}}\n";
        assert_eq!(endpoint(own, &other), "/run/own.sock", "the own key goes before");
    }

    #[test]
    fn only_loopback_is_served_without_credentials() {
        let error = load_text("aggregator: {http: \"0.0.0.0:9640\"}\n", &[]).unwrap_err();
        assert!(error.starts_with("aggregator.http: `0.0.0.0:9640`"), "{error}");
        assert!(load_text("aggregator: {http: \"0.0.0.0:9640\"}\ninsecure: {listen: true}\n", &[]).is_ok());
    }

    #[test]
    fn to_work_alone_is_said_with_a_word_where_nothing_cannot_be_said() {
        for (text, env) in [
            ("collector: {aggregator: \"\"}\n", &[][..]),
            ("", &[("SONDE_COLLECTOR_AGGREGATOR", "none")]),
        ] {
            assert!(load_text(text, env).unwrap().collector.aggregator.0.is_empty());
        }
        let env = [("SONDE_COLLECTOR_AGGREGATOR", "")];
        let by_default = load_text("", &env).unwrap().collector.aggregator;
        assert_eq!(
            by_default.0,
            ["http://127.0.0.1:9641"],
            "an empty variable says nothing"
        );
    }

    #[test]
    fn aggregators_are_one_or_several() {
        let list = "collector: {aggregator: [\"http://a:1\", \"http://b:2\"]}\n";
        let both = ["http://a:1", "http://b:2"];
        for (text, env, expected) in [
            ("collector: {aggregator: \"http://a:1\"}\n", &[][..], &both[..1]),
            (list, &[], &both),
            ("collector: {aggregator: \"http://a:1, http://b:2\"}\n", &[], &both),
            ("", &[("SONDE_COLLECTOR_AGGREGATOR", "http://a:1,http://b:2")], &both),
            (list, &[("SONDE_COLLECTOR_AGGREGATOR", "http://a:1")], &both[..1]),
            (list, &[("SONDE_COLLECTOR_AGGREGATOR", "none")], &[]),
        ] {
            assert_eq!(
                load_text(text, env).unwrap().collector.aggregator.0,
                expected,
                "{text} {env:?}"
            );
        }
        let wrong = "collector: {aggregator: [\"http://a:1\", \"b:2\"]}\n";
        let error = load_text(wrong, &[]).unwrap_err();
        assert!(error.starts_with("collector.aggregator: `b:2`: expected"), "{error}");
        let error = load_text("collector: {aggregator: 7}\n", &[]).unwrap_err();
        assert!(error.contains("an address or a list of addresses"), "{error}");
    }

    #[test]
    fn kubernetes_is_asked_with_words_that_yaml_could_take_for_booleans() {
        for (word, expected) in [
            ("on", super::super::Enabled::On),
            ("off", super::super::Enabled::Off),
            ("auto", super::super::Enabled::Auto),
        ] {
            let config = load_text(&format!("kubernetes: {{enabled: {word}}}\n"), &[]).unwrap();
            assert_eq!(config.kubernetes.enabled, expected, "{word}");
            let config = load_text("", &[("SONDE_KUBERNETES_ENABLED", word)]).unwrap();
            assert_eq!(config.kubernetes.enabled, expected, "{word}");
        }
        let error = load_text("kubernetes: {context: prod}\n", &[]).unwrap_err();
        assert!(
            error.starts_with("kubernetes.context: `prod`: expected nothing"),
            "{error}"
        );
        let error = load_text("kubernetes: {namespaces: [shop, ../x]}\n", &[]).unwrap_err();
        assert!(error.starts_with("kubernetes.namespaces: `../x`"), "{error}");
    }

    #[test]
    fn a_missing_file_is_said() {
        let error = load(Some(Path::new("/nonexistent.yaml")), |_| None)
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("/nonexistent.yaml: cannot be read"), "{error}");
    }
}
