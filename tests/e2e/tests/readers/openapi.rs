//! The document and the aggregator against each other: a linter, and requests made from the document.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use sonde_e2e::process::output;

use crate::system::{System, root};

pub(crate) fn check(system: &System) -> Result<()> {
    let folder = root().join("tests/openapi");
    for needed in ["node_modules", ".venv"] {
        let there = folder.join(needed).exists();
        ensure!(there, "tests/openapi/{needed} is not there: `scripts/setup.sh test`");
    }
    let mut command = Command::new(folder.join("check.sh"));
    command.arg(format!("http://{}", system.site.http));
    let (code, stdout, stderr) = output(command).context("tests/openapi/check.sh")?;
    println!("{stdout}{stderr}");
    ensure!(code == Some(0), "tests/openapi/check.sh: {code:?}\n{stdout}{stderr}");
    Ok(())
}
