//! Drops: counted by one program, told by another. What they mean is in [`crate::probes::packetloss`].

use std::error::Error;
use std::io;
use std::net::UdpSocket;
use std::sync::Arc;

use sonde_ebpf_common::drop::{Count, CountKey};
use sonde_ebpf_common::record::kind;
use sonde_ebpf_common::{limit, lost};

use crate::event::NetnsKey;
use crate::kernel::Gauge;
use crate::kernel::counted::{self, Counted};
use crate::kernel::plan::{Attach, Bucket, Hook, Rung, Signal, Step};
use crate::kernel::probe::{
    Decoded, Decoder, Decoders, Defaults, Host, KernelProbe, Opened, Reader, Round, Setup, Standing, count_keys,
};
use crate::kernel::reasons::Reasons;
use crate::kernel::sites::{Sites, verdicts};
use crate::probes::packetloss::{Class, Raw, SPEC};
use crate::table::Table;

pub(super) const PROBE: KernelProbe = KernelProbe {
    spec: &SPEC,
    node_only: false,
    defaults: Defaults::ON,
    signals: &[&COUNT, &EVENTS],
    maps: &[("PACKETLOSS_COUNTS", count_keys), ("PACKETLOSS_SITES", |_| 8192)],
    uncounted: Some((lost::PACKETLOSS, "drops that are in no row: the map of counts was full")),
    prepare,
};

const COUNT: Signal = Signal {
    name: "packetloss.count",
    probe: SPEC.name,
    rows: true,
    buckets: &[],
    steps: &[
        Step::new(Rung::TpBtf, &[Hook("drop_count_btf", Attach::TpBtf("kfree_skb"))]),
        Step::new(
            Rung::RawTracepoint,
            &[Hook("drop_count_raw", Attach::RawTracepoint("kfree_skb"))],
        ),
    ],
    needs: NEEDS,
    missed: "drops that were not counted",
    provoke: Some(drop_a_packet),
    ..Signal::PLAIN
};

const EVENTS: Signal = Signal {
    name: "packetloss.events",
    probe: SPEC.name,
    rows: false,
    buckets: &[
        Bucket {
            position: limit::PACKETLOSS,
            held: "events beyond events.rate",
        },
        Bucket {
            position: limit::PACKETLOSS_NEW_SITE,
            held: "drops of a kind that was not known yet, beyond events.rate",
        },
    ],
    steps: &[
        Step::new(Rung::TpBtf, &[Hook("drop_event_btf", Attach::TpBtf("kfree_skb"))]),
        Step::new(
            Rung::RawTracepoint,
            &[Hook("drop_event_raw", Attach::RawTracepoint("kfree_skb"))],
        ),
    ],
    needs: NEEDS,
    missed: "drops that could make no event",
    provoke: None,
    ..Signal::PLAIN
};

const NEEDS: &[&str] = &[
    "KFREE_SKB_SKB",
    "KFREE_SKB_LOCATION",
    "SKB_DEV",
    "SKB_SK",
    "SKB_HEAD",
    "SKB_NETWORK_HEADER",
    "SKB_PROTOCOL",
    "DEV_NET",
    "SOCK_NET",
    "NET_INODE",
];

fn prepare(host: &Host<'_>) -> Setup {
    let reasons = host
        .btf
        .map(|btf| Reasons::read(btf, &host.config.host.sys))
        .unwrap_or_default();
    let verdicts = verdicts(&reasons);
    let symbols = Arc::clone(&host.symbols);
    Setup::new(move |object| {
        let sites = Arc::new(Sites::new(reasons, symbols, Some(object.map("PACKETLOSS_SITES")?)));
        let reader = Drops {
            counts: Counted::new(object.map("PACKETLOSS_COUNTS")?),
            sites: Arc::clone(&sites),
        };
        Ok(Opened {
            reader: Box::new(reader),
            decoders: decoders(sites),
        })
    })
    .global("PACKETLOSS_REASONS", &verdicts)
}

pub(super) fn decoders(sites: Arc<Sites>) -> Decoders {
    vec![(kind::DROP, Box::new(Drop(sites)))]
}

impl counted::Key for CountKey {
    fn netns(&self) -> NetnsKey {
        NetnsKey {
            inode: self.netns,
            cookie: self.cookie,
        }
    }
}

impl counted::Value for Count {
    fn add(&mut self, other: &Self) {
        Self::add(self, other);
    }

    fn count(&self) -> u64 {
        self.skbs
    }
}

struct Drops {
    counts: Counted<CountKey, Count>,
    sites: Arc<Sites>,
}

impl Reader for Drops {
    /// Rows by (namespace, reason, class).
    fn read(&mut self, round: &Round<'_>) -> io::Result<Table> {
        let sites = &self.sites;
        let sums = self.counts.read(round, |key| {
            let known = sites.learn(key.site);
            (known.reason, known.class.name())
        })?;
        let mut table = Table::with_capacity(&SPEC, round.time_ns, sums.len());
        for (subject, (reason, class), count) in sums {
            let values = [count.skbs as i64, count.segments() as i64];
            table.push(subject, [reason, class.into()], &values);
        }
        Ok(table)
    }

    fn seen(&mut self) -> io::Result<u64> {
        self.counts.seen()
    }

    fn standing(&self) -> Standing {
        self.counts.standing()
    }

    fn gauges(&self) -> Vec<Gauge> {
        vec![Gauge {
            name: "sonde_collector_ebpf_drop_sites",
            help: "Kinds of drops seen so far",
            value: self.sites.len() as u64,
        }]
    }
}

struct Drop(Arc<Sites>);

impl Decoder for Drop {
    fn decode(&mut self, record: &[u8]) -> Result<Decoded, Box<dyn Error>> {
        let raw = Raw::parse(record)?;
        // Also of sites that the kernel side knows: the class may have come while the record was on its way.
        if self.0.learn(raw.site()).class != Class::Suspect {
            return Ok(Decoded::Nothing);
        }
        Ok(Decoded::Event(limit::PACKETLOSS, Box::new(raw.observe(&*self.0))))
    }
}

/// A datagram to a port of the loopback address that was just closed.
fn drop_a_packet() -> io::Result<()> {
    // First, or it could be given the port that was closed, and get its own datagram.
    let socket = UdpSocket::bind(("127.0.0.1", 0))?;
    let closed = UdpSocket::bind(("127.0.0.1", 0))?.local_addr()?;
    socket.send_to(b"sonde", closed).map(drop)
}
