//! `make test-kernels`: every kernel, the table, and docs/kernels.md.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use sonde_kernels::host::{ALL, Image, Series, Table, examine, missing, program};

#[derive(Parser)]
#[command(about = "Boots Debian's kernels with the collector and real faults in them", version)]
struct Arguments {
    /// Kernels, such as `6.1`; without any, all.
    kernels: Vec<String>,
    /// Writes the table to this file.
    #[arg(long)]
    write: Option<PathBuf>,
    /// Boots none, and tells what the last boot of each found.
    #[arg(long)]
    last: bool,
    /// Runs this test program of the collector's library in the guests instead, those of its tests that need a live kernel.
    #[arg(long)]
    tests: Option<PathBuf>,
    /// Which of them.
    #[arg(long, default_value = "kernel::live")]
    filter: String,
}

/// 0: all that the collector said was right. A kernel that could not be had is said, and is no failure.
fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    if let Some(why) = missing() {
        bail!("{why}: `make setup-test` installs what is missing");
    }
    let find = |name: &String| Series::find(name).with_context(|| format!("no kernel {name}"));
    let series = match arguments.kernels.as_slice() {
        [] => ALL.to_vec(),
        names => names.iter().map(find).collect::<Result<_>>()?,
    };
    let tests = arguments
        .tests
        .as_deref()
        .map(|program| (program, arguments.filter.as_str()));
    let beside = std::env::current_exe()?;
    let image = || {
        Image::new(
            &program(&beside, "sonde-guest")?,
            &program(&beside, "sonde-collector")?,
            tests,
        )
    };
    let image = (!arguments.last).then(image).transpose()?;
    let mut table = Table::default();
    for one in series {
        examine(one, image.as_ref(), &mut table)?;
    }
    println!("\n{}", table.render());
    if let Some(path) = &arguments.write {
        std::fs::write(path, table.document()).with_context(|| path.display().to_string())?;
    }
    let faults = table.faults();
    for fault in &faults {
        println!("WRONG: {fault}");
    }
    Ok(if faults.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
