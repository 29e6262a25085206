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

pub mod drop;
pub mod fields;
pub mod limit;
