//! The kernel side on the kernel that runs here: real namespaces, real drops, counted by a second source.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{ReentrantMutex, ReentrantMutexGuard};
use sonde_common::config::{Config, UnknownNetns};
use sonde_common::time::now_ns;
use sonde_lab::faults::{self, Fault, Signal};
use sonde_lab::{Family, Lab, healthy};
use tokio::sync::mpsc::{Receiver, channel};

mod assembled;
mod changes;
mod commands;
mod connects;
mod dns;
mod drops;
mod flow;
mod governor;
mod hidden;
mod kernellatency;
mod limits;
mod netfilter;
mod netiftxlat;
mod odd_packets;
mod places;
mod resets;
mod retransmits;
mod rights;
mod rings;
mod softirqs;
mod waits;

use super::plan::Rung;
use super::*;
use crate::event::{Direction, Event, Subject};
use crate::netlink::route::RouteSocket;
use crate::pods::{Facts, Pod};

/// A kernel side that sees the pods of one test and nothing else.
struct Live {
    kernel: Kernel,
    events: Receiver<Vec<Observation>>,
    index: Arc<PodIndex>,
}

/// `None`, with a word to the reader, where this host does not permit it.
fn start(config: &Config, index: PodIndex, rung: Option<Rung>) -> Option<Live> {
    start_with(config, index, rung, 4096)
}

fn start_with(config: &Config, index: PodIndex, rung: Option<Rung>, room: usize) -> Option<Live> {
    start_on(config, index, |step| rung.is_none_or(|rung| rung == step.rung), room)
}

/// With the steps that `allowed` lets through.
fn start_on(config: &Config, index: PodIndex, allowed: impl Fn(&plan::Step) -> bool, room: usize) -> Option<Live> {
    let index = Arc::new(index);
    let (sender, events) = channel(room);
    let (kernel, signals) = Kernel::start_on(config, Arc::clone(&index), sender, &allowed);
    let wanted = |status: &&SignalStatus| !status.chosen && is_due(status.name, &allowed);
    if let Some(off) = signals.iter().filter(wanted).find(|signal| signal.rung.is_none()) {
        assert!(
            !["parsing BPF object", "os error 13"]
                .iter()
                .any(|fault| off.reason.contains(fault)),
            "that is no fault of the host: {}",
            off.reason
        );
        println!("SKIPPED: {}: {}", off.name, off.reason);
        return None;
    }
    Some(Live { kernel, events, index })
}

/// Whether the signal has a way that every kernel permits who permits any: functions are not to be had everywhere. Where
/// they are all that a probe has, it is due in any case.
fn is_due(name: &str, allowed: impl Fn(&plan::Step) -> bool) -> bool {
    let on_tracepoints = |signal: &plan::Signal| {
        let mut steps = signal.steps.iter().filter(|step| allowed(step));
        steps.any(|step| matches!(step.rung, Rung::TpBtf | Rung::RawTracepoint))
    };
    let signal = probes::signals().find(|signal| signal.name == name).unwrap();
    let mut siblings = probes::signals().filter(|other| other.probe == signal.probe);
    on_tracepoints(signal) || !siblings.any(on_tracepoints)
}

/// Programs on the kernel's tracepoints see the packets of all: tests that load some take turns, so that none finds
/// another's in its numbers.
static TURN: ReentrantMutex<()> = ReentrantMutex::new(());

/// A lab, and the turn of this test.
struct LabAlone {
    lab: Lab,
    _turn: ReentrantMutexGuard<'static, ()>,
}

impl Deref for LabAlone {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        &self.lab
    }
}

/// Like [`Lab::for_test`], when it is this test's turn.
fn lab_alone(test: &str) -> Option<LabAlone> {
    let turn = TURN.lock();
    Some(LabAlone {
        lab: Lab::for_test(test)?,
        _turn: turn,
    })
}

/// Drops alone: see [`config_of`].
fn config() -> Config {
    config_of("packetloss")
}

/// That probe alone, only listed namespaces, and buckets that hold nothing back.
fn config_of(probe: &str) -> Config {
    let mut config = Config::default();
    for other in probes::ALL.iter().map(|probe| probe.spec.name) {
        let settings = sonde_common::config::Probe {
            enabled: Some(other == probe),
            ..Default::default()
        };
        config.probes.insert(other.into(), settings);
    }
    config.events.unknown_netns = UnknownNetns::Drop;
    (config.events.rate, config.events.burst) = (1_000_000, 1_000_000);
    config.pods.include_host = false;
    config
}

/// That probe, and drops, by which a test knows that the ring was read so far: see [`Live::settle`].
fn config_with_marks(probe: &str) -> Config {
    let mut config = config_of(probe);
    config.probes.get_mut("packetloss").unwrap().enabled = Some(true);
    config
}

fn netns_of(pod: &sonde_lab::Pod) -> NetnsKey {
    let cookie = pod
        .run(|| RouteSocket::open().map_or(0, |socket| socket.netns_cookie()))
        .unwrap();
    NetnsKey {
        inode: pod.inode() as u32,
        cookie,
    }
}

fn add(index: &PodIndex, pod: &sonde_lab::Pod) -> Arc<Pod> {
    let netns = netns_of(pod);
    let found = Arc::new(Pod {
        sandbox: format!("{}/{}", pod.netns(), netns.cookie),
        namespace: pod.namespace().into(),
        name: pod.name().into(),
        netns,
        valid_from_ns: now_ns(),
        ..Pod::default()
    });
    index.add(Arc::clone(&found));
    found
}

fn index_of<'a>(pods: impl IntoIterator<Item = &'a sonde_lab::Pod>) -> PodIndex {
    let index = PodIndex::default();
    for pod in pods {
        add(&index, pod);
    }
    index
}

/// Has a datagram dropped for want of a socket, and gives the port that it was sent to.
fn send_to_nobody() -> u16 {
    let bind = || std::net::UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    // First, or it could be given the port that was closed, and get its own datagram.
    let sender = bind();
    let closed = bind().local_addr().unwrap();
    sender.send_to(b"mark", closed).unwrap();
    closed.port()
}

/// Waits for something to become true; the deadline is for a kernel that does not do it at all.
fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

impl Live {
    /// Everything that has come, in order.
    ///
    /// But for fragments that waited in vain for the others: their buffers tell no namespace, so each watcher on this
    /// kernel hears of those of all pods, 30 s after a test of somebody else left them behind.
    fn take(&mut self, into: &mut Vec<Event>) {
        while let Ok(batch) = self.events.try_recv() {
            let events = batch.into_iter().map(|observation| attribute(observation, &self.index));
            into.extend(events.filter(|event| {
                event.subject != Subject::Unknown || event.observation.reason.as_deref() != Some("FRAG_REASM_TIMEOUT")
            }));
        }
    }

    fn wait_for(&mut self, count: usize, of: impl Fn(&Event) -> bool) -> Vec<Event> {
        let mut all = Vec::new();
        until(&format!("{count} events"), || {
            self.take(&mut all);
            all.iter().filter(|event| of(event)).count() >= count
        });
        all
    }

    /// Waits until the ring's thread has read all that the kernel wrote before now: a drop in `pod` is told last.
    fn settle(&mut self, pod: &sonde_lab::Pod) -> Vec<Event> {
        let port = pod.run(send_to_nobody).unwrap();
        let mark = |event: &Event| event.observation.dport == Some(port);
        let mut all = self.wait_for(1, mark);
        all.retain(|event| !mark(event));
        all
    }

    /// A probe's rows of this round, by pod and labels, their columns by name.
    fn rows(&mut self, probe: &str) -> HashMap<String, HashMap<&'static str, Vec<i64>>> {
        let (tables, _) = self.kernel.read(now_ns(), &self.index);
        let mut rows = HashMap::new();
        for table in tables.iter().filter(|table| table.spec.name == probe) {
            let labels = table.spec.labels.len();
            for (row, subject) in table.subjects.iter().enumerate() {
                let mut key = vec![name(subject)];
                key.extend(
                    table.labels[row * labels..(row + 1) * labels]
                        .iter()
                        .map(|label| label.to_string()),
                );
                let columns = table.spec.columns.iter().zip(&table.columns);
                let values = columns.map(|(spec, values)| {
                    let width = spec.width();
                    (spec.name, values[row * width..(row + 1) * width].to_vec())
                });
                assert!(
                    rows.insert(key.join(" "), values.collect()).is_none(),
                    "one row for each"
                );
            }
        }
        rows
    }

    /// What a signal runs on.
    fn rung(&self, signal: &str) -> Option<&'static str> {
        let status = self.kernel.status();
        let mut signals = status.signals.into_iter();
        signals.find(|report| report.signal.name == signal)?.signal.rung
    }

    /// Of the probe that runs.
    fn report(&self) -> ProbeReport {
        let status = self.kernel.status();
        status.probes[0].clone()
    }

    /// Drops by (pod, reason, class).
    fn drops(&mut self) -> HashMap<(String, String, String), i64> {
        let (tables, _) = self.kernel.read(now_ns(), &self.index);
        let mut drops = HashMap::new();
        for table in tables.iter().filter(|table| table.spec.name == "packetloss") {
            for (row, subject) in table.subjects.iter().enumerate() {
                let key = (
                    name(subject),
                    table.labels[row * 2].to_string(),
                    table.labels[row * 2 + 1].to_string(),
                );
                assert!(drops.insert(key, table.columns[0][row]).is_none(), "one row for each");
            }
        }
        drops
    }
}

/// An event in one line, for a test that failed.
fn line(event: &Event) -> String {
    let seen = &event.observation;
    let attributes: Vec<String> = seen
        .attributes
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    format!(
        "{} {:?} {:?} {:?}:{:?} > {:?}:{:?} {:?} {} {}",
        name(&event.subject),
        seen.reason,
        seen.protocol,
        seen.saddr,
        seen.sport,
        seen.daddr,
        seen.dport,
        seen.direction,
        attributes.join(" "),
        seen.stack.join(" ")
    )
}

fn name(subject: &Subject) -> String {
    match subject {
        Subject::Node => "node".into(),
        Subject::Unknown => "unknown".into(),
        Subject::Pod(pod) => pod.name.clone(),
    }
}

/// What a device itself counted, as `ip -s link` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Device {
    sent_packets: u64,
    sent_bytes: u64,
    received_packets: u64,
    received_bytes: u64,
}

fn device(pod: &sonde_lab::Pod, device: &str) -> Device {
    let text = pod.ip(&format!("-s -j link show dev {device}")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let number = |side: &str, what: &str| json[0]["stats64"][side][what].as_u64().unwrap();
    Device {
        sent_packets: number("tx", "packets"),
        sent_bytes: number("tx", "bytes"),
        received_packets: number("rx", "packets"),
        received_bytes: number("rx", "bytes"),
    }
}

const BOTH: [Rung; 2] = [Rung::TpBtf, Rung::RawTracepoint];
