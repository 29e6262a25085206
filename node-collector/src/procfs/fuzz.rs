//! Texts of /proc. Readers remember how a file was laid out: what they say of a text must not depend on the one before.

use std::path::Path;

use sonde_mutate::Target;

use super::dev::{Devices, Side};
use super::named::Named;
use super::pairs::Group;
use super::per_cpu::PerCpu;
use super::{ipvs, process, protocols, sockstat, softnet, sysctl};

pub(crate) const TARGETS: [Target; 5] = [
    Target {
        name: "procfs_dev",
        seeds: || host("net/dev"),
        run: |input| twice(input, dev),
    },
    Target {
        name: "procfs_counters",
        seeds: || {
            ["net/snmp", "net/netstat", "net/snmp6"]
                .iter()
                .flat_map(|file| host(file))
                .collect()
        },
        run: |input| twice(input, counters),
    },
    Target {
        name: "procfs_per_cpu",
        seeds: || host("net/stat/nf_conntrack"),
        run: |input| twice(input, per_cpu),
    },
    Target {
        name: "procfs_tables",
        seeds: || {
            let files = ["net/sockstat", "net/softnet_stat", "net/protocols", "net/ip_vs_stats"];
            files.iter().flat_map(|file| host(file)).collect()
        },
        run: tables,
    },
    Target {
        name: "procfs_lines",
        seeds: || {
            let lines: [&[u8]; 4] = [
                b"32768\t60999\n",
                b"8080,9148-9150\n",
                b"4242 (a (name) x) S 1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 12345 1 1\n",
                b"191841\t255788\t383682\n",
            ];
            lines.map(<[u8]>::to_vec).into()
        },
        run: lines,
    },
];

/// The file of a recorded host.
fn host(file: &str) -> Vec<Vec<u8>> {
    let net = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/linux-6.18/proc/thread-self");
    let path = net.join(file);
    vec![std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))]
}

/// Two texts with a NUL between them: read by one reader, and the second by a fresh one too.
fn twice<R: Default, T: PartialEq + std::fmt::Debug>(input: &[u8], read: fn(&mut R, &[u8]) -> T) {
    let middle = memchr::memchr(0, input).unwrap_or(input.len());
    let (first, second) = (&input[..middle], input.get(middle + 1..).unwrap_or(input));
    let mut used = R::default();
    read(&mut used, first);
    assert_eq!(read(&mut used, second), read(&mut R::default(), second));
}

const DEVICE: &[(Side, &str)] = &[
    (Side::Receive, "bytes"),
    (Side::Receive, "drop"),
    (Side::Transmit, "bytes"),
];

struct DevReader(Devices);

impl Default for DevReader {
    fn default() -> Self {
        Self(Devices::new(DEVICE))
    }
}

type Rows = Vec<(String, Vec<i64>)>;

fn dev(reader: &mut DevReader, text: &[u8]) -> Option<Rows> {
    let mut rows = Rows::new();
    let each = |name: &str, values: &[i64]| rows.push((name.to_owned(), values.to_vec()));
    reader.0.parse(text, &mut [0; 3], each).ok().map(|()| rows)
}

struct CounterReader {
    groups: [Group; 3],
    named: Named,
}

impl Default for CounterReader {
    fn default() -> Self {
        Self {
            groups: [
                Group::new("Tcp:", &["InSegs", "RetransSegs", "nothing"]),
                Group::new("TcpExt:", &["ListenDrops", "TCPTimeouts"]),
                Group::new("IpExt:", &["InOctets"]),
            ],
            named: Named::new(&["Ip6InReceives", "", "Udp6InErrors"]),
        }
    }
}

fn counters(reader: &mut CounterReader, text: &[u8]) -> Vec<Option<(bool, [i64; 3])>> {
    let [tcp, extended, ip] = &mut reader.groups;
    let mut all = Vec::new();
    for (group, width) in [(tcp, 3), (extended, 2), (ip, 1)] {
        let mut out = [0; 3];
        all.push(group.parse(text, &mut out[..width]).ok().map(|there| (there, out)));
    }
    let mut out = [0; 3];
    all.push(reader.named.parse(text, &mut out).ok().map(|there| (there, out)));
    all
}

struct CpuReader(PerCpu);

impl Default for CpuReader {
    fn default() -> Self {
        Self(PerCpu::new(&["entries", "insert_failed", "drop"]))
    }
}

fn per_cpu(reader: &mut CpuReader, text: &[u8]) -> Option<(bool, [i64; 3])> {
    let mut out = [0; 3];
    reader.0.parse(text, &mut out).ok().map(|there| (there, out))
}

fn tables(text: &[u8]) {
    let wanted = [("TCP:", "inuse"), ("TCP:", "tw"), ("UDP6:", "inuse")];
    let _ = sockstat::parse(text, &wanted, &mut [0; 3]);
    let mut cpus = 0;
    let _ = softnet::parse(text, |_| cpus += 1);
    assert!(cpus <= text.len());
    let _ = protocols::is_under_pressure(text, "TCP");
    let _ = ipvs::parse(text);
}

fn lines(text: &[u8]) {
    if let Ok((first, last)) = sysctl::port_range(text) {
        assert!(first <= last);
    }
    let mut ports = Vec::new();
    let _ = sysctl::port_list(text, &mut ports);
    assert!(ports.len() <= text.len());
    let _ = sysctl::numbers::<3>(text);
    let _ = process::parse_stat(text);
}
