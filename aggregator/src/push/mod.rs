//! Sending on to those who keep data elsewhere: events to Grafana Loki and OTLP, metrics by remote-write and OTLP.
//!
//! Events wait in the database: how far they were sent is kept there, so neither a receiver that is away nor a restart costs
//! one. Metrics are the newest values at an interval; what cannot be sent in time makes room for newer ones, and is counted.

mod events;
mod loki;
mod metrics;
mod otlp;
mod otlp_metrics;
mod remote_write;
mod status;

use std::sync::Arc;
use std::time::Duration;

use sonde_common::config;
use sonde_common::shutdown::Shutdown;
use sonde_push::loki::Loki;
use sonde_push::otlp::OtlpLogs;
use sonde_push::remote_write::Version;
use sonde_push::{BadSetting, Http, Pace, Posted, Pusher, Target, server};
use tokio::task::JoinSet;

use crate::live::{LiveTable, MAX_SELECTORS, Selector, SelectorError};
use crate::store::{PushTarget, Store};
use events::{Stored, Tail};
use metrics::{Encode, Sending};
use otlp_metrics::OtlpMetrics;
use remote_write::RemoteWrite;
pub use status::Status;

/// Events read, and sent, at once: some hundred kilobytes.
const PAGE: usize = 500;

const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// What is to be sent where, as far as the configuration tells.
#[derive(Debug)]
pub struct Pushes {
    pub status: Arc<Status>,
    loki: Option<(Loki<loki::Streams>, Pace)>,
    otlp_events: Option<(OtlpLogs<otlp::Records>, Pace)>,
    otlp_metrics: Option<Metrics<OtlpMetrics>>,
    remote_write: Option<Metrics<RemoteWrite>>,
}

/// Where metrics go, how, and how often.
#[derive(Debug)]
struct Metrics<E> {
    target: Posted,
    encode: E,
    pace: Pace,
    interval: Duration,
}

impl Pushes {
    /// Nothing is connected. What is wrong is said with its key.
    pub fn new(settings: &config::Push) -> Result<Self, BadSetting> {
        let config::Push {
            loki,
            otlp,
            remote_write,
        } = settings;
        let mut pushes = Self {
            status: Arc::default(),
            loki: None,
            otlp_events: None,
            otlp_metrics: None,
            remote_write: None,
        };
        if !loki.url.is_empty() {
            let http = server("push.loki", &loki.access(), sonde_push::loki::PATH)?;
            let mut pace = pace(&loki.access());
            pace.linger = loki.linger.0;
            pushes.loki = Some((Loki::new(http, loki::Streams::new(loki)), pace));
        }
        if !otlp.url.is_empty() && otlp.events {
            let http = otlp_server(otlp, sonde_push::otlp::LOGS_PATH)?;
            pushes.otlp_events = Some((OtlpLogs::new(http, otlp::Records), pace(&otlp.access())));
        }
        if !otlp.url.is_empty() && otlp.metrics {
            use sonde_push::otlp::{CONTENT_TYPE, METRICS_PATH, verdict};
            pushes.otlp_metrics = Some(Metrics {
                target: Posted::new(otlp_server(otlp, METRICS_PATH)?, CONTENT_TYPE, verdict),
                encode: OtlpMetrics::default(),
                pace: metrics_pace(&otlp.access()),
                interval: otlp.interval.0,
            });
        }
        if !remote_write.url.is_empty() {
            pushes.remote_write = Some(to_remote_write(remote_write)?);
        }
        Ok(pushes)
    }

    /// Until the shutdown. What is not sent then is sent after the next start.
    pub async fn run(self, store: Store, live: Arc<LiveTable>, shutdown: Shutdown) {
        let mut tasks = JoinSet::new();
        if let Some((target, pace)) = self.loki {
            tasks.spawn(tail(PushTarget::Loki, target, pace, &store, &self.status, &shutdown).run());
        }
        if let Some((target, pace)) = self.otlp_events {
            tasks.spawn(tail(PushTarget::Otlp, target, pace, &store, &self.status, &shutdown).run());
        }
        if let Some(metrics) = self.otlp_metrics {
            tasks.spawn(sending("otlp", metrics, &live, &self.status, &shutdown).run());
        }
        if let Some(metrics) = self.remote_write {
            tasks.spawn(sending("remote_write", metrics, &live, &self.status, &shutdown).run());
        }
        while tasks.join_next().await.is_some() {}
    }
}

fn tail(
    to: PushTarget,
    target: impl Target<Item = Stored>,
    pace: Pace,
    store: &Store,
    status: &Arc<Status>,
    shutdown: &Shutdown,
) -> Tail {
    let pusher = Pusher::start(to.name(), target, pace);
    status.add(to.name(), "events", Arc::clone(pusher.stats()));
    Tail {
        to,
        pusher,
        store: store.clone(),
        status: Arc::clone(status),
        shutdown: shutdown.clone(),
    }
}

fn sending<E: Encode>(
    name: &'static str,
    metrics: Metrics<E>,
    live: &Arc<LiveTable>,
    status: &Status,
    shutdown: &Shutdown,
) -> Sending<E> {
    let pusher = Pusher::start(name, metrics.target, metrics.pace);
    status.add(name, "metrics", Arc::clone(pusher.stats()));
    Sending {
        live: Arc::clone(live),
        pusher,
        interval: metrics.interval,
        encode: metrics.encode,
        shutdown: shutdown.clone(),
    }
}

fn to_remote_write(settings: &config::RemoteWritePush) -> Result<Metrics<RemoteWrite>, BadSetting> {
    const SECTION: &str = "push.remote_write";
    let selector = |text: &String| -> Result<Selector, BadSetting> {
        text.parse().map_err(|error: SelectorError| BadSetting {
            key: format!("{SECTION}.match"),
            value: text.clone(),
            what: error.to_string(),
        })
    };
    let selectors: Vec<_> = settings.r#match.iter().map(selector).collect::<Result<_, _>>()?;
    if selectors.len() > MAX_SELECTORS {
        return Err(BadSetting {
            key: format!("{SECTION}.match"),
            value: selectors.len().to_string(),
            what: format!("expected {MAX_SELECTORS} selectors at most"),
        });
    }
    let version = match settings.version {
        2 => Version::V2,
        _ => Version::V1,
    };
    let http = server(SECTION, &settings.access(), sonde_push::remote_write::PATH)?;
    let http = version.prepared(http).expect("constant headers");
    let more = settings.labels.clone().into_iter().collect();
    Ok(Metrics {
        target: Posted::new(http, version.content_type(), sonde_push::remote_write::verdict),
        encode: RemoteWrite::new(version, selectors, more),
        pace: metrics_pace(&settings.access()),
        interval: settings.interval.0,
    })
}

fn metrics_pace(access: &config::Access<'_>) -> Pace {
    Pace {
        queue: metrics::QUEUE,
        batch: 1,
        ..pace(access)
    }
}

fn pace(access: &config::Access<'_>) -> Pace {
    Pace {
        queue: PAGE,
        batch: PAGE,
        linger: Duration::ZERO,
        timeout: Some(access.timeout.0),
        first_wait: FIRST_WAIT,
        longest_wait: LONGEST_WAIT,
        retry_for: Some(access.retry_for.0),
    }
}

fn otlp_server(otlp: &config::OtlpPush, path: &str) -> Result<Http, BadSetting> {
    let url = sonde_push::otlp::url(&otlp.url, path);
    let access = config::Access {
        url: &url,
        ..otlp.access()
    };
    let http = server("push.otlp", &access, path)?;
    Ok(sonde_push::otlp::prepared(http).expect("a constant header"))
}
