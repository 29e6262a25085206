//! Root qdiscs of the devices of a network namespace (RTM_GETQDISC).

use super::dump::{DumpError, Malformed, Question, Sink, dump, each_attribute};
use super::socket::Transport;

const RTM_NEWQDISC: u16 = 36;
const RTM_GETQDISC: u16 = 38;
const TC_H_ROOT: u32 = u32::MAX;
const TCA_KIND: u16 = 1;
const TCA_STATS2: u16 = 7;
const TCA_STATS_BASIC: u16 = 1;
const TCA_STATS_QUEUE: u16 = 3;
const TCA_STATS_PKT64: u16 = 8;
/// `struct tcmsg`.
const HEADER: usize = 20;

/// One of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Qdisc {
    pub ifindex: u32,
    /// In its namespace.
    pub device: String,
    pub kind: String,
    pub bytes: u64,
    /// 32 bits before 5.5.
    pub packets: u64,
    /// `struct gnet_stats_queue`: packets and bytes that wait now, then counters of 32 bits.
    pub queue: Option<Queue>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Queue {
    pub length: u32,
    pub backlog_bytes: u32,
    pub drops: u32,
    pub requeues: u32,
    pub overlimits: u32,
}

/// The roots that count. Not the qdiscs below a root, which holds their sums; not `noqueue`, through which packets pass
/// uncounted; not ingress and clsact, which hold no packets.
#[derive(Debug, Default)]
pub struct Roots {
    all: Vec<Qdisc>,
    /// Something changed while they were listed.
    heard: bool,
}

/// Whether the last listing found no root that counts, as in most pods. Then nothing is asked until the socket hears of a
/// change, so the memory is worth something only as long as the socket is kept.
#[derive(Debug, Default)]
pub struct Memory {
    none: bool,
}

impl Roots {
    pub fn iter(&self) -> impl Iterator<Item = &Qdisc> {
        self.all.iter()
    }
}

impl Sink for Roots {
    fn begin(&mut self) {
        self.all.clear();
        self.heard = false;
    }

    fn message(&mut self, payload: &[u8]) -> Result<(), Malformed> {
        let word = |value: &[u8], place: usize| Some(u32::from_ne_bytes(value.get(place..place + 4)?.try_into().ok()?));
        if payload.len() < HEADER {
            return Err(Malformed("shorter than tcmsg"));
        }
        if word(payload, 12) != Some(TC_H_ROOT) {
            return Ok(());
        }
        let (mut kind, mut stats) = (None, None);
        each_attribute(&payload[HEADER..], |attribute, value| match attribute {
            TCA_KIND => kind = Some(value),
            TCA_STATS2 => stats = Some(value),
            _ => {}
        })?;
        let kind = kind.ok_or(Malformed("a qdisc without a kind"))?;
        let kind = std::str::from_utf8(kind.split(|b| *b == 0).next().unwrap_or_default())
            .map_err(|_| Malformed("a qdisc kind that is not UTF-8"))?;
        if kind == "noqueue" {
            return Ok(());
        }
        let (mut basic, mut packets_64, mut queue) = (None, None, None);
        each_attribute(
            stats.ok_or(Malformed("a qdisc without statistics"))?,
            |attribute, value| match attribute {
                TCA_STATS_BASIC => basic = Some(value),
                TCA_STATS_PKT64 => packets_64 = value.get(..8).and_then(|v| v.try_into().ok()).map(u64::from_ne_bytes),
                TCA_STATS_QUEUE => queue = Some(value),
                _ => {}
            },
        )?;
        let basic = basic
            .filter(|b| b.len() >= 12)
            .ok_or(Malformed("a qdisc without bytes and packets"))?;
        let (Ok(bytes), Some(packets)) = (basic[..8].try_into().map(u64::from_ne_bytes), word(basic, 8)) else {
            return Err(Malformed("a qdisc without bytes and packets"));
        };
        let queue = queue.and_then(|q| {
            Some(Queue {
                length: word(q, 0)?,
                backlog_bytes: word(q, 4)?,
                drops: word(q, 8)?,
                requeues: word(q, 12)?,
                overlimits: word(q, 16)?,
            })
        });
        self.all.push(Qdisc {
            ifindex: word(payload, 4).unwrap_or_default(),
            device: String::new(),
            kind: kind.to_owned(),
            bytes,
            // Only there where 32 bits do not hold them.
            packets: packets_64.unwrap_or(u64::from(packets)),
            queue,
        });
        Ok(())
    }

    fn heard(&mut self) {
        self.heard = true;
    }
}

/// Reads the roots of the namespace. `Ok(false)`: this kernel has no qdiscs.
pub fn read(
    transport: &dyn Transport,
    memory: &mut Memory,
    buffer: &mut [u8],
    roots: &mut Roots,
) -> Result<bool, DumpError> {
    // Also where it is asked in any case: news would fill the socket and keep the answer out.
    let heard = transport.has_heard(buffer);
    if memory.none && !heard {
        roots.begin();
        return Ok(true);
    }
    memory.none = false;
    let question = Question {
        kind: RTM_GETQDISC,
        payload: &[0; HEADER],
        answer: RTM_NEWQDISC,
    };
    match dump(transport, question, buffer, roots) {
        Ok(()) => memory.none = roots.all.is_empty() && !roots.heard,
        Err(error) if error.is_absent() => return Ok(false),
        Err(error) => return Err(error),
    }
    let mut result = Ok(true);
    roots.all.retain_mut(|root| match transport.device_name(root.ifindex) {
        Ok(name) => {
            root.device = name;
            true
        }
        // It went since.
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => false,
        Err(e) => {
            result = Err(e.into());
            false
        }
    });
    result
}

#[cfg(test)]
mod tests {
    use super::super::dump::tests::{Play, Stage};
    use super::super::message::request;
    use super::*;

    fn nested(attributes: &[(u16, &[u8])]) -> Vec<u8> {
        request(0, 0, 0, &[], attributes)[16..].to_vec()
    }

    fn qdisc(ifindex: u32, parent: u32, kind: &[u8], stats: &[(u16, &[u8])]) -> Vec<u8> {
        let mut header = [0; HEADER];
        header[4..8].copy_from_slice(&ifindex.to_ne_bytes());
        header[12..16].copy_from_slice(&parent.to_ne_bytes());
        let stats = nested(stats);
        request(0, 0, 0, &header, &[(TCA_KIND, kind), (TCA_STATS2, &stats)])[16..].to_vec()
    }

    fn basic(bytes: u64, packets: u32) -> Vec<u8> {
        // Padded to 16 as the kernel's struct is.
        [&bytes.to_ne_bytes()[..], &packets.to_ne_bytes(), &[0; 4]].concat()
    }

    fn queue(words: [u32; 5]) -> Vec<u8> {
        words.iter().flat_map(|w| w.to_ne_bytes()).collect()
    }

    fn read_all(messages: Vec<Vec<u8>>) -> Result<Vec<Qdisc>, DumpError> {
        let mut play: Vec<_> = messages.into_iter().map(|m| (RTM_NEWQDISC, 2, m)).collect();
        play.push((3, 2, vec![0; 4]));
        let stage = Stage::new(vec![vec![Play::Messages(play)]]);
        let mut roots = Roots::default();
        read(&stage, &mut Memory::default(), &mut [0; 4096], &mut roots).map(|there| {
            assert!(there);
            roots.all
        })
    }

    #[test]
    fn only_roots_count_and_wide_packets_win() {
        let words = queue([1, 100, 2, 3, 4]);
        let wide = (1u64 << 40).to_ne_bytes();
        let all = read_all(vec![
            qdisc(
                2,
                TC_H_ROOT,
                b"mq\0",
                &[
                    (TCA_STATS_BASIC, &basic(u64::MAX, 7)),
                    (TCA_STATS_QUEUE, &words),
                    (TCA_STATS_PKT64, &wide),
                ],
            ),
            // Below the mq: the same packets again.
            qdisc(
                2,
                1,
                b"fq_codel\0",
                &[(TCA_STATS_BASIC, &basic(500, 5)), (TCA_STATS_QUEUE, &words)],
            ),
            qdisc(2, 0xffff_fff1, b"clsact\0", &[(TCA_STATS_BASIC, &basic(500, 5))]),
            qdisc(1, TC_H_ROOT, b"noqueue\0", &[(TCA_STATS_BASIC, &basic(0, 0))]),
            // 4.19 has no wide packets.
            qdisc(3, TC_H_ROOT, b"tbf\0", &[(TCA_STATS_BASIC, &basic(60, 6))]),
        ])
        .unwrap();
        assert_eq!(
            all,
            [
                Qdisc {
                    ifindex: 2,
                    device: "eth2".into(),
                    kind: "mq".into(),
                    bytes: u64::MAX,
                    packets: 1 << 40,
                    queue: Some(Queue {
                        length: 1,
                        backlog_bytes: 100,
                        drops: 2,
                        requeues: 3,
                        overlimits: 4
                    })
                },
                Qdisc {
                    ifindex: 3,
                    device: "eth3".into(),
                    kind: "tbf".into(),
                    bytes: 60,
                    packets: 6,
                    queue: None
                },
            ]
        );
    }

    #[test]
    fn where_no_queue_counts_nothing_is_asked_until_something_changes() {
        let done = || (3, 2, vec![0; 4]);
        let row = |kind: &[u8]| {
            (
                RTM_NEWQDISC,
                2,
                qdisc(3, TC_H_ROOT, kind, &[(TCA_STATS_BASIC, &basic(60, 6))]),
            )
        };
        let stage = Stage::new(vec![
            // A change while they are listed: not to be relied on.
            vec![
                Play::Late(vec![row(b"tbf\0")]),
                Play::Messages(vec![row(b"noqueue\0"), done()]),
            ],
            vec![
                Play::Messages(vec![row(b"noqueue\0"), done()]),
                Play::Errno(libc::EAGAIN),
                // Heard before the third round.
                Play::Late(vec![row(b"tbf\0")]),
                Play::Errno(libc::EAGAIN),
            ],
            vec![Play::Messages(vec![row(b"tbf\0"), done()])],
            vec![Play::Messages(vec![row(b"tbf\0"), done()])],
        ]);
        let (mut memory, mut roots) = (Memory::default(), Roots::default());
        let mut seen = Vec::new();
        for _ in 0..5 {
            assert!(read(&stage, &mut memory, &mut [0; 4096], &mut roots).unwrap());
            seen.push((stage.requests.lock().unwrap().len(), roots.all.len()));
        }
        assert_eq!(seen, [(1, 0), (2, 0), (2, 0), (3, 1), (4, 1)]);
    }

    #[test]
    fn a_message_that_is_not_whole_is_no_qdisc() {
        let whole = qdisc(3, TC_H_ROOT, b"tbf\0", &[(TCA_STATS_BASIC, &basic(60, 6))]);
        for len in 0..whole.len() {
            let result = read_all(vec![whole[..len].to_vec()]);
            // Cut between two attributes it lacks what makes it one.
            assert!(result.is_err(), "{len}: {result:?}");
        }
        assert!(read_all(vec![qdisc(3, TC_H_ROOT, b"tbf\0", &[(TCA_STATS_BASIC, &[0; 11])])]).is_err());
    }
}
