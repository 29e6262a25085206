//! How the watches are doing: for `/api/v1/kubernetes` and for the aggregator's own metrics.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use sonde_common::prom::{Page, Type};

use super::watch::{TROUBLES, Trouble};
use crate::store::query::Micros;

/// What this aggregator does about the Kubernetes API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// Nothing, and why.
    Off(String),
    /// Another aggregator on the same database watches.
    Follower,
    /// It watches.
    Leader,
    /// It would watch and cannot, and why.
    Failed(String),
}

impl Role {
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Off(_) => "off",
            Self::Follower => "follower",
            Self::Leader => "leader",
            Self::Failed(_) => "failed",
        }
    }
}

/// One watch.
#[derive(Clone, Debug, Default)]
pub(crate) struct ScopeStatus {
    /// Whether it was listed whole, and that was stored, since this aggregator watches.
    pub(crate) synced: bool,
    pub(crate) objects: u64,
    /// When the API was heard last.
    pub(crate) heard: Option<Micros>,
    /// What is wrong now.
    pub(crate) trouble: Option<String>,
    pub(crate) lists: u64,
    pub(crate) messages: u64,
    pub(crate) troubles: BTreeMap<&'static str, u64>,
}

/// Shared with whoever asks.
#[derive(Debug)]
pub struct Status {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    role: Role,
    scopes: BTreeMap<String, ScopeStatus>,
    changes: BTreeMap<&'static str, u64>,
}

impl Status {
    pub fn new(role: Role) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(Inner {
                role,
                scopes: BTreeMap::new(),
                changes: BTreeMap::new(),
            }),
        })
    }

    pub fn role(&self) -> Role {
        self.inner.lock().role.clone()
    }

    /// Whether everything was listed, and nothing is wrong now.
    pub fn is_synced(&self) -> bool {
        let inner = self.inner.lock();
        let good = |s: &ScopeStatus| s.synced && s.trouble.is_none();
        inner.role == Role::Leader && !inner.scopes.is_empty() && inner.scopes.values().all(good)
    }

    pub(crate) fn scopes(&self) -> BTreeMap<String, ScopeStatus> {
        self.inner.lock().scopes.clone()
    }

    /// Says a change of role once.
    pub(super) fn set_role(&self, role: Role) {
        let mut inner = self.inner.lock();
        if inner.role == role {
            return;
        }
        match &role {
            Role::Off(why) => tracing::info!(why, "cluster facts are not read"),
            Role::Follower => tracing::info!("another aggregator watches the kubernetes api"),
            Role::Leader => tracing::info!("this aggregator watches the kubernetes api"),
            Role::Failed(error) => tracing::warn!(error, "the kubernetes api is not watched, it is tried again"),
        }
        if role != Role::Leader {
            for scope in inner.scopes.values_mut() {
                (scope.synced, scope.trouble, scope.objects) = (false, None, 0);
            }
        }
        inner.role = role;
    }

    pub(super) fn scope(&self, name: &str, change: impl FnOnce(&mut ScopeStatus)) {
        change(self.inner.lock().scopes.entry(name.to_owned()).or_default());
    }

    /// A scope that stays silent is said once, and once when it speaks again.
    pub(super) fn trouble(&self, name: &str, trouble: Trouble) {
        self.scope(name, |scope| {
            *scope.troubles.entry(trouble.kind).or_default() += 1;
            if trouble.kind == "expired" {
                tracing::info!(watch = name, why = trouble.words, "a watch starts over with a list");
                return;
            }
            if scope.trouble.is_none() {
                tracing::warn!(
                    watch = name,
                    error = trouble.words,
                    "the kubernetes api does not serve a watch, what is known is kept"
                );
            }
            scope.trouble = Some(trouble.words);
        });
    }

    pub(super) fn heard(&self, name: &str, at: Micros, messages: u64) {
        self.scope(name, |scope| {
            scope.messages += messages;
            scope.heard = scope.heard.max(Some(at));
            if scope.trouble.take().is_some() {
                tracing::info!(watch = name, "the kubernetes api serves a watch again");
            }
        });
    }

    pub(super) fn count_changes<'a>(&self, kinds: impl Iterator<Item = &'a &'static str>) {
        let mut inner = self.inner.lock();
        for kind in kinds {
            *inner.changes.entry(kind).or_default() += 1;
        }
    }

    /// Appends the families of the watches to a page.
    pub(crate) fn render(&self, page: &mut Page) {
        let inner = self.inner.lock();
        let mut gauge = |name: &str, help: &str, value: &dyn Fn(&ScopeStatus) -> Option<f64>| {
            let name = format!("sonde_aggregator_kubernetes_{name}");
            page.family(&name, Type::Gauge, help);
            for (scope, status) in &inner.scopes {
                if let Some(value) = value(status) {
                    page.sample(&name, &[("watch", scope)], value);
                }
            }
        };
        gauge(
            "synced",
            "Whether this aggregator has listed all of it and hears of its changes.",
            &|s| Some(f64::from(u8::from(s.synced && s.trouble.is_none()))),
        );
        gauge("objects", "Objects that are known.", &|s| Some(s.objects as f64));
        gauge(
            "heard_timestamp_seconds",
            "When the API was heard last, Unix time.",
            &|s| s.heard.map(|at| at as f64 / 1e6),
        );
        let mut counter = |name: &str, help: &str, value: &dyn Fn(&ScopeStatus) -> u64| {
            let name = format!("sonde_aggregator_kubernetes_{name}_total");
            page.family(&name, Type::Counter, help);
            for (scope, status) in &inner.scopes {
                page.sample(&name, &[("watch", scope)], value(status));
            }
        };
        counter(
            "lists",
            "Whole lists read: one at the start, one whenever a watch has fallen too far behind.",
            &|s| s.lists,
        );
        counter("messages", "Objects, deletes and bookmarks heard.", &|s| s.messages);
        let name = "sonde_aggregator_kubernetes_errors_total";
        page.family(
            name,
            Type::Counter,
            "Requests that failed and watches that broke, by what it was.",
        );
        for (scope, status) in &inner.scopes {
            for kind in TROUBLES {
                let count = status.troubles.get(kind).copied().unwrap_or(0);
                page.sample(name, &[("watch", scope), ("kind", kind)], count);
            }
        }
        let name = "sonde_aggregator_kubernetes_changes_total";
        page.family(name, Type::Counter, "Changes stored, by kind.");
        for (kind, _) in super::changes::KINDS {
            let count = inner.changes.get(kind).copied().unwrap_or(0);
            page.sample(name, &[("kind", kind)], count);
        }
        let leads = u64::from(inner.role == Role::Leader);
        page.single(
            "sonde_aggregator_kubernetes_leader",
            Type::Gauge,
            "Whether it is this aggregator that watches the Kubernetes API.",
            leads,
        );
    }
}
