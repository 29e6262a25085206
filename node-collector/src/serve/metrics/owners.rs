//! Whose series there are: the node and each pod by its name, whatever the number of its sandboxes.
//!
//! Labels of an owner are rendered when it appears, not with every page. Of two sandboxes of one name the younger one's
//! labels and annotations count.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use sonde_common::prom::write_labels;

use super::labels::{ExtraLabels, STANDARD};
use crate::event::Subject;
use crate::pods::Pod;
use crate::table::Table;

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub namespace: Box<str>,
    pub pod: Box<str>,
    /// As they stand between the braces, in front of the probe's own.
    pub labels: Box<str>,
    /// The sandbox that the labels are of.
    sandbox: Box<str>,
}

impl Owner {
    pub(super) fn new(node: &str, namespace: &str, name: &str, extra: &ExtraLabels, pod: Option<&Pod>) -> Self {
        let mut labels = String::new();
        let [node_label, namespace_label, pod_label] = STANDARD;
        let standard = [(node_label, node), (namespace_label, namespace), (pod_label, name)];
        write_labels(&mut labels, standard);
        extra.write(&mut labels, pod);
        Self {
            namespace: namespace.into(),
            pod: name.into(),
            labels: labels.into(),
            sandbox: pod.map_or("", |pod| &pod.sandbox).into(),
        }
    }

    /// Of series that are told of a node and bear no other of the standard labels.
    pub(super) fn bare(node: &str) -> Self {
        let mut labels = String::new();
        write_labels(&mut labels, [(STANDARD[0], node)]);
        Self {
            namespace: "".into(),
            pod: "".into(),
            labels: labels.into(),
            sandbox: "".into(),
        }
    }
}

/// Owners from page to page.
#[derive(Debug, Default)]
pub(super) struct Owners(BTreeMap<(Box<str>, Box<str>), Arc<Owner>>);

/// The owners of one page, in the order of namespace and name, the node first.
pub(super) struct Subjects {
    by_pod: HashMap<*const Pod, usize>,
    owners: Vec<Arc<Owner>>,
}

impl Owners {
    /// Those of the tables that are there now. Others are forgotten.
    pub(super) fn of(&mut self, node: &str, extra: &ExtraLabels, tables: &[Table]) -> Subjects {
        let mut seen: HashMap<*const Pod, Option<&Arc<Pod>>> = HashMap::new();
        let mut youngest: BTreeMap<(&str, &str), Option<&Arc<Pod>>> = BTreeMap::new();
        for subject in tables.iter().flat_map(|table| &table.subjects) {
            match subject {
                Subject::Unknown => {}
                Subject::Node => _ = youngest.entry(("", "")).or_default(),
                Subject::Pod(pod) => {
                    // Asked once: a pod that ends meanwhile is on the page wholly or not at all.
                    let live = *seen
                        .entry(Arc::as_ptr(pod))
                        .or_insert_with(|| (!pod.has_ended()).then_some(pod));
                    if let Some(pod) = live {
                        let held = youngest.entry((&pod.namespace, &pod.name)).or_default();
                        if held.is_none_or(|held| is_younger(pod, held)) {
                            *held = Some(pod);
                        }
                    }
                }
            }
        }
        let mut old = std::mem::take(&mut self.0);
        let mut ranks = HashMap::with_capacity(youngest.len());
        let mut owners = Vec::with_capacity(youngest.len());
        for ((namespace, name), pod) in youngest {
            let pod = pod.map(|pod| &**pod);
            let key = (namespace.into(), name.into());
            let owner = old
                .remove(&key)
                .filter(|owner| *owner.sandbox == *pod.map_or("", |pod| &pod.sandbox))
                .unwrap_or_else(|| Arc::new(Owner::new(node, namespace, name, extra, pod)));
            ranks.insert((namespace, name), owners.len());
            owners.push(Arc::clone(&owner));
            self.0.insert(key, owner);
        }
        let rank = |pod: &Arc<Pod>| ranks.get(&(pod.namespace.as_str(), pod.name.as_str())).copied();
        let by_pod = seen
            .into_iter()
            .filter_map(|(at, pod)| Some((at, rank(pod?)?)))
            .collect();
        Subjects { by_pod, owners }
    }
}

fn is_younger(pod: &Pod, than: &Pod) -> bool {
    (pod.valid_from_ns, &pod.sandbox) > (than.valid_from_ns, &than.sandbox)
}

impl Subjects {
    /// The place of a subject's owner; `None` for a pod that has ended.
    pub(super) fn rank(&self, subject: &Subject) -> Option<usize> {
        match subject {
            Subject::Unknown => None,
            // The names of the node are empty, so it is the first.
            Subject::Node => Some(0),
            Subject::Pod(pod) => self.by_pod.get(&Arc::as_ptr(pod)).copied(),
        }
    }

    pub(super) fn owner(&self, rank: usize) -> &Arc<Owner> {
        &self.owners[rank]
    }
}
