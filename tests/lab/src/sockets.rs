//! Real sockets with known ports. Each is made in its pod's namespace and may be used from any thread.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

use crate::error::{At, Result};
use crate::flow::Family;
use crate::pod::Pod;

pub fn any(family: Family, port: u16) -> SocketAddr {
    let address: IpAddr = match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    };
    SocketAddr::new(address, port)
}

fn bound(kind: Type, protocol: Protocol, address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

/// A UDP socket on `port` (0: any), not connected: errors that ICMP brings do not reach it.
pub fn udp(pod: &Pod, family: Family, port: u16) -> Result<UdpSocket> {
    pod.run(|| bound(Type::DGRAM, Protocol::UDP, any(family, port)).map(UdpSocket::from))?
        .at(|| format!("{pod}: udp port {port}"))
}

/// A UDP socket with the smallest receive buffer the kernel gives, for nobody to read.
pub fn udp_small(pod: &Pod, family: Family, port: u16) -> Result<UdpSocket> {
    let socket = Socket::from(udp(pod, family, port)?);
    // The kernel raises it to its smallest.
    socket
        .set_recv_buffer_size(1)
        .at(|| format!("{pod}: receive buffer of udp port {port}"))?;
    Ok(socket.into())
}

/// What became of datagrams that were sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    pub accepted: u64,
    /// The send call failed.
    pub refused: u64,
    /// errno of the last refusal.
    pub errno: Option<i32>,
}

/// Sends `count` datagrams of `length` bytes. A refusal is an answer, not an error.
pub fn send(socket: &UdpSocket, to: SocketAddr, count: u64, length: usize) -> Sent {
    let payload = vec![b'x'; length];
    let mut sent = Sent::default();
    for _ in 0..count {
        match socket.send_to(&payload, to) {
            Ok(_) => sent.accepted += 1,
            Err(error) => {
                sent.refused += 1;
                sent.errno = error.raw_os_error();
            }
        }
    }
    sent
}

/// Reads what waits at a socket, without waiting, and says how many datagrams it was.
pub fn drain(socket: &UdpSocket) -> Result<u64> {
    Ok(lengths(socket)?.len() as u64)
}

/// The same, and how long each was.
pub fn lengths(socket: &UdpSocket) -> Result<Vec<usize>> {
    socket.set_nonblocking(true).at(|| "udp socket".into())?;
    let mut buffer = [0; 2048];
    Ok(std::iter::from_fn(|| socket.recv(&mut buffer).ok()).collect())
}

/// A listening socket. `backlog` + 1 connections fit before the kernel drops further SYNs.
pub fn tcp_listen(pod: &Pod, family: Family, port: u16, backlog: i32) -> Result<TcpListener> {
    pod.run(|| {
        let socket = bound(Type::STREAM, Protocol::TCP, any(family, port))?;
        socket.listen(backlog)?;
        Ok::<_, io::Error>(socket.into())
    })?
    .at(|| format!("{pod}: tcp port {port}"))
}

/// Connects from `port` (0: any). The inner answer is the kernel's: refused, timed out, ...
pub fn tcp_connect(pod: &Pod, port: u16, to: SocketAddr, limit: Duration) -> Result<io::Result<TcpStream>> {
    let socket = pod
        .run(|| bound(Type::STREAM, Protocol::TCP, any(Family::of(&to), port)))?
        .at(|| format!("{pod}: tcp port {port}"))?;
    Ok(socket.connect_timeout(&to.into(), limit).map(|()| socket.into()))
}

/// Sends the SYN of a connection from `port` and comes back at once. Drop the socket to give it up.
pub fn tcp_start_connect(pod: &Pod, port: u16, to: SocketAddr) -> Result<Socket> {
    pod.run(|| {
        let socket = bound(Type::STREAM, Protocol::TCP, any(Family::of(&to), port))?;
        socket.set_nonblocking(true)?;
        match socket.connect(&to.into()) {
            Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => Ok(socket),
            other => other.map(|()| socket),
        }
    })?
    .at(|| format!("{pod}: connect to {to}"))
}

/// Like [`tcp_start_connect`] in the namespace of the calling thread, from an IPv6 socket to any address, a mapped IPv4
/// one too.
pub fn tcp_start_dual_stack(port: u16, to: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
    socket.set_nonblocking(true)?;
    match socket.connect(&to.into()) {
        Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => Ok(socket),
        other => other.map(|()| socket),
    }
}

/// A connection, both ends of it.
#[derive(Debug)]
pub struct Connected {
    pub listener: TcpListener,
    pub client: TcpStream,
    pub server: TcpStream,
}

/// Connects `client` from port `from` (0: any) to a new listener of `server` at `port`. Reading and writing end after a
/// while.
pub fn tcp_pair(client: &Pod, from: u16, server: &Pod, family: Family, port: u16) -> Result<Connected> {
    const LIMIT: Duration = Duration::from_secs(10);
    let listener = tcp_listen(server, family, port, 16)?;
    let to = server.socket(family, port);
    let here = tcp_connect(client, from, to, LIMIT)?.at(|| format!("{client}: connect to {to}"))?;
    let there = listener.accept().at(|| format!("{server}: accept"))?.0;
    for stream in [&here, &there] {
        stream.set_read_timeout(Some(LIMIT)).at(|| "read timeout".into())?;
        stream.set_write_timeout(Some(LIMIT)).at(|| "write timeout".into())?;
    }
    Ok(Connected {
        listener,
        client: here,
        server: there,
    })
}

/// Time to live or hop limit of what the socket sends.
pub fn set_hops(socket: &UdpSocket, family: Family, hops: u32) -> Result<()> {
    let socket = socket2::SockRef::from(socket);
    match family {
        Family::V4 => socket.set_ttl_v4(hops),
        Family::V6 => socket.set_unicast_hops_v6(hops),
    }
    .at(|| format!("{hops} hops over {family}"))
}
