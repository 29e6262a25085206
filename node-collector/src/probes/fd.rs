//! What the processes of a pod have open: `/proc/PID/fd`, summed up over processes.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::{ProcessProbe, ProcessRegistration};
use crate::catalogue::{ColumnSpec, ProbeSpec};
use crate::event::Subject;
use crate::processes::{Id, Members};
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
        "Open sockets of every kind, one that several processes share counted once; of a process whose number of open files stays the same they are looked at again after one to two minutes; absent above 100,000 descriptors",
    ),
];

/// A descriptor costs two microseconds to look at.
const LINKS: usize = 100_000;
/// How long what a process was seen to have stands, as long as the number of its files is the same.
const STANDS: Duration = Duration::from_secs(60);

/// The sockets of a process, and how many files it had then.
#[derive(Debug)]
struct Looked {
    files: i64,
    sockets: Vec<u64>,
    until: Instant,
}

impl Looked {
    /// They are not all looked at again in one round.
    fn new(id: Id, files: i64, sockets: Vec<u64>) -> Self {
        let until = Instant::now() + STANDS + STANDS * (id.pid % 32) / 32;
        Self { files, sockets, until }
    }
}

#[derive(Debug, Default)]
struct Fd {
    /// By sandbox.
    looked: HashMap<String, HashMap<Id, Looked>>,
    /// Of the pod at hand; kept for its room.
    sockets: HashSet<u64>,
}

impl ProcessProbe for Fd {
    fn read(&mut self, members: Members<'_>, subject: &Subject, table: &mut Table) -> Result<(), ReadError> {
        let Subject::Pod(pod) = subject else { return Ok(()) };
        let mut before = self.looked.remove(&pod.sandbox).unwrap_or_default();
        let mut now = HashMap::with_capacity(before.len());
        self.sockets.clear();
        let (mut processes, mut open_files, mut links) = (0, 0, LINKS + 1);
        for process in members.list.iter_mut().filter(|process| !process.is_zombie) {
            let Answer::Is(files) = members.files.open_files(&mut process.handle)? else {
                continue;
            };
            processes += 1;
            open_files += files;
            let stands = |looked: &Looked| looked.files == files && looked.until > Instant::now();
            let looked = match before.remove(&process.id).filter(stands) {
                Some(looked) => looked,
                None => match members.files.sockets(&mut process.handle, &mut links)? {
                    Answer::Is(sockets) => Looked::new(process.id, files, sockets),
                    Answer::Ended | Answer::Absent => continue,
                },
            };
            self.sockets.extend(&looked.sockets);
            now.insert(process.id, looked);
        }
        let open_sockets = if links == 0 { ABSENT } else { self.sockets.len() as i64 };
        if links > 0 {
            self.looked.insert(pod.sandbox.clone(), now);
        }
        table.push(subject.clone(), [], &[processes, open_files, open_sockets]);
        Ok(())
    }

    fn forget_all_but(&mut self, live: &HashSet<&str>) {
        self.looked.retain(|sandbox, _| live.contains(sandbox.as_str()));
    }
}
