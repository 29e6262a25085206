//! Grafana Loki. Queue, retries and the wire are `sonde_push`'s; here is what the streams are.

use std::path::{Path, PathBuf};

use sonde_common::config::LokiSink;
use sonde_push::loki::{self, Lines, Loki};
use sonde_push::{Auth, Http, HttpError, Secret};

use super::Shared;
use super::text::Format;
use crate::event::{Event, Subject};

/// Lines of streams whose labels the configuration gives.
pub(super) struct Streams {
    labels: Vec<(String, String)>,
    format: Format,
}

/// Connects to nothing yet.
pub(super) fn target(settings: &LokiSink, format: Format) -> Result<Loki<Streams>, HttpError> {
    let http = http(settings)?;
    let labels = settings.labels.clone().into_iter().collect();
    Ok(Loki::new(http, Streams { labels, format }))
}

/// As it can be had from the configuration alone.
pub(super) fn http(settings: &LokiSink) -> Result<Http, HttpError> {
    let ca: Option<&Path> = Some(settings.ca_file.as_path()).filter(|path| !path.as_os_str().is_empty());
    let http = Http::new(&settings.url, loki::PATH, ca, auth(settings))?;
    match settings.tenant.as_str() {
        "" => Ok(http),
        tenant => http.header("x-scope-orgid", tenant),
    }
}

fn auth(settings: &LokiSink) -> Auth {
    let secret = |file: &PathBuf, variable: &String| {
        if variable.is_empty() {
            Secret::File(file.clone())
        } else {
            Secret::Variable(variable.clone())
        }
    };
    let LokiSink {
        bearer_token_file: file,
        bearer_token_env: variable,
        ..
    } = settings;
    if !settings.username.is_empty() {
        return Auth::Basic {
            user: settings.username.clone(),
            password: secret(&settings.password_file, &settings.password_env),
        };
    }
    if !variable.is_empty() || !file.as_os_str().is_empty() {
        return Auth::Bearer(secret(file, variable));
    }
    Auth::None
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

/// Puts what the event has for each `${...}` of `sonde_common::config::LOKI_PARTS`. Of the node itself the namespace is
/// empty, and a label that is empty is none.
fn fill(text: &str, node: &str, event: &Event) -> String {
    let namespace = match &event.subject {
        Subject::Pod(pod) => pod.namespace.as_str(),
        Subject::Node | Subject::Unknown => "",
    };
    let seen = &event.observation;
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let (part, next) = after.split_once('}').unwrap_or((after, ""));
        out.push_str(before);
        out.push_str(match part {
            "node" => node,
            "probe" => seen.probe,
            "type" => seen.kind,
            "namespace" => namespace,
            _ => "",
        });
        rest = next;
    }
    out + rest
}
