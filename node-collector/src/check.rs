//! What the configuration says about the collector that only the collector can judge.

use sonde_common::config::Config;

use crate::pods::names::{BadGlob, Globs};
use crate::probes;

/// Key, value and what was expected, in one line.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    #[error("probes: `{name}`: no such probe; known are {known}")]
    UnknownProbe { name: String, known: String },
    #[error(transparent)]
    Glob(#[from] BadGlob),
}

pub fn check(config: &Config) -> Result<(), Problem> {
    Globs::new(&config.pods.netns.include)?;
    let known: Vec<&str> = probes::specs().iter().map(|spec| spec.name).collect();
    match config.probes.keys().find(|name| !known.contains(&name.as_str())) {
        Some(name) => Err(Problem::UnknownProbe {
            name: name.clone(),
            known: known.join(", "),
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sonde_common::config;

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
