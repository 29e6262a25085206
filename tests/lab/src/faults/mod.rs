//! Faults: each is made for real, counted by a second source, and says what it must show.
//!
//! A fault is a [`Fault`] record in one of the files here and a line in [`ALL`]. It runs on a [`Scene`] of its own, for
//! IPv4 and IPv6, and says in [`Injected`] exactly what it sent and how much of it the kernel dropped.

mod closed_port;
mod filter;
mod overflow;
mod queue;
mod route;

use std::time::Duration;

use crate::counters::Counters;
use crate::error::{At, LabError, Result};
use crate::flow::{Family, Flow, Protocol};
use crate::lab::Lab;
use crate::pod::Pod;
use crate::sockets;
use crate::wait::{Look, until, until_true};

/// All faults, one line each.
pub const ALL: [&Fault; 11] = [
    &filter::INPUT,
    &filter::OUTPUT,
    &filter::FORWARD,
    &closed_port::TCP,
    &closed_port::UDP,
    &overflow::UDP_BUFFER,
    &overflow::LISTEN_QUEUE,
    &route::FORWARD,
    &route::LOCAL,
    &route::TTL,
    &queue::TBF,
];

/// The port that faults send from.
pub const FROM_PORT: u16 = 40_001;
/// The port that faults send to.
pub const TO_PORT: u16 = 7_001;

/// How long the lab waits for the kernel to have counted what was sent.
const LIMIT: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub struct Fault {
    pub name: &'static str,
    /// What the kernel does, and what shows it.
    pub about: &'static str,
    pub topology: Topology,
    pub protocol: Protocol,
    pub signal: Signal,
    inject: fn(&Scene, Family, u64) -> Result<Injected>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    /// client - server
    Pair,
    /// client - router - server, the two ends with default routes
    Routed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Client,
    Router,
    Server,
}

/// What must be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Every dropped packet is one freed skb, so one event of its own.
    Event(Drop),
    /// No packet is freed as dropped: only a counter of the place tells it. `/proc/net` name for IPv4 and IPv6.
    Counter {
        place: Role,
        v4: &'static str,
        v6: &'static str,
    },
}

/// The event of a dropped packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drop {
    /// The pod in whose namespace the packet is dropped.
    pub place: Role,
    /// Names of the kernel's `enum skb_drop_reason`; more than one where they differ between kernels or families.
    pub reasons: &'static [&'static str],
    pub direction: &'static str,
    /// `None` where the packet is on no device yet.
    pub interface: Option<&'static str>,
}

/// What a fault did.
#[derive(Clone, Debug)]
pub struct Injected {
    pub family: Family,
    /// The pod in whose namespace the kernel dropped.
    pub place: Pod,
    pub flow: Flow,
    /// Packets that the sender tried to send.
    pub sent: u64,
    /// How many of them were dropped (or refused, where the fault is one of the sending side), says `source`.
    pub dropped: u64,
    /// Who says so: never Sonde.
    pub source: String,
}

/// The pods of one fault.
#[derive(Clone, Debug)]
pub struct Scene {
    pub fault: &'static Fault,
    pub client: Pod,
    pub router: Option<Pod>,
    pub server: Pod,
}

impl Fault {
    /// By name.
    pub fn find(name: &str) -> Option<&'static Self> {
        ALL.into_iter().find(|fault| fault.name == name)
    }

    /// Makes the pods, links and routes, and sends a first packet each way. `namespace` must be used for this scene alone.
    pub fn scene(&'static self, lab: &Lab, namespace: &str) -> Result<Scene> {
        let client = lab.pod(namespace, "client")?;
        let server = lab.pod(namespace, "server")?;
        let router = match self.topology {
            Topology::Pair => {
                lab.link(&client, &server)?;
                None
            }
            Topology::Routed => {
                let router = lab.router(namespace, "router")?;
                let left = lab.link(&client, &router)?;
                let right = lab.link(&server, &router)?;
                for (pod, gateway) in [(&client, left.b), (&server, right.b)] {
                    pod.ip(&format!("route add default via {}", gateway.v4))?;
                    pod.ip(&format!("-6 route add default via {}", gateway.v6))?;
                }
                Some(router)
            }
        };
        let scene = Scene {
            fault: self,
            client,
            router,
            server,
        };
        for family in Family::BOTH {
            scene.greet(family)?;
        }
        Ok(scene)
    }
}

impl Scene {
    /// Makes the fault with `count` packets (or connections). Once for each family.
    pub fn inject(&self, family: Family, count: u64) -> Result<Injected> {
        (self.fault.inject)(self, family, count)
    }

    pub fn pods(&self) -> Vec<&Pod> {
        let mut pods = vec![&self.client, &self.server];
        pods.extend(&self.router);
        pods
    }

    /// # Panics
    /// When the topology has no such role.
    pub fn pod(&self, role: Role) -> &Pod {
        match role {
            Role::Client => &self.client,
            Role::Router => self.router.as_ref().expect("a routed scene has a router"),
            Role::Server => &self.server,
        }
    }

    /// A datagram there and back: neighbours are known and the path works before anything is counted.
    fn greet(&self, family: Family) -> Result<()> {
        let server = sockets::udp(&self.server, family, TO_PORT)?;
        let client = sockets::udp(&self.client, family, FROM_PORT)?;
        let there = self.server.socket(family, TO_PORT);
        for socket in [&server, &client] {
            socket.set_read_timeout(Some(LIMIT)).at(|| "read timeout".into())?;
        }
        let hello = || -> std::io::Result<()> {
            client.send_to(b"hello", there)?;
            let (_, from) = server.recv_from(&mut [0; 8])?;
            server.send_to(b"hello", from)?;
            client.recv_from(&mut [0; 8])?;
            Ok(())
        };
        hello().at(|| format!("{}: a first datagram over {family} to {there}", self.client))
    }

    /// From the client's known port to the server's.
    fn flow(&self, family: Family) -> Flow {
        Flow {
            protocol: self.fault.protocol,
            from: self.client.socket(family, FROM_PORT),
            to: self.server.socket(family, TO_PORT),
        }
    }

    /// Sends `count` datagrams along the flow.
    fn send_datagrams(&self, family: Family, count: u64, length: usize) -> Result<sockets::Sent> {
        let socket = sockets::udp(&self.client, family, FROM_PORT)?;
        Ok(sockets::send(
            &socket,
            self.server.socket(family, TO_PORT),
            count,
            length,
        ))
    }
}

/// One name for each family.
fn by_family(family: Family, v4: &'static str, v6: &'static str) -> &'static str {
    match family {
        Family::V4 => v4,
        Family::V6 => v6,
    }
}

/// Waits until `name` grew by at least `count` and gives its growth. Softirq work may still be under way after the send.
fn await_growth(pod: &Pod, before: &Counters, name: &str, count: u64) -> Result<u64> {
    let what = format!("{name} of {pod} to grow by {count}");
    until(&what, LIMIT, || {
        let growth = pod.counters()?.since(before, name)?;
        Ok(match growth >= count {
            true => Look::Found(growth),
            false => Look::NotYet(growth.to_string()),
        })
    })
}
