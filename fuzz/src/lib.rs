//! What both programs have in common: which target they run, and what it begins with.

use std::path::PathBuf;
use std::sync::OnceLock;

use sonde_mutate::Target;

/// The target that `SONDE_FUZZ_TARGET` names.
///
/// Before the first input its seeds are written to `SONDE_FUZZ_SEEDS`, from where libFuzzer reads them. `list` as a name
/// prints all names.
///
/// # Panics
/// Where there is no such target, or the seeds cannot be written.
pub fn begin(targets: Vec<Target>, chosen: &OnceLock<Target>) {
    let name = std::env::var("SONDE_FUZZ_TARGET").unwrap_or_default();
    let names: Vec<&str> = targets.iter().map(|target| target.name).collect();
    if name == "list" {
        println!("{}", names.join("\n"));
        std::process::exit(0);
    }
    let known = names.join(", ");
    let found = targets.into_iter().find(|target| target.name == name);
    let target = found.unwrap_or_else(|| panic!("SONDE_FUZZ_TARGET=`{name}`: expected one of {known}"));
    if let Some(dir) = std::env::var_os("SONDE_FUZZ_SEEDS").map(PathBuf::from) {
        for (number, seed) in (target.seeds)().iter().enumerate() {
            std::fs::write(dir.join(format!("seed-{number}")), seed).expect("a folder for seeds");
        }
    }
    let _ = chosen.set(target);
}
