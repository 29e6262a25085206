//! A machine with a bridge, as container networks build it: a host-side veth for each pod.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::error::{LabError, Result};
use crate::exec;
use crate::lab::Lab;
use crate::link::{Subnet, await_running, configure};
use crate::pod::Pod;

#[derive(Debug)]
pub struct Node {
    lab: Lab,
    netns: Pod,
    subnet: Subnet,
    next_host: AtomicU8,
}

impl Node {
    pub(crate) fn create(lab: Lab, netns: Pod) -> Result<Self> {
        netns.forward()?;
        netns.ip("link add br0 type bridge")?;
        let subnet = lab.subnet()?;
        let bridge = subnet.interface("br0".into(), 1);
        configure(&netns, &bridge)?;
        netns.interfaces_mut().push(bridge);
        Ok(Self {
            lab,
            netns,
            subnet,
            next_host: AtomicU8::new(2),
        })
    }

    /// The machine's own namespace: link it to other nodes, add rules, read its counters.
    pub fn host(&self) -> &Pod {
        &self.netns
    }

    /// A pod behind the bridge: `eth0` with the bridge as its default route; the host-side device is `veth<n>`.
    pub fn pod(&self, namespace: &str, name: &str) -> Result<Pod> {
        let host = self.next_host.fetch_add(1, Ordering::Relaxed);
        if host == 255 {
            return Err(LabError::Unexpected {
                what: format!("{}: pods behind one bridge", self.netns),
                expected: "at most 253",
                found: host.to_string(),
            });
        }
        let pod = self.lab.pod(namespace, name)?;
        let outside = format!("veth{host}");
        exec::ip_batch(
            self.netns.netns(),
            &[format!(
                "link add name {outside} netns {} type veth peer name eth0 netns {}",
                self.netns.netns(),
                pod.netns()
            )],
        )?;
        self.netns.ip(&format!("link set {outside} master br0 up"))?;
        let end = self.subnet.interface("eth0".into(), host);
        configure(&pod, &end)?;
        await_running(&self.netns, &outside)?;
        await_running(&self.netns, "br0")?;
        await_running(&pod, "eth0")?;
        pod.ip(&format!("route add default via {}", self.subnet.v4(1)))?;
        pod.ip(&format!("-6 route add default via {}", self.subnet.v6(1)))?;
        pod.interfaces_mut().push(end);
        Ok(pod)
    }

    /// Name of the host-side device of a pod that [`Node::pod`] made.
    pub fn host_device(&self, pod: &Pod) -> String {
        let host = pod.interfaces_mut().first().map_or(0, |i| i.v4.octets()[3]);
        format!("veth{host}")
    }
}
