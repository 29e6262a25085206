//! What runs outside of the virtual machines.

mod apt;
mod image;
mod kernels;
mod qemu;
mod table;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::{Line, Outcome};
pub use image::Image;
pub use kernels::{ALL, Series};
use qemu::Verdict;
pub use table::Table;

/// Boots the newest kernel of a series and adds what was found to the table. One that cannot be had is said. Without an
/// image, what its last boot found.
pub fn examine(series: Series, image: Option<&Image>, table: &mut Table) -> Result<()> {
    let kernel = match series.get() {
        Ok(kernel) => kernel,
        Err(error) => {
            println!("SKIPPED: kernel {}: {error:#}", series.name);
            table.add_missing(series.name, &format!("{error:#}"));
            return Ok(());
        }
    };
    let logs = kernels::cache().join("logs");
    let ran = match image {
        Some(image) => qemu::boot(&kernel, image, &logs)?,
        None => qemu::last(&kernel, &logs)?,
    };
    let (name, version, seconds) = (series.name, &kernel.version, ran.took.as_secs());
    println!("{name}: {version}, {seconds} s, console in {}", ran.console.display());
    let mut checks = Vec::new();
    for line in ran.lines {
        match line {
            Line::Up { release } => println!("{name}: runs {release}"),
            Line::Check(check) => {
                let rung = check.rung.as_deref().unwrap_or("off");
                match &check.outcome {
                    Outcome::Right(what) => println!("{name}: {} {} {rung}: {what}", check.run, check.signal),
                    Outcome::Wrong(why) => println!("{name}: {} {} {rung}: WRONG: {why}", check.run, check.signal),
                    Outcome::Off => {}
                }
                checks.push(check);
            }
            Line::Tests { text } => println!("{name}: {text}"),
            Line::Skipped { run, signal, count } => {
                println!("{name}: {run} {signal}: the kernel skipped {count} runs of programs: once more");
            }
            Line::Log { run, text } => println!("{name}: log of the collector, run {run}:\n{text}"),
            Line::End | Line::Broken { .. } => {}
        }
    }
    match ran.verdict {
        Verdict::Ended => table.add(name, version, checks),
        Verdict::Died(why) | Verdict::Broken(why) => {
            println!("{name}: {why}; see {}", ran.console.display());
            table.add_failed(name, version, &why);
        }
    }
    Ok(())
}

/// What this machine lacks for any of it.
pub fn missing() -> Option<String> {
    if !cfg!(target_arch = "x86_64") {
        return Some("its programs are of this machine, and the kernels are for x86_64".into());
    }
    let programs = [
        qemu::QEMU,
        "apt-get",
        "dpkg",
        "xz",
        "strip",
        "ldd",
        "ip",
        "tc",
        "nft",
        "ss",
    ];
    let lacking = programs.iter().find(|name| !image::is_program(name))?;
    Some(format!("no program {lacking}"))
}

/// A program of this build, beside `beside` or, for a test, one folder further up.
pub fn program(beside: &Path, name: &str) -> Result<PathBuf> {
    let mut dirs = beside.ancestors().skip(1).take(2);
    let found = dirs.find_map(|dir| Some(dir.join(name)).filter(|path| path.exists()));
    let Some(path) = found else {
        bail!("no {name} beside {}: build it first", beside.display());
    };
    Ok(path)
}
