//! What the configuration says about the collector that only the collector can judge.

use std::collections::BTreeMap;

use sonde_common::config::Config;

use crate::pods::names::{BadGlob, Globs};
use crate::probes;
use crate::serve::metrics::kubeskoop;
use crate::serve::metrics::labels::{ExtraLabels, LabelProblem};
use crate::sinks;
use sonde_push::BadSetting;

/// Key, value and what was expected, in one line.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    #[error("probes: `{name}`: no such probe; known are {known}")]
    UnknownProbe { name: String, known: String },
    #[error("probes: `{theirs}`: is probe `{ours}`, which is there too")]
    ProbeTwice { theirs: String, ours: String },
    #[error("kernel.cpu_budget_percent: `{0}`: expected a number from 0 (no budget) to 100")]
    Budget(f64),
    #[error(transparent)]
    Glob(#[from] BadGlob),
    #[error(transparent)]
    Label(#[from] LabelProblem),
    #[error(transparent)]
    Sink(#[from] BadSetting),
}

pub fn check(config: &Config) -> Result<(), Problem> {
    Globs::new(&config.pods.netns.include)?;
    ExtraLabels::new(&config.metrics)?;
    sinks::check(&config.sinks)?;
    let budget = config.kernel.cpu_budget_percent;
    if !(0.0..=100.0).contains(&budget) {
        return Err(Problem::Budget(budget));
    }
    let known: Vec<&str> = probes::specs().iter().map(|spec| spec.name).collect();
    for name in config.probes.keys() {
        let ours = kubeskoop::probe(name);
        if !known.contains(&ours) {
            return Err(Problem::UnknownProbe {
                name: name.clone(),
                known: known.join(", "),
            });
        }
        if ours != name && config.probes.contains_key(ours) {
            return Err(Problem::ProbeTwice {
                theirs: name.clone(),
                ours: ours.to_owned(),
            });
        }
    }
    Ok(())
}

/// Settings by our names of probes: KubeSkoop's are taken too.
pub(crate) fn by_our_names<T>(probes: BTreeMap<String, T>) -> BTreeMap<String, T> {
    let ours = |(name, settings): (String, T)| (kubeskoop::probe(&name).to_owned(), settings);
    probes.into_iter().map(ours).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sonde_common::config;

    #[test]
    fn kubeskoops_names_of_probes_are_taken_for_ours() {
        let probes = [("softirq".to_owned(), 1), ("tcp".to_owned(), 2)].into();
        let ours: Vec<_> = by_our_names(probes).into_iter().collect();
        assert_eq!(ours, [("net_softirq".to_owned(), 1), ("tcp".to_owned(), 2)]);
    }

    #[test]
    fn a_label_that_cannot_be_is_said() {
        let mut config = Config::default();
        config.metrics.labels.insert("device".into(), "x".into());
        let error = check(&config).unwrap_err().to_string();
        assert_eq!(
            error,
            "metrics.labels: `device: x`: label name `device` is taken by probe `netdev`"
        );
    }

    #[test]
    fn a_budget_is_a_percentage() {
        let mut config = Config::default();
        for good in [0.0, 0.5, 100.0] {
            config.kernel.cpu_budget_percent = good;
            check(&config).unwrap();
        }
        for bad in [-1.0, 100.5, f64::NAN, f64::INFINITY] {
            config.kernel.cpu_budget_percent = bad;
            let error = check(&config).unwrap_err().to_string();
            assert!(error.starts_with("kernel.cpu_budget_percent: `"), "{error}");
        }
    }

    #[test]
    fn a_probe_nobody_knows_is_named_with_those_there_are() {
        let mut config = Config::default();
        config.probes.insert("tcp".into(), config::Probe::default());
        check(&config).unwrap();
        config.probes.insert("tpc".into(), config::Probe::default());
        let error = check(&config).unwrap_err().to_string();
        assert!(
            error.starts_with("probes: `tpc`: no such probe; known are netdev, ip, icmp, tcp,"),
            "{error}"
        );
        let mut config = Config::default();
        config.pods.netns.include = vec!["a[".into()];
        assert!(
            check(&config)
                .unwrap_err()
                .to_string()
                .starts_with("pods.netns.include: `a[`")
        );
    }
}
