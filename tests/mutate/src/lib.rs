//! What a fuzz target is, and a run over changed inputs that needs no fuzzer.
//!
//! The same targets are run in two ways: `make fuzz` lets libFuzzer look for new paths through them (the crate `fuzz/`),
//! and a plain test gives them their seeds, the inputs of `fuzz/corpus/NAME/`, and a bounded number of changes of these,
//! always the same ones ([`check`]).

mod allocations;
mod change;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;

pub use allocations::Meter;

/// An entry point that must stand any bytes.
pub struct Target {
    /// Of its folder in the corpus.
    pub name: &'static str,
    /// Good inputs to begin with, made by code where they follow the layout of a struct. More are in the corpus.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Panics where the input got the better of it.
    pub run: fn(&[u8]),
}

/// Bytes that may be asked for at one time, whatever the input says of its lengths: twice what the longest body of a
/// batch may grow to.
pub const MOST_AT_ONCE: usize = 32 << 20;

/// One input.
///
/// # Panics
/// Where the target does, or asks for too much memory (which shows only in a program that has [`Meter`]).
pub fn one(target: &Target, input: &[u8]) {
    allocations::begin();
    (target.run)(input);
    let most = allocations::most();
    assert!(most <= MOST_AT_ONCE, "{}: asked for {most} bytes at once", target.name);
}

/// Changed inputs of each target, unless `SONDE_FUZZ_RUNS` says otherwise.
const RUNS: u64 = 1000;

/// Runs every target on its seeds, its corpus and changes of both.
///
/// # Panics
/// Where a target does: the input is printed, as a line for `fuzz/corpus/`.
pub fn check(targets: &[Target], corpus: &Path) {
    let runs = match std::env::var("SONDE_FUZZ_RUNS") {
        Ok(runs) => runs.parse().expect("SONDE_FUZZ_RUNS is a number"),
        Err(_) => RUNS,
    };
    for target in targets {
        let mut inputs = (target.seeds)();
        inputs.extend(files(&corpus.join(target.name)));
        assert!(!inputs.is_empty(), "{}: nothing to begin with", target.name);
        for input in &inputs {
            attempt(target, input);
        }
        let mut change = change::Change::new(target.name);
        for _ in 0..runs {
            attempt(target, &change.one_of(&inputs));
        }
    }
}

fn attempt(target: &Target, input: &[u8]) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| one(target, input))) {
        let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
        eprintln!("to keep it: echo {hex} | xxd -r -p > fuzz/corpus/{}/WHAT", target.name);
        resume_unwind(panic);
    }
}

/// In the order of their names. No folder: none.
fn files(dir: &Path) -> Vec<Vec<u8>> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("a folder's entry").path()).collect();
    paths.sort_unstable();
    let read = |path: std::path::PathBuf| std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    paths.into_iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[global_allocator]
    static METER: Meter = Meter;

    thread_local! {
        static SEEN: Cell<u64> = const { Cell::new(0) };
    }

    fn target(run: fn(&[u8])) -> [Target; 1] {
        [Target {
            name: "none",
            seeds: || vec![b"seed".to_vec()],
            run,
        }]
    }

    #[test]
    fn the_same_inputs_come_each_time() {
        let sum = || {
            SEEN.set(0);
            let count = |input: &[u8]| {
                let digest = input
                    .iter()
                    .fold(SEEN.get(), |sum, byte| sum.wrapping_mul(31) + u64::from(*byte));
                SEEN.set(digest);
            };
            check(&target(count), Path::new("/nowhere"));
            SEEN.get()
        };
        let first = sum();
        assert_ne!(first, 0);
        assert_eq!(sum(), first);
    }

    #[test]
    #[should_panic(expected = "found")]
    fn a_target_that_panics_is_found() {
        check(
            &target(|input| assert!(input.len() < 6, "found")),
            Path::new("/nowhere"),
        );
    }

    #[test]
    #[should_panic(expected = "bytes at once")]
    fn a_target_that_asks_for_too_much_is_found() {
        let greedy = |input: &[u8]| drop(Vec::<u8>::with_capacity(input.len() << 24));
        check(&target(greedy), Path::new("/nowhere"));
    }

    #[test]
    #[should_panic(expected = "nothing to begin with")]
    fn a_target_without_inputs_tests_nothing() {
        let mut targets = target(|_| {});
        targets[0].seeds = Vec::new;
        check(&targets, Path::new("/nowhere"));
    }
}
