//! Asks for a dump and reads it to its end. A dump that is not whole is asked for again, and then is an error: what
//! came of it is never told.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use super::message::{attributes_of, messages_of, request};
use super::socket::Transport;

pub(super) const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_NOOP: u16 = 1;
pub(super) const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_OVERRUN: u16 = 4;

/// How often a dump is asked for until it is whole.
pub const ATTEMPTS: usize = 3;

/// Of all sockets of the process, so that a late answer is never taken for another's.
static SEQUENCE: AtomicU32 = AtomicU32::new(1);

pub(super) fn next_sequence() -> u32 {
    SEQUENCE.fetch_add(1, Ordering::Relaxed)
}

/// Why a dump gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// What is listed changed meanwhile (NLM_F_DUMP_INTR).
    #[error("dump interrupted, {ATTEMPTS} times")]
    Interrupted,
    /// The socket's buffer was too small (ENOBUFS).
    #[error("dump overran its buffer, {ATTEMPTS} times")]
    Overrun,
    /// A message was cut, or the dump ended without saying so.
    #[error("dump truncated, {ATTEMPTS} times")]
    Truncated,
    #[error("malformed message: {0}")]
    Malformed(&'static str),
    #[error("{0}")]
    Refused(#[from] io::Error),
}

impl DumpError {
    const fn is_worth_another_try(&self) -> bool {
        matches!(self, Self::Interrupted | Self::Overrun | Self::Truncated)
    }

    /// Whether the kernel has nothing of the kind: no module, no such family, no such message.
    pub fn is_absent(&self) -> bool {
        let Self::Refused(error) = self else { return false };
        matches!(
            error.raw_os_error(),
            Some(libc::ENOENT | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT)
        )
    }
}

/// What a message means to its reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

/// Takes in the messages of a dump.
pub trait Sink {
    /// A dump begins: what another one left is forgotten.
    fn begin(&mut self);
    fn message(&mut self, payload: &[u8]) -> Result<(), Malformed>;
    /// A message came that is no part of the dump.
    fn heard(&mut self) {}
}

/// What is asked: type of the request, its payload, type of the answers.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    pub kind: u16,
    pub payload: &'a [u8],
    pub answer: u16,
}

/// The whole dump goes to `sink`, or an error comes back and what `sink` holds is worth nothing.
pub fn dump(
    transport: &dyn Transport,
    question: Question<'_>,
    buffer: &mut [u8],
    sink: &mut dyn Sink,
) -> Result<(), DumpError> {
    let mut last = None;
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            // The socket takes no request while a dump is under way.
            drain(transport, buffer);
        }
        match once(transport, question, buffer, sink) {
            Err(error) if error.is_worth_another_try() => last = Some(error),
            result => return result,
        }
    }
    Err(last.unwrap_or(DumpError::Truncated))
}

fn once(
    transport: &dyn Transport,
    question: Question<'_>,
    buffer: &mut [u8],
    sink: &mut dyn Sink,
) -> Result<(), DumpError> {
    let sequence = next_sequence();
    let flags = NLM_F_REQUEST | NLM_F_DUMP;
    transport.send(&request(question.kind, flags, sequence, question.payload, &[]))?;
    sink.begin();
    let mut spoilt = None;
    loop {
        let len = match transport.receive(buffer) {
            Ok(len) => len,
            Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {
                spoilt.get_or_insert(DumpError::Overrun);
                continue;
            }
            // A dump goes on within recv(): when nothing is there, nothing will come.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Err(spoilt.unwrap_or(DumpError::Truncated)),
            Err(e) => return Err(e.into()),
        };
        if len > buffer.len() {
            spoilt.get_or_insert(DumpError::Truncated);
        }
        for message in messages_of(&buffer[..len.min(buffer.len())]) {
            let Ok((header, payload)) = message else {
                spoilt.get_or_insert(DumpError::Truncated);
                break;
            };
            if header.sequence != sequence {
                sink.heard();
                continue;
            }
            if header.flags & NLM_F_DUMP_INTR != 0 {
                spoilt.get_or_insert(DumpError::Interrupted);
            }
            match header.kind {
                NLMSG_DONE | NLMSG_ERROR => {
                    return match (code(payload), spoilt) {
                        (_, Some(error)) => Err(error),
                        (0, None) if header.kind == NLMSG_DONE => Ok(()),
                        (0, None) => Err(DumpError::Truncated),
                        (code, None) => Err(io::Error::from_raw_os_error(code.saturating_neg()).into()),
                    };
                }
                NLMSG_OVERRUN => {
                    spoilt.get_or_insert(DumpError::Overrun);
                }
                NLMSG_NOOP => {}
                // A dump is read to its end even when it is no good.
                _ if spoilt.is_some() => {}
                kind if kind == question.answer => {
                    if let Err(Malformed(what)) = sink.message(payload) {
                        spoilt = Some(DumpError::Malformed(what));
                    }
                }
                _ => {}
            }
        }
    }
}

/// A question with one answer, which goes to `sink`.
pub fn ask(
    transport: &dyn Transport,
    question: Question<'_>,
    buffer: &mut [u8],
    sink: &mut dyn Sink,
) -> Result<(), DumpError> {
    let sequence = next_sequence();
    transport.send(&request(question.kind, NLM_F_REQUEST, sequence, question.payload, &[]))?;
    sink.begin();
    loop {
        let len = match transport.receive(buffer) {
            Ok(len) => len,
            // It was made within send(): when nothing is there, nothing will come.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Err(DumpError::Truncated),
            Err(e) => return Err(e.into()),
        };
        for message in messages_of(&buffer[..len.min(buffer.len())]) {
            let Ok((header, payload)) = message else {
                return Err(DumpError::Truncated);
            };
            match header.kind {
                _ if header.sequence != sequence => sink.heard(),
                NLMSG_ERROR => return Err(io::Error::from_raw_os_error(-code(payload)).into()),
                kind if kind == question.answer => {
                    return sink
                        .message(payload)
                        .map_err(|Malformed(what)| DumpError::Malformed(what));
                }
                _ => {}
            }
        }
    }
}

/// Has something done, and waits for the word that it was.
pub fn order(
    transport: &dyn Transport,
    kind: u16,
    flags: u16,
    payload: &[u8],
    buffer: &mut [u8],
) -> Result<(), DumpError> {
    let sequence = next_sequence();
    let flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    transport.send(&request(kind, flags, sequence, payload, &[]))?;
    loop {
        let len = match transport.receive(buffer) {
            Ok(len) => len.min(buffer.len()),
            // News had no room; the answer may still come.
            Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => continue,
            // It is done, or not, within send(): when nothing is there, the answer is lost.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Err(DumpError::Truncated),
            Err(e) => return Err(e.into()),
        };
        for (header, payload) in messages_of(&buffer[..len]).map_while(Result::ok) {
            if header.sequence == sequence && header.kind == NLMSG_ERROR {
                return match code(payload) {
                    0 => Ok(()),
                    code => Err(io::Error::from_raw_os_error(code.saturating_neg()).into()),
                };
            }
        }
    }
}

/// errno of an NLMSG_ERROR or NLMSG_DONE, negative; 0: none.
pub(super) fn code(payload: &[u8]) -> i32 {
    payload
        .get(..4)
        .map_or(0, |c| i32::from_ne_bytes([c[0], c[1], c[2], c[3]]))
}

/// Reads what is left of a dump that was given up.
fn drain(transport: &dyn Transport, buffer: &mut [u8]) {
    loop {
        match transport.receive(buffer) {
            Ok(_) => {}
            Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {}
            Err(_) => return,
        }
    }
}

/// Attributes of a message that must be whole.
pub(super) fn each_attribute<'a>(payload: &'a [u8], mut each: impl FnMut(u16, &'a [u8])) -> Result<(), Malformed> {
    for attribute in attributes_of(payload) {
        let (kind, value) = attribute.map_err(|()| Malformed("an attribute that does not fit its message"))?;
        each(kind, value);
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::collections::VecDeque;
    use std::sync::Mutex;

    /// One answer of a socket that plays its part.
    #[derive(Clone, Debug)]
    pub(crate) enum Play {
        /// Messages (type, flags, payload) in one datagram, with the sequence of the last request.
        Messages(Vec<(u16, u16, Vec<u8>)>),
        /// The same, cut after so many bytes.
        Cut(Vec<(u16, u16, Vec<u8>)>, usize),
        /// The same, with the sequence of an older request.
        Late(Vec<(u16, u16, Vec<u8>)>),
        Errno(i32),
    }

    /// Answers each request with the next act; nothing left is EAGAIN.
    #[derive(Debug, Default)]
    pub(crate) struct Stage {
        acts: Mutex<VecDeque<Vec<Play>>>,
        now: Mutex<VecDeque<Play>>,
        sequence: AtomicU32,
        pub(crate) requests: Mutex<Vec<Vec<u8>>>,
    }

    impl Stage {
        pub(crate) fn new(acts: Vec<Vec<Play>>) -> Self {
            Self {
                acts: Mutex::new(acts.into()),
                ..Self::default()
            }
        }
    }

    impl Transport for Stage {
        fn send(&self, message: &[u8]) -> io::Result<()> {
            self.sequence.store(
                u32::from_ne_bytes(message[8..12].try_into().unwrap()),
                Ordering::Relaxed,
            );
            self.requests.lock().unwrap().push(message.to_vec());
            *self.now.lock().unwrap() = self.acts.lock().unwrap().pop_front().unwrap_or_default().into();
            Ok(())
        }

        fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
            let sequence = self.sequence.load(Ordering::Relaxed);
            let bytes = |messages: &[(u16, u16, Vec<u8>)], sequence| {
                let mut all = Vec::new();
                for (kind, flags, payload) in messages {
                    all.extend(request(*kind, *flags, sequence, payload, &[]));
                    all.resize((all.len() + 3) & !3, 0);
                }
                all
            };
            let answer = match self.now.lock().unwrap().pop_front() {
                Some(Play::Messages(messages)) => bytes(&messages, sequence),
                Some(Play::Late(messages)) => bytes(&messages, sequence - 1),
                Some(Play::Cut(messages, len)) => bytes(&messages, sequence)[..len].to_vec(),
                Some(Play::Errno(errno)) => return Err(io::Error::from_raw_os_error(errno)),
                None => return Err(io::ErrorKind::WouldBlock.into()),
            };
            let len = answer.len().min(buffer.len());
            buffer[..len].copy_from_slice(&answer[..len]);
            Ok(answer.len())
        }

        fn device_name(&self, ifindex: u32) -> io::Result<String> {
            Ok(format!("eth{ifindex}"))
        }
    }

    #[derive(Debug, Default)]
    struct Seen(Vec<u8>);

    impl Sink for Seen {
        fn begin(&mut self) {
            self.0.clear();
        }
        fn message(&mut self, payload: &[u8]) -> Result<(), Malformed> {
            if payload.is_empty() {
                return Err(Malformed("expected a byte"));
            }
            self.0.push(payload[0]);
            Ok(())
        }
    }

    const ROW: u16 = 20;

    fn row(n: u8) -> (u16, u16, Vec<u8>) {
        (ROW, 2, vec![n; 4])
    }

    fn done() -> (u16, u16, Vec<u8>) {
        (NLMSG_DONE, 2, vec![0; 4])
    }

    fn ask(acts: Vec<Vec<Play>>) -> (Result<Vec<u8>, DumpError>, usize) {
        let stage = Stage::new(acts);
        let mut seen = Seen::default();
        let question = Question {
            kind: ROW,
            payload: &[0; 4],
            answer: ROW,
        };
        let result = dump(&stage, question, &mut [0; 256], &mut seen).map(|()| seen.0);
        let requests = stage.requests.lock().unwrap().len();
        (result, requests)
    }

    #[test]
    fn a_dump_in_pieces_is_whole_when_it_says_so() {
        let (seen, requests) = ask(vec![vec![
            Play::Late(vec![row(9), done()]),
            Play::Messages(vec![row(1), row(2)]),
            Play::Messages(vec![row(3)]),
            Play::Messages(vec![done()]),
        ]]);
        assert_eq!((seen.unwrap(), requests), (vec![1, 2, 3], 1));
    }

    #[test]
    fn an_interrupted_overrun_or_truncated_dump_is_asked_for_again() {
        let interrupted = vec![
            Play::Messages(vec![row(1)]),
            Play::Messages(vec![(ROW, 2 | NLM_F_DUMP_INTR, vec![2; 4]), row(3)]),
            Play::Messages(vec![done()]),
        ];
        let interrupted_at_end = vec![Play::Messages(vec![
            row(1),
            (NLMSG_DONE, 2 | NLM_F_DUMP_INTR, vec![0; 4]),
        ])];
        let overrun = vec![
            Play::Messages(vec![row(1)]),
            Play::Errno(libc::ENOBUFS),
            Play::Messages(vec![row(3), done()]),
        ];
        let cut = vec![Play::Cut(vec![row(1), row(2)], 33), Play::Messages(vec![done()])];
        let too_long = vec![Play::Messages((0..40).map(row).collect()), Play::Messages(vec![done()])];
        let without_end = vec![Play::Messages(vec![row(1)])];
        let whole = vec![Play::Messages(vec![row(7), done()])];
        for bad in [interrupted, interrupted_at_end, overrun, cut, too_long, without_end] {
            let (seen, requests) = ask(vec![bad.clone(), whole.clone()]);
            assert_eq!((seen.unwrap(), requests), (vec![7], 2), "{bad:?}");
            let (seen, requests) = ask(vec![bad.clone(), bad.clone(), bad.clone(), whole.clone()]);
            assert!(seen.is_err(), "never a part of it: {bad:?}");
            assert_eq!(requests, ATTEMPTS);
        }
    }

    #[test]
    fn a_refusal_and_a_malformed_message_are_errors_at_once() {
        let refusal = |errno: i32| vec![Play::Messages(vec![(NLMSG_ERROR, 0, (-errno).to_ne_bytes().to_vec())])];
        let (seen, requests) = ask(vec![refusal(libc::ENOENT)]);
        assert!(seen.as_ref().unwrap_err().is_absent() && requests == 1);
        let (seen, _) = ask(vec![refusal(libc::EPERM)]);
        assert!(!seen.unwrap_err().is_absent());
        // The end of a dump can carry an error too.
        let failed_end = (NLMSG_DONE, 2, (-libc::EINVAL).to_ne_bytes().to_vec());
        let (seen, _) = ask(vec![vec![Play::Messages(vec![row(1), failed_end])]]);
        assert!(matches!(seen, Err(DumpError::Refused(_))), "{seen:?}");
        let (seen, requests) = ask(vec![vec![Play::Messages(vec![row(1), (ROW, 2, vec![]), done()])]]);
        assert!(matches!(seen, Err(DumpError::Malformed("expected a byte"))), "{seen:?}");
        assert_eq!(requests, 1);
    }
}
