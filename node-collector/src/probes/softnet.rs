//! Packet processing of the node's CPUs: `/proc/net/softnet_stat`, all CPUs together. The kernel keeps these for the
//! machine and shows the same numbers in every network namespace, so pods have none.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Probe, Registration};
use crate::catalogue::{ColumnSpec, ProbeSpec};
use crate::event::Subject;
use crate::handles::Readings;
use crate::procfs::softnet::{Cpu, parse};
use crate::procfs::{NetFile, ReadError};
use crate::table::{ABSENT, Table};

pub(super) const PROBE: Registration = Registration {
    spec: &SPEC,
    files: &[NetFile::SoftnetStat],
    netlink: &[],
    node_only: true,
    make: || Box::new(Softnet::default()),
};

static SPEC: ProbeSpec = ProbeSpec {
    name: "softnet",
    help: "Packet processing of all CPUs of the node, from /proc/net/softnet_stat",
    source: "/proc/net/softnet_stat (Linux net/core/net-procfs.c, softnet_seq_show)",
    labels: &[],
    columns: &[
        ColumnSpec::counter("processed", "packets", "Packets taken from receive queues"),
        ColumnSpec::counter("dropped", "packets", "Packets dropped because a CPU's backlog was full"),
        ColumnSpec::counter(
            "time_squeeze",
            "",
            "Rounds that ended with work left, for want of time or budget",
        ),
        ColumnSpec::counter(
            "received_rps",
            "",
            "Wake-ups by another CPU for receive packet steering",
        ),
        ColumnSpec::counter("flow_limit", "packets", "Packets dropped by the flow limit"),
        ColumnSpec::gauge(
            "backlog_packets",
            "packets",
            "Packets that wait in the backlogs now (Linux 5.10)",
        ),
        ColumnSpec::gauge(
            "input_queue_packets",
            "packets",
            "Those of them that no CPU has taken over yet (kernels after 5.10)",
        ),
        ColumnSpec::gauge(
            "process_queue_packets",
            "packets",
            "Those of them that a CPU is about to process (kernels after 5.10)",
        ),
    ],
    event_types: &[],
};

/// The counters of one CPU, carried on beyond the 32 bits at which the kernel's wrap: at a million packets a second
/// that is every 72 minutes, and a sum that falls would look like a restart.
#[derive(Debug, Default)]
struct Carried {
    last: [u32; 5],
    total: [u64; 5],
    seen: bool,
}

impl Carried {
    fn add(&mut self, now: [u32; 5]) {
        for ((total, last), now) in self.total.iter_mut().zip(self.last).zip(now) {
            *total += u64::from(if self.seen { now.wrapping_sub(last) } else { now });
        }
        self.last = now;
        self.seen = true;
    }
}

/// A CPU that goes offline keeps its share of the sum.
#[derive(Debug, Default)]
struct Softnet {
    cpus: HashMap<u32, Carried>,
}

impl Softnet {
    fn add(&mut self, cpu: Cpu) {
        let Cpu {
            processed,
            dropped,
            time_squeeze,
            received_rps,
            flow_limit,
            ..
        } = cpu;
        self.cpus.entry(cpu.cpu).or_default().add([
            processed,
            dropped,
            time_squeeze,
            received_rps.unwrap_or(0),
            flow_limit.unwrap_or(0),
        ]);
    }

    fn sum(&self, counter: usize) -> i64 {
        self.cpus.values().map(|cpu| cpu.total[counter] as i64).sum()
    }
}

impl Probe for Softnet {
    fn read(
        &mut self,
        readings: &mut Readings<'_>,
        subject: &Subject,
        table: &mut Table,
    ) -> Result<(), Arc<ReadError>> {
        let mut cpus = Vec::new();
        if readings
            .parse(NetFile::SoftnetStat, |text| parse(text, |cpu| cpus.push(cpu)))?
            .is_none()
            || cpus.is_empty()
        {
            return Ok(());
        }
        let first = cpus[0];
        let waiting = |of: fn(&Cpu) -> Option<u32>| -> i64 { cpus.iter().filter_map(of).map(i64::from).sum() };
        let (backlog, input, process) = (
            waiting(|cpu| cpu.backlog),
            waiting(|cpu| cpu.input_queue),
            waiting(|cpu| cpu.process_queue),
        );
        for cpu in cpus {
            self.add(cpu);
        }
        let known = |there: bool, value: i64| if there { value } else { ABSENT };
        table.push(
            subject.clone(),
            [],
            &[
                self.sum(0),
                self.sum(1),
                self.sum(2),
                known(first.received_rps.is_some(), self.sum(3)),
                known(first.flow_limit.is_some(), self.sum(4)),
                known(first.backlog.is_some(), backlog),
                known(first.input_queue.is_some(), input),
                known(first.process_queue.is_some(), process),
            ],
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_goes_on_when_a_cpu_wraps_or_goes_offline() {
        let mut softnet = Softnet::default();
        let cpu = |cpu, processed| Cpu {
            cpu,
            processed,
            ..Cpu::default()
        };
        softnet.add(cpu(0, u32::MAX - 1));
        softnet.add(cpu(1, 10));
        assert_eq!(softnet.sum(0), i64::from(u32::MAX) + 9);
        softnet.add(cpu(0, 3)); // five more, over the edge
        assert_eq!(softnet.sum(0), i64::from(u32::MAX) + 14);
        softnet.add(cpu(0, 3)); // CPU 1 is gone
        assert_eq!(softnet.sum(0), i64::from(u32::MAX) + 14);
        softnet.add(cpu(1, 12)); // and back
        assert_eq!(softnet.sum(0), i64::from(u32::MAX) + 16);
    }
}
