//! Keys of what goes to other systems: `sinks` of the collector, `push` of the aggregator.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::time::Span;

/// Where a collector tells its events beside sending them to the aggregator: all that are on get all events.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sinks {
    /// Events that may wait for each sink; when more come, the oldest are dropped, counted, and become a gap.
    pub queue: usize,
    pub stderr: StderrSink,
    pub file: FileSink,
    pub loki: LokiSink,
}

impl Default for Sinks {
    fn default() -> Self {
        Self {
            queue: 10_000,
            stderr: StderrSink::default(),
            file: FileSink::default(),
            loki: LokiSink::default(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct StderrSink {
    /// Whether events are written to standard error, each as a line between those of the log.
    pub enabled: bool,
    /// `text` or `json`.
    pub format: EventFormat,
}

/// The forms of an event as one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum EventFormat {
    /// `type=... pod=... namespace=...`, its stack at the end.
    #[default]
    Text,
    Json,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct FileSink {
    /// File that events are appended to; SIGHUP opens it anew. Empty: none.
    pub path: PathBuf,
    /// `text` or `json`.
    pub format: EventFormat,
    /// A file that would become larger is renamed to `PATH.1`, that one to `PATH.2` and so on, and a new one begun. 0: never.
    pub max_bytes: u64,
    /// How many such older files are kept.
    pub keep: u32,
}

impl Default for FileSink {
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            format: EventFormat::Json,
            max_bytes: 100 << 20,
            keep: 5,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct LokiSink {
    /// Grafana Loki, `http://HOST:PORT` or `https://...`; without a path, `/loki/api/v1/push` is added. Empty: none.
    pub url: String,
    /// `text` or `json`.
    pub format: EventFormat,
    /// Labels of the streams: text in which `${node}`, `${probe}`, `${type}` and `${namespace}` stand for those of the event. Each combination of values is a stream: keep them few. By default as KubeSkoop's exporter has them.
    pub labels: BTreeMap<String, String>,
    /// Tenant, sent as header `X-Scope-OrgID`. Empty: none.
    pub tenant: String,
    /// User for basic authentication. Empty: none.
    pub username: String,
    /// File that holds the password of `username`; read for each request.
    pub password_file: PathBuf,
    /// Name of a variable of the environment that holds the password of `username`.
    pub password_env: String,
    /// File that holds a bearer token; read for each request.
    pub bearer_token_file: PathBuf,
    /// Name of a variable of the environment that holds a bearer token.
    pub bearer_token_env: String,
    /// PEM file with the certificates to check the server by. Empty: those of the system.
    pub ca_file: PathBuf,
    /// How long a request may take.
    pub timeout: Span,
    /// How long events gather before they are sent.
    pub linger: Span,
    /// How long a batch is tried again while the server has no answer, or has 429 or 5xx; then it is dropped and counted.
    pub retry_for: Span,
}

impl Default for LokiSink {
    fn default() -> Self {
        let labels = [("instance", "${node}"), ("job", "kubeskoop")];
        Self {
            url: String::new(),
            format: EventFormat::Text,
            labels: labels.map(|(name, text)| (name.into(), text.into())).into(),
            tenant: String::new(),
            username: String::new(),
            password_file: PathBuf::new(),
            password_env: String::new(),
            bearer_token_file: PathBuf::new(),
            bearer_token_env: String::new(),
            ca_file: PathBuf::new(),
            timeout: Span::from_secs(10),
            linger: Span::from_secs(1),
            retry_for: Span::from_secs(300),
        }
    }
}

/// What the aggregator sends to other systems, beside keeping it: all that is off without a `url`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Push {
    pub loki: LokiSink,
    pub otlp: OtlpPush,
    pub remote_write: RemoteWritePush,
}

impl Default for Push {
    fn default() -> Self {
        let labels = [("instance", "${node}"), ("job", "sonde")];
        Self {
            loki: LokiSink {
                labels: labels.map(|(name, text)| (name.into(), text.into())).into(),
                // The aggregator has its events in the database and can wait.
                retry_for: Span::from_secs(86_400),
                ..LokiSink::default()
            },
            otlp: OtlpPush::default(),
            remote_write: RemoteWritePush::default(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct OtlpPush {
    /// A receiver of OTLP over HTTP, such as an OpenTelemetry collector: `http://HOST:4318` or `https://...`. `/v1/logs` and `/v1/metrics` are added to it. Empty: none.
    pub url: String,
    /// Whether events are sent, as log records.
    pub events: bool,
    /// Whether metrics are sent.
    pub metrics: bool,
    /// How often metrics are sent.
    pub interval: Span,
    /// Tenant, sent as header `X-Scope-OrgID`. Empty: none.
    pub tenant: String,
    /// User for basic authentication. Empty: none.
    pub username: String,
    /// File that holds the password of `username`; read for each request.
    pub password_file: PathBuf,
    /// Name of a variable of the environment that holds the password of `username`.
    pub password_env: String,
    /// File that holds a bearer token; read for each request.
    pub bearer_token_file: PathBuf,
    /// Name of a variable of the environment that holds a bearer token.
    pub bearer_token_env: String,
    /// PEM file with the certificates to check the server by. Empty: those of the system.
    pub ca_file: PathBuf,
    /// How long a request may take.
    pub timeout: Span,
    /// How long a request is tried again while the server has no answer, or has 429 or 5xx; then it is dropped and counted.
    pub retry_for: Span,
}

impl Default for OtlpPush {
    fn default() -> Self {
        Self {
            url: String::new(),
            events: true,
            metrics: true,
            interval: Span::from_secs(30),
            tenant: String::new(),
            username: String::new(),
            password_file: PathBuf::new(),
            password_env: String::new(),
            bearer_token_file: PathBuf::new(),
            bearer_token_env: String::new(),
            ca_file: PathBuf::new(),
            timeout: Span::from_secs(10),
            retry_for: Span::from_secs(86_400),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RemoteWritePush {
    /// A receiver of Prometheus remote-write, `http://HOST:PORT` or `https://...`; without a path, `/api/v1/write` is added. Empty: none.
    pub url: String,
    /// `1` (`prometheus.WriteRequest`) or `2` (`io.prometheus.write.v2.Request`, from Prometheus 3 on).
    pub version: u8,
    /// Which series are sent: selectors as `match[]` of `/federate` has them. Empty: all.
    pub r#match: Vec<String>,
    /// Labels that every series gets beside its own.
    pub labels: BTreeMap<String, String>,
    /// How often.
    pub interval: Span,
    /// Tenant, sent as header `X-Scope-OrgID`. Empty: none.
    pub tenant: String,
    /// User for basic authentication. Empty: none.
    pub username: String,
    /// File that holds the password of `username`; read for each request.
    pub password_file: PathBuf,
    /// Name of a variable of the environment that holds the password of `username`.
    pub password_env: String,
    /// File that holds a bearer token; read for each request.
    pub bearer_token_file: PathBuf,
    /// Name of a variable of the environment that holds a bearer token.
    pub bearer_token_env: String,
    /// PEM file with the certificates to check the server by. Empty: those of the system.
    pub ca_file: PathBuf,
    /// How long a request may take.
    pub timeout: Span,
    /// How long a request is tried again while the server has no answer, or has 429 or 5xx; then it is dropped and counted.
    pub retry_for: Span,
}

impl Default for RemoteWritePush {
    fn default() -> Self {
        Self {
            url: String::new(),
            version: 1,
            r#match: Vec::new(),
            labels: BTreeMap::new(),
            interval: Span::from_secs(15),
            tenant: String::new(),
            username: String::new(),
            password_file: PathBuf::new(),
            password_env: String::new(),
            bearer_token_file: PathBuf::new(),
            bearer_token_env: String::new(),
            ca_file: PathBuf::new(),
            timeout: Span::from_secs(10),
            retry_for: Span::from_secs(300),
        }
    }
}

/// How a server is reached, and who we are to it: the keys that all of these have.
#[derive(Clone, Copy, Debug)]
pub struct Access<'a> {
    pub url: &'a str,
    pub tenant: &'a str,
    pub username: &'a str,
    pub password_file: &'a Path,
    pub password_env: &'a str,
    pub bearer_token_file: &'a Path,
    pub bearer_token_env: &'a str,
    pub ca_file: &'a Path,
    pub timeout: Span,
    pub retry_for: Span,
}

macro_rules! access {
    ($($section:ty),+) => {
        $(impl $section {
            pub fn access(&self) -> Access<'_> {
                Access {
                    url: &self.url,
                    tenant: &self.tenant,
                    username: &self.username,
                    password_file: &self.password_file,
                    password_env: &self.password_env,
                    bearer_token_file: &self.bearer_token_file,
                    bearer_token_env: &self.bearer_token_env,
                    ca_file: &self.ca_file,
                    timeout: self.timeout,
                    retry_for: self.retry_for,
                }
            }
        })+
    };
}

access!(LokiSink, OtlpPush, RemoteWritePush);
