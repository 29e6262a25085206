//! Traffic of a healthy network. The kernel frees many packets of it through the same door as lost ones; none of them may
//! become an event.

mod icmp;
mod tcp;
mod udp;

use std::time::Duration;

use crate::error::Result;
use crate::flow::Family;
use crate::pod::Pod;

/// Bounds a read or a wait; nothing here takes a second on a working kernel, probes by timer two.
const LIMIT: Duration = Duration::from_secs(20);

/// One kind of healthy traffic between a client and a server that are linked.
#[derive(Debug)]
pub struct Habit {
    pub name: &'static str,
    run: fn(&Pod, &Pod, Family) -> Result<()>,
}

/// All kinds, one line each.
pub const ALL: [&Habit; 14] = [
    &tcp::CLIENT_CLOSES_FIRST,
    &tcp::SERVER_CLOSES_FIRST,
    &tcp::PORT_IN_TIME_WAIT,
    &tcp::SHUTDOWN_BOTH_WAYS,
    &tcp::ZERO_WINDOW,
    &tcp::KEEPALIVE,
    &tcp::BULK,
    &udp::ECHO,
    &udp::CLOSED_UNREAD,
    &udp::MULTICAST,
    &icmp::PING_RAW,
    &icmp::PING_SOCKET,
    &icmp::NEIGHBOURS_ANEW,
    &tcp::UNIX_SOCKETS,
];

impl Habit {
    pub fn run(&self, client: &Pod, server: &Pod, family: Family) -> Result<()> {
        (self.run)(client, server, family)
    }
}

/// Everything, for both families.
pub fn healthy(client: &Pod, server: &Pod) -> Result<()> {
    for habit in ALL {
        for family in Family::BOTH {
            habit.run(client, server, family)?;
        }
    }
    Ok(())
}
