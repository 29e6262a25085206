//! Frames byte by byte, and a packet socket that sends them as they are.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, sendto, socket};
use sonde_lab::Pod;

/// Of the sender. By it rules know a frame that a test made.
pub(super) const MAC: &str = "02:00:00:00:0d:dd";
pub(super) const V4: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];
pub(super) const V6: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2),
];

/// Sends on eth0 of a pod.
pub(super) struct Wire {
    socket: OwnedFd,
    device: LinkAddr,
    /// Of the device at the other end.
    to: [u8; 6],
}

impl Wire {
    pub(super) fn open(from: &Pod, to: &Pod) -> Self {
        let eth0 = |pod: &Pod| {
            let link = || {
                let mut all = nix::ifaddrs::getifaddrs().unwrap();
                all.find_map(|found| {
                    let address = found.address.filter(|_| found.interface_name == "eth0")?;
                    address.as_link_addr().copied()
                })
            };
            pod.run(link).unwrap().unwrap()
        };
        let open = || socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None).unwrap();
        Self {
            socket: from.run(open).unwrap(),
            device: eth0(from),
            to: eth0(to).addr().unwrap(),
        }
    }

    /// A frame that goes on with `rest` behind the addresses of its Ethernet header.
    pub(super) fn send(&self, rest: &[u8]) {
        let frame = [&self.to[..], &[2, 0, 0, 0, 0x0d, 0xdd], rest].concat();
        let sent = sendto(self.socket.as_raw_fd(), &frame, &self.device, MsgFlags::empty());
        match sent {
            Ok(sent) => assert_eq!(sent, frame.len()),
            // A rule of the sender drops it.
            Err(errno) => assert_eq!(errno, nix::errno::Errno::ENOBUFS),
        }
    }
}

/// EtherType and what follows; tags come before it.
pub(super) fn ether(tags: &[(u16, u16)], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    for (kind, tag) in tags {
        frame.extend(kind.to_be_bytes());
        frame.extend(tag.to_be_bytes());
    }
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

/// `options` in words of 4 bytes, all no-operations; `fragment` is the field of flags and offset.
pub(super) fn ipv4([from, to]: [Ipv4Addr; 2], options: usize, fragment: u16, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let header = 20 + options * 4;
    let mut packet = vec![0x45 + options as u8, 0];
    packet.extend(((header + payload.len()) as u16).to_be_bytes());
    packet.extend([0x12, 0x34]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.resize(header, 1);
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(payload);
    packet
}

pub(super) fn ipv6([from, to]: [Ipv6Addr; 2], next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, 64]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(payload);
    packet
}

/// An extension header that names the next one and is padded to `words` of 8 bytes, then what follows it.
pub(super) fn extension(next: u8, words: u8, rest: &[u8]) -> Vec<u8> {
    let mut header = vec![next, words - 1];
    // One option for experiments, to be skipped by who does not know it: padding of more than 7 bytes is refused.
    header.extend([0x1e, words * 8 - 4]);
    header.resize(usize::from(words) * 8, 0);
    [&header[..], rest].concat()
}

pub(super) fn udp([from, to]: [u16; 2], payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    for word in [from, to, 8 + payload.len() as u16, 0] {
        packet.extend(word.to_be_bytes());
    }
    packet.extend(payload);
    packet
}

/// A SYN without options; the check sum is that between the two addresses.
pub(super) fn syn(ports: [u16; 2], ends: [IpAddr; 2]) -> Vec<u8> {
    syn_with(ports, ends, &[])
}

/// One that brings data along.
pub(super) fn syn_with([from, to]: [u16; 2], ends: [IpAddr; 2], data: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    packet.extend(from.to_be_bytes());
    packet.extend(to.to_be_bytes());
    packet.extend([0, 0, 0, 7, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
    packet.extend(data);
    let mut all = Vec::new();
    for end in ends {
        match end {
            IpAddr::V4(end) => all.extend(end.octets()),
            IpAddr::V6(end) => all.extend(end.octets()),
        }
    }
    all.extend([0, 6, 0, packet.len() as u8]);
    all.extend(&packet);
    packet[16..18].copy_from_slice(&checksum(&all).to_be_bytes());
    packet
}

/// Of the Internet. An odd length counts as if a zero followed.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
