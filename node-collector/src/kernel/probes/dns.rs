//! Names that pods ask for: how long the answers take, how they end, and which never come. Off by default: it runs for
//! every packet, if only to see that it is none of its own.
//!
//! Queries over UDP to port 53 that are made in the namespace itself, and their answers. A query is known again by
//! addresses, port and number. Not here: DNS over TCP, TLS or HTTPS, and fragmented messages beyond their first packet.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use sonde_ebpf_common::dns::{Count, Key, Query, QueryKey, WAITING, answer};
use sonde_ebpf_common::lost;

use crate::catalogue::{ColumnSpec, ProbeSpec};
use crate::event::NetnsKey;
use crate::kernel::clock::monotonic_ns;
use crate::kernel::counted::{self, Counted};
use crate::kernel::latency::{self, LATENCY_BOUNDS};
use crate::kernel::plan::{Attach, Hook, Rung, Signal, Step};
use crate::kernel::probe::{Defaults, Host, KernelProbe, Opened, Reader, Round, Setup, Standing, key_budget};
use crate::kernel::sys::{BatchBuffer, RawMap};
use crate::table::Table;

/// What waits longer is not answered any more. Resolvers give up, or ask again, after as long.
const TIMEOUT: Duration = Duration::from_secs(5);

const SPEC: ProbeSpec = ProbeSpec {
    name: "dns",
    help: "DNS over UDP, as the pod that asks sees it",
    source: "eBPF on tracepoints net:net_dev_start_xmit and net:netif_receive_skb (Linux net/core/dev.c)",
    labels: &[],
    columns: &[
        ColumnSpec::histogram(
            "latency_seconds",
            "seconds",
            "Time from the first sending of a query to its answer, whatever that says",
            LATENCY_BOUNDS,
        )
        .scaled(1e-9),
        ColumnSpec::counter("over_1ms", "", "Answers that took longer than 1 ms"),
        ColumnSpec::counter("over_10ms", "", "Answers that took longer than 10 ms"),
        ColumnSpec::counter("over_100ms", "", "Answers that took longer than 100 ms"),
        ColumnSpec::counter("queries", "", "Queries sent, repetitions left out"),
        ColumnSpec::counter("retries", "", "Queries sent again while they waited for their answer"),
        ColumnSpec::counter("timeouts", "", "Queries that had no answer for 5 s"),
        ColumnSpec::counter("noerror", "", "Answers without error, also those that hold no record"),
        ColumnSpec::counter("servfail", "", "Answers that the server failed (SERVFAIL)"),
        ColumnSpec::counter("nxdomain", "", "Answers that there is no such name (NXDOMAIN)"),
        ColumnSpec::counter("refused", "", "Answers that the server refuses (REFUSED)"),
        ColumnSpec::counter("other", "", "Answers with any other error"),
        ColumnSpec::counter(
            "truncated",
            "",
            "Answers that were cut off, so that the client asks again over TCP",
        ),
    ],
    event_types: &[],
};

pub(super) const PROBE: KernelProbe = KernelProbe {
    spec: &SPEC,
    node_only: false,
    defaults: Defaults {
        enabled: false,
        threshold: Duration::ZERO,
        sample: 1,
    },
    signals: &[&COUNT],
    maps: &[
        ("DNS_WAITING", |_| WAITING),
        ("DNS_COUNTS", |cpus| key_budget(cpus, size_of::<Count>())),
    ],
    uncounted: Some((lost::DNS, "queries whose answers are in no row: a map was full")),
    prepare,
};

const COUNT: Signal = Signal {
    name: "dns.count",
    probe: SPEC.name,
    rows: true,
    buckets: &[],
    steps: &[
        Step::new(
            Rung::TpBtf,
            &[
                Hook("dns_answer_btf", Attach::TpBtf("netif_receive_skb")),
                Hook("dns_query_btf", Attach::TpBtf("net_dev_start_xmit")),
            ],
        ),
        Step::new(
            Rung::RawTracepoint,
            &[
                Hook("dns_answer_raw", Attach::RawTracepoint("netif_receive_skb")),
                Hook("dns_query_raw", Attach::RawTracepoint("net_dev_start_xmit")),
            ],
        ),
    ],
    needs: &[
        "START_XMIT_SKB",
        "START_XMIT_DEV",
        "RECEIVE_SKB",
        "SKB_DEV",
        "SKB_SK",
        "SKB_HEAD",
        "SKB_DATA",
        "SKB_LEN",
        "SKB_TAIL",
        "SKB_NETWORK_HEADER",
        "SKB_PROTOCOL",
        "SOCK_NET",
        "DEV_NET",
        "DEV_IFINDEX",
        "NET_INODE",
    ],
    missed: "queries or answers that were not seen",
    provoke: None,
    option: None,
};

fn prepare(_: &Host<'_>) -> Setup {
    Setup::new(|object| {
        Ok(Opened {
            reader: Box::new(Queries {
                counts: Counted::new(object.map("DNS_COUNTS")?),
                waiting: object.map("DNS_WAITING")?,
                buffer: BatchBuffer::default(),
                timeouts: HashMap::new(),
            }),
            decoders: Vec::new(),
        })
    })
}

impl counted::Key for Key {
    fn netns(&self) -> NetnsKey {
        NetnsKey {
            inode: self.netns,
            cookie: self.cookie,
        }
    }
}

impl counted::Value for Count {
    fn add(&mut self, other: &Self) {
        self.latency.add(&other.latency);
        self.queries += other.queries;
        self.retries += other.retries;
        for (mine, theirs) in self.answers.iter_mut().zip(other.answers) {
            *mine += theirs;
        }
        self.truncated += other.truncated;
    }

    fn count(&self) -> u64 {
        self.queries
    }
}

struct Queries {
    counts: Counted<Key, Count>,
    waiting: RawMap<QueryKey, Query>,
    buffer: BatchBuffer<QueryKey, Query>,
    /// Of each namespace since start.
    timeouts: HashMap<(u32, u64), u64>,
}

impl Queries {
    /// Takes away what has waited for too long. An answer that comes at this moment takes it away itself: who does, counts.
    fn give_up(&mut self, now_ns: u64) -> io::Result<()> {
        let mut late = Vec::new();
        self.waiting.for_each(&mut self.buffer, |key, copies| {
            let waits = |query: &Query| is_late(query, now_ns);
            if copies.iter().any(waits) {
                late.push(*key);
            }
        })?;
        for key in late {
            if self.waiting.delete(&key)? {
                *self.timeouts.entry((key.netns, key.cookie)).or_default() += 1;
            }
        }
        Ok(())
    }
}

fn is_late(query: &Query, now_ns: u64) -> bool {
    u128::from(now_ns.saturating_sub(query.since_ns)) >= TIMEOUT.as_nanos()
}

impl Reader for Queries {
    fn read(&mut self, round: &Round<'_>) -> io::Result<Table> {
        self.give_up(monotonic_ns())?;
        let sums = self.counts.read(round, |key| (key.netns, key.cookie))?;
        let mut table = Table::with_capacity(&SPEC, round.time_ns, sums.len());
        let mut values = Vec::new();
        for (subject, netns, count) in sums {
            let timeouts = self.timeouts.get(&netns).copied().unwrap_or(0);
            push(&mut values, &count, timeouts);
            table.push(subject, [], &values);
        }
        for gone in round.gone {
            self.timeouts
                .retain(|(inode, cookie), _| *inode != gone.inode || *cookie != gone.cookie && gone.cookie != 0);
        }
        Ok(table)
    }

    fn seen(&mut self) -> io::Result<u64> {
        self.counts.seen()
    }

    fn standing(&self) -> Standing {
        self.counts.standing()
    }
}

/// One row, in the order of the columns.
fn push(values: &mut Vec<i64>, count: &Count, timeouts: u64) {
    values.clear();
    latency::push(values, &count.latency);
    let answers = [
        answer::NOERROR,
        answer::SERVFAIL,
        answer::NXDOMAIN,
        answer::REFUSED,
        answer::OTHER,
    ]
    .map(|kind| count.answers[kind]);
    let counters = [count.queries, count.retries, timeouts].into_iter().chain(answers);
    values.extend(counters.chain([count.truncated]).map(|count| count as i64));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_each_count_in_its_column() {
        let count = Count {
            queries: 1,
            retries: 2,
            answers: [4, 5, 6, 7, 8],
            truncated: 9,
            ..Count::default()
        };
        let mut values = Vec::new();
        push(&mut values, &count, 3);
        let widths: usize = SPEC.columns.iter().map(ColumnSpec::width).sum();
        assert_eq!(values.len(), widths);
        let named: Vec<_> = SPEC.columns[4..]
            .iter()
            .map(|column| column.name)
            .zip(&values[values.len() - 9..])
            .collect();
        let expected = [
            ("queries", &1),
            ("retries", &2),
            ("timeouts", &3),
            ("noerror", &4),
            ("servfail", &5),
            ("nxdomain", &6),
            ("refused", &7),
            ("other", &8),
            ("truncated", &9),
        ];
        assert_eq!(named, expected);
    }

    #[test]
    fn a_query_is_late_after_five_seconds_and_not_before() {
        let query = Query {
            since_ns: 10,
            ifindex: 1,
            pad: 0,
        };
        assert!(!is_late(&query, 5_000_000_009));
        assert!(is_late(&query, 5_000_000_010));
        assert!(!is_late(&query, 0), "a query of the future");
    }
}
