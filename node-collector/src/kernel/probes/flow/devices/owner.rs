//! Whose a filter is, which its name says: `sonde_flow:SIGN`, with `:qdisc` where the collector made the qdisc too. The sign is
//! the number of something in the kernel that goes with the collector, however it ends (see [`sign_of_life`]), so what is left
//! of one that was killed is told from what another one needs.

use std::io;
use std::os::fd::OwnedFd;

use crate::kernel::sys::{lives, sign_of_life};

const PREFIX: &str = "sonde_flow:";
const QDISC: &str = ":qdisc";

/// This collector. Its filters are left-overs when this is dropped.
pub(super) struct Owner {
    _sign: OwnedFd,
    number: u32,
}

/// What a name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    sign: u32,
    /// Its collector made the qdisc that the filter hangs on.
    pub(super) made_qdisc: bool,
}

impl Owner {
    pub(super) fn new() -> io::Result<Self> {
        let (sign, number) = sign_of_life()?;
        Ok(Self { _sign: sign, number })
    }

    pub(super) const fn mark(&self, made_qdisc: bool) -> Mark {
        Mark {
            sign: self.number,
            made_qdisc,
        }
    }
}

impl Mark {
    /// `None`: it is nobody's of ours.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let rest = name.strip_prefix(PREFIX)?;
        let (number, made_qdisc) = match rest.strip_suffix(QDISC) {
            Some(number) => (number, true),
            None => (rest, false),
        };
        Some(Self {
            sign: number.parse().ok()?,
            made_qdisc,
        })
    }

    pub(super) fn name(self) -> String {
        let qdisc = if self.made_qdisc { QDISC } else { "" };
        format!("{PREFIX}{}{qdisc}", self.sign)
    }

    /// Whether its collector is gone. Where that cannot be told it is not.
    pub(super) fn is_left_over(self) -> io::Result<bool> {
        Ok(!lives(self.sign)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_whose_the_filter_and_the_qdisc_are() {
        for (sign, made_qdisc, name) in [
            (7, false, "sonde_flow:7"),
            (u32::MAX, true, "sonde_flow:4294967295:qdisc"),
        ] {
            let mark = Mark { sign, made_qdisc };
            assert_eq!(mark.name(), name);
            assert_eq!(Mark::parse(name), Some(mark));
        }
        for other in [
            "",
            "sonde_flow",
            "sonde_flow:",
            "sonde_flow:x",
            "cil_from_host",
            "sonde_flow:7:qdisc:",
        ] {
            assert_eq!(Mark::parse(other), None, "{other}");
        }
    }
}
