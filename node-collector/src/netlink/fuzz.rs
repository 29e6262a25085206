//! Answers of the kernel to netlink requests.

use std::io;
use std::sync::Mutex;

use sonde_mutate::Target;

use super::message::{attributes, attributes_of, messages, messages_of, request};
use super::socket::Transport;
use super::{filter, qdisc, rdma, route, tcp};

pub(crate) const TARGETS: [Target; 2] = [
    Target {
        name: "netlink_dump",
        seeds: dumps,
        run: dump,
    },
    Target {
        name: "netlink_message",
        seeds: || vec![request(18, 5, 7, &[1; 16], &[(3, b"eth0\0"), (5, &7u32.to_ne_bytes())])],
        run: message,
    },
];

/// A socket whose every answer is the input, as one datagram, with the sequence that was asked with.
#[derive(Debug)]
struct Tape<'a> {
    answer: &'a [u8],
    state: Mutex<(u32, bool)>,
}

impl Transport for Tape<'_> {
    fn send(&self, message: &[u8]) -> io::Result<()> {
        let sequence = u32::from_ne_bytes(message[8..12].try_into().expect("four bytes"));
        *self.state.lock().expect("one thread") = (sequence, true);
        Ok(())
    }

    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let (sequence, waits) = &mut *self.state.lock().expect("one thread");
        if !std::mem::take(waits) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut answer = self.answer.to_vec();
        let mut at = 0;
        while let Some((_, payload)) = messages(&self.answer[at..]).next() {
            // Of 0 in the input a message is another's.
            if answer[at + 8] != 0 {
                answer[at + 8..at + 12].copy_from_slice(&sequence.to_ne_bytes());
            }
            at = (at + 16 + payload.len()).next_multiple_of(4).min(answer.len());
        }
        let len = answer.len().min(buffer.len());
        buffer[..len].copy_from_slice(&answer[..len]);
        Ok(answer.len())
    }

    fn device_name(&self, ifindex: u32) -> io::Result<String> {
        Ok(format!("eth{ifindex}"))
    }
}

/// Whoever asks, whatever is answered.
fn dump(answer: &[u8]) {
    let tape = Tape {
        answer,
        state: Mutex::default(),
    };
    let mut buffer = [0; 4096];
    let mut roots = qdisc::Roots::default();
    if let Ok(true) = qdisc::read(&tape, &mut qdisc::Memory::default(), &mut buffer, &mut roots) {
        assert!(roots.iter().all(|root| !root.kind.contains('\0')));
    }
    if let Ok(all) = filter::filters(&tape, 7, filter::Side::Ingress, &mut buffer) {
        assert!(
            all.iter()
                .all(|one| !one.kind.contains('\0') && !one.name.contains('\0'))
        );
    }
    if let Ok(all) = filter::devices(&tape, &mut buffer) {
        assert!(all.len() <= answer.len() / 16);
    }
    let mut resources = rdma::Resources::default();
    if let Ok(true) = rdma::read(&tape, &mut buffer, &mut resources) {
        assert!(resources.iter().all(|one| !one.device.contains('\0')));
    }
    let (mut scratch, mut sums) = (tcp::Scratch::default(), tcp::TcpSockets::default());
    let mut memory = tcp::Memory::default();
    if let Ok(true) = tcp::read(&tape, None, &mut memory, (&mut buffer, &mut scratch), &mut sums) {
        let of_states: i64 = tcp::STATES.iter().map(|(state, _)| sums.in_state(*state)).sum();
        assert!(of_states <= (answer.len() / 16) as i64 && sums.ports.len() as i64 <= of_states);
        assert!(sums.ports.is_sorted_by(|a, b| a < b));
        assert!(sums.rtts.is_none_or(|rtts| rtts.is_sorted()));
    }
}

/// Messages and attributes are read alike by both readers, as they lie in the buffer and to its end; written again they
/// are read again.
fn message(input: &[u8]) {
    let strict: Vec<_> = messages_of(input).map_while(Result::ok).collect();
    assert!(messages(input).eq(strict.iter().copied()));
    for (header, payload) in strict {
        for skipped in [0, 8, 16] {
            let Some(rest) = payload.get(skipped..) else { break };
            let all: Vec<_> = attributes(rest).collect();
            assert!(attributes_of(rest).map_while(Result::ok).eq(all.iter().copied()));
            let again = request(header.kind, header.flags, header.sequence, &payload[..skipped], &all);
            let (same, payload) = messages(&again).next().expect("what was just written");
            assert_eq!(same, header);
            assert!(attributes(&payload[skipped..]).eq(all.iter().copied()));
        }
        let _ = (route::address(payload), route::pair_end(payload));
    }
}

fn dumps() -> Vec<Vec<u8>> {
    let done = request(3, 2, 1, &[0; 4], &[]);
    let count = 7u64.to_ne_bytes();
    let nested = |list: &[(u16, &[u8])]| request(0, 0, 0, &[], list)[16..].to_vec();
    let statistics = nested(&[(1, &[7; 12]), (3, &[1; 20]), (8, &count)]);
    let mut root = [0; 20];
    root[12..16].fill(0xff);
    let resource = nested(&[(17, b"qp\0"), (18, &count)]);
    let summary = nested(&[(16, &resource)]);
    let mut socket = [0; 72];
    (socket[0], socket[1], socket[4]) = (2, 1, 80);
    let program = nested(&[(7, b"sonde_flow:7:qdisc\0"), (8, &[1, 0, 0, 0])]);
    let mut filter = [0; 20];
    filter[8..20].copy_from_slice(&[0xde, 0x50, 0, 0, 0xf2, 0xff, 0xff, 0xff, 0, 3, 10, 0]);
    let all = [
        request(44, 2, 1, &filter, &[(1, b"bpf\0"), (11, &[0; 4]), (2, &program)]),
        request(36, 2, 1, &root, &[(1, b"fq_codel\0"), (7, &statistics)]),
        request((5 << 10) + 9, 2, 1, &[], &[(2, b"mlx5_0\0"), (15, &summary)]),
        request(18, 2, 1, &socket, &[(2, &[9; 240]), (7, &[1; 36])]),
    ];
    all.iter().map(|message| [&message[..], &done].concat()).collect()
}
