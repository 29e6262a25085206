//! What the cluster is like, as far as it was heard: compares each object with what was known of it and says what is to
//! be written. One task owns it; it knows no clock, no connection and no table.
//!
//! It holds no labels, ports or other facts but their digest: those are in the tables.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::changes;
use super::endpoints::{Services, Slices};
use super::object::{Facts, Kind, Object, Owner, State};
use super::scope::Scope;
use crate::store::cluster::{Change, Loaded, LoadedObject, ObjectRow, Round, Span, Subject};
use crate::store::query::Micros;

#[derive(Debug, Default)]
pub(crate) struct Cluster {
    objects: HashMap<Kind, HashMap<Box<str>, Known>>,
    slices: Slices,
    /// Highest revision of a workload's pods, by uid of the workload.
    revisions: HashMap<Box<str>, (i64, Box<str>)>,
    /// Pods by the uid of an owner that was not heard of yet.
    orphans: HashMap<Box<str>, Vec<Box<str>>>,
    names: HashSet<Arc<str>>,
    last_id: i64,
    /// By scope: everything up to then is known. None: it was never listed whole.
    seen: HashMap<String, Micros>,
    /// By scope: which list is the newest.
    lists: HashMap<String, u32>,
}

/// An object that is there.
#[derive(Debug)]
struct Known {
    id: i64,
    version: Box<str>,
    namespace: Arc<str>,
    name: Box<str>,
    node: Arc<str>,
    owner: Option<Owner>,
    workload: Option<(Arc<str>, Arc<str>)>,
    digest: i64,
    has_ips: bool,
    valid_from: Micros,
    state: State,
    /// A service in words: what it was before a change.
    words: Box<str>,
    /// The list in which it was seen last.
    listed: u32,
}

/// How an object came to be heard of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Heard {
    pub(crate) span: Span,
    /// The first list ever: what is in it did not come now.
    pub(crate) first: bool,
}

impl Cluster {
    /// As it was left in the tables. What is in no scope any more has ended when it was seen last.
    pub(crate) fn load(loaded: Loaded, scopes: &[Scope], round: &mut Round) -> Self {
        let mut cluster = Self {
            last_id: loaded.last_object,
            slices: Slices::new(loaded.last_endpoint),
            ..Self::default()
        };
        let names: HashSet<String> = scopes.iter().map(Scope::name).collect();
        for (scope, seen) in &loaded.seen {
            if names.contains(scope) {
                cluster.seen.insert(scope.clone(), *seen);
            } else {
                round.dropped.insert(scope.clone());
            }
        }
        for object in loaded.objects {
            let Some(kind) = Kind::of(&object.kind) else { continue };
            if scopes.iter().any(|s| s.covers(kind, &object.namespace)) {
                cluster.take(kind, object);
            } else {
                round.end(object.id, last_seen(&loaded.seen, kind, &object.namespace));
            }
        }
        for endpoint in loaded.endpoints {
            if scopes
                .iter()
                .any(|s| s.covers(Kind::EndpointSlice, &endpoint.namespace))
            {
                cluster.slices.take(endpoint);
            } else {
                let at = last_seen(&loaded.seen, Kind::EndpointSlice, &endpoint.namespace);
                round.end_endpoint(endpoint.id, at);
            }
        }
        cluster
    }

    fn take(&mut self, kind: Kind, object: LoadedObject) {
        let state: State = serde_json::from_value(object.state).unwrap_or_default();
        let owner = (!object.owner_uid.is_empty()).then_some(Owner {
            kind: object.owner_kind,
            name: object.owner,
            uid: object.owner_uid,
        });
        if let (Some(revision), Some(owner)) = (state.revision, &owner) {
            self.raise(owner, revision, &object.name);
        }
        let workload = (!object.workload.is_empty()).then(|| {
            let kind = self.intern(&object.workload_kind);
            (kind, self.intern(&object.workload))
        });
        let words = object.detail.map_or_else(String::new, |detail| {
            let facts = Facts {
                ips: object.ips.iter().filter_map(|ip| ip.parse().ok()).collect(),
                detail,
                ..Facts::default()
            };
            changes::service_words(&facts)
        });
        if let (Kind::Pod, None, Some(owner)) = (kind, &workload, &owner) {
            let waiting = self.orphans.entry(owner.uid.as_str().into()).or_default();
            waiting.push(object.uid.as_str().into());
        }
        let known = Known {
            id: object.id,
            version: object.version.into(),
            namespace: self.intern(&object.namespace),
            name: object.name.into(),
            node: self.intern(&object.node),
            owner,
            workload,
            digest: object.digest,
            has_ips: !object.ips.is_empty(),
            valid_from: object.valid_from,
            state,
            words: words.into(),
            listed: 0,
        };
        self.of(kind).insert(object.uid.into(), known);
    }

    fn of(&mut self, kind: Kind) -> &mut HashMap<Box<str>, Known> {
        self.objects.entry(kind).or_default()
    }

    /// Names of namespaces, nodes and workloads come again and again.
    fn intern(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.names.get(name) {
            return Arc::clone(known);
        }
        let name: Arc<str> = name.into();
        self.names.insert(Arc::clone(&name));
        name
    }

    pub(crate) fn count(&self, scope: &Scope) -> u64 {
        if scope.kind == Kind::EndpointSlice {
            return self.slices.count(scope);
        }
        let all = self.objects.get(&scope.kind);
        let within = |known: &&Known| scope.covers(scope.kind, &known.namespace);
        all.map_or(0, |all| all.values().filter(within).count() as u64)
    }

    /// A list begins; says since when nothing was heard, none: for ever.
    pub(crate) fn begin_list(&mut self, scope: &Scope) -> Option<Micros> {
        *self.lists.entry(scope.name()).or_default() += 1;
        self.seen.get(&scope.name()).copied()
    }

    /// A list is whole: what it did not have is gone.
    pub(crate) fn end_list(&mut self, scope: &Scope, span: Span, round: &mut Round) {
        let list = self.lists.get(&scope.name()).copied().unwrap_or(0);
        if scope.kind == Kind::EndpointSlice {
            self.slices.end_list(scope, list, span, round);
        } else {
            let gone: Vec<Box<str>> = self
                .of(scope.kind)
                .iter()
                .filter(|(_, known)| known.listed != list && scope.covers(scope.kind, &known.namespace))
                .map(|(uid, _)| uid.clone())
                .collect();
            for uid in gone {
                self.gone(scope.kind, &uid, span, round);
            }
        }
        self.names.retain(|name| Arc::strong_count(name) > 1);
        self.heard(scope, span.at, round);
    }

    /// Everything in this scope up to then is known.
    pub(crate) fn heard(&mut self, scope: &Scope, at: Micros, round: &mut Round) {
        self.seen.insert(scope.name(), at);
        round.seen.insert(scope.name(), at);
    }

    /// An object is there, as it is now.
    pub(crate) fn observe(&mut self, scope: &Scope, object: Object, heard: Heard, round: &mut Round) {
        let list = self.lists.get(&scope.name()).copied().unwrap_or(0);
        if object.uid.is_empty() {
            return;
        }
        if object.kind == Kind::EndpointSlice {
            self.slices.observe(object, heard, list, round);
            return;
        }
        let known = self.of(object.kind).get_mut(object.uid.as_str());
        match known {
            None => self.came(object, heard, list, round),
            Some(known) => {
                known.listed = list;
                if *known.version != *object.version {
                    known.version = object.version.as_str().into();
                    self.moved(object, heard, round);
                }
            }
        }
    }

    fn came(&mut self, object: Object, heard: Heard, list: u32, round: &mut Round) {
        self.last_id += 1;
        let workload = self.workload(&object);
        let subject = subject(&object, workload.as_ref());
        // What was there before we last looked, and was not seen then, did not come now either.
        let older = object.created.is_some_and(|t| t < heard.span.since - 1_000_000) && !heard.span.is_moment();
        if !heard.first && !older {
            round.changes.extend(changes::came(&object, &subject, heard.span));
        }
        self.note_revision(&object, heard, round);
        let begun = if object.facts.ips.is_empty() {
            object.created
        } else {
            object.notes.started.max(object.created)
        };
        let known = Known {
            id: self.last_id,
            version: object.version.as_str().into(),
            namespace: self.intern(&object.namespace),
            name: object.name.as_str().into(),
            node: self.intern(&object.facts.node),
            owner: object.facts.owner.clone(),
            workload: workload.clone(),
            digest: object.facts.digest(),
            has_ips: !object.facts.ips.is_empty(),
            // A clock that runs ahead of ours must not make it begin in the future.
            valid_from: begun.unwrap_or(heard.span.at).min(heard.span.at),
            state: object.state.clone(),
            words: words(&object),
            listed: list,
        };
        if let (Kind::Pod, None, Some(owner)) = (object.kind, &workload, &object.facts.owner) {
            let waiting = self.orphans.entry(owner.uid.as_str().into()).or_default();
            waiting.push(object.uid.as_str().into());
        }
        round.objects.insert(known.id, row(&object, &known));
        self.adopt(&object, round);
        self.of(object.kind).insert(object.uid.into(), known);
    }

    fn moved(&mut self, object: Object, heard: Heard, round: &mut Round) {
        let workload = self.workload(&object);
        self.note_revision(&object, heard, round);
        self.adopt(&object, round);
        let node = self.intern(&object.facts.node);
        let next_id = self.last_id + 1;
        let known = self
            .objects
            .get_mut(&object.kind)
            .and_then(|all| all.get_mut(object.uid.as_str()))
            .expect("the caller found it");
        known.workload = workload.or(known.workload.take());
        let subject = subject(&object, known.workload.as_ref());
        let span = heard.span;
        round
            .changes
            .extend(changes::moved(&known.state, &object, &subject, span));
        let digest = object.facts.digest();
        if digest != known.digest {
            let words = words(&object);
            if object.kind == Kind::Service && words != known.words {
                let change = Change::new("service_changed", subject, span);
                round.changes.push(change.between(&*known.words, &*words));
            }
            // Until it has an address nobody can have met it: such a row is filled in, not followed by another.
            if known.has_ips || object.kind != Kind::Pod {
                round.end(known.id, span.since);
                known.id = next_id;
                known.valid_from = span.at;
                self.last_id = next_id;
            } else if let (false, Some(started)) = (object.facts.ips.is_empty(), object.notes.started) {
                known.valid_from = started.clamp(known.valid_from, span.at.max(known.valid_from));
            }
            known.digest = digest;
            known.has_ips = !object.facts.ips.is_empty();
            known.node = node;
            known.owner.clone_from(&object.facts.owner);
            known.words = words;
            known.state = object.state.clone();
            round.objects.insert(known.id, row(&object, known));
            round.states.remove(&known.id);
        } else if known.state != object.state {
            known.state = object.state.clone();
            let state = serde_json::to_value(&known.state).expect("state becomes JSON");
            match round.objects.get_mut(&known.id) {
                Some(row) => row.state = state,
                None => {
                    round.states.insert(known.id, state);
                }
            }
        }
    }

    /// An object is not there any more.
    pub(crate) fn gone(&mut self, kind: Kind, uid: &str, span: Span, round: &mut Round) {
        if kind == Kind::EndpointSlice {
            self.slices.gone(uid, span, round);
            return;
        }
        let Some(known) = self.of(kind).remove(uid) else { return };
        let subject = Subject {
            node: match kind {
                Kind::Node => known.name.to_string(),
                _ => known.node.to_string(),
            },
            namespace: known.namespace.to_string(),
            pod: if kind == Kind::Pod {
                known.name.to_string()
            } else {
                String::new()
            },
            service: if kind == Kind::Service {
                known.name.to_string()
            } else {
                String::new()
            },
            ..with_workload(known.workload.as_ref())
        };
        let change = changes::went(kind, &subject, span);
        round.changes.extend(change.map(|mut change| {
            change.before = (!known.words.is_empty()).then(|| known.words.to_string());
            change
        }));
        // It may have gone at once: nobody is to be called by its name in that span.
        round.end(known.id, span.since);
        round.states.remove(&known.id);
        round.workloads.remove(&known.id);
        if let (Kind::Pod, Some(owner)) = (kind, &known.owner)
            && let Some(waiting) = self.orphans.get_mut(owner.uid.as_str())
        {
            waiting.retain(|pod| **pod != *uid);
            if waiting.is_empty() {
                self.orphans.remove(owner.uid.as_str());
            }
        }
    }

    /// The end of a pod's chain of owners; none while a link is not known.
    fn workload(&mut self, pod: &Object) -> Option<(Arc<str>, Arc<str>)> {
        let owner = pod.facts.owner.as_ref().filter(|_| pod.kind == Kind::Pod)?;
        let (kind, name) = self.top(owner)?;
        let kind = self.intern(&kind);
        Some((kind, self.intern(&name)))
    }

    fn top(&self, owner: &Owner) -> Option<(String, String)> {
        let between = match owner.kind.as_str() {
            "ReplicaSet" => Kind::ReplicaSet,
            "Job" => Kind::Job,
            _ => return Some((owner.kind.clone(), owner.name.clone())),
        };
        let known = self.objects.get(&between)?.get(owner.uid.as_str())?;
        let top = known.owner.as_ref().unwrap_or(owner);
        Some((top.kind.clone(), top.name.clone()))
    }

    /// Pods that waited for this owner.
    fn adopt(&mut self, owner: &Object, round: &mut Round) {
        if !matches!(owner.kind, Kind::ReplicaSet | Kind::Job) {
            return;
        }
        let Some(pods) = self.orphans.remove(owner.uid.as_str()) else {
            return;
        };
        let top = owner.facts.owner.as_ref();
        let (kind, name) = top.map_or((owner.kind.name(), owner.name.as_str()), |o| (&o.kind, &o.name));
        let workload = (self.intern(kind), self.intern(name));
        for uid in pods {
            if let Some(pod) = self.of(Kind::Pod).get_mut(&uid) {
                pod.workload = Some(workload.clone());
                let id = pod.id;
                match round.objects.get_mut(&id) {
                    Some(row) => (row.workload_kind, row.workload) = (kind.into(), name.into()),
                    None => {
                        round.workloads.insert(id, (kind.into(), name.into()));
                    }
                }
            }
        }
    }

    /// A workload's pods have a new template when one of its revisions has a higher number than all before.
    fn note_revision(&mut self, object: &Object, heard: Heard, round: &mut Round) {
        let (Some(revision), Some(owner)) = (object.state.revision, &object.facts.owner) else {
            return;
        };
        let before = self.revisions.get(owner.uid.as_str()).cloned();
        if before.as_ref().is_some_and(|(highest, _)| revision <= *highest) {
            return;
        }
        self.raise(owner, revision, &object.name);
        if heard.first {
            return;
        }
        let subject = Subject {
            namespace: object.namespace.clone(),
            workload_kind: owner.kind.clone(),
            workload: owner.name.clone(),
            ..Subject::default()
        };
        let words = |revision: i64, name: &str| format!("revision {revision} ({name})");
        let mut change = Change::new("rollout", subject, heard.span.narrowed(object.created));
        change.before = before.map(|(revision, name)| words(revision, &name));
        change.after = Some(words(revision, &object.name));
        round.changes.push(change);
    }

    fn raise(&mut self, owner: &Owner, revision: i64, name: &str) {
        let highest = self
            .revisions
            .entry(owner.uid.as_str().into())
            .or_insert_with(|| (revision, name.into()));
        if revision > highest.0 {
            *highest = (revision, name.into());
        }
    }

    /// What is behind services changed since it was asked last, in words.
    pub(crate) fn settle(&mut self, round: &mut Round) {
        let Services { changes, amended } = self.slices.settle();
        round.changes.extend(changes);
        round.amended.extend(amended);
    }

    /// The changes of a round have ids now.
    pub(crate) fn stored(&mut self, changes: &[Change]) {
        self.slices.stored(changes);
    }
}

fn last_seen(seen: &std::collections::BTreeMap<String, Micros>, kind: Kind, namespace: &str) -> Micros {
    let scopes = [None, Some(namespace.to_owned())].map(|namespace| Scope { kind, namespace }.name());
    scopes.iter().filter_map(|s| seen.get(s)).max().copied().unwrap_or(0)
}

fn words(object: &Object) -> Box<str> {
    if object.kind == Kind::Service {
        changes::service_words(&object.facts).into()
    } else {
        "".into()
    }
}

fn with_workload(workload: Option<&(Arc<str>, Arc<str>)>) -> Subject {
    let (kind, name) = workload.map_or((String::new(), String::new()), |(k, n)| (k.to_string(), n.to_string()));
    Subject {
        workload_kind: kind,
        workload: name,
        ..Subject::default()
    }
}

fn subject(object: &Object, workload: Option<&(Arc<str>, Arc<str>)>) -> Subject {
    let named = |kind: Kind| {
        if object.kind == kind {
            object.name.clone()
        } else {
            String::new()
        }
    };
    Subject {
        node: if object.kind == Kind::Node {
            object.name.clone()
        } else {
            object.facts.node.clone()
        },
        namespace: object.namespace.clone(),
        pod: named(Kind::Pod),
        service: named(Kind::Service),
        ..with_workload(workload)
    }
}

fn row(object: &Object, known: &Known) -> ObjectRow {
    let facts = &object.facts;
    let owner = facts.owner.clone().unwrap_or(Owner {
        kind: String::new(),
        name: String::new(),
        uid: String::new(),
    });
    let workload = known.workload.as_ref();
    ObjectRow {
        id: known.id,
        kind: object.kind.name(),
        uid: object.uid.clone(),
        namespace: object.namespace.clone(),
        name: object.name.clone(),
        version: object.version.clone(),
        node: facts.node.clone(),
        runtime_uid: facts.runtime_uid.clone(),
        owner_kind: owner.kind,
        owner: owner.name,
        owner_uid: owner.uid,
        workload_kind: workload.map_or(String::new(), |(kind, _)| kind.to_string()),
        workload: workload.map_or(String::new(), |(_, name)| name.to_string()),
        ips: facts.ips.clone(),
        labels: facts.labels.clone(),
        detail: facts.detail.clone(),
        state: serde_json::to_value(&known.state).expect("state becomes JSON"),
        digest: known.digest,
        valid_from: known.valid_from,
        valid_to: None,
    }
}
