//! /proc/kallsyms, and BTF files that somebody named.

use std::sync::LazyLock;

use sonde_ebpf_common::fields::{ARGUMENTS, FIELDS};
use sonde_mutate::Target;

use crate::kernel::btf::{Btf, resolve_argument, resolve_field};
use crate::kernel::reasons::Reasons;
use crate::kernel::symbols::Table;

pub(super) const KALLSYMS: Target = Target {
    name: "kallsyms",
    seeds: || {
        vec![
            b"ffffffff81000000 T _stext\nffffffff81000100 t ip_rcv\nffffffffc0001000 t nft_do_chain\t[nf_tables]\n"
                .to_vec(),
            b"0000000000000000 T _stext\n0000000000000000 t ip_rcv\n".to_vec(),
        ]
    },
    run: kallsyms,
};

/// Every function is found by its own address.
fn kallsyms(input: &[u8]) {
    let Ok(table) = Table::parse(input) else { return };
    assert!(table.len() > 0);
    for line in String::from_utf8_lossy(input).lines() {
        let address = line
            .split_ascii_whitespace()
            .next()
            .map(|word| u64::from_str_radix(word, 16));
        let Some(Ok(address)) = address else { continue };
        for near in [address.wrapping_sub(1), address, address.wrapping_add(1)] {
            if let Some((name, offset)) = table.find(near) {
                assert!(!name.is_empty() && offset <= near);
            }
        }
    }
}

/// Small kernels, as `btf/tests.rs` makes them, are in the corpus.
pub(super) const BTF: Target = Target {
    name: "btf",
    seeds: Vec::new,
    run: btf,
};

static NO_KERNEL: LazyLock<Btf> = LazyLock::new(|| {
    let mut file = vec![0x9f, 0xeb, 1, 0, 24, 0, 0, 0];
    file.extend([0; 12]);
    file.extend([1, 0, 0, 0, 0]);
    Btf::parse(file).expect("a file without types")
});

fn btf(input: &[u8]) {
    if let Ok(module) = Btf::parse_module(input.to_vec(), &NO_KERNEL) {
        walk(&module);
    }
    let Ok(kernel) = Btf::parse(input.to_vec()) else { return };
    walk(&kernel);
    for decl in FIELDS {
        if let Ok(field) = resolve_field(&kernel, decl) {
            assert!(u32::from(field.shift) < 8 && u32::from(field.width) <= decl.size * 8);
        }
    }
    for decl in ARGUMENTS {
        let _ = resolve_argument(&kernel, decl);
    }
    let _ = Reasons::of(&kernel).len();
}

fn walk(btf: &Btf) {
    let mut count = 0;
    for (id, found) in btf.types() {
        count += 1;
        let _ = (found.name(), btf.size_of(id), btf.strip(id).map(|(id, _)| id));
        let _ = (
            found.members().count(),
            found.enumerators().count(),
            found.parameters().count(),
        );
    }
    assert_eq!(count, btf.len());
}
