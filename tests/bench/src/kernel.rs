//! What a dropped packet costs in our eBPF programs, by the kernel's own statistics (`kernel.bpf_stats_enabled`).

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};

use anyhow::{Context as _, ensure};
use sonde_lab::{Family, Lab, Pod};

use crate::programs::{self, Program};
use crate::report::{Report, mebibytes};

const PACKETS: u64 = 60_000;
/// They are sent in turns of so many, for which the ring has room, and the cheapest turn counts: what else runs on the machine
/// can only make a program dearer.
const TURN: u64 = 1000;
pub(crate) const PORT: u16 = 7001;

/// Settings under which the same drops are made.
const CASES: [(&str, &str, &str); 3] = [
    ("counted only", "{packetloss: {events: false}}", "1"),
    (
        "counted, each one an event, no stack",
        "{packetloss: {stacks: false}}",
        "10000000",
    ),
    (
        "counted, each one an event with its stack",
        "{packetloss: {stacks: true}}",
        "10000000",
    ),
];

/// Probes that look at every packet, each alone.
const PER_PACKET: [&str; 4] = ["netiftxlat", "kernellatency", "flow", "dns"];

pub(crate) fn run(report: &mut Report) -> anyhow::Result<()> {
    let _statistics = Statistics::on()?;
    let lab = Lab::new("bench")?;
    let (client, server) = (lab.pod("bench", "client")?, lab.pod("bench", "server")?);
    lab.link(&client, &server)?;
    server.nft(&format!(
        "table inet bench {{ chain in {{ type filter hook input priority 0; udp dport {PORT} counter name drops drop; }}; counter drops {{}}; }}"
    ))?;
    report.section(
        "Kernel side",
        &format!("{PACKETS} UDP packets into an nft drop rule; time a run of each program, the least of all turns of {TURN}, by `kernel.bpf_stats_enabled` (which itself costs some 20 ns a run)."),
    );
    for (name, probes, rate) in CASES {
        let dir = tempfile::tempdir()?;
        let http = programs::free_address()?;
        let env = [
            ("SONDE_COLLECTOR_HTTP", http.to_string()),
            ("SONDE_COLLECTOR_AGGREGATOR", String::new()),
            ("SONDE_COLLECTOR_DATA_DIR", dir.path().display().to_string()),
            ("SONDE_PODS_NETNS_INCLUDE", lab.glob()),
            // What it costs is what is asked.
            ("SONDE_KERNEL_CPU_BUDGET_PERCENT", "0".into()),
            ("SONDE_PODS_INCLUDE_HOST", "false".into()),
            ("SONDE_PROBES", probes.into()),
            ("SONDE_EVENTS_RATE", rate.into()),
            ("SONDE_EVENTS_BURST", rate.into()),
            ("SONDE_LOG_LEVEL", "warn".into()),
        ];
        let others: Vec<u32> = ours()?.into_keys().map(|(id, _)| id).collect();
        let collector = Program::start("sonde-collector", "run", http, dir.path(), &env)?;
        // The first drops teach the collector the site; they are not measured.
        flood(&client, &server, 1000)?;
        std::thread::sleep(std::time::Duration::from_secs(2));
        let turn = || {
            let before = events(http)?;
            flood(&client, &server, TURN)?;
            // An event that found no room cost less.
            Ok(rate == "1" || all_came(http, before)?)
        };
        for (program, nanos) in cheapest(&others, turn)? {
            report.row(&format!("{name}: `{program}`"), format!("{nanos:.0} ns"));
        }
        report.row(
            &format!("{name}: resident memory of the collector"),
            mebibytes(collector.resident()?),
        );
    }
    Ok(())
}

/// What a datagram that arrives costs in the programs that look at every packet.
pub(crate) fn per_packet(report: &mut Report) -> anyhow::Result<()> {
    let _statistics = Statistics::on()?;
    let lab = Lab::new("bench-packets")?;
    let (client, server) = (lab.pod("bench", "client")?, lab.pod("bench", "server")?);
    lab.link(&client, &server)?;
    let _sink = sonde_lab::sockets::udp(&server, Family::V4, PORT)?;
    report.section(
        "Programs of every packet",
        &format!("{PACKETS} UDP packets over veth; time a run of each program, as above."),
    );
    for probe in PER_PACKET {
        let dir = tempfile::tempdir()?;
        let http = programs::free_address()?;
        let env = [
            ("SONDE_COLLECTOR_HTTP", http.to_string()),
            ("SONDE_COLLECTOR_AGGREGATOR", String::new()),
            ("SONDE_COLLECTOR_DATA_DIR", dir.path().display().to_string()),
            ("SONDE_PODS_NETNS_INCLUDE", lab.glob()),
            // What it costs is what is asked.
            ("SONDE_KERNEL_CPU_BUDGET_PERCENT", "0".into()),
            ("SONDE_PODS_INCLUDE_HOST", "false".into()),
            (
                "SONDE_PROBES",
                format!("{{packetloss: {{enabled: false}}, {probe}: {{enabled: true}}}}"),
            ),
            ("SONDE_LOG_LEVEL", "warn".into()),
        ];
        let others: Vec<u32> = ours()?.into_keys().map(|(id, _)| id).collect();
        let _collector = Program::start("sonde-collector", "run", http, dir.path(), &env)?;
        flood(&client, &server, 1000)?;
        for (program, nanos) in cheapest(&others, || flood(&client, &server, TURN).map(|()| true))? {
            report.row(&format!("{probe}: `{program}`"), format!("{nanos:.0} ns"));
        }
    }
    Ok(())
}

/// Events of drops that the collector has read.
fn events(http: SocketAddr) -> anyhow::Result<u64> {
    let status: serde_json::Value = serde_json::from_slice(&crate::http::get(http, "/status")?.body)?;
    let signals = status["kernel"]["signals"].as_array().context("no signals")?;
    let events = signals.iter().find(|signal| signal["name"] == "packetloss.events");
    Ok(events.and_then(|signal| signal["events"].as_u64()).unwrap_or(0))
}

/// Waits for the events of a turn; `false`: some were lost.
fn all_came(http: SocketAddr, before: u64) -> anyhow::Result<bool> {
    for _ in 0..30 {
        if events(http)? >= before + TURN {
            return Ok(true);
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    Ok(false)
}

/// Nanoseconds a run of each program but `others` that ran for every packet, in its cheapest turn that is good for that.
fn cheapest(others: &[u32], mut turn: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<BTreeMap<String, f64>> {
    let mut least = BTreeMap::new();
    let mut before = ours()?;
    for _ in 0..PACKETS / TURN {
        let is_good = turn()?;
        let after = ours()?;
        for (of, (runs, nanos)) in after.iter().filter(|((id, _), _)| !others.contains(id)) {
            let (runs_before, nanos_before) = before.get(of).copied().unwrap_or_default();
            let (runs, nanos) = (runs - runs_before, nanos - nanos_before);
            if is_good && runs >= TURN {
                let mean = nanos as f64 / runs as f64;
                let known = least.entry(of.1.clone()).or_insert(mean);
                *known = known.min(mean);
            }
        }
        before = after;
    }
    Ok(least)
}

pub(crate) fn flood(client: &Pod, server: &Pod, packets: u64) -> anyhow::Result<()> {
    let target = server.socket(Family::V4, PORT);
    let sent = client.run(move || -> std::io::Result<u64> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(target)?;
        let mut sent = 0;
        for _ in 0..packets {
            sent += u64::from(socket.send(b"bench").is_ok());
        }
        Ok(sent)
    })??;
    ensure!(sent == packets, "{sent} of {packets} packets were sent");
    Ok(())
}

/// Runs and nanoseconds of each loaded program, by id and name.
pub(crate) fn ours() -> anyhow::Result<BTreeMap<(u32, String), (u64, u64)>> {
    let mut all = BTreeMap::new();
    for program in aya::programs::loaded_programs() {
        // A program may end between the listing and the look.
        let Ok(program) = program else { continue };
        let name = program.name_as_str().unwrap_or("?").to_owned();
        all.insert(
            (program.id(), name),
            (program.run_count(), u64::try_from(program.run_time().as_nanos())?),
        );
    }
    Ok(all)
}

/// The kernel's statistics, as they were when dropped.
pub(crate) struct Statistics(String);

const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";

impl Statistics {
    pub(crate) fn on() -> anyhow::Result<Self> {
        let before = std::fs::read_to_string(SWITCH).context(SWITCH)?;
        std::fs::write(SWITCH, "1").context(SWITCH)?;
        Ok(Self(before))
    }
}

impl Drop for Statistics {
    fn drop(&mut self) {
        if let Err(error) = std::fs::write(SWITCH, &self.0) {
            eprintln!("{SWITCH}: {error}");
        }
    }
}
