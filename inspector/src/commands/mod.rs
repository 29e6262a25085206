//! One file a command.

pub(crate) mod events;
pub(crate) mod pods;
pub(crate) mod probes;
pub(crate) mod status;

use crate::client::Query;

/// Filters that the commands share. Each may be repeated; `!value` negates.
#[derive(clap::Args, Clone, Default)]
pub(crate) struct Filters {
    #[arg(long, value_name = "NAME")]
    pub(crate) node: Vec<String>,
    #[arg(short = 'n', long, value_name = "NAME")]
    pub(crate) namespace: Vec<String>,
    #[arg(long, value_name = "NAME")]
    pub(crate) pod: Vec<String>,
}

impl Filters {
    pub(crate) fn apply(&self, query: &mut Query) {
        for (name, values) in [("node", &self.node), ("namespace", &self.namespace), ("pod", &self.pod)] {
            values.iter().for_each(|value| query.add(name, value));
        }
    }
}
