//! Readers of `/proc/net/*` and `/proc/sys/net/*` of one network namespace. They know files and numbers, not pods, probes or metrics.
//!
//! Reading ([`files`]), parsing (one file per format) and meaning (`crate::probes`) are apart: only the first touches
//! the host. What a counter is called in the kernel stays its name here.

pub mod dev;
mod error;
pub mod files;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
pub mod ipvs;
pub mod named;
mod number;
pub mod pairs;
pub mod per_cpu;
pub mod process;
pub mod protocols;
pub mod sockstat;
pub mod softnet;
pub mod sysctl;

pub use error::{ParseError, ReadError};
pub use files::{NetFile, NetFiles, Reader};

/// Words of a line, split at blanks and tabs as the kernel pads them.
fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|b| matches!(b, b' ' | b'\t'))
        .filter(|word| !word.is_empty())
}

/// Lines without their line feed; an empty last one is none.
fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = memchr::memchr(b'\n', rest).unwrap_or(rest.len());
        let line = &rest[..end];
        rest = rest.get(end + 1..).unwrap_or_default();
        Some(line)
    })
}
