//! Each disturbance five times. `SONDE_CHAOS_EACH` and `SONDE_CHAOS_SEED` change that; a failure prints its seed.

use std::process::Command;

/// In a process of its own, which has its mounts for itself.
#[test]
fn what_went_into_the_spools_is_in_the_tables_once_or_in_a_gap() {
    let mut run = Command::new(env!("CARGO_BIN_EXE_sonde-chaos"));
    if std::env::var_os("SONDE_CHAOS_EACH").is_none() {
        run.args(["--each", "5"]);
    }
    let output = run.output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    assert!(
        output.status.success(),
        "{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
