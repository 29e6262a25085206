//! What the processes of a pod read and wrote: `/proc/PID/io`, summed up over processes.

use std::collections::{HashMap, HashSet};

use super::{ProcessProbe, ProcessRegistration};
use crate::catalogue::{ColumnSpec, ProbeSpec};
use crate::event::Subject;
use crate::processes::Members;
use crate::processes::carry::{Carry, Seen};
use crate::procfs::ReadError;
use crate::procfs::process::{Answer, IO_COUNTERS};
use crate::table::Table;

pub(super) const PROBE: ProcessRegistration = ProcessRegistration {
    spec: &SPEC,
    file: "io",
    make: || Box::new(Io::default()),
};

static SPEC: ProbeSpec = ProbeSpec {
    name: "io",
    help: "What the processes of a pod read and wrote, ended ones included, from /proc/PID/io",
    source: "/proc/PID/io of the processes in the pod's control group, else in its network namespace (Linux fs/proc/base.c, do_io_accounting; CONFIG_TASK_IO_ACCOUNTING)",
    labels: &[],
    columns: COLUMNS,
    event_types: &[],
};

/// In the order of the file.
const COLUMNS: &[ColumnSpec; IO_COUNTERS] = &[
    ColumnSpec::counter(
        "read_bytes",
        "bytes",
        "Bytes that read calls returned, from files, pipes and sockets (recv calls are not among them)",
    ),
    ColumnSpec::counter(
        "write_bytes",
        "bytes",
        "Bytes that write calls took, to files, pipes and sockets (send calls are not among them)",
    ),
    ColumnSpec::counter("read_syscalls", "calls", "Calls of read, pread, readv and the like"),
    ColumnSpec::counter("write_syscalls", "calls", "Calls of write, pwrite, writev and the like"),
    ColumnSpec::counter("storage_read_bytes", "bytes", "Bytes fetched from storage"),
    ColumnSpec::counter("storage_write_bytes", "bytes", "Bytes that are sent to storage"),
    ColumnSpec::counter(
        "storage_cancelled_bytes",
        "bytes",
        "Bytes that need not go to storage any more: their file was cut or removed first",
    ),
];

#[derive(Debug, Default)]
struct Io {
    /// By sandbox.
    sums: HashMap<String, Carry>,
}

impl ProcessProbe for Io {
    fn read(&mut self, members: Members<'_>, subject: &Subject, table: &mut Table) -> Result<(), ReadError> {
        let Subject::Pod(pod) = subject else { return Ok(()) };
        let mut seen = Vec::with_capacity(members.list.len());
        for process in members.list {
            match members.files.io(&mut process.handle)? {
                Answer::Is(io) => seen.push(Seen {
                    id: process.id,
                    parent: process.parent,
                    io,
                }),
                Answer::Ended => {}
                // This kernel keeps no account, of none of them.
                Answer::Absent => return Ok(()),
            }
        }
        let total = match self.sums.get_mut(&pod.sandbox) {
            Some(sum) => sum.update(&seen),
            None => self.sums.entry(pod.sandbox.clone()).or_default().update(&seen),
        };
        table.push(subject.clone(), [], &total);
        Ok(())
    }

    fn forget_all_but(&mut self, live: &HashSet<&str>) {
        self.sums.retain(|sandbox, _| live.contains(sandbox.as_str()));
    }
}
