//! A veth pair between two pods.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

use crate::error::{At, Result};
use crate::exec;
use crate::pod::{Interface, Pod};
use crate::wait;

/// IPv4 /24 of 198.18.0.0/15 (for tests of networks, RFC 2544) and an IPv6 /64 (local, RFC 4193).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subnet {
    lab: u16,
    number: u16,
}

impl Subnet {
    pub(crate) fn new(lab: u16, number: u16) -> Option<Self> {
        (number < 512).then_some(Self { lab, number })
    }

    pub(crate) fn v4(self, host: u8) -> Ipv4Addr {
        let [high, low] = self.number.to_be_bytes();
        Ipv4Addr::new(198, 18 + high, low, host)
    }

    pub(crate) fn v6(self, host: u8) -> Ipv6Addr {
        Ipv6Addr::new(0xfd53, 0x6f6e, self.lab, self.number, 0, 0, 0, host.into())
    }

    pub(crate) fn interface(self, name: String, host: u8) -> Interface {
        Interface {
            name,
            v4: self.v4(host),
            v6: self.v6(host),
        }
    }
}

/// The two ends.
#[derive(Clone, Debug)]
pub struct Link {
    pub a: Interface,
    pub b: Interface,
}

impl Link {
    pub(crate) fn create(a: &Pod, b: &Pod, subnet: Subnet) -> Result<Self> {
        let end_a = subnet.interface(next_name(a), 1);
        let end_b = subnet.interface(next_name(b), 2);
        exec::ip_batch(
            &format!("link {a} {b}"),
            &[format!(
                "link add name {} netns {} type veth peer name {} netns {}",
                end_a.name,
                a.netns(),
                end_b.name,
                b.netns()
            )],
        )?;
        configure(a, &end_a)?;
        configure(b, &end_b)?;
        for (pod, end) in [(a, &end_a), (b, &end_b)] {
            await_running(pod, &end.name)?;
            pod.interfaces_mut().push(end.clone());
        }
        Ok(Self { a: end_a, b: end_b })
    }
}

fn next_name(pod: &Pod) -> String {
    format!("eth{}", pod.interfaces_mut().len())
}

/// Addresses and up.
pub(crate) fn configure(pod: &Pod, end: &Interface) -> Result<()> {
    let Interface { name, v4, v6 } = end;
    pod.run(|| {
        exec::ip_batch(
            pod.netns(),
            &[
                format!("link set {name} up"),
                format!("addr add {v4}/24 dev {name}"),
                format!("addr add {v6}/64 dev {name} nodad"),
            ],
        )
    })?
}

/// The kernel puts a device into service some time after both ends are up; until then it drops what is sent.
pub(crate) fn await_running(pod: &Pod, device: &str) -> Result<()> {
    let what = format!("{device} of {pod} to be running");
    wait::until_true(&what, Duration::from_secs(20), || {
        let is_running = || -> nix::Result<bool> {
            let mut all = getifaddrs()?;
            Ok(all.any(|i| i.interface_name == device && i.flags.contains(InterfaceFlags::IFF_RUNNING)))
        };
        pod.run(is_running)?.at(|| format!("{pod}: getifaddrs"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_do_not_overlap_and_end_with_the_range() {
        let subnet = |n| Subnet::new(0x3f2a, n).unwrap();
        assert_eq!(subnet(0).v4(1).to_string(), "198.18.0.1");
        assert_eq!(subnet(511).v4(2).to_string(), "198.19.255.2");
        assert_eq!(subnet(511).v6(2).to_string(), "fd53:6f6e:3f2a:1ff::2");
        assert!(Subnet::new(0, 512).is_none());
    }
}
