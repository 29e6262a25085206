//! Neighbour tables: ARP for IPv4, neighbour discovery for IPv6. The kernel has one table a family for the whole
//! machine, all network namespaces in it, and one limit: when one pod fills it, nobody finds new neighbours. So these
//! are the node's, and only the first network namespace shows them.

use std::sync::Arc;

use super::{Families, Probe, Registration, columns};
use crate::catalogue::{LabelSpec, ProbeSpec};
use crate::event::Subject;
use crate::handles::Readings;
use crate::procfs::per_cpu::PerCpu;
use crate::procfs::{NetFile, ReadError, sysctl};
use crate::table::{ABSENT, Table};

pub(super) const PROBE: Registration = Registration {
    spec: &SPEC,
    files: &[
        NetFile::ArpCache,
        NetFile::ArpThreshold1,
        NetFile::ArpThreshold2,
        NetFile::ArpThreshold3,
        NetFile::NdiscCache,
        NetFile::NdiscThreshold1,
        NetFile::NdiscThreshold2,
        NetFile::NdiscThreshold3,
    ],
    netlink: &[],
    node_only: true,
    make: || Box::new(Neigh::default()),
};

static SPEC: ProbeSpec = ProbeSpec {
    name: "neigh",
    help: "Neighbour tables (ARP and IPv6 neighbour discovery) of the whole node, all network namespaces together",
    source: "/proc/net/stat/arp_cache and ndisc_cache, all CPUs together, and /proc/sys/net/ipv4/neigh/default/gc_thresh1 to 3 and those of ipv6 (Linux net/core/neighbour.c, neigh_stat_seq_show)",
    labels: &[LabelSpec {
        name: "family",
        help: "ipv4 or ipv6",
    }],
    columns: COLUMNS,
    event_types: &[],
};

columns! {
    "entries" => gauge "entries" "entries": "Entries now; permanent ones and those that a program keeps are in it and do not count towards the limits (Linux 5.0)";
    "" => gauge "entries_gc_threshold" "entries": "Below so many entries none is collected (gc_thresh1)";
    "" => gauge "entries_soft_limit" "entries": "Above so many entries those unused for 5 s are collected at once (gc_thresh2)";
    "" => gauge "entries_limit" "entries": "So many entries there may be (gc_thresh3)";
    "table_fulls" => counter "table_fulls" "entries": "Entries that could not be made because the table was full";
    "allocs" => counter "allocations" "entries": "Entries made";
    "destroys" => counter "destroys" "entries": "Entries removed";
    "hash_grows" => counter "hash_grows" "": "Times that the hash table was made bigger";
    "lookups" => counter "lookups" "": "Look-ups in the table";
    "hits" => counter "hits" "": "Look-ups that found an entry";
    "res_failed" => counter "resolution_failures" "": "Neighbours that did not answer";
    "rcv_probes_mcast" => counter "received_multicast_probes" "packets": "Neighbour solicitations to a group received (IPv6)";
    "rcv_probes_ucast" => counter "received_unicast_probes" "packets": "Neighbour solicitations to this host received (IPv6)";
    "periodic_gc_runs" => counter "periodic_gc_runs" "": "Runs of the collection that comes from time to time";
    "forced_gc_runs" => counter "forced_gc_runs" "": "Runs of the collection because the table had grown too big";
    "unresolved_discards" => counter "unresolved_discards" "packets": "Packets dropped because too many waited for the neighbour's address already";
}

const FILES: [(NetFile, [NetFile; 3]); 2] = [
    (
        NetFile::ArpCache,
        [NetFile::ArpThreshold1, NetFile::ArpThreshold2, NetFile::ArpThreshold3],
    ),
    (
        NetFile::NdiscCache,
        [
            NetFile::NdiscThreshold1,
            NetFile::NdiscThreshold2,
            NetFile::NdiscThreshold3,
        ],
    ),
];
/// Place of the first threshold among the columns.
const THRESHOLDS: usize = 1;

#[derive(Debug)]
struct Neigh {
    stats: PerCpu,
    families: Families,
}

impl Default for Neigh {
    fn default() -> Self {
        Self {
            stats: PerCpu::new(NAMES),
            families: Families::default(),
        }
    }
}

impl Probe for Neigh {
    fn read(
        &mut self,
        readings: &mut Readings<'_>,
        subject: &Subject,
        table: &mut Table,
    ) -> Result<(), Arc<ReadError>> {
        let mut result = Ok(());
        for ((file, thresholds), family) in FILES.into_iter().zip([&self.families.ipv4, &self.families.ipv6]) {
            let mut values = [ABSENT; COLUMNS.len()];
            let stats = readings.parse(file, |text| self.stats.parse(text, &mut values));
            let is_there = matches!(stats, Ok(Some(true)));
            result = result.and(stats.map(drop));
            if !is_there {
                continue;
            }
            for (value, file) in values[THRESHOLDS..].iter_mut().zip(thresholds) {
                match readings.parse(file, sysctl::numbers::<1>) {
                    Ok(threshold) => *value = threshold.map_or(ABSENT, |[threshold]| threshold),
                    Err(error) => result = result.and(Err(error)),
                }
            }
            table.push(subject.clone(), [Arc::clone(family)], &values);
        }
        result
    }
}
