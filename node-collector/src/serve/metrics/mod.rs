//! The tables of the last round as a metrics page.
//!
//! A series is named by node, namespace, pod, the labels that the configuration adds and the probe's own. What belongs to a
//! pod that has ended is not shown at all. Order: probes as they are listed, columns as they are declared, the node first,
//! then pods by namespace and name.
//!
//! - `owners`: whose series there are, and the labels that all of them have
//! - `group`: the series of a probe, of however many sandboxes
//! - `kubeskoop`: the same values under other names
//! - `budget`: how many series there may be
//! - `write`: text

mod budget;
mod group;
pub mod kubeskoop;
pub mod labels;
mod owners;
#[cfg(test)]
mod tests;
mod write;

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use sonde_common::budget::{Budget, OVERFLOW};
use sonde_common::config::{self, MaxSeries, MetricNames};
use sonde_common::prom::{Format, Page, Type};

use crate::catalogue::ProbeSpec;
use crate::table::Table;
use budget::{hold, sum_up};
use group::Group;
use kubeskoop::Labels;
use labels::{ExtraLabels, LabelProblem};
use owners::{Owner, Owners};
use write::Out;

/// Writes pages, and remembers from page to page what the pages themselves do not tell.
#[derive(Debug)]
pub struct Exposition {
    node: String,
    names: Vec<MetricNames>,
    extra: ExtraLabels,
    limits: MaxSeries,
    /// Of series that have no pod.
    bare: Arc<Owner>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    owners: Owners,
    budgets: BTreeMap<Key, Budget>,
}

/// Names, probe, and which of the parts that KubeSkoop's metrics of it fall into.
type Key = (bool, &'static str, usize);

/// By probe and scheme of names.
type Figures = BTreeMap<(&'static str, &'static str), Shown>;

/// How many series a probe has.
#[derive(Default)]
struct Shown {
    samples: usize,
    folded: usize,
    over_total: u64,
}

impl Exposition {
    pub fn new(node: &str, config: &config::Metrics) -> Result<Self, LabelProblem> {
        Ok(Self {
            node: node.to_owned(),
            names: config.names.clone(),
            extra: ExtraLabels::new(config)?,
            limits: config.max_series.clone(),
            bare: Arc::new(Owner::bare(node)),
            state: Mutex::default(),
        })
    }

    /// Gives every series of the tables, and how many there are, to `sink`, piece by piece.
    pub fn write(&self, tables: &[Table], format: Format, sink: &mut dyn FnMut(&str)) {
        let mut out = Out::new(format, sink);
        let shown = self.write_series(tables, &mut out);
        about(&mut out.page, &shown);
        out.finish();
    }

    /// Tables of one probe become one set of families.
    fn write_series(&self, tables: &[Table], out: &mut Out<'_>) -> Figures {
        let mut shown = Figures::new();
        // One page at a time: who comes second finds the state that the first one left.
        let mut state = self.state.lock();
        let State { owners, budgets } = &mut *state;
        let subjects = owners.of(&self.node, &self.extra, tables);
        for spec in specs_of(tables) {
            let same = tables.iter().filter(|table| table.spec.name == spec.name).collect();
            let ours = Group::new(spec, same, &subjects);
            let theirs = match self.names.contains(&MetricNames::Kubeskoop) {
                true => kubeskoop::derive(&ours, &self.node, &self.bare),
                false => Vec::new(),
            };
            let ours = self.names.contains(&MetricNames::Sonde).then_some((None, ours));
            let theirs = theirs.into_iter().map(|(labels, group)| (Some(labels), group));
            for (part, (labels, mut group)) in ours.into_iter().chain(theirs).enumerate() {
                let budget = budgets.entry((labels.is_some(), spec.name, part)).or_default();
                self.fit(&mut group, budget, labels);
                let figures = shown.entry((spec.name, name_of(group.names))).or_default();
                figures.samples += write::write(&group, out);
                if labels != Some(Labels::Nobody) {
                    figures.folded += budget.folded();
                }
                figures.over_total += budget.over_total();
            }
        }
        shown
    }

    /// Holds a group to the limits.
    fn fit(&self, group: &mut Group<'_>, budget: &mut Budget, labels: Option<Labels>) {
        let standard = |namespace: &str| Owner::new(&self.node, namespace, OVERFLOW, &self.extra, None);
        match labels {
            None | Some(Labels::Standard | Labels::Rdma { .. }) => hold(group, budget, &self.limits, standard),
            Some(Labels::Nobody) => sum_up(group, budget, &self.bare, &kubeskoop::nobody_labels()),
            Some(Labels::NodeAnd(_) | Labels::Sender | Labels::Flow) => {
                hold(group, budget, &self.limits, |_| Owner::bare(&self.node));
            }
        }
    }
}

/// A page of the series alone, under Sonde's names.
pub fn render(page: &mut Page, node: &str, tables: &[Table]) {
    let (plain, format) = (config::Metrics::default(), page.format());
    let exposition = Exposition::new(node, &plain).expect("no label is asked for, so none is refused");
    let mut sink = |text: &str| page.append(text);
    let mut out = Out::new(format, &mut sink);
    exposition.write_series(tables, &mut out);
    out.finish();
}

fn specs_of(tables: &[Table]) -> Vec<&'static ProbeSpec> {
    let mut specs: Vec<&'static ProbeSpec> = Vec::new();
    for table in tables {
        if !specs.iter().any(|spec| spec.name == table.spec.name) {
            specs.push(table.spec);
        }
    }
    specs
}

const fn name_of(names: MetricNames) -> &'static str {
    match names {
        MetricNames::Sonde => "sonde",
        MetricNames::Kubeskoop => "kubeskoop",
    }
}

/// Name, type, help, and the figure that it tells.
type Family = (&'static str, Type, &'static str, fn(&Shown) -> u64);

/// How many series there are, and how many had to be added up.
fn about(page: &mut Page, shown: &Figures) {
    let families: [Family; 3] = [
        (
            "sonde_collector_series",
            Type::Gauge,
            "Series of a probe on this page, by scheme of names",
            |shown| shown.samples as u64,
        ),
        (
            "sonde_collector_folded_rows",
            Type::Gauge,
            "Rows of a probe that are added up in overflow series as the budget is spent",
            |shown| shown.folded as u64,
        ),
        (
            "sonde_collector_series_over_budget_total",
            Type::Counter,
            "Series of a probe for which there was no budget when they began",
            |shown| shown.over_total,
        ),
    ];
    for (name, kind, help, value) in families {
        page.family(name, kind, help);
        for ((probe, names), figures) in shown {
            page.sample(name, &[("probe", probe), ("names", names)], value(figures));
        }
    }
}
