//! The kernel's own description of its types (BTF): enough of it to find members, enumerators and the arguments of
//! tracepoints. <https://docs.kernel.org/bpf/btf.html>
//!
//! The bytes may come from a file somebody named, so nothing in them is believed: every offset is checked, every chain
//! has an end.

mod members;
mod raw;
mod resolve;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod write;

pub(super) use raw::{Btf, Kind};
pub(super) use resolve::{resolve_argument, resolve_field};
