#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use sonde_mutate::{Meter, Target};

#[global_allocator]
static METER: Meter = Meter;

static TARGET: OnceLock<Target> = OnceLock::new();

fuzz_target!(
    init: sonde_fuzz::begin(sonde_aggregator::fuzz::targets(), &TARGET),
    |input: &[u8]| {
        sonde_mutate::one(TARGET.get().expect("begun"), input);
    }
);
