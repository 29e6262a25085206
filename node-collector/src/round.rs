//! A round: every probe of `/proc/net` reads every network namespace, once each interval.
//!
//! What a probe could not read is counted here, by probe and kind, and becomes a gap: not with every round, but when it
//! ends or has lasted a minute.

use std::collections::HashMap;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use sonde_proto::gap;

use crate::catalogue::ProbeSpec;
use crate::event::{Gap, Subject};
use crate::handles::Readers;
use crate::pods::{Target, netns};
use crate::probes::{Probe, Registration};
use crate::procfs::ReadError;
use crate::table::Table;

/// A failure that lasts is told again after this.
const GAP_NS: u64 = 60 * 1_000_000_000;

/// The probes that are on, and what they need from round to round.
#[derive(Debug)]
pub struct Rounds {
    probes: Vec<Running>,
    readers: Readers,
    failures: Failures,
    stats: Arc<Mutex<Vec<ProbeStats>>>,
    home: Option<std::fs::File>,
}

#[derive(Debug)]
struct Running {
    registration: &'static Registration,
    probe: Box<dyn Probe>,
    rows: usize,
}

/// What a probe did so far, for metrics and `/status`.
#[derive(Clone, Debug)]
pub struct ProbeStats {
    pub name: &'static str,
    /// By place in [`ReadError::KINDS`].
    pub errors: [u64; ReadError::KINDS.len()],
    pub last_error: String,
    /// Something could not be read in the last round.
    pub failing: bool,
    /// Of the last round.
    pub rows: usize,
    /// Of all rounds. A file that several probes use counts for the first of them.
    pub busy_ns: u64,
}

impl ProbeStats {
    pub(crate) const fn new(name: &'static str) -> Self {
        Self {
            name,
            errors: [0; ReadError::KINDS.len()],
            last_error: String::new(),
            failing: false,
            rows: 0,
            busy_ns: 0,
        }
    }
}

impl Rounds {
    pub fn new(registrations: impl IntoIterator<Item = &'static Registration>) -> Self {
        let probes: Vec<Running> = registrations
            .into_iter()
            .map(|registration| Running {
                registration,
                probe: (registration.make)(),
                rows: 0,
            })
            .collect();
        let stats = probes
            .iter()
            .map(|running| ProbeStats::new(running.registration.spec.name))
            .collect();
        Self {
            probes,
            readers: Readers::default(),
            failures: Failures::default(),
            stats: Arc::new(Mutex::new(stats)),
            home: std::fs::File::open("/proc/thread-self/ns/net").ok(),
        }
    }

    /// Other probes from the next round on. Those that stay go on as they are.
    pub fn set(&mut self, registrations: impl IntoIterator<Item = &'static Registration>) {
        let mut before = std::mem::take(&mut self.probes);
        let probes = registrations.into_iter().map(|registration| {
            let same = |running: &Running| running.registration.spec.name == registration.spec.name;
            match before.iter().position(same) {
                Some(at) => before.swap_remove(at),
                None => Running {
                    registration,
                    probe: (registration.make)(),
                    rows: 0,
                },
            }
        });
        self.probes = probes.collect();
        keep_stats(
            &self.stats,
            self.probes.iter().map(|running| running.registration.spec.name),
        );
    }

    pub fn stats(&self) -> Arc<Mutex<Vec<ProbeStats>>> {
        Arc::clone(&self.stats)
    }

    /// Reads everything. The tables are in the order of the probes; one that found nothing has none.
    pub fn read(&mut self, time_ns: u64, targets: &[Arc<Target>]) -> (Vec<Table>, Vec<Gap>) {
        let mut tables: Vec<Table> = self
            .probes
            .iter()
            .map(|running| Table::with_capacity(running.registration.spec, time_ns, running.rows))
            .collect();
        let stats = Arc::clone(&self.stats);
        let mut stats = stats.lock();
        for stats in stats.iter_mut() {
            stats.failing = false;
        }
        let mut away = false;
        for target in targets {
            match self.go_to(target, &mut away) {
                Ok(()) => self.read_target(target, &mut tables, &mut stats, time_ns),
                Err(error) => {
                    let error = Arc::new(error);
                    for (running, stats) in self.probes.iter().zip(stats.iter_mut()) {
                        self.failures
                            .note(running.registration.spec, &target.subject, &error, time_ns, stats);
                    }
                }
            }
        }
        if away {
            self.go_home();
        }
        for ((running, table), stats) in self.probes.iter_mut().zip(&tables).zip(stats.iter_mut()) {
            running.rows = table.len();
            stats.rows = table.len();
        }
        tables.retain(|table| !table.is_empty());
        (tables, self.failures.due(time_ns))
    }

    fn read_target(&mut self, target: &Target, tables: &mut [Table], stats: &mut [ProbeStats], time_ns: u64) {
        let of_node = matches!(target.subject, Subject::Node);
        let mut readings = self.readers.of(&target.handles);
        let mut before = Instant::now();
        for ((running, table), stats) in self.probes.iter_mut().zip(tables).zip(stats) {
            if running.registration.node_only && !of_node {
                continue;
            }
            match running.probe.read(&mut readings, &target.subject, table) {
                Ok(()) => self
                    .failures
                    .recovered(running.registration.spec, &target.subject, time_ns),
                Err(error) => self
                    .failures
                    .note(running.registration.spec, &target.subject, &error, time_ns, stats),
            }
            let after = Instant::now();
            stats.busy_ns += (after - before).as_nanos() as u64;
            before = after;
        }
    }

    /// Enters the namespace if its files are not kept open.
    fn go_to(&mut self, target: &Target, away: &mut bool) -> Result<(), ReadError> {
        if !target.handles.needs_entering() {
            return Ok(());
        }
        match &target.netns {
            Some(netns) => {
                netns::enter(netns.as_fd()).map_err(ReadError::Enter)?;
                *away = true;
            }
            None if *away => {
                self.go_home();
                *away = false;
            }
            None => {}
        }
        Ok(())
    }

    fn go_home(&self) {
        if let Some(home) = &self.home {
            // A thread that cannot come home would tell one namespace's numbers as another's.
            netns::enter(home.as_fd()).expect("the own network namespace can be entered again");
        }
    }
}

/// Figures of these probes: of those that were there already as they are.
pub(crate) fn keep_stats(stats: &Mutex<Vec<ProbeStats>>, names: impl Iterator<Item = &'static str>) {
    let mut stats = stats.lock();
    let kept = |name| stats.iter().find(|stats| stats.name == name).cloned();
    let now = names
        .map(|name| kept(name).unwrap_or_else(|| ProbeStats::new(name)))
        .collect();
    *stats = now;
}

/// Readings that fail, from the first one on.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    open: HashMap<(&'static str, String), Failure>,
    done: Vec<Gap>,
}

#[derive(Debug)]
struct Failure {
    from_ns: u64,
    last_ns: u64,
    count: u64,
    subject: Subject,
    detail: String,
}

impl Failures {
    pub(crate) fn note(
        &mut self,
        spec: &'static ProbeSpec,
        subject: &Subject,
        error: &ReadError,
        time_ns: u64,
        stats: &mut ProbeStats,
    ) {
        stats.errors[error.kind_index()] += 1;
        stats.failing = true;
        let sandbox = sandbox(subject);
        let failure = self.open.entry((spec.name, sandbox.to_owned())).or_insert_with(|| {
            stats.last_error = error.to_string();
            tracing::warn!(probe = spec.name, sandbox, %error, "reading failed");
            Failure {
                from_ns: time_ns,
                last_ns: time_ns,
                count: 0,
                subject: subject.clone(),
                detail: error.to_string(),
            }
        });
        failure.last_ns = time_ns;
        failure.count += 1;
    }

    pub(crate) fn recovered(&mut self, spec: &'static ProbeSpec, subject: &Subject, time_ns: u64) {
        if self.open.is_empty() {
            return;
        }
        if let Some(failure) = self.open.remove(&(spec.name, sandbox(subject).to_owned())) {
            self.done.push(failure.into_gap(spec.name, time_ns));
        }
    }

    /// Gaps to be told now: of failures that ended, whose pod ended, or that last.
    pub(crate) fn due(&mut self, time_ns: u64) -> Vec<Gap> {
        let mut due = std::mem::take(&mut self.done);
        self.open.retain(|(probe, _), failure| {
            let over = failure.last_ns < time_ns;
            if over || time_ns.saturating_sub(failure.from_ns) >= GAP_NS {
                due.push(failure.clone_as_gap(probe, time_ns));
                failure.from_ns = time_ns;
                failure.count = 0;
            }
            !over
        });
        due
    }
}

impl Failure {
    fn into_gap(self, probe: &'static str, to_ns: u64) -> Gap {
        self.clone_as_gap(probe, to_ns)
    }

    fn clone_as_gap(&self, probe: &'static str, to_ns: u64) -> Gap {
        Gap {
            probe,
            cause: gap::READ_FAILED,
            from_ns: self.from_ns,
            to_ns,
            count: self.count,
            subject: self.subject.clone(),
            detail: self.detail.clone(),
        }
    }
}

fn sandbox(subject: &Subject) -> &str {
    match subject {
        Subject::Pod(pod) => &pod.sandbox,
        Subject::Node | Subject::Unknown => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handles::{self, Wanted};
    use crate::probes::PROBES;
    use sonde_common::paths::HostPaths;
    use std::path::{Path, PathBuf};

    /// A host made of files, and where its `/proc/net` is.
    fn host() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let net = dir.path().join("proc/thread-self/net");
        std::fs::create_dir_all(&net).unwrap();
        (dir, net)
    }

    fn target(dir: &Path) -> Arc<Target> {
        Arc::new(Target {
            subject: Subject::Node,
            handles: handles::open(&HostPaths::below(dir), &Wanted::all().without_netlink(), false),
            netns: None,
        })
    }

    fn stat(rounds: &Rounds, name: &str) -> ProbeStats {
        rounds.stats.lock().iter().find(|s| s.name == name).unwrap().clone()
    }

    #[test]
    fn a_file_that_vanishes_costs_its_rows_and_is_counted_and_told_once() {
        let (dir, net) = host();
        std::fs::write(net.join("snmp"), "Tcp: InSegs\nTcp: 5\nUdp: NoPorts\nUdp: 6\n").unwrap();
        std::fs::write(net.join("snmp6"), "Udp6NoPorts 7\n").unwrap();
        let mut rounds = Rounds::new(PROBES);
        let targets = [target(dir.path())];
        let (tables, gaps) = rounds.read(1, &targets);
        assert_eq!(tables.iter().map(|t| t.spec.name).collect::<Vec<_>>(), ["tcp", "udp"]);
        assert!(gaps.is_empty() && stat(&rounds, "tcp").errors == [0; ReadError::KINDS.len()]);

        std::fs::remove_file(net.join("snmp")).unwrap();
        for round in 2..5 {
            let (tables, gaps) = rounds.read(round, &targets);
            assert_eq!(
                tables.iter().map(|t| (t.spec.name, t.len())).collect::<Vec<_>>(),
                [("udp", 1)],
                "IPv6 is there"
            );
            assert!(gaps.is_empty());
        }
        assert_eq!(stat(&rounds, "tcp").errors, [0, 0, 3, 0, 0, 0, 0, 0]);
        assert_eq!((stat(&rounds, "tcp").rows, stat(&rounds, "udp").rows), (0, 1));
        assert!(stat(&rounds, "udp").last_error.starts_with("snmp: vanished"));
        assert_eq!(
            stat(&rounds, "netdev").errors,
            [0; ReadError::KINDS.len()],
            "a file that was never there is absent, not an error"
        );

        std::fs::write(net.join("snmp"), "Tcp: InSegs\nTcp: 5\n").unwrap();
        let (_, gaps) = rounds.read(5, &targets);
        let mut told: Vec<_> = gaps
            .iter()
            .map(|g| (g.probe, g.cause, g.from_ns, g.to_ns, g.count))
            .collect();
        told.sort_unstable();
        assert_eq!(
            told,
            [
                ("icmp", gap::READ_FAILED, 2, 5, 3),
                ("ip", gap::READ_FAILED, 2, 5, 3),
                ("tcp", gap::READ_FAILED, 2, 5, 3),
                ("udp", gap::READ_FAILED, 2, 5, 3)
            ]
        );
    }

    #[test]
    fn a_failure_that_lasts_is_told_each_minute_and_when_its_subject_is_gone() {
        let (dir, net) = host();
        std::fs::write(net.join("netstat"), "TcpExt: A\nTcpExt: x y\n").unwrap();
        let mut rounds = Rounds::new(PROBES.iter().filter(|p| p.spec.name == "tcpext"));
        let targets = [target(dir.path())];
        assert!(rounds.read(1, &targets).1.is_empty());
        assert!(rounds.read(GAP_NS, &targets).1.is_empty());
        let (_, gaps) = rounds.read(GAP_NS + 1, &targets);
        assert_eq!((gaps.len(), gaps[0].count, gaps[0].from_ns), (1, 3, 1));
        assert!(gaps[0].detail.starts_with("netstat: line 2"), "{}", gaps[0].detail);
        assert!(rounds.read(GAP_NS + 2, &targets).1.is_empty());
        let (_, gaps) = rounds.read(GAP_NS + 3, &[]);
        assert_eq!((gaps.len(), gaps[0].count, gaps[0].from_ns), (1, 1, GAP_NS + 1));
        assert!(rounds.read(GAP_NS + 4, &[]).1.is_empty());
    }
}
