//! Fuzz targets: what collectors send, and what people ask. `make fuzz` runs them under libFuzzer (the crate `fuzz/`), the
//! test below on inputs that are always the same.

use sonde_mutate::Target;

/// All of them.
pub fn targets() -> Vec<Target> {
    let mut all: Vec<Target> = crate::ingest::fuzz::TARGETS.into();
    all.extend(crate::http::fuzz::TARGETS);
    all
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    #[global_allocator]
    static METER: sonde_mutate::Meter = sonde_mutate::Meter;

    #[test]
    fn no_input_gets_the_better_of_a_reader() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
        sonde_mutate::check(&super::targets(), &corpus);
    }
}
