//! Connection tracking of a network namespace.
//!
//! Entries and counters belong to the namespace; the limit is one setting of the machine that each namespace's entries
//! are held against on their own. Where a namespace has no rule that needs connection tracking nothing is tracked in
//! it, and all of this stays 0.

use std::sync::Arc;

use super::{Probe, Registration, columns};
use crate::catalogue::ProbeSpec;
use crate::event::Subject;
use crate::handles::Readings;
use crate::procfs::per_cpu::PerCpu;
use crate::procfs::{NetFile, ReadError, sysctl};
use crate::table::{ABSENT, Table};

pub(super) const PROBE: Registration = Registration {
    spec: &SPEC,
    files: &[NetFile::Conntrack, NetFile::ConntrackCount, NetFile::ConntrackMax],
    netlink: &[],
    node_only: false,
    make: || Box::new(Conntrack(PerCpu::new(NAMES))),
};

static SPEC: ProbeSpec = ProbeSpec {
    name: "conntrack",
    help: "Connection tracking of the network namespace: entries, their limit, and what could not be tracked",
    source: "/proc/net/stat/nf_conntrack, all CPUs together, and /proc/sys/net/netfilter/nf_conntrack_max and _count (Linux net/netfilter/nf_conntrack_standalone.c, ct_cpu_seq_show); without CONFIG_NF_CONNTRACK_PROCFS only entries and limit. The kernel's counters have 32 bits a CPU",
    labels: &[],
    columns: COLUMNS,
    event_types: &[],
};

// The kernel still prints `searched`, `new`, `ignore` and `delete`, always as 0: left out.
columns! {
    "entries" => gauge "entries" "connections": "Connections tracked now";
    "" => gauge "entries_limit" "connections": "How many may be tracked in one network namespace (nf_conntrack_max)";
    "found" => counter "found" "": "Look-ups of an address tuple that found it taken, as NAT does to choose one";
    "invalid" => counter "invalid" "packets": "Packets that fit no connection or break its protocol";
    "insert" => counter "inserts" "connections": "Connections added to the table by a process through netlink, and clashes resolved; not those that packets begin";
    "insert_failed" => counter "insert_failures" "connections": "Connections that could not be added to the table, such as for a clash of two packets; the packet is dropped";
    "drop" => counter "drops" "packets": "Packets dropped because a connection could not be tracked: table full and no early drop, or no memory";
    "early_drop" => counter "early_drops" "connections": "Connections thrown out to make room in a full table";
    "icmp_error" => counter "icmp_errors" "packets": "ICMP errors that fit no connection";
    "search_restart" => counter "search_restarts" "": "Look-ups begun again because the table was resized meanwhile";
    "clashres" => counter "clashes_resolved" "connections": "Clashes of two packets of one connection that were resolved (Linux 5.10)";
    "chainlength" => counter "chain_too_long" "connections": "Connections not added because the hash chain was too long (Linux 5.15)";
    "expect_new" => counter "expectations_new" "connections": "Expected connections registered, for protocols such as FTP";
    "expect_create" => counter "expectations_created" "connections": "Expected connections added to the table";
    "expect_delete" => counter "expectations_deleted" "connections": "Expected connections removed from the table";
}

const ENTRIES: usize = 0;
const LIMIT: usize = 1;

#[derive(Debug)]
struct Conntrack(PerCpu);

impl Probe for Conntrack {
    fn read(
        &mut self,
        readings: &mut Readings<'_>,
        subject: &Subject,
        table: &mut Table,
    ) -> Result<(), Arc<ReadError>> {
        let mut values = [ABSENT; COLUMNS.len()];
        let stats = readings.parse(NetFile::Conntrack, |text| self.0.parse(text, &mut values));
        let entries = match stats {
            Ok(None) => readings
                .parse(NetFile::ConntrackCount, sysctl::numbers::<1>)
                .map(|count| {
                    values[ENTRIES] = count.map_or(ABSENT, |[count]| count);
                }),
            _ => Ok(()),
        };
        let limit = readings.parse(NetFile::ConntrackMax, sysctl::numbers::<1>).map(|max| {
            values[LIMIT] = max.map_or(ABSENT, |[max]| max);
        });
        if values.iter().any(|value| *value != ABSENT) {
            table.push(subject.clone(), [], &values);
        }
        stats.map(drop).and(entries).and(limit)
    }
}
