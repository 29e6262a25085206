//! What a reading of all probes of `/proc` and netlink costs at 100 and at 1,000 network namespaces, probe by probe, and
//! the cost of bare reads beside it; and what the collector keeps in memory for them.

use std::fs::File;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use sonde_collector::event::{NetnsKey, Subject};
use sonde_collector::handles::{self, Wanted};
use sonde_collector::pods::{self, Target};
use sonde_collector::probes::{PROBES, PROCESS_PROBES, Registration};
use sonde_collector::processes::{Finder, ProcessRounds};
use sonde_collector::procfs::NetFile;
use sonde_collector::round::Rounds;
use sonde_collector::table::Table;
use sonde_common::paths::HostPaths;
use sonde_common::time::now_ns;
use sonde_lab::{Family, Lab, Pod, sockets};

use crate::programs::{self, Program};
use crate::report::{Report, mebibytes};

const ROUNDS: u32 = 20;

pub(crate) fn run(report: &mut Report) -> anyhow::Result<()> {
    raise_open_files()?;
    for count in [100, 1_000] {
        let lab = Lab::new("bench")?;
        let pods = (0..count)
            .map(|i| lab.pod("bench", &format!("pod{i}")))
            .collect::<Result<Vec<_>, _>>()?;
        report.section(
            &format!("A round of {count} network namespaces"),
            &format!(
                "All probes of /proc and netlink, for every namespace and the node, in one thread; CPU time, mean of {ROUNDS} rounds. \
                 \"Idle\" has no socket; \"connected\" has in each a listening socket and both ends of a connection on which nothing moves; \"busy\" \
                 the same with a byte unread, so that each round walks the kernel's table of connections ({} buckets) for each namespace.",
                buckets()?
            ),
        );
        idle(report, &pods)?;
        let mut sockets = pods.iter().map(connected).collect::<anyhow::Result<Vec<_>>>()?;
        report.row(
            "CPU of a round, connected",
            milliseconds(Reader::new(&pods, PROBES)?.cpu()?),
        );
        for (_, near, _) in &mut sockets {
            near.write_all(b"x")?;
        }
        report.row("CPU of a round, busy", milliseconds(Reader::new(&pods, PROBES)?.cpu()?));
        drop(sockets);
        processes(report, &pods)?;
        memory(report, &lab, count)?;
    }
    many_connections(report)
}

/// What a connection costs where there are many: the kernel fills in what it knows of each.
fn many_connections(report: &mut Report) -> anyhow::Result<()> {
    const PAIRS: usize = 4_000;
    let lab = Lab::new("bench")?;
    let pod = lab.pod("bench", "many")?;
    report.section(
        "One network namespace of many connections",
        &format!(
            "{PAIRS} connections over loopback, both ends of each in the namespace, a byte unread; `tcpsummary` alone."
        ),
    );
    let only = PROBES
        .iter()
        .position(|p| p.spec.name == "tcpsummary")
        .context("tcpsummary")?;
    let probe = std::slice::from_ref(&PROBES[only]);
    let few = connected(&pod)?;
    (&few.1).write_all(b"x")?;
    let before = Reader::new(std::slice::from_ref(&pod), probe)?.cpu()?;
    let listener = sockets::tcp_listen(&pod, Family::V4, 81, 10)?;
    let mut ends = Vec::new();
    for _ in 0..PAIRS {
        let near = sockets::tcp_connect(&pod, 0, "127.0.0.1:81".parse()?, Duration::from_secs(10))??;
        ends.push((near, listener.accept()?));
    }
    let after = Reader::new(std::slice::from_ref(&pod), probe)?.cpu()?;
    report.row("CPU of a round", milliseconds(after));
    let each = after.saturating_sub(before) / (2 * PAIRS as u32);
    report.row("CPU of one socket", format!("{:.2} us", each.as_secs_f64() * 1e6));
    Ok(())
}

fn idle(report: &mut Report, pods: &[Pod]) -> anyhow::Result<()> {
    report.row("CPU of a round, idle", milliseconds(Reader::new(pods, PROBES)?.cpu()?));
    let bare = pods
        .iter()
        .map(|pod| pod.run(bare_reads))
        .collect::<Result<Vec<_>, _>>()?;
    let bare: Duration = bare.into_iter().collect::<anyhow::Result<Vec<_>>>()?.into_iter().sum();
    report.row("CPU of reading the same files alone, kept open", milliseconds(bare));
    for probe in PROBES {
        let alone = Reader::new(pods, std::slice::from_ref(probe))?.cpu()?;
        report.row(
            &format!("CPU of `{}` alone, idle", probe.spec.name),
            milliseconds(alone),
        );
    }
    Ok(())
}

/// Three processes in each namespace, with twelve open files each.
fn processes(report: &mut Report, pods: &[Pod]) -> anyhow::Result<()> {
    const EACH: usize = 3;
    let mut running = Vec::new();
    let result = pods
        .iter()
        .try_for_each(|pod| -> anyhow::Result<()> {
            for _ in 0..EACH {
                running.push(pod.run(sleeper)??);
            }
            Ok(())
        })
        .and_then(|()| processes_cpu(pods, EACH));
    for child in &mut running {
        child.kill()?;
        child.wait()?;
    }
    report.row(
        &format!("CPU of `io` and `fd` with {EACH} processes of at least 12 files in each"),
        milliseconds(result?),
    );
    Ok(())
}

fn sleeper() -> std::io::Result<Child> {
    Command::new("bash")
        .args([
            "-c",
            "for fd in 3 4 5 6 7 8 9 10 11; do eval \"exec $fd</dev/null\"; done; exec sleep 1000",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}

fn processes_cpu(pods: &[Pod], each: usize) -> anyhow::Result<Duration> {
    let paths = HostPaths::default();
    let known = |pod: &Pod| {
        Ok(Arc::new(pods::Pod {
            sandbox: pod.netns().into(),
            namespace: pod.namespace().into(),
            name: pod.name().into(),
            netns: NetnsKey {
                inode: u32::try_from(pod.inode())?,
                cookie: 0,
            },
            ..pods::Pod::default()
        }))
    };
    let known = pods.iter().map(known).collect::<anyhow::Result<Vec<_>>>()?;
    let mut rounds = ProcessRounds::new(PROCESS_PROBES, &paths, Finder::new(&paths), 3 * each * pods.len());
    let mut files = || -> anyhow::Result<i64> {
        let (tables, gaps) = rounds.read(now_ns(), &known);
        anyhow::ensure!(gaps.is_empty(), "{gaps:?}");
        let of = |table: &Table| table.columns[1].iter().sum();
        Ok(tables.iter().find(|table| table.spec.name == "fd").map_or(0, of))
    };
    // Until every shell has opened its files and has become what it becomes; some have inherited more.
    let least = i64::try_from(12 * each * pods.len())?;
    let mut all = files()?;
    for _ in 0..100 {
        let before = std::mem::replace(&mut all, files()?);
        if all >= least && all == before {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let start = thread_cpu()?;
    for _ in 0..ROUNDS {
        anyhow::ensure!(files()? == all, "the processes do not keep their files");
    }
    Ok((thread_cpu()? - start) / ROUNDS)
}

/// Of the hash table of established connections, by sysctl; negative where a namespace shares that of the machine.
fn buckets() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_ehash_entries")?;
    Ok(text.trim().parse::<i64>()?.unsigned_abs())
}

fn milliseconds(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}

/// Rounds within this process.
struct Reader {
    rounds: Rounds,
    targets: Vec<Arc<Target>>,
}

impl Reader {
    fn new(pods: &[Pod], probes: &'static [Registration]) -> anyhow::Result<Self> {
        let paths = HostPaths::default();
        let node = Target {
            subject: Subject::Node,
            handles: handles::open(&paths, &Wanted::of(probes), true),
            netns: None,
        };
        let wanted = Wanted::of(probes.iter().filter(|p| !p.node_only));
        let target = |pod: &Pod| -> anyhow::Result<Target> {
            let known = pods::Pod {
                sandbox: pod.netns().into(),
                namespace: pod.namespace().into(),
                name: pod.name().into(),
                ..pods::Pod::default()
            };
            Ok(Target {
                subject: Subject::Pod(Arc::new(known)),
                handles: pod.run(|| handles::open(&paths, &wanted, true))?,
                netns: None,
            })
        };
        let targets = [Ok(node)].into_iter().chain(pods.iter().map(target));
        Ok(Self {
            targets: targets.map(|t| t.map(Arc::new)).collect::<anyhow::Result<_>>()?,
            rounds: Rounds::new(probes),
        })
    }

    /// Of one round.
    fn cpu(&mut self) -> anyhow::Result<Duration> {
        // The first ones grow buffers and learn titles.
        for _ in 0..2 {
            self.round()?;
        }
        let start = thread_cpu()?;
        for _ in 0..ROUNDS {
            self.round()?;
        }
        Ok((thread_cpu()? - start) / ROUNDS)
    }

    fn round(&mut self) -> anyhow::Result<()> {
        let (tables, gaps) = self.rounds.read(now_ns(), &self.targets);
        anyhow::ensure!(gaps.is_empty(), "{gaps:?}");
        std::hint::black_box(tables);
        Ok(())
    }
}

/// A listening socket and both ends of a connection.
fn connected(pod: &Pod) -> anyhow::Result<(TcpListener, TcpStream, TcpStream)> {
    let listener = sockets::tcp_listen(pod, Family::V4, 80, 10)?;
    let near = sockets::tcp_connect(pod, 0, "127.0.0.1:80".parse()?, Duration::from_secs(10))?
        .with_context(|| format!("{pod}: loopback"))?;
    let (far, _) = listener.accept()?;
    Ok((listener, near, far))
}

/// CPU time of this thread for one reading of the files of its namespace, the mean of ten.
fn bare_reads() -> anyhow::Result<Duration> {
    let wanted = Wanted::of(PROBES.iter().filter(|p| !p.node_only));
    let paths = HostPaths::default();
    let files: Vec<(NetFile, File)> = wanted
        .files()
        .iter()
        .filter_map(|file| Some((*file, File::open(file.path(&paths)).ok()?)))
        .collect();
    let mut buffer = vec![0; 64 << 10];
    let mut read = || -> anyhow::Result<()> {
        for (file, handle) in &files {
            let space = if file.is_sysctl() { 128 } else { buffer.len() };
            let mut offset = 0;
            while let count @ 1.. = handle.read_at(&mut buffer[..space], offset)? {
                offset += count as u64;
            }
        }
        Ok(())
    };
    read()?;
    let start = thread_cpu()?;
    for _ in 0..10 {
        read()?;
    }
    Ok((thread_cpu()? - start) / 10)
}

fn thread_cpu() -> anyhow::Result<Duration> {
    Ok(nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

fn raise_open_files() -> anyhow::Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    // A thousand namespaces take some 15 descriptors each.
    anyhow::ensure!(hard >= 17_000, "open files are limited to {hard}");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("open files")
}

/// The whole collector with these namespaces, after some rounds.
fn memory(report: &mut Report, lab: &Lab, count: usize) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let http = programs::free_address()?;
    let env = [
        ("SONDE_COLLECTOR_HTTP", http.to_string()),
        ("SONDE_COLLECTOR_AGGREGATOR", String::new()),
        ("SONDE_COLLECTOR_DATA_DIR", dir.path().display().to_string()),
        ("SONDE_COLLECTOR_INTERVAL", "1s".into()),
        ("SONDE_PODS_NETNS_INCLUDE", lab.glob()),
        ("SONDE_LOG_LEVEL", "warn".into()),
    ];
    let collector = Program::start("sonde-collector", "run", http, dir.path(), &env)?;
    let (mut rounds, mut cpu) = (0.0, 0.0);
    let first = figures(&collector)?;
    while rounds < 10.0 {
        std::thread::sleep(Duration::from_secs(1));
        let now = figures(&collector)?;
        (rounds, cpu) = (now.0 - first.0, now.1 - first.1);
    }
    report.row(
        "CPU of a round in the collector, the kernel side and what is handed on included",
        format!("{:.1} ms", cpu / rounds * 1e3),
    );
    report.row(
        &format!("resident memory of the collector with {count} pods"),
        mebibytes(collector.resident()?),
    );
    Ok(())
}

/// Rounds done and CPU seconds they took, as the collector itself counts them.
fn figures(collector: &Program) -> anyhow::Result<(f64, f64)> {
    let page = String::from_utf8(crate::http::get(collector.http, "/metrics")?.body)?;
    let value = |name: &str| -> anyhow::Result<f64> {
        let line = page
            .lines()
            .find_map(|l| l.strip_prefix(name)?.strip_prefix(' '))
            .with_context(|| format!("no {name} on /metrics"))?;
        Ok(line.parse()?)
    };
    Ok((
        value("sonde_collector_rounds_total")?,
        value("sonde_collector_round_cpu_seconds_total")?,
    ))
}
