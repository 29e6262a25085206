//! What stands behind services. Slices change with every pod that becomes ready, so their changes are told together:
//! one for each service and [`WINDOW`], in numbers and a few names.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::cluster::Heard;
use super::object::{Endpoint, Object};
use super::scope::Scope;
use crate::store::cluster::{Change, EndpointRow, LoadedEndpoint, Round, Span, Subject};
use crate::store::query::Micros;

/// Changes of one service within this are one.
const WINDOW: Micros = 10_000_000;
/// Names in a change.
const NAMES: usize = 5;

#[derive(Debug, Default)]
pub(super) struct Slices {
    slices: HashMap<Box<str>, Slice>,
    services: HashMap<Service, HashSet<Box<str>>>,
    /// Services whose endpoints changed since the last settling.
    touched: HashMap<Service, Touched>,
    /// Changes that may still be amended.
    open: HashMap<Service, Open>,
    last_id: i64,
}

/// Namespace and name.
type Service = (Arc<str>, Arc<str>);

#[derive(Debug)]
struct Slice {
    service: Service,
    endpoints: HashMap<IpAddr, Known>,
    listed: u32,
}

#[derive(Debug)]
struct Known {
    id: i64,
    pod: Box<str>,
    node: Box<str>,
    ready: bool,
}

/// Ready endpoints, and all.
type Counts = (usize, usize);

#[derive(Debug)]
struct Touched {
    before: Counts,
    span: Span,
    /// Nothing is told of what was there before anybody looked.
    told: bool,
    moves: Moves,
}

/// In words; those beyond the first are counted only.
#[derive(Clone, Debug, Default)]
struct Moves {
    names: Vec<String>,
    more: usize,
}

#[derive(Debug)]
struct Open {
    change: Change,
    moves: Moves,
}

/// What became of the services that were touched.
#[derive(Debug, Default)]
pub(super) struct Services {
    pub(super) changes: Vec<Change>,
    pub(super) amended: Vec<Change>,
}

impl Moves {
    fn push(&mut self, text: String) {
        if self.names.len() < NAMES {
            self.names.push(text);
        } else {
            self.more += 1;
        }
    }

    fn append(&mut self, other: Self) {
        self.more += other.more;
        other.names.into_iter().for_each(|name| self.push(name));
    }

    fn words(&self) -> String {
        let mut text = self.names.join(", ");
        if self.more > 0 {
            text.push_str(&format!(", and {} more", self.more));
        }
        text
    }
}

impl Slices {
    pub(super) fn new(last_id: i64) -> Self {
        Self {
            last_id,
            ..Self::default()
        }
    }

    pub(super) fn take(&mut self, loaded: LoadedEndpoint) {
        let Ok(ip) = loaded.ip.parse() else { return };
        let slice = self.slice(&loaded.slice_uid, &loaded.namespace, &loaded.service);
        slice.endpoints.insert(
            ip,
            Known {
                id: loaded.id,
                pod: loaded.pod.into(),
                node: loaded.node.into(),
                ready: loaded.ready,
            },
        );
    }

    pub(super) fn count(&self, scope: &Scope) -> u64 {
        let within = |slice: &&Slice| scope.covers(scope.kind, &slice.service.0);
        self.slices.values().filter(within).count() as u64
    }

    fn slice(&mut self, uid: &str, namespace: &str, service: &str) -> &mut Slice {
        if !self.slices.contains_key(uid) {
            let wanted: Service = (namespace.into(), service.into());
            // One copy of the name for all slices of a service.
            let service = self
                .services
                .get_key_value(&wanted)
                .map_or(wanted, |(known, _)| known.clone());
            self.services.entry(service.clone()).or_default().insert(uid.into());
            let slice = Slice {
                service,
                endpoints: HashMap::new(),
                listed: 0,
            };
            self.slices.insert(uid.into(), slice);
        }
        self.slices.get_mut(uid).expect("just made")
    }

    /// An address counts once, however many slices have it.
    fn counts(&self, service: &Service) -> Counts {
        let mut all: HashMap<IpAddr, bool> = HashMap::new();
        for uid in self.services.get(service).into_iter().flatten() {
            for (ip, endpoint) in &self.slices[uid].endpoints {
                *all.entry(*ip).or_default() |= endpoint.ready;
            }
        }
        (all.values().filter(|ready| **ready).count(), all.len())
    }

    pub(super) fn observe(&mut self, object: Object, heard: Heard, list: u32, round: &mut Round) {
        if object.name.is_empty() {
            return; // of no service
        }
        let slice = self.slice(&object.uid, &object.namespace, &object.name);
        slice.listed = list;
        let service = slice.service.clone();
        let mut new: Vec<Endpoint> = Vec::new();
        let mut left: HashSet<IpAddr> = slice.endpoints.keys().copied().collect();
        for endpoint in object.endpoints {
            left.remove(&endpoint.ip);
            let same = |k: &Known| (&*k.pod, &*k.node, k.ready) == (&*endpoint.pod, &*endpoint.node, endpoint.ready);
            if !slice.endpoints.get(&endpoint.ip).is_some_and(same) {
                new.push(endpoint);
            }
        }
        if new.is_empty() && left.is_empty() {
            return;
        }
        self.touch(&service, heard.span, !heard.first);
        for ip in left {
            self.lose(&object.uid, ip, heard.span, round);
        }
        for endpoint in new {
            let from = if heard.first {
                object.created.unwrap_or(heard.span.at).min(heard.span.at)
            } else {
                heard.span.at
            };
            self.put(&object.uid, endpoint, (heard.span, from), round);
        }
    }

    pub(super) fn gone(&mut self, uid: &str, span: Span, round: &mut Round) {
        let Some(slice) = self.slices.get(uid) else { return };
        let service = slice.service.clone();
        let ips: Vec<IpAddr> = slice.endpoints.keys().copied().collect();
        self.touch(&service, span, true);
        for ip in ips {
            self.lose(uid, ip, span, round);
        }
        self.slices.remove(uid);
        if let Some(slices) = self.services.get_mut(&service) {
            slices.remove(uid);
            if slices.is_empty() {
                self.services.remove(&service);
            }
        }
    }

    pub(super) fn end_list(&mut self, scope: &Scope, list: u32, span: Span, round: &mut Round) {
        let gone: Vec<Box<str>> = self
            .slices
            .iter()
            .filter(|(_, slice)| slice.listed != list && scope.covers(scope.kind, &slice.service.0))
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in gone {
            self.gone(&uid, span, round);
        }
    }

    fn touch(&mut self, service: &Service, span: Span, told: bool) {
        if !self.touched.contains_key(service) {
            let touched = Touched {
                before: self.counts(service),
                span,
                told,
                moves: Moves::default(),
            };
            self.touched.insert(service.clone(), touched);
        }
    }

    fn tell(&mut self, service: &Service, span: Span, text: String) {
        if let Some(touched) = self.touched.get_mut(service) {
            touched.span.at = touched.span.at.max(span.at);
            touched.moves.push(text);
        }
    }

    fn lose(&mut self, uid: &str, ip: IpAddr, span: Span, round: &mut Round) {
        let Some(slice) = self.slices.get_mut(uid) else { return };
        let Some(known) = slice.endpoints.remove(&ip) else {
            return;
        };
        let service = slice.service.clone();
        round.end_endpoint(known.id, span.since);
        self.tell(&service, span, format!("lost {}", named(ip, &known.pod)));
    }

    fn put(&mut self, uid: &str, endpoint: Endpoint, (span, from): (Span, Micros), round: &mut Round) {
        self.last_id += 1;
        let id = self.last_id;
        let Some(slice) = self.slices.get_mut(uid) else { return };
        let service = slice.service.clone();
        let known = Known {
            id,
            pod: endpoint.pod.as_str().into(),
            node: endpoint.node.as_str().into(),
            ready: endpoint.ready,
        };
        let name = named(endpoint.ip, &endpoint.pod);
        let text = match (slice.endpoints.insert(endpoint.ip, known), endpoint.ready) {
            (None, true) => format!("got {name}"),
            (None, false) => format!("got {name}, not ready"),
            (Some(before), ready) => {
                round.end_endpoint(before.id, span.since);
                match (before.ready, ready) {
                    (false, true) => format!("{name} ready"),
                    (true, false) => format!("{name} not ready"),
                    _ => format!("{name} is another"),
                }
            }
        };
        let row = EndpointRow {
            id,
            slice_uid: uid.into(),
            namespace: service.0.to_string(),
            service: service.1.to_string(),
            ip: endpoint.ip,
            pod: endpoint.pod,
            node: endpoint.node,
            ready: endpoint.ready,
            valid_from: from,
            valid_to: None,
        };
        round.endpoints.insert(id, row);
        self.tell(&service, span, text);
    }

    /// Changes of the services that were touched since.
    pub(super) fn settle(&mut self) -> Services {
        let mut out = Services::default();
        for (service, touched) in std::mem::take(&mut self.touched) {
            if !touched.told || touched.moves.names.is_empty() {
                continue;
            }
            let after = words(self.counts(&service));
            if let Some(open) = self.open.get_mut(&service)
                && open.change.id != 0
                && touched.span.at - open.change.span.at < WINDOW
            {
                open.moves.append(touched.moves);
                open.change.after = Some(after);
                open.change.detail = open.moves.words();
                out.amended.push(open.change.clone());
                continue;
            }
            let subject = Subject {
                namespace: service.0.to_string(),
                service: service.1.to_string(),
                ..Subject::default()
            };
            let change = Change::new("endpoints_changed", subject, touched.span);
            let mut change = change.between(words(touched.before), after);
            change.detail = touched.moves.words();
            out.changes.push(change.clone());
            let moves = touched.moves;
            self.open.insert(service, Open { change, moves });
        }
        let newest = out.changes.iter().chain(&out.amended).map(|c| c.span.at).max();
        if let Some(newest) = newest {
            self.open.retain(|_, open| newest - open.change.span.at < WINDOW);
        }
        out
    }

    pub(super) fn stored(&mut self, changes: &[Change]) {
        for change in changes.iter().filter(|c| c.kind == "endpoints_changed") {
            let service = (
                change.subject.namespace.as_str().into(),
                change.subject.service.as_str().into(),
            );
            if let Some(open) = self.open.get_mut(&service) {
                open.change.id = change.id;
            }
        }
    }
}

fn words((ready, all): Counts) -> String {
    format!("{ready} of {all} ready")
}

fn named(ip: IpAddr, pod: &str) -> String {
    if pod.is_empty() {
        ip.to_string()
    } else {
        format!("{pod} ({ip})")
    }
}
