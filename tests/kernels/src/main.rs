//! `make test-kernels`: every kernel, the table, and docs/kernels.md.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use sonde_kernels::host::{ALL, Image, Series, Verdict, boot, cache};

#[derive(Parser)]
#[command(about = "Boots Debian's kernels with the collector and real faults in them", version)]
struct Arguments {
    /// Kernels, such as `6.1`; without any, all.
    kernels: Vec<String>,
    /// Only downloads.
    #[arg(long)]
    fetch: bool,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let series = match arguments.kernels.as_slice() {
        [] => ALL.to_vec(),
        names => names
            .iter()
            .map(|name| Series::find(name).with_context(|| format!("no kernel {name}")))
            .collect::<Result<_>>()?,
    };
    let image = Image::new(&program("sonde-guest")?, &program("sonde-collector")?)?;
    for one in series {
        let kernel = match one.get() {
            Ok(kernel) => kernel,
            Err(error) => {
                println!("SKIPPED: kernel {}: {error:#}", one.name);
                continue;
            }
        };
        println!("{}: {} with {} modules", one.name, kernel.version, kernel.modules.len());
        if arguments.fetch {
            continue;
        }
        let ran = boot(&kernel, &image, &cache().join("logs"))?;
        println!(
            "{}: {:?} after {:?}, {}",
            one.name,
            ran.verdict,
            ran.took,
            ran.console.display()
        );
        for line in &ran.lines {
            println!("{}", serde_json::to_string(line)?);
        }
        if let Verdict::Died(why) | Verdict::Broken(why) = &ran.verdict {
            println!("{why}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A program of this build: beside this one.
fn program(name: &str) -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    if !path.exists() {
        bail!("{} does not exist: build it first", path.display());
    }
    Ok(path)
}
