//! What the probes of sockets and softirqs cost: time a run of each program by the kernel's own statistics, and how much
//! slower traffic gets.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use nix::time::{ClockId, clock_gettime};
use sonde_lab::{Family, Lab, Pod, sockets};

use crate::kernel::{Statistics, ours};
use crate::programs::{self, Program};
use crate::report::Report;

const PORT: u16 = 7002;
const ROUND_TRIPS: u32 = 500;
/// The best of so many is taken: other work only ever makes it slower.
const SLICES: u32 = 100;
const BULK_BYTES: u64 = 512 << 20;
/// Each is measured so often in turn with none.
const TURNS: usize = 3;

const PROBES: [&str; 3] = ["socketlatency", "net_softirq", "connect"];
/// What is on by default, and everything.
const DEFAULT: &[&str] = &["packetloss", "tcpretrans", "tcpreset", "connect", "virtcmdlatency"];
const ALL: &[&str] = &[
    "packetloss",
    "tcpretrans",
    "tcpreset",
    "connect",
    "virtcmdlatency",
    "socketlatency",
    "net_softirq",
    "netiftxlat",
    "kernellatency",
    "flow",
    "dns",
];
const FLOOD_PACKETS: u64 = 200_000;

/// Sets of probes, each measured against none.
const SETS: [(&str, &[&str]); 5] = [
    ("socketlatency", &["socketlatency"]),
    ("net_softirq", &["net_softirq"]),
    ("connect", &["connect"]),
    ("the default set", DEFAULT),
    ("all probes", ALL),
];

pub(crate) fn run(report: &mut Report) -> anyhow::Result<()> {
    let lab = Lab::new("bench-sockets")?;
    let (client, server) = (lab.pod("bench", "client")?, lab.pod("bench", "server")?);
    lab.link(&client, &server)?;
    report.section(
        "Sockets and softirqs",
        &format!(
            "Round trips of 64 bytes, and {} MiB in bulk, over TCP on a veth pair; time a run of each program by \
             `kernel.bpf_stats_enabled` (which itself costs some 20 ns a run, and an empty program 40); then, without \
             statistics, CPU time with each probe alone, with the default set and with all probes against none: of round trips \
             the best {ROUND_TRIPS} in a row, of bulk and of a flood of {FLOOD_PACKETS} datagrams of 64 bytes the best of {TURNS}.",
            BULK_BYTES >> 20
        ),
    );
    runs(report, &lab, &client, &server)?;
    ratios(report, &lab, &client, &server)
}

type Traffic = fn(&Pod, &Pod) -> anyhow::Result<Duration>;

/// A collector with these probes and no others of the kernel side.
fn collector(lab: &Lab, dir: &Path, on: &[&str]) -> anyhow::Result<Program> {
    let others = ALL.iter().filter(|probe| !on.contains(probe));
    let probes = others
        .map(|probe| format!("{probe}: {{enabled: false}}"))
        .chain(on.iter().map(|probe| format!("{probe}: {{enabled: true}}")));
    let probes = probes.collect::<Vec<_>>().join(", ");
    let http = programs::free_address()?;
    let env = [
        ("SONDE_COLLECTOR_HTTP", http.to_string()),
        ("SONDE_COLLECTOR_AGGREGATOR", String::new()),
        ("SONDE_COLLECTOR_DATA_DIR", dir.display().to_string()),
        ("SONDE_PODS_NETNS_INCLUDE", lab.glob()),
        ("SONDE_KERNEL_CPU_BUDGET_PERCENT", "0".into()),
        ("SONDE_PROBES", format!("{{{probes}}}")),
        ("SONDE_LOG_LEVEL", "warn".into()),
    ];
    Program::start("sonde-collector", "run", http, dir, &env)
}

fn runs(report: &mut Report, lab: &Lab, client: &Pod, server: &Pod) -> anyhow::Result<()> {
    let _statistics = Statistics::on()?;
    let others: Vec<u32> = ours()?.into_keys().map(|(id, _)| id).collect();
    let dir = tempfile::tempdir()?;
    let _collector = collector(lab, dir.path(), &PROBES)?;
    round_trips(client, server)?;
    let traffics: [(&str, Traffic); 2] = [("round trips", round_trips), ("bulk", bulk)];
    for (name, traffic) in traffics {
        let before = ours()?;
        traffic(client, server)?;
        for ((id, program), (runs, nanos)) in ours()?.into_iter().filter(|((id, _), _)| !others.contains(id)) {
            let (runs_before, nanos_before) = before.get(&(id, program.clone())).copied().unwrap_or_default();
            let (runs, nanos) = (runs - runs_before, nanos - nanos_before);
            if runs >= 1000 {
                let each = nanos as f64 / runs as f64;
                report.row(&format!("{name}: `{program}`"), format!("{each:.0} ns, {runs} runs"));
            }
        }
    }
    Ok(())
}

fn ratios(report: &mut Report, lab: &Lab, client: &Pod, server: &Pod) -> anyhow::Result<()> {
    const KINDS: [(&str, Traffic); 3] = [("a round trip", round_trips), ("bulk", bulk), ("a datagram", flood)];
    for (name, probes) in SETS {
        let mut best = [[Duration::MAX; KINDS.len()]; 2];
        for _ in 0..TURNS {
            for (at, on) in [&[][..], probes].into_iter().enumerate() {
                let dir = tempfile::tempdir()?;
                let _collector = collector(lab, dir.path(), on)?;
                for (best, (_, traffic)) in best[at].iter_mut().zip(KINDS) {
                    *best = (*best).min(traffic(client, server)?);
                }
            }
        }
        for (kind, (what, _)) in KINDS.iter().enumerate() {
            let [without, with] = [best[0][kind], best[1][kind]];
            report.row(
                &format!("{name}: {what} takes longer than without"),
                format!("{:+.1} %", 100.0 * (with.as_secs_f64() / without.as_secs_f64() - 1.0)),
            );
        }
        let each = |time: Duration, count: u64| time.as_nanos() / u128::from(count);
        report.row(
            &format!("{name}: without it, of each round trip, of bulk, of each datagram"),
            format!(
                "{} ns, {} ms, {} ns",
                each(best[0][0], u64::from(ROUND_TRIPS)),
                best[0][1].as_millis(),
                each(best[0][2], FLOOD_PACKETS)
            ),
        );
    }
    Ok(())
}

fn pair(client: &Pod, server: &Pod) -> anyhow::Result<(TcpStream, TcpStream)> {
    let listener = sockets::tcp_listen(server, Family::V4, PORT, 8)?;
    let to = server.socket(Family::V4, PORT);
    let here = sockets::tcp_connect(client, 0, to, Duration::from_secs(10))??;
    let there = listener.accept()?.0;
    here.set_nodelay(true)?;
    there.set_nodelay(true)?;
    Ok((here, there))
}

/// Both ends in one thread: the scheduler has no part in it.
fn round_trips(client: &Pod, server: &Pod) -> anyhow::Result<Duration> {
    let (mut here, mut there) = pair(client, server)?;
    let mut buffer = [0; 64];
    let mut best = Duration::MAX;
    for _ in 0..SLICES {
        let began = cpu_time(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
        for _ in 0..ROUND_TRIPS {
            here.write_all(&buffer)?;
            there.read_exact(&mut buffer)?;
            there.write_all(&buffer)?;
            here.read_exact(&mut buffer)?;
        }
        best = best.min(cpu_time(ClockId::CLOCK_THREAD_CPUTIME_ID)? - began);
    }
    Ok(best)
}

fn bulk(client: &Pod, server: &Pod) -> anyhow::Result<Duration> {
    let (mut here, mut there) = pair(client, server)?;
    let writer = std::thread::spawn(move || -> std::io::Result<()> {
        let buffer = vec![7; 1 << 16];
        for _ in 0..BULK_BYTES >> 16 {
            here.write_all(&buffer)?;
        }
        Ok(())
    });
    let began = cpu_time(ClockId::CLOCK_PROCESS_CPUTIME_ID)?;
    let mut buffer = vec![0; 1 << 17];
    let mut received = 0;
    while received < BULK_BYTES {
        received += there.read(&mut buffer)? as u64;
    }
    writer.join().ok().context("the writer")??;
    Ok(cpu_time(ClockId::CLOCK_PROCESS_CPUTIME_ID)? - began)
}

/// Sent, received and read by one thread, some at a time.
fn flood(client: &Pod, server: &Pod) -> anyhow::Result<Duration> {
    const AT_ONCE: u64 = 100;
    let sink = sockets::udp(server, Family::V4, PORT)?;
    let socket = sockets::udp(client, Family::V4, 0)?;
    let to = server.socket(Family::V4, PORT);
    let began = cpu_time(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    for _ in 0..FLOOD_PACKETS / AT_ONCE {
        let sent = sockets::send(&socket, to, AT_ONCE, 64);
        anyhow::ensure!(sent.accepted == AT_ONCE, "{sent:?}");
        sockets::drain(&sink)?;
    }
    Ok(cpu_time(ClockId::CLOCK_THREAD_CPUTIME_ID)? - began)
}

fn cpu_time(of: ClockId) -> anyhow::Result<Duration> {
    Ok(clock_gettime(of)?.into())
}
