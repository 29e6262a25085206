//! Labels of series, rendered once and shared: what says whose a series is by all probes of a node, what a probe adds to
//! that by all subjects that have it.

use std::borrow::Borrow;
use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use sonde_common::prom::write_labels;
use sonde_proto::v1;

use super::meta::{NAMESPACE, NODE, POD, ProbeMeta};

/// A row's labels, as places in the lists of its snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Row {
    /// As on the wire: 0 is the node itself.
    pub subject: u32,
    pub set: u32,
}

/// Whose series these are.
#[derive(Debug, PartialEq)]
pub(super) struct Subject {
    /// Of the pod; empty: the node itself.
    pub sandbox: Box<str>,
    pub namespace: Box<str>,
    pub name: Box<str>,
    /// Of the pod, Unix time.
    pub valid_from_ns: u64,
    /// The labels of node, namespace and pod as they stand behind the brace.
    pub text: Box<str>,
}

/// Values of the probe's own labels.
#[derive(Debug, PartialEq)]
pub(super) struct LabelSet {
    pub values: Box<[Box<str>]>,
    /// Each with a comma before it, as they stand before the brace that closes.
    pub text: Box<str>,
}

/// What a row of a snapshot is called.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowLabels<'a> {
    pub subject: &'a Subject,
    pub set: &'a LabelSet,
}

impl<'a> RowLabels<'a> {
    /// All labels as they stand between the braces are these one behind the other.
    pub(super) fn text(&self) -> [&'a str; 2] {
        [&self.subject.text, &self.set.text]
    }

    pub(super) fn namespace(&self) -> &'a str {
        &self.subject.namespace
    }

    pub(super) fn name(&self) -> &'a str {
        &self.subject.name
    }

    /// Of the probe's own labels, by their places.
    pub(super) fn value(&self, label: usize) -> &'a str {
        &self.set.values[label]
    }
}

impl Subject {
    pub(super) fn new(node: &str, sandbox: &str, namespace: &str, name: &str, valid_from_ns: u64) -> Self {
        let mut text = String::new();
        write_labels(&mut text, [(NODE, node), (NAMESPACE, namespace), (POD, name)]);
        Self {
            sandbox: sandbox.into(),
            namespace: namespace.into(),
            name: name.into(),
            valid_from_ns,
            text: text.into(),
        }
    }

    fn is(&self, pod: &v1::Pod) -> bool {
        *self.sandbox == *pod.sandbox
            && self.valid_from_ns == pod.valid_from_ns
            && *self.name == *pod.name
            && *self.namespace == *pod.namespace
    }
}

impl LabelSet {
    pub(super) fn new(meta: &ProbeMeta, values: &[&str]) -> Self {
        let mut text = String::new();
        if !values.is_empty() {
            text.push(',');
        }
        let names = meta.labels.iter().map(String::as_str);
        write_labels(&mut text, names.zip(values.iter().copied()));
        Self {
            values: values.iter().map(|value| Box::from(*value)).collect(),
            text: text.into(),
        }
    }

    fn is(&self, values: &[&str]) -> bool {
        self.values.iter().map(|value| &**value).eq(values.iter().copied())
    }
}

/// The subjects of a batch in its order, the node itself before them.
#[derive(Debug)]
pub(super) struct SubjectList {
    all: Vec<Arc<Subject>>,
    /// Where some have the namespace and the name of another one: for each, the first that has its.
    first_of_name: Option<Box<[u32]>>,
}

impl SubjectList {
    fn new(all: Vec<Arc<Subject>>) -> Self {
        let mut named: HashMap<(&str, &str), u32> = HashMap::with_capacity(all.len());
        let names = (0..).zip(all.iter().map(|subject| (&*subject.namespace, &*subject.name)));
        let first: Box<[u32]> = names.map(|(place, name)| *named.entry(name).or_insert(place)).collect();
        let first_of_name = (named.len() < all.len()).then_some(first);
        Self { all, first_of_name }
    }

    /// With one more at the end.
    pub(super) fn and(&self, subject: Subject) -> Self {
        let mut all = self.all.clone();
        all.push(Arc::new(subject));
        Self::new(all)
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn get(&self, subject: u32) -> &Arc<Subject> {
        &self.all[subject as usize]
    }

    pub(super) fn has_namesakes(&self) -> bool {
        self.first_of_name.is_some()
    }

    pub(super) fn first_of_name(&self, subject: u32) -> u32 {
        self.first_of_name
            .as_ref()
            .map_or(subject, |first| first[subject as usize])
    }
}

/// The subjects of a node that any snapshot may show.
#[derive(Debug, Default)]
pub(super) struct Subjects {
    /// Of the last batch: usually those of the next.
    last: Option<Arc<SubjectList>>,
    known: HashSet<BySandbox>,
}

#[derive(Debug)]
struct BySandbox(Arc<Subject>);

impl Borrow<str> for BySandbox {
    fn borrow(&self) -> &str {
        &self.0.sandbox
    }
}

impl Hash for BySandbox {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.sandbox.hash(state);
    }
}

impl PartialEq for BySandbox {
    fn eq(&self, other: &Self) -> bool {
        self.0.sandbox == other.0.sandbox
    }
}

impl Eq for BySandbox {}

impl Subjects {
    /// Those of a batch; what was rendered before is not rendered again.
    pub(super) fn of(&mut self, node: &str, pods: &[v1::Pod]) -> Arc<SubjectList> {
        if let Some(last) = &self.last
            && last.len() == pods.len() + 1
            && last.all[1..].iter().zip(pods).all(|(subject, pod)| subject.is(pod))
        {
            return Arc::clone(last);
        }
        let host = match &self.last {
            Some(last) => Arc::clone(last.get(0)),
            None => Arc::new(Subject::new(node, "", "", "", 0)),
        };
        let mut list = Vec::with_capacity(pods.len() + 1);
        list.push(host);
        let mut news = false;
        for pod in pods {
            let known = self.known.get(pod.sandbox.as_str()).filter(|known| known.0.is(pod));
            let subject = known.map(|known| Arc::clone(&known.0));
            list.push(subject.unwrap_or_else(|| {
                news = true;
                let new = Subject::new(node, &pod.sandbox, &pod.namespace, &pod.name, pod.valid_from_ns);
                let new = Arc::new(new);
                self.known.replace(BySandbox(Arc::clone(&new)));
                new
            }));
        }
        let list = Arc::new(SubjectList::new(list));
        self.last = Some(Arc::clone(&list));
        if news {
            // What no list has any more has ended.
            self.known.retain(|known| Arc::strong_count(&known.0) > 1);
        }
        list
    }
}

/// Finds the rows' label sets; those that the snapshot before had are taken from it.
pub(super) struct Sets<'a> {
    meta: &'a ProbeMeta,
    body: &'a v1::BatchBody,
    old: &'a [Arc<LabelSet>],
    old_by_values: Option<HashMap<Vec<&'a str>, &'a Arc<LabelSet>>>,
    list: Vec<Arc<LabelSet>>,
    /// By numbers of strings, and by the strings: the same may have several numbers.
    by_numbers: HashMap<&'a [u32], u32>,
    by_values: HashMap<Vec<&'a str>, u32>,
}

impl<'a> Sets<'a> {
    pub(super) fn new(meta: &'a ProbeMeta, body: &'a v1::BatchBody, old: &'a [Arc<LabelSet>]) -> Self {
        Self {
            meta,
            body,
            old,
            old_by_values: None,
            list: Vec::new(),
            by_numbers: HashMap::new(),
            by_values: HashMap::new(),
        }
    }

    /// `None`: a number that no string has.
    pub(super) fn place(&mut self, numbers: &'a [u32]) -> Option<u32> {
        if let Some(place) = self.by_numbers.get(numbers) {
            return Some(*place);
        }
        let strings = &self.body.strings;
        let values: Option<Vec<&str>> = numbers
            .iter()
            .map(|number| strings.get(*number as usize).map(String::as_str))
            .collect();
        let values = values?;
        let place = match self.by_values.get(&values) {
            Some(place) => *place,
            None => {
                let place = self.list.len() as u32;
                let set = self.known_before(&values);
                self.list
                    .push(set.unwrap_or_else(|| Arc::new(LabelSet::new(self.meta, &values))));
                self.by_values.insert(values, place);
                place
            }
        };
        self.by_numbers.insert(numbers, place);
        Some(place)
    }

    fn known_before(&mut self, values: &[&'a str]) -> Option<Arc<LabelSet>> {
        if let Some(set) = self.old.get(self.list.len())
            && set.is(values)
        {
            return Some(Arc::clone(set));
        }
        let old = self.old;
        let by_values = self.old_by_values.get_or_insert_with(|| {
            let values = |set: &'a Arc<LabelSet>| set.values.iter().map(|value| &**value).collect();
            old.iter().map(|set| (values(set), set)).collect()
        });
        by_values.get(values).map(|set| Arc::clone(set))
    }

    pub(super) fn finish(self) -> Vec<Arc<LabelSet>> {
        self.list
    }
}
