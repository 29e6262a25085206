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
    assert!(read(&stage, None, &mut Memory::default(), &mut [0; 65536], &mut all).unwrap());
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
    let mut all = fold(&sockets);
    for (state, name) in STATES {
        assert_eq!(all.in_state(state), 1, "{name}");
    }
    assert_eq!(all.others_than_listeners(), 11);
    assert_eq!((all.receive_memory_bytes, all.send_memory_bytes), (11, 22));
    assert_eq!((all.forward_memory_bytes, all.write_queue_bytes), (44, 88));
    assert_eq!((all.backlog_bytes, all.drops), (176, 352));
    assert_eq!(all.rtt(), (0, None), "no sample yet");
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
    let mut new = fold(&[
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
    assert_eq!(new.rtt().0, 0);
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
        fold(&sockets).rtt()
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
    assert_eq!(all.ports.in_use(32_768..=60_999), 2);
    assert_eq!(all.ports.in_use(0..=65_535), 4);
    assert_eq!(all.ports.most_to_one_destination(), 3);
    assert_eq!(fold(&[]).ports.most_to_one_destination(), 0);
}

#[test]
fn nothing_in_use_is_not_asked_for() {
    let stage = Stage::new(vec![]);
    let mut all = fold(&[Socket::new(TCP_ESTABLISHED)]);
    let known = Known {
        in_use: 0,
        time_wait: 0,
        received_segments: 5,
    };
    assert!(read(&stage, Some(known), &mut Memory::default(), &mut [0; 64], &mut all).unwrap());
    assert!(stage.requests.lock().unwrap().is_empty());
    assert_eq!(all.in_state(TCP_ESTABLISHED), 0, "what was there before is forgotten");
}

#[test]
fn listeners_alone_are_listed_only_where_nothing_came_since_a_walk_that_found_no_other() {
    let listen = || play(&[Socket::new(TCP_LISTEN)]);
    let half_open = || {
        play(&[
            Socket::new(TCP_LISTEN),
            Socket {
                info: 0,
                ..Socket::new(TCP_SYN_RECV)
            },
        ])
    };
    let known = |in_use, received_segments| Known {
        in_use,
        time_wait: 0,
        received_segments,
    };
    let stage = Stage::new(vec![
        listen(),
        listen(),
        half_open(),
        half_open(),
        listen(),
        listen(),
        listen(),
    ]);
    let (mut memory, mut all) = (Memory::default(), TcpSockets::default());
    let mut states = |known| {
        let before = stage.requests.lock().unwrap().len();
        assert!(read(&stage, Some(known), &mut memory, &mut [0; 65536], &mut all).unwrap());
        let requests = stage.requests.lock().unwrap();
        requests[before..]
            .iter()
            .map(|r| u32::from_ne_bytes(r[16 + 52..16 + 56].try_into().unwrap()))
            .collect::<Vec<_>>()
    };
    assert_eq!(states(known(1, 7)), [ALL], "never walked");
    assert_eq!(states(known(1, 7)), [LISTENERS]);
    assert_eq!(states(known(1, 8)), [ALL], "a segment came in");
    assert_eq!(states(known(1, 8)), [ALL], "the walk found a half-open connection");
    assert_eq!(states(known(1, 8)), [ALL], "which is gone");
    // Two in use, one of them a listener: the other must be looked for.
    assert_eq!(states(known(2, 8)), [LISTENERS, ALL]);
}

#[test]
fn a_kernel_without_sock_diag_is_absent_and_a_cut_socket_an_error() {
    let refusal = Play::Messages(vec![(2, 0, (-libc::ENOENT).to_ne_bytes().to_vec())]);
    let ask = |act: Vec<Play>| {
        let stage = Stage::new(vec![act]);
        let mut all = TcpSockets::default();
        read(&stage, None, &mut Memory::default(), &mut [0; 65536], &mut all)
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
