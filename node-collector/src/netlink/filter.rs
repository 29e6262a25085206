//! Filters on what comes into devices of a network namespace, and the qdisc that they hang on: listed, added, taken away.
//!
//! Such a qdisc is `clsact` (Linux 4.5), or `ingress`, its older half; a device has one of them or none. Filters are asked in
//! the order of their priorities, and end the search unless they say that the next one is to be asked.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use super::dump::{DumpError, Malformed, Question, Sink, dump, each_attribute, order};
use super::message::with_attributes;
use super::socket::Transport;

const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
/// Where the qdisc hangs, and the number that it has.
const TC_H_CLSACT: u32 = 0xffff_fff1;
const HANDLE_OF_QDISC: u32 = 0xffff_0000;
const TC_H_MIN_INGRESS: u32 = 0xfff2;
const TC_H_MIN_EGRESS: u32 = 0xfff3;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_CHAIN: u16 = 11;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_FLAGS_GEN: u16 = 9;
/// What the program returns is the verdict.
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;
/// The program is not for the device itself to run.
const TCA_CLS_FLAGS_SKIP_HW: u32 = 1;
/// `struct tcmsg`.
const HEADER: usize = 20;
const KIND_BPF: &str = "bpf";
/// Any protocol, in network byte order.
const ETH_P_ALL: u16 = 0x0003_u16.to_be();

/// Which packets of a device are asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Ingress,
    Egress,
}

impl Side {
    const fn parent(self) -> u32 {
        match self {
            Self::Ingress => HANDLE_OF_QDISC | TC_H_MIN_INGRESS,
            Self::Egress => HANDLE_OF_QDISC | TC_H_MIN_EGRESS,
        }
    }
}

/// One of them, in the order in which they are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    pub priority: u16,
    /// Network byte order.
    protocol: u16,
    pub chain: u32,
    pub handle: u32,
    /// `bpf`, `u32`, `flower`
    pub kind: String,
    /// Of a program, as who added it named it.
    pub name: String,
}

impl Filter {
    /// Whether a program for packets of any protocol may have the same priority: the newest of them is asked first.
    pub fn may_share(&self) -> bool {
        self.kind == KIND_BPF && self.protocol == ETH_P_ALL
    }

    #[cfg(test)]
    pub(crate) fn for_test(priority: u16, chain: u32, kind: &str) -> Self {
        Self {
            priority,
            protocol: ETH_P_ALL,
            chain,
            handle: 1,
            kind: kind.to_owned(),
            name: String::new(),
        }
    }
}

/// All on one side of a device; none where it has no such qdisc.
pub fn filters(
    transport: &dyn Transport,
    ifindex: u32,
    side: Side,
    buffer: &mut [u8],
) -> Result<Vec<Filter>, DumpError> {
    let question = Question {
        kind: RTM_GETTFILTER,
        payload: &header(ifindex, 0, side.parent(), 0),
        answer: RTM_NEWTFILTER,
    };
    let mut found = Filters::default();
    dump(transport, question, buffer, &mut found)?;
    Ok(found.0)
}

/// Indexes of devices that have the qdisc for filters.
pub fn devices(transport: &dyn Transport, buffer: &mut [u8]) -> Result<Vec<u32>, DumpError> {
    let question = Question {
        kind: RTM_GETQDISC,
        payload: &header(0, 0, 0, 0),
        answer: RTM_NEWQDISC,
    };
    let mut found = Devices::default();
    match dump(transport, question, buffer, &mut found) {
        Ok(()) => Ok(found.0),
        // A kernel without qdiscs.
        Err(error) if error.is_absent() => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Gives the device the qdisc for filters. An error EEXIST: it has one.
pub fn add_qdisc(transport: &dyn Transport, ifindex: u32, buffer: &mut [u8]) -> Result<(), DumpError> {
    let message = with_attributes(
        &header(ifindex, HANDLE_OF_QDISC, TC_H_CLSACT, 0),
        &[(TCA_KIND, b"clsact\0")],
    );
    order(transport, RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, &message, buffer)
}

/// Takes it away, with all filters that hang on it.
pub fn delete_qdisc(transport: &dyn Transport, ifindex: u32, buffer: &mut [u8]) -> Result<(), DumpError> {
    let message = header(ifindex, HANDLE_OF_QDISC, TC_H_CLSACT, 0);
    order(transport, RTM_DELQDISC, 0, &message, buffer)
}

/// A program on what comes into the device, for packets of any protocol.
pub fn add_program(
    transport: &dyn Transport,
    (ifindex, priority, handle): (u32, u16, u32),
    (program, name): (BorrowedFd<'_>, &str),
    buffer: &mut [u8],
) -> Result<(), DumpError> {
    let name = [name.as_bytes(), &[0]].concat();
    let word = |word: u32| word.to_ne_bytes();
    let options = with_attributes(
        &[],
        &[
            (TCA_BPF_FD, &word(program.as_raw_fd() as u32)),
            (TCA_BPF_NAME, &name),
            (TCA_BPF_FLAGS, &word(TCA_BPF_FLAG_ACT_DIRECT)),
            (TCA_BPF_FLAGS_GEN, &word(TCA_CLS_FLAGS_SKIP_HW)),
        ],
    );
    let message = with_attributes(
        &header(ifindex, handle, Side::Ingress.parent(), info(priority)),
        &[(TCA_KIND, b"bpf\0"), (TCA_OPTIONS, &options)],
    );
    order(transport, RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, &message, buffer)
}

/// Takes away the program with that priority and handle, whosever it is.
pub fn delete_program(
    transport: &dyn Transport,
    (ifindex, priority, handle): (u32, u16, u32),
    buffer: &mut [u8],
) -> Result<(), DumpError> {
    let message = with_attributes(
        &header(ifindex, handle, Side::Ingress.parent(), info(priority)),
        &[(TCA_KIND, b"bpf\0")],
    );
    order(transport, RTM_DELTFILTER, 0, &message, buffer)
}

/// `struct tcmsg`, of no address family.
fn header(ifindex: u32, handle: u32, parent: u32, info: u32) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    for (place, word) in [ifindex, handle, parent, info].into_iter().enumerate() {
        header[4 + place * 4..][..4].copy_from_slice(&word.to_ne_bytes());
    }
    header
}

fn info(priority: u16) -> u32 {
    u32::from(priority) << 16 | u32::from(ETH_P_ALL)
}

fn word(bytes: &[u8], place: usize) -> Result<u32, Malformed> {
    let word = bytes.get(place..place + 4).and_then(|word| word.try_into().ok());
    word.map(u32::from_ne_bytes).ok_or(Malformed("shorter than it must be"))
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

#[derive(Debug, Default)]
struct Filters(Vec<Filter>);

impl Sink for Filters {
    fn begin(&mut self) {
        self.0.clear();
    }

    fn message(&mut self, payload: &[u8]) -> Result<(), Malformed> {
        let (handle, info) = (word(payload, 8)?, word(payload, 16)?);
        let mut filter = Filter {
            priority: (info >> 16) as u16,
            protocol: info as u16,
            chain: 0,
            handle,
            kind: String::new(),
            name: String::new(),
        };
        let (mut options, mut chain) = (None, None);
        each_attribute(
            payload.get(HEADER..).ok_or(Malformed("shorter than tcmsg"))?,
            |kind, value| match kind {
                TCA_KIND => filter.kind = text(value),
                TCA_OPTIONS => options = Some(value),
                TCA_CHAIN => chain = Some(value),
                _ => {}
            },
        )?;
        if let Some(chain) = chain {
            filter.chain = word(chain, 0)?;
        }
        if filter.kind != KIND_BPF {
            self.0.push(filter);
            return Ok(());
        }
        each_attribute(options.unwrap_or_default(), |kind, value| {
            if kind == TCA_BPF_NAME {
                filter.name = text(value);
            }
        })?;
        // A line for all programs of a priority comes before theirs.
        if handle != 0 {
            self.0.push(filter);
        }
        Ok(())
    }
}

#[derive(Debug, Default)]
struct Devices(Vec<u32>);

impl Sink for Devices {
    fn begin(&mut self) {
        self.0.clear();
    }

    fn message(&mut self, payload: &[u8]) -> Result<(), Malformed> {
        let (ifindex, parent) = (word(payload, 4)?, word(payload, 12)?);
        if parent == TC_H_CLSACT && !self.0.contains(&ifindex) {
            self.0.push(ifindex);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::dump::tests::{Play, Stage};
    use super::*;

    const DONE: (u16, u16, [u8; 4]) = (3, 2, [0; 4]);

    fn line(priority: u16, protocol: u16, handle: u32, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let info = u32::from(priority) << 16 | u32::from(protocol.to_be());
        with_attributes(&header(7, handle, Side::Ingress.parent(), info), attributes)
    }

    fn listed(lines: Vec<Vec<u8>>) -> Result<Vec<Filter>, DumpError> {
        let mut play: Vec<_> = lines.into_iter().map(|line| (RTM_NEWTFILTER, 2, line)).collect();
        play.push((DONE.0, DONE.1, DONE.2.to_vec()));
        let stage = Stage::new(vec![vec![Play::Messages(play)]]);
        filters(&stage, 7, Side::Ingress, &mut [0; 4096])
    }

    #[test]
    fn filters_are_told_with_what_orders_them() {
        let named = with_attributes(&[], &[(TCA_BPF_NAME, b"cil_from_host\0")]);
        let all = listed(vec![
            line(1, 3, 0, &[(TCA_KIND, b"bpf\0"), (TCA_CHAIN, &0u32.to_ne_bytes())]),
            line(1, 3, 9, &[(TCA_KIND, b"bpf\0"), (TCA_OPTIONS, &named)]),
            line(
                2,
                0x800,
                0x8000_0000,
                &[(TCA_KIND, b"u32\0"), (TCA_CHAIN, &5u32.to_ne_bytes())],
            ),
        ])
        .unwrap();
        let short: Vec<_> = all
            .iter()
            .map(|f| (f.priority, f.chain, f.handle, &*f.kind, &*f.name, f.may_share()))
            .collect();
        assert_eq!(
            short,
            [
                (1, 0, 9, "bpf", "cil_from_host", true),
                (2, 5, 0x8000_0000, "u32", "", false)
            ]
        );
    }

    #[test]
    fn a_message_that_is_not_whole_is_no_filter() {
        let whole = line(1, 3, 9, &[(TCA_KIND, b"bpf\0")]);
        for len in 0..HEADER {
            assert!(listed(vec![whole[..len].to_vec()]).is_err(), "{len}");
        }
    }

    #[test]
    fn an_order_is_carried_out_once_the_kernel_says_so() {
        let said = |code: i32| Stage::new(vec![vec![Play::Messages(vec![(2, 0, code.to_ne_bytes().to_vec())])]]);
        assert!(add_qdisc(&said(0), 7, &mut [0; 4096]).is_ok());
        let refused = add_qdisc(&said(-libc::EEXIST), 7, &mut [0; 4096]).unwrap_err();
        assert!(matches!(refused, DumpError::Refused(error) if error.raw_os_error() == Some(libc::EEXIST)));
        // No answer is no success.
        assert!(add_qdisc(&Stage::new(vec![vec![]]), 7, &mut [0; 4096]).is_err());
    }
}
