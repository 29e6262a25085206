//! What the watch of the Kubernetes API hands to the store, and what it finds there when it starts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::Serialize;
use serde_json::Value;

use crate::store::query::Micros;

/// A row of `cluster_objects`. Ids are given out by the one who writes.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ObjectRow {
    pub(crate) id: i64,
    pub(crate) kind: &'static str,
    pub(crate) uid: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) node: String,
    pub(crate) runtime_uid: String,
    pub(crate) owner_kind: String,
    pub(crate) owner: String,
    pub(crate) owner_uid: String,
    pub(crate) workload_kind: String,
    pub(crate) workload: String,
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) detail: Value,
    pub(crate) state: Value,
    pub(crate) digest: i64,
    pub(crate) valid_from: Micros,
    pub(crate) valid_to: Option<Micros>,
}

/// A row of `cluster_endpoints`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct EndpointRow {
    pub(crate) id: i64,
    pub(crate) slice_uid: String,
    pub(crate) namespace: String,
    pub(crate) service: String,
    pub(crate) ip: IpAddr,
    pub(crate) pod: String,
    pub(crate) node: String,
    pub(crate) ready: bool,
    pub(crate) valid_from: Micros,
    pub(crate) valid_to: Option<Micros>,
}

/// When something happened: at `at` if the two are equal, else at some time after `since` and not after `at`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) since: Micros,
    pub(crate) at: Micros,
}

/// One line of the timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// 0 until it is stored.
    pub(crate) id: i64,
    pub(crate) span: Span,
    pub(crate) kind: &'static str,
    pub(crate) subject: Subject,
    pub(crate) before: Option<String>,
    pub(crate) after: Option<String>,
    pub(crate) detail: String,
}

/// What a change is about; what does not apply is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Subject {
    pub(crate) node: String,
    pub(crate) namespace: String,
    pub(crate) pod: String,
    pub(crate) workload_kind: String,
    pub(crate) workload: String,
    pub(crate) service: String,
}

/// What one transaction writes.
#[derive(Debug, Default)]
pub(crate) struct Round {
    /// New rows, and rows that are written over, by id.
    pub(crate) objects: BTreeMap<i64, ObjectRow>,
    /// Newest state of rows.
    pub(crate) states: BTreeMap<i64, Value>,
    /// Kind and name, for pods whose owner became known late.
    pub(crate) workloads: BTreeMap<i64, (String, String)>,
    /// Rows that hold no longer.
    pub(crate) ended: BTreeMap<i64, Micros>,
    pub(crate) endpoints: BTreeMap<i64, EndpointRow>,
    pub(crate) ended_endpoints: BTreeMap<i64, Micros>,
    pub(crate) changes: Vec<Change>,
    /// Changes that were stored already and say something else now.
    pub(crate) amended: Vec<Change>,
    /// By scope: everything up to then is in this round or an earlier one.
    pub(crate) seen: BTreeMap<String, Micros>,
    /// Scopes that are watched no longer.
    pub(crate) dropped: BTreeSet<String>,
}

impl Round {
    /// Rows and changes, for whoever bounds a round.
    pub(crate) fn len(&self) -> usize {
        self.objects.len() + self.states.len() + self.ended.len() + self.endpoints.len() + self.changes.len()
    }

    /// A row holds no longer; it may be one that is not stored yet.
    pub(crate) fn end(&mut self, id: i64, at: Micros) {
        match self.objects.get_mut(&id) {
            Some(row) => row.valid_to = Some(at.max(row.valid_from)),
            None => {
                self.ended.insert(id, at);
            }
        }
    }

    pub(crate) fn end_endpoint(&mut self, id: i64, at: Micros) {
        match self.endpoints.get_mut(&id) {
            Some(row) => row.valid_to = Some(at.max(row.valid_from)),
            None => {
                self.ended_endpoints.insert(id, at);
            }
        }
    }
}

/// What is in the tables when a watch starts.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub(crate) objects: Vec<LoadedObject>,
    pub(crate) endpoints: Vec<LoadedEndpoint>,
    pub(crate) seen: BTreeMap<String, Micros>,
    pub(crate) last_object: i64,
    pub(crate) last_endpoint: i64,
}

/// An object that was there last.
#[derive(Debug, sqlx::FromRow)]
pub(crate) struct LoadedObject {
    pub(crate) id: i64,
    pub(crate) kind: String,
    pub(crate) uid: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) node: String,
    pub(crate) owner_kind: String,
    pub(crate) owner: String,
    pub(crate) owner_uid: String,
    pub(crate) workload_kind: String,
    pub(crate) workload: String,
    pub(crate) ips: Vec<String>,
    /// Of services alone: it is large.
    pub(crate) detail: Option<Value>,
    pub(crate) state: Value,
    pub(crate) digest: i64,
    pub(crate) valid_from: Micros,
}

#[derive(Debug, sqlx::FromRow)]
pub(crate) struct LoadedEndpoint {
    pub(crate) id: i64,
    pub(crate) slice_uid: String,
    pub(crate) namespace: String,
    pub(crate) service: String,
    pub(crate) ip: String,
    pub(crate) pod: String,
    pub(crate) node: String,
    pub(crate) ready: bool,
}
