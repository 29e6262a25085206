//! What the kernel says: records of the rings, the beginnings of packets, its symbols and its types.

mod packets;
mod records;
mod texts;

use sonde_mutate::Target;

pub(crate) const TARGETS: [Target; 4] = [records::TARGET, packets::TARGET, texts::KALLSYMS, texts::BTF];
