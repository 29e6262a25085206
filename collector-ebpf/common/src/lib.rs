//! What the kernel programs and the collector share: records, map keys, and the kernel fields both speak of.
//!
//! Everything is `repr(C)` without hidden padding, in host byte order unless a comment says otherwise.
#![no_std]

/// A struct that both sides lay out alike, and that user space can read from any bytes of its size.
macro_rules! record {
    ($(#[$attribute:meta])* pub struct $name:ident { $($(#[$field_attribute:meta])* pub $field:ident: $type:ty,)* }) => {
        $(#[$attribute])*
        #[derive(Clone, Copy)]
        #[cfg_attr(
            feature = "user",
            derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
        )]
        #[repr(C)]
        pub struct $name { $($(#[$field_attribute])* pub $field: $type,)* }
    };
}

/// Numbers names from 0 on and counts them: positions in arrays that both sides index.
macro_rules! positions {
    ($count:ident: $($(#[$attribute:meta])* $name:ident,)*) => {
        positions!(@ $count 0usize; $($(#[$attribute])* $name,)*);
    };
    (@ $count:ident $at:expr;) => {
        pub const $count: usize = $at;
    };
    (@ $count:ident $at:expr; $(#[$attribute:meta])* $name:ident, $($rest:tt)*) => {
        $(#[$attribute])*
        pub const $name: usize = $at;
        positions!(@ $count $at + 1; $($rest)*);
    };
}

pub mod connect;
pub mod connection;
pub mod dns;
pub mod drop;
pub mod fields;
pub mod flow;
pub mod kernellatency;
pub mod latency;
pub mod limit;
pub mod lost;
pub mod netiftxlat;
pub mod packet;
pub mod record;
pub mod reset;
pub mod retransmit;
pub mod socklat;
pub mod softirq;
pub mod virtcmd;
