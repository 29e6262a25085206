//! What changed between two states of an object, in words. Pure: no clock, no table.

use super::object::{Facts, Kind, Object, Ready, State};
use crate::store::cluster::{Change, Span, Subject};
use crate::store::query::Micros;

/// The API's own times have whole seconds.
const SECOND: Micros = 1_000_000;

impl Span {
    pub(crate) fn moment(at: Micros) -> Self {
        Self { since: at, at }
    }

    pub(crate) fn is_moment(self) -> bool {
        self.since == self.at
    }

    /// What the API says of the time is taken where it was not seen as it happened, and if it can be so.
    pub(crate) fn narrowed(self, stated: Option<Micros>) -> Self {
        match stated {
            Some(t) if !self.is_moment() && self.since - SECOND <= t && t <= self.at => Self::moment(t),
            _ => self,
        }
    }
}

/// Kinds of changes, each with what it says.
pub const KINDS: [(&str, &str); 14] = [
    ("pod_created", "a pod came"),
    ("pod_deleted", "a pod went"),
    ("pod_restarted", "a container of a pod was started again"),
    ("readiness_changed", "a pod became ready, or is no longer"),
    ("rollout", "a workload has a new revision of its pods"),
    ("node_added", "a node came"),
    ("node_removed", "a node went"),
    ("node_ready_changed", "a node became ready, or is no longer"),
    ("node_restarted", "a node was booted: its boot id is another"),
    ("node_cordoned", "a node takes no more new pods, or takes them again"),
    ("service_created", "a service came"),
    ("service_deleted", "a service went"),
    ("service_changed", "addresses, ports or selector of a service changed"),
    (
        "endpoints_changed",
        "what stands behind a service changed; one for all of ten seconds",
    ),
];

impl Change {
    pub(crate) fn new(kind: &'static str, subject: Subject, span: Span) -> Self {
        debug_assert!(KINDS.iter().any(|(known, _)| *known == kind), "{kind}");
        Self {
            id: 0,
            span,
            kind,
            subject,
            before: None,
            after: None,
            detail: String::new(),
        }
    }

    pub(crate) fn between(mut self, before: impl Into<String>, after: impl Into<String>) -> Self {
        self.before = Some(before.into());
        self.after = Some(after.into());
        self
    }
}

/// An object that was not there before.
pub(crate) fn came(object: &Object, subject: &Subject, span: Span) -> Option<Change> {
    let kind = match object.kind {
        Kind::Pod => "pod_created",
        Kind::Node => "node_added",
        Kind::Service => "service_created",
        Kind::ReplicaSet | Kind::Job | Kind::ControllerRevision | Kind::EndpointSlice => return None,
    };
    let mut change = Change::new(kind, subject.clone(), span.narrowed(object.created));
    if object.kind == Kind::Service {
        change.after = Some(service_words(&object.facts));
    }
    Some(change)
}

/// One that is not there any more.
pub(crate) fn went(kind: Kind, subject: &Subject, span: Span) -> Option<Change> {
    let kind = match kind {
        Kind::Pod => "pod_deleted",
        Kind::Node => "node_removed",
        Kind::Service => "service_deleted",
        Kind::ReplicaSet | Kind::Job | Kind::ControllerRevision | Kind::EndpointSlice => return None,
    };
    Some(Change::new(kind, subject.clone(), span))
}

/// From one state to the next of the same object.
pub(crate) fn moved(before: &State, object: &Object, subject: &Subject, span: Span) -> Vec<Change> {
    match object.kind {
        Kind::Pod => pod_moved(before, object, subject, span),
        Kind::Node => node_moved(before, object, subject, span),
        Kind::ReplicaSet | Kind::Job | Kind::ControllerRevision | Kind::Service | Kind::EndpointSlice => Vec::new(),
    }
}

fn ready_moved(kind: &'static str, before: &State, object: &Object, subject: &Subject, span: Span) -> Option<Change> {
    let (was, is) = (before.ready?, object.state.ready?);
    (was != is).then(|| {
        let span = span.narrowed(object.notes.ready_at);
        let mut change = Change::new(kind, subject.clone(), span).between(was.words(), is.words());
        if is != Ready::Yes {
            change.detail.clone_from(&object.notes.ready_why);
        }
        change
    })
}

fn pod_moved(before: &State, object: &Object, subject: &Subject, span: Span) -> Vec<Change> {
    let mut changes = Vec::new();
    for (container, count) in &object.state.restarts {
        let was = before.restarts.get(container).copied().unwrap_or(0);
        if *count > was {
            let (ended, how) = object.notes.ends.get(container).cloned().unwrap_or_default();
            let change = Change::new("pod_restarted", subject.clone(), span.narrowed(ended));
            let mut change = change.between(was.to_string(), count.to_string());
            change.detail = if how.is_empty() {
                format!("container {container}")
            } else {
                format!("container {container}: {how}")
            };
            changes.push(change);
        }
    }
    changes.extend(ready_moved("readiness_changed", before, object, subject, span));
    changes
}

fn node_moved(before: &State, object: &Object, subject: &Subject, span: Span) -> Vec<Change> {
    let mut changes = Vec::new();
    let (was, is) = (&before.boot_id, &object.state.boot_id);
    if was != is && !was.is_empty() && !is.is_empty() {
        changes.push(Change::new("node_restarted", subject.clone(), span).between(was, is));
    }
    changes.extend(ready_moved("node_ready_changed", before, object, subject, span));
    if before.cordoned != object.state.cordoned {
        let word = |cordoned| if cordoned { "cordoned" } else { "schedulable" };
        let change = Change::new("node_cordoned", subject.clone(), span);
        changes.push(change.between(word(before.cordoned), word(object.state.cordoned)));
    }
    changes
}

/// `ClusterIP 10.96.0.7, 80/TCP 443/TCP, app=web`.
pub(crate) fn service_words(facts: &Facts) -> String {
    let detail = &facts.detail;
    let text = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let list = |key: &str| detail[key].as_array().cloned().unwrap_or_default();
    let mut first = vec![text(&detail["type"])];
    first.extend(facts.ips.iter().map(ToString::to_string));
    let ports = list("ports");
    let ports: Vec<String> = ports
        .iter()
        .map(|p| format!("{}/{}", text(&p["port"]), text(&p["protocol"])))
        .collect();
    let selector = detail["selector"].as_object().cloned().unwrap_or_default();
    let selector: Vec<String> = selector.iter().map(|(k, v)| format!("{k}={}", text(v))).collect();
    let parts = [first.join(" "), ports.join(" "), selector.join(",")];
    let parts: Vec<String> = parts.into_iter().filter(|p| !p.is_empty()).collect();
    parts.join(", ").chars().take(300).collect()
}
