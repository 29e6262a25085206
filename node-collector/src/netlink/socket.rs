//! A netlink socket, and what a dump needs of one.

use std::fmt::Debug;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

/// A descriptor in the network namespace of the calling thread, that hears `groups`.
pub(super) fn open(protocol: libc::c_int, groups: u32) -> io::Result<OwnedFd> {
    // SAFETY: plain system call; the descriptor is checked before it is owned.
    let fd = unsafe {
        libc::socket(
            libc::AF_NETLINK,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
            protocol,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor just made and owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all zeros is a valid sockaddr_nl.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
    address.nl_groups = groups;
    // SAFETY: the address lives through the call and its length is its own.
    let result = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_nl>() as libc::socklen_t,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

/// Where requests go and answers come from: a socket, or what a test makes of one.
pub trait Transport: Send + Sync + Debug {
    fn send(&self, message: &[u8]) -> io::Result<()>;

    /// Without waiting. The length is that of the whole datagram, also where the buffer holds less of it.
    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize>;

    /// The name of a device of the socket's namespace.
    fn device_name(&self, ifindex: u32) -> io::Result<String>;

    /// Whether something came that nobody asked for, which is read away; also where some of it was lost.
    fn has_heard(&self, buffer: &mut [u8]) -> bool {
        let mut heard = false;
        loop {
            match self.receive(buffer) {
                Ok(_) => heard = true,
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => heard = true,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return heard,
                Err(_) => return true,
            }
        }
    }
}

/// Devices and qdiscs come, go and change: RTMGRP_LINK and RTMGRP_TC.
const ROUTE_GROUPS: u32 = 0x1 | 0x8;

/// A socket that asks, and hears of changes where that saves asking. It answers for the namespace it was made in, whoever uses it.
#[derive(Debug)]
pub struct AskSocket(OwnedFd);

impl AskSocket {
    pub fn sock_diag() -> io::Result<Self> {
        open(libc::NETLINK_SOCK_DIAG, 0).map(Self)
    }

    pub fn route() -> io::Result<Self> {
        open(libc::NETLINK_ROUTE, ROUTE_GROUPS).map(Self)
    }

    /// Of netfilter, that hears `groups`. Where the kernel's nfnetlink is a module, this loads it.
    pub fn netfilter(groups: u32) -> io::Result<Self> {
        open(libc::NETLINK_NETFILTER, groups).map(Self)
    }

    /// Where the kernel's RDMA core is a module, this loads it.
    pub fn rdma() -> io::Result<Self> {
        open(libc::NETLINK_RDMA, 0).map(Self)
    }
}

impl AsFd for AskSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Transport for AskSocket {
    fn send(&self, message: &[u8]) -> io::Result<()> {
        // SAFETY: the message lives through the call and its length is its own.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), message.as_ptr().cast(), message.len(), 0) };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            // SAFETY: the buffer lives through the call and its length is its own; MSG_TRUNC makes the answer longer,
            // not what is written.
            let len = unsafe {
                libc::recv(
                    self.0.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    libc::MSG_TRUNC,
                )
            };
            if len >= 0 {
                return Ok(len as usize);
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    fn device_name(&self, ifindex: u32) -> io::Result<String> {
        // SAFETY: all zeros is a valid ifreq.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_ifru.ifru_ifindex = ifindex as libc::c_int;
        // SAFETY: the request lives through the call, which reads the index and writes the name.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SIOCGIFNAME as _, &raw mut request) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        let name: Vec<u8> = request
            .ifr_name
            .iter()
            .map(|c| *c as u8)
            .take_while(|c| *c != 0)
            .collect();
        String::from_utf8(name).map_err(|_| io::ErrorKind::InvalidData.into())
    }
}
