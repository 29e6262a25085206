//! The series of KubeSkoop's metrics, worked out from a group of Sonde's.

use std::collections::HashMap;
use std::sync::Arc;

use sonde_common::budget::{NONE, add};
use sonde_common::config::MetricNames;
use sonde_common::prom::write_labels;

use super::entries;
use super::entry::{Entry, Labels, Rows, TUPLE};
use crate::serve::metrics::group::{Column, Group, Series};
use crate::serve::metrics::owners::Owner;

/// What one probe gives, by kind of labels. Series of `Labels::Nobody` are still by pod: they are to be added up, so
/// that the sum outlives the pods.
pub(in crate::serve::metrics) fn derive(
    group: &Group<'_>,
    node: &str,
    bare: &Arc<Owner>,
) -> Vec<(Labels, Group<'static>)> {
    let mut parts: Vec<(Labels, Vec<Source>)> = Vec::new();
    for entry in entries().filter(|entry| entry.probe == group.spec.name) {
        let Some(source) = Source::new(entry, group) else {
            continue;
        };
        match parts.iter_mut().find(|(labels, _)| *labels == entry.labels) {
            Some((_, sources)) => sources.push(source),
            None => parts.push((entry.labels, vec![source])),
        }
    }
    let made = parts.into_iter().map(|(labels, sources)| {
        let names = Names {
            group,
            labels,
            node,
            bare,
        };
        (labels, part(&names, &sources))
    });
    made.collect()
}

/// The labels that series of a part beside their owner's have.
pub(in crate::serve::metrics) fn own_names(labels: Labels) -> Vec<&'static str> {
    match labels {
        Labels::Standard => Vec::new(),
        Labels::Rdma { port: false } => vec!["device", "type"],
        Labels::Rdma { port: true } => vec!["device", "type", "port"],
        Labels::NodeAnd(pairs) => pairs.iter().map(|(theirs, _)| *theirs).collect(),
        Labels::Nobody | Labels::Sender | Labels::Flow => TUPLE.to_vec(),
    }
}

/// An entry and where in the group its values are.
struct Source {
    entry: Entry,
    columns: Vec<usize>,
    /// Of the label that chooses rows.
    label: Option<usize>,
    /// Of the device.
    device: Option<usize>,
    adds: bool,
}

impl Source {
    /// `None` where the probe has none of the columns, or lacks the label.
    fn new(entry: Entry, group: &Group<'_>) -> Option<Self> {
        let place = |name: &str| group.spec.labels.iter().position(|label| label.name == name);
        let columns: Vec<usize> = entry
            .columns
            .iter()
            .filter_map(|name| group.spec.columns.iter().position(|column| column.name == *name))
            .collect();
        let label = match entry.rows.label() {
            None => None,
            Some(name) => Some(place(name)?),
        };
        if columns.is_empty() {
            return None;
        }
        Some(Self {
            entry,
            label,
            device: place("device"),
            adds: columns.iter().all(|i| group.columns[*i].adds),
            columns,
        })
    }

    /// What a series adds; `None` where it has no such value.
    fn of(&self, group: &Group<'_>, series: &Series) -> Option<i128> {
        let mut values = self.columns.iter().filter_map(|i| group.value(series, *i)).peekable();
        values.peek()?;
        if self.entry.of_node && !(series.owner.namespace.is_empty() && series.owner.pod.is_empty()) {
            return None;
        }
        if let Some(driver) = self.entry.driver
            && device_type(group.label(series, self.device?)?) != driver
        {
            return None;
        }
        let taken = self.label.is_none_or(|label| {
            group
                .label(series, label)
                .is_some_and(|value| self.entry.rows.take(value))
        });
        match (taken, self.entry.rows) {
            (true, _) => Some(values.sum()),
            (false, Rows::Of(..)) => None,
            (false, _) => Some(0),
        }
    }
}

struct Names<'a> {
    group: &'a Group<'a>,
    labels: Labels,
    node: &'a str,
    bare: &'a Arc<Owner>,
}

/// A series in the making.
struct Sum<'a> {
    owner: &'a Arc<Owner>,
    own: Box<str>,
    values: Box<[i128]>,
}

fn part(names: &Names<'_>, sources: &[Source]) -> Group<'static> {
    let group = names.group;
    let columns = sources
        .iter()
        .map(|source| {
            Column::new(
                source.entry.name.into(),
                source.entry.kind,
                source.entry.help.into(),
                source.adds,
            )
        })
        .collect();
    let mut all: Vec<Sum<'_>> = Vec::new();
    let mut places: HashMap<(*const Owner, Box<str>), usize> = HashMap::new();
    let mut own = String::new();
    for series in &group.series {
        own.clear();
        let owner = names.write(&mut own, series);
        let place = *places
            .entry((Arc::as_ptr(owner), own.as_str().into()))
            .or_insert_with(|| {
                all.push(Sum {
                    owner,
                    own: own.as_str().into(),
                    values: vec![NONE; sources.len()].into(),
                });
                all.len() - 1
            });
        for (sum, source) in all[place].values.iter_mut().zip(sources) {
            add(std::slice::from_mut(sum), source.of(group, series));
        }
    }
    for sum in &mut all {
        for (value, source) in sum.values.iter_mut().zip(sources) {
            if source.entry.in_pages && *value != NONE {
                *value /= page_bytes();
            }
        }
    }
    let series = all
        .into_iter()
        .filter(|sum| sum.values.iter().any(|value| *value != NONE))
        .map(|sum| Series::new(Arc::clone(sum.owner), sum.own, sum.values))
        .collect();
    Group::of_sums(
        group.spec,
        MetricNames::Kubeskoop,
        own_names(names.labels),
        columns,
        series,
    )
}

impl<'a> Names<'a> {
    /// Writes the own labels of what a series is added to, and says whose it is.
    fn write(&self, own: &mut String, series: &'a Series) -> &'a Arc<Owner> {
        let place = |name: &str| self.group.spec.labels.iter().position(|label| label.name == name);
        let has = |name: &str| place(name).is_some();
        let label = |name: &str| {
            place(name)
                .and_then(|place| self.group.label(series, place))
                .unwrap_or_default()
        };
        let owner = match self.labels {
            Labels::Standard | Labels::Rdma { .. } | Labels::Nobody => &series.owner,
            Labels::NodeAnd(_) | Labels::Sender | Labels::Flow => self.bare,
        };
        let values: Vec<&str> = match self.labels {
            Labels::Standard | Labels::Nobody => return owner,
            Labels::Rdma { port } => {
                let device = label("device");
                let mut values = vec![device, device_type(device)];
                if port {
                    values.push(label("port"));
                }
                values
            }
            Labels::NodeAnd(pairs) => pairs.iter().map(|(_, ours)| label(ours)).collect(),
            Labels::Sender => self.sender(&series.owner).to_vec(),
            Labels::Flow => TUPLE
                .iter()
                .zip(nobody())
                .map(|(name, unknown)| if has(name) { label(name) } else { unknown })
                .collect(),
        };
        own.push(',');
        write_labels(own, own_names(self.labels).into_iter().zip(values));
        owner
    }

    /// The tuple of a TCP segment that a subject sent, to nobody knows whom.
    fn sender(&self, owner: &'a Owner) -> [&'a str; 13] {
        let mut tuple = nobody();
        tuple[0] = "TCP";
        if owner.pod.is_empty() {
            (tuple[2], tuple[3]) = ("node", self.node);
        } else {
            (tuple[2], tuple[4], tuple[5]) = ("pod", &owner.namespace, &owner.pod);
        }
        tuple
    }
}

/// The tuple of packets of which nothing is known but that they were there.
fn nobody() -> [&'static str; 13] {
    let mut tuple = [""; 13];
    (tuple[2], tuple[7]) = ("unknown", "unknown");
    (tuple[11], tuple[12]) = ("0", "0");
    tuple
}

/// The same as labels.
pub(in crate::serve::metrics) fn nobody_labels() -> String {
    let mut own = String::from(",");
    write_labels(&mut own, TUPLE.into_iter().zip(nobody()));
    own
}

/// `mlx5` of `mlx5_0`; KubeSkoop knows two drivers.
fn device_type(device: &str) -> &str {
    match device.split('_').next() {
        Some(driver @ ("mlx5" | "erdma")) => driver,
        _ => "unknown",
    }
}

/// 4096 on most machines, 65536 on some of ARM.
fn page_bytes() -> i128 {
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
    page.map_or(4096, i128::from)
}
