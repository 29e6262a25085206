//! What the processes of a pod have open: `/proc/PID/fd`, summed up over processes.

use std::collections::HashSet;

use super::{ProcessProbe, ProcessRegistration};
use crate::catalogue::{ColumnSpec, ProbeSpec};
use crate::event::Subject;
use crate::processes::Members;
use crate::procfs::ReadError;
use crate::procfs::process::Answer;
use crate::table::{ABSENT, Table};

pub(super) const PROBE: ProcessRegistration = ProcessRegistration {
    spec: &SPEC,
    file: "fd",
    make: || Box::new(Fd::default()),
};

static SPEC: ProbeSpec = ProbeSpec {
    name: "fd",
    help: "Processes of a pod, and what they have open, from /proc/PID/fd",
    source: "/proc/PID/fd of the processes in the pod's control group, else in its network namespace (Linux fs/proc/fd.c)",
    labels: &[],
    columns: COLUMNS,
    event_types: &[],
};

const COLUMNS: &[ColumnSpec] = &[
    ColumnSpec::gauge("processes", "processes", "Processes, threads not counted"),
    ColumnSpec::gauge(
        "open_files",
        "files",
        "Open file descriptors, one that several processes share counted for each",
    ),
    ColumnSpec::gauge(
        "open_sockets",
        "sockets",
        "Open sockets of every kind, one that several processes share counted once; absent above 100,000 descriptors",
    ),
];

/// A descriptor costs two microseconds to look at.
const LINKS: usize = 100_000;

#[derive(Debug, Default)]
struct Fd {
    /// Of the pod at hand; kept for its room.
    sockets: HashSet<u64>,
}

impl ProcessProbe for Fd {
    fn read(&mut self, members: Members<'_>, subject: &Subject, table: &mut Table) -> Result<(), ReadError> {
        self.sockets.clear();
        let (mut processes, mut open_files, mut links) = (0, 0, LINKS + 1);
        for process in members.list.iter().filter(|process| !process.is_zombie) {
            if let Answer::Is(count) = members
                .files
                .open_files(&process.handle, &mut self.sockets, &mut links)?
            {
                processes += 1;
                open_files += count;
            }
        }
        let open_sockets = if links == 0 { ABSENT } else { self.sockets.len() as i64 };
        table.push(subject.clone(), [], &[processes, open_files, open_sockets]);
        Ok(())
    }

    fn forget_all_but(&mut self, _live: &HashSet<&str>) {}
}
