//! The oldest and the newest of the kernels that Debian keeps up, as part of all tests; `make test-kernels` runs all.

use std::path::Path;

use sonde_kernels::host::{Image, Series, Table, examine, missing, program};

fn check(name: &str) {
    if let Some(why) = missing() {
        println!("SKIPPED: kernel {name}: {why}");
        return;
    }
    let series = Series::find(name).expect("a kernel of the list");
    let guest = Path::new(env!("CARGO_BIN_EXE_sonde-guest"));
    let collector = program(guest, "sonde-collector").expect("the collector of this build");
    let image = Image::new(guest, &collector, None).expect("an initramfs");
    let mut table = Table::default();
    examine(series, Some(&image), &mut table).expect("a virtual machine");
    println!("{}", table.render());
    let faults = table.faults();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_signal_is_right_on_every_rung_of_linux_6_1() {
    check("6.1");
}

#[test]
fn every_signal_is_right_on_every_rung_of_linux_7_3() {
    check("7.3");
}
