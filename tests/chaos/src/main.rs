//! `sonde-chaos`: kills, fills and cuts everything under load, then compares. Ends with 1 when something is wrong.

use std::process::ExitCode;

use clap::Parser;
use sonde_chaos::run::{Kind, Plan, run};

#[derive(Debug, Parser)]
#[command(
    name = "sonde-chaos",
    about = "Kills, fills and cuts everything under load, then compares",
    version
)]
struct Arguments {
    /// How many times each kind is done
    #[arg(long, env = "SONDE_CHAOS_EACH", default_value_t = 50)]
    each: usize,
    /// What order and times follow from; by default another one each time
    #[arg(long, env = "SONDE_CHAOS_SEED")]
    seed: Option<u64>,
    /// Only this kind, such as `KillNode`; may be given more than once
    #[arg(long = "kind", value_parser = kind)]
    kinds: Vec<Kind>,
}

fn kind(text: &str) -> Result<Kind, String> {
    let found = Kind::ALL
        .into_iter()
        .find(|kind| format!("{kind:?}").eq_ignore_ascii_case(text));
    found.ok_or_else(|| format!("{text:?}: expected one of {:?}", Kind::ALL))
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let plan = Plan {
        each: arguments.each,
        seed: arguments.seed.unwrap_or_else(|| fastrand::u64(..)),
        kinds: arguments.kinds,
    };
    let verdict = run(&plan)?;
    Ok(if verdict.wrong.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
