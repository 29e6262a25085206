use super::super::dump::tests::{Play, Stage};
use super::super::message::request;
use super::*;

/// A socket as the kernel tells it.
pub(crate) struct Socket {
    state: u8,
    local: u16,
    far: u16,
    queues: (u32, u32),
    /// Length of tcp_info; 0: none.
    info: usize,
    words: Vec<(usize, u32)>,
    memory: Vec<u32>,
}

impl Socket {
    fn new(state: u8) -> Self {
        Self {
            state,
            local: 40_000,
            far: 80,
            queues: (0, 0),
            info: 280,
            words: Vec::new(),
            memory: vec![1, 0, 2, 0, 4, 8, 0, 16, 32],
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut header = [0; RESPONSE_LEN];
        header[0] = AF_INET;
        header[1] = self.state;
        header[4..6].copy_from_slice(&self.local.to_be_bytes());
        header[6..8].copy_from_slice(&self.far.to_be_bytes());
        header[8..12].copy_from_slice(&[10, 0, 0, 1]);
        header[24..28].copy_from_slice(&[10, 0, 0, 2]);
        header[56..60].copy_from_slice(&self.queues.0.to_ne_bytes());
        header[60..64].copy_from_slice(&self.queues.1.to_ne_bytes());
        let mut info = vec![0xff; self.info];
        for place in [24, 32, 36, 68, 228, 232] {
            if let Some(word) = info.get_mut(place..place + 4) {
                word.fill(0);
            }
        }
        if let Some(retransmits) = info.get_mut(2) {
            *retransmits = 0;
        }
        for (place, value) in &self.words {
            info[*place..place + 4].copy_from_slice(&value.to_ne_bytes());
        }
        let memory: Vec<u8> = self.memory.iter().flat_map(|w| w.to_ne_bytes()).collect();
        let mut attributes: Vec<(u16, &[u8])> = vec![(8, &[0])];
        if !memory.is_empty() {
            attributes.push((INET_DIAG_SKMEMINFO, &memory));
        }
        if self.info > 0 {
            attributes.push((INET_DIAG_INFO, &info));
        }
        request(0, 0, 0, &header, &attributes)[16..].to_vec()
    }
}

fn play(sockets: &[Socket]) -> Vec<Play> {
    let mut messages: Vec<_> = sockets.iter().map(|s| (TCPDIAG_GETSOCK, 2, s.bytes())).collect();
    messages.push((3, 2, vec![0; 4]));
    vec![Play::Messages(messages)]
}

fn fold(sockets: &[Socket]) -> TcpSockets {
    let mut all = TcpSockets::default();
    let stage = Stage::new(vec![play(sockets)]);
    assert!(
        read(
            &stage,
            None,
            &mut Memory::default(),
            (&mut [0; 65536], &mut Scratch::default()),
            &mut all
        )
        .unwrap()
    );
    all
}

#[test]
fn every_state_is_counted_and_half_open_is_told_from_syn_recv() {
    let mut sockets: Vec<Socket> = (1..=11).map(Socket::new).collect();
    sockets.push(Socket {
        info: 0,
        memory: Vec::new(),
        ..Socket::new(TCP_SYN_RECV)
    });
    let all = fold(&sockets);
    for (state, name) in STATES {
        assert_eq!(all.in_state(state), 1, "{name}");
    }
    assert_eq!((all.receive_memory_bytes, all.send_memory_bytes), (11, 22));
    assert_eq!((all.forward_memory_bytes, all.write_queue_bytes), (44, 88));
    assert_eq!((all.backlog_bytes, all.drops), (176, 352));
    assert_eq!((all.rtt_connections, all.rtts), (0, None), "no sample yet");
}

#[test]
fn queues_of_listeners_are_connections_and_those_of_others_bytes() {
    let listener = |waiting, limit| Socket {
        queues: (waiting, limit),
        ..Socket::new(TCP_LISTEN)
    };
    let all = fold(&[
        listener(3, 128),
        listener(6, 5),
        listener(5, 5),
        Socket {
            queues: (700, 9000),
            ..Socket::new(TCP_ESTABLISHED)
        },
    ]);
    assert_eq!((all.receive_queue_bytes, all.send_queue_bytes), (700, 9000));
    assert_eq!((all.accept_queue, all.accept_queue_limit), (14, 138));
    assert_eq!((all.fullest, all.fullest_limit, all.full_listeners), (6, 5, 1));
    // A limit of 0 takes one connection.
    let all = fold(&[listener(0, 128), listener(1, 0), listener(0, 0)]);
    assert_eq!((all.fullest, all.fullest_limit, all.full_listeners), (1, 0, 1));
}

#[test]
fn what_an_older_kernel_does_not_tell_is_not_known() {
    // tcp_info of 4.19 ends before the windows, memory of 4.6 before the drops.
    let old = fold(&[Socket {
        info: 224,
        words: vec![(24, 5), (32, 1), (36, 2), (68, 1500)],
        memory: vec![1; 8],
        ..Socket::new(TCP_ESTABLISHED)
    }]);
    assert_eq!(
        old.lacks,
        Lacks {
            drops: true,
            send_window: true,
            receive_window: true,
            ..Lacks::default()
        }
    );
    assert_eq!((old.unacknowledged, old.lost, old.retransmits_in_flight), (5, 1, 2));
    let new = fold(&[
        Socket {
            words: vec![(228, 1), (232, 0)],
            ..Socket::new(TCP_ESTABLISHED)
        },
        Socket {
            words: vec![(228, 0), (232, 9)],
            ..Socket::new(TCP_ESTABLISHED)
        },
        // Only an established connection has windows that stand still.
        Socket::new(TCP_SYN_SENT),
    ]);
    assert_eq!(new.lacks, Lacks::default());
    assert_eq!((new.zero_send_window, new.zero_receive_window), (1, 1));
    assert_eq!(new.rtt_connections, 0);
    // Half-open and TIME_WAIT have nothing to tell.
    let small = |state| Socket {
        info: 0,
        memory: Vec::new(),
        ..Socket::new(state)
    };
    assert_eq!(
        fold(&[small(TCP_SYN_RECV), small(TCP_TIME_WAIT), small(TCP_FIN_WAIT2)]).lacks,
        Lacks::default()
    );
    assert!(fold(&[small(TCP_ESTABLISHED)]).lacks.info);
}

#[test]
fn round_trip_times_are_ranked() {
    let with = |rtts: &mut dyn Iterator<Item = u32>| {
        let sockets: Vec<Socket> = rtts
            .map(|rtt| Socket {
                words: vec![(68, rtt)],
                ..Socket::new(TCP_ESTABLISHED)
            })
            .collect();
        let all = fold(&sockets);
        (all.rtt_connections, all.rtts)
    };
    assert_eq!(with(&mut (1..=100).rev()), (100, Some([50, 90, 99, 100])));
    assert_eq!(with(&mut [7].into_iter()), (1, Some([7; 4])));
    assert_eq!(with(&mut [9, 1].into_iter()), (2, Some([1, 9, 9, 9])));
}

#[test]
fn ports_are_counted_once_and_destinations_by_their_connections() {
    let to = |local, far| Socket {
        local,
        far,
        ..Socket::new(TCP_TIME_WAIT)
    };
    let all = fold(&[
        to(40_000, 80),
        to(40_000, 81),
        to(40_001, 80),
        to(65_535, 80),
        to(80, 9),
    ]);
    assert_eq!(all.ports, [80, 40_000, 40_001, 65_535]);
    assert_eq!(all.most_to_one_destination, 3);
    assert_eq!(fold(&[]).most_to_one_destination, 0);
}

#[test]
fn nothing_in_use_is_not_asked_for() {
    let stage = Stage::new(vec![]);
    let mut all = fold(&[Socket::new(TCP_ESTABLISHED)]);
    let known = Known {
        in_use: 0,
        time_wait: 0,
        segments: None,
    };
    assert!(
        read(
            &stage,
            Some(known),
            &mut Memory::default(),
            (&mut [0; 64], &mut Scratch::default()),
            &mut all
        )
        .unwrap()
    );
    assert!(stage.requests.lock().unwrap().is_empty());
    assert_eq!(all.in_state(TCP_ESTABLISHED), 0, "what was there before is forgotten");
}

#[test]
fn what_was_still_is_walked_again_only_when_something_moved() {
    let still = || Socket {
        words: vec![(68, 1500)],
        ..Socket::new(TCP_ESTABLISHED)
    };
    let listener = |waiting| Socket {
        queues: (waiting, 5),
        ..Socket::new(TCP_LISTEN)
    };
    let known = |in_use, time_wait, segments| Known {
        in_use,
        time_wait,
        segments: Some([segments, 1, 2, 3]),
    };
    let half_open = Socket {
        info: 0,
        memory: Vec::new(),
        ..Socket::new(TCP_SYN_RECV)
    };
    let unread = Socket {
        queues: (1, 0),
        ..Socket::new(TCP_ESTABLISHED)
    };
    // What is asked and what is found, round by round.
    type Step = (Known, Vec<Vec<Socket>>, &'static [u32]);
    let rounds: Vec<Step> = vec![
        (known(2, 0, 7), vec![vec![listener(0), still()]], &[ALL]),
        // The queue of the listener is seen to grow, nothing else is asked.
        (known(2, 0, 7), vec![vec![listener(3)]], &[LISTENERS]),
        (known(2, 0, 7), vec![vec![listener(0)]], &[LISTENERS]),
        (known(2, 0, 8), vec![vec![listener(0), still()]], &[ALL]),
        (known(2, 1, 8), vec![vec![listener(0), still()]], &[ALL]),
        // Another listener than before, on another port or one more.
        (
            known(2, 1, 8),
            vec![
                vec![Socket {
                    local: 81,
                    ..listener(0)
                }],
                vec![listener(0), still()],
            ],
            &[LISTENERS, ALL],
        ),
        (
            known(2, 1, 8),
            vec![vec![listener(0), listener(0)], vec![listener(0), listener(0)]],
            &[LISTENERS, ALL],
        ),
        // A half-open connection may go without a trace, unread bytes may be read.
        (known(2, 0, 9), vec![vec![listener(0), half_open]], &[ALL]),
        (known(2, 0, 9), vec![vec![listener(0), unread]], &[ALL]),
        (known(1, 0, 9), vec![vec![still()]], &[ALL]),
        // Without a listener there is nothing to ask.
        (known(1, 0, 9), vec![], &[]),
        // Not all is known: never taken for the same.
        (
            Known {
                segments: None,
                ..known(1, 0, 9)
            },
            vec![vec![still()]],
            &[ALL],
        ),
        (
            Known {
                segments: None,
                ..known(1, 0, 9)
            },
            vec![vec![still()]],
            &[ALL],
        ),
    ];
    let stage = Stage::new(rounds.iter().flat_map(|r| r.1.iter().map(|s| play(s))).collect());
    let (mut memory, mut all, mut scratch) = (Memory::default(), TcpSockets::default(), Scratch::default());
    for (i, (known, found, asked)) in rounds.iter().enumerate() {
        let before = stage.requests.lock().unwrap().len();
        let buffers = (&mut [0; 65536][..], &mut scratch);
        assert!(read(&stage, Some(*known), &mut memory, buffers, &mut all).unwrap());
        let requests = stage.requests.lock().unwrap();
        let states: Vec<u32> = requests[before..]
            .iter()
            .map(|r| u32::from_ne_bytes(r[16 + 52..16 + 56].try_into().unwrap()))
            .collect();
        assert_eq!(states, *asked, "round {i}");
        let waiting: i64 = found.last().map_or(0, |s| {
            s.iter()
                .filter(|s| s.state == TCP_LISTEN)
                .map(|s| i64::from(s.queues.0))
                .sum()
        });
        assert_eq!(all.accept_queue, waiting, "round {i}");
        if i < 5 {
            assert_eq!(
                (all.in_state(TCP_ESTABLISHED), all.rtts),
                (1, Some([1500; 4])),
                "round {i}"
            );
            assert_eq!(all.ports, [40_000], "round {i}");
        }
    }
}

#[test]
fn a_kernel_without_sock_diag_is_absent_and_a_cut_socket_an_error() {
    let refusal = Play::Messages(vec![(2, 0, (-libc::ENOENT).to_ne_bytes().to_vec())]);
    let ask = |act: Vec<Play>| {
        let stage = Stage::new(vec![act]);
        let mut all = TcpSockets::default();
        read(
            &stage,
            None,
            &mut Memory::default(),
            (&mut [0; 65536], &mut Scratch::default()),
            &mut all,
        )
    };
    assert!(!ask(vec![refusal]).unwrap());
    let whole = Socket::new(TCP_LISTEN).bytes();
    for len in [0, RESPONSE_LEN - 1, RESPONSE_LEN + 2, whole.len() - 1] {
        let cut = (TCPDIAG_GETSOCK, 2, whole[..len].to_vec());
        let result = ask(vec![Play::Messages(vec![cut, (3, 2, vec![0; 4])])]);
        assert!(matches!(result, Err(DumpError::Malformed(_))), "{len}: {result:?}");
    }
    let strange = (TCPDIAG_GETSOCK, 2, Socket::new(14).bytes());
    let result = ask(vec![Play::Messages(vec![strange, (3, 2, vec![0; 4])])]);
    assert!(matches!(result, Err(DumpError::Malformed(_))), "{result:?}");
}
