//! Two pods between which everything happens that dashboards show: ordinary traffic and real faults, in both directions.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result};
use sonde_lab::{Family, Lab, Pod, healthy, sockets};

/// Datagrams to it are dropped by a rule in the server.
const FILTERED: u16 = 7001;
/// SYNs to it are dropped by a rule in the client: the server sends them again.
const SILENT: u16 = 7002;
/// Nobody listens.
const CLOSED: u16 = 9;
const OPEN: u16 = 7003;
const DNS: u16 = 53;

pub(crate) struct Traffic {
    pub(crate) client: Pod,
    pub(crate) server: Pod,
    /// A connection that stays, so that there are sockets with queues and round-trip times, and the listener behind it.
    _open: (TcpListener, TcpStream, TcpStream),
    _small: UdpSocket,
}

impl Traffic {
    pub(crate) fn new(lab: &Lab) -> Result<Self> {
        let (client, server) = (lab.pod("shop", "client")?, lab.pod("shop", "server")?);
        lab.link(&client, &server)?;
        server.nft(&format!(
            "table inet shop {{ chain in {{ type filter hook input priority 0; udp dport {FILTERED} counter drop comment \"no telemetry\"; }}; }}"
        ))?;
        client.nft(&format!(
            "table inet shop {{ chain in {{ type filter hook input priority 0; tcp dport {SILENT} drop; }}; }}"
        ))?;
        let open = server.socket(Family::V4, OPEN);
        let listener = server.run(|| TcpListener::bind(sockets::any(Family::V4, OPEN)))??;
        let near = client.run(|| TcpStream::connect(open))??;
        let (far, _) = listener.accept()?;
        Ok(Self {
            _small: sockets::udp_small(&server, Family::V4, 7004)?,
            _open: (listener, near, far),
            client,
            server,
        })
    }

    pub(crate) fn pods(&self) -> [&Pod; 2] {
        [&self.client, &self.server]
    }

    pub(crate) fn run(&self) -> Result<()> {
        let (client, server) = (&self.client, &self.server);
        healthy::healthy(client, server)?;
        healthy::healthy(server, client)?;
        let socket = sockets::udp(client, Family::V4, 0)?;
        // More than events are told of: some are held back.
        sockets::send(&socket, server.socket(Family::V4, FILTERED), 200, 32);
        sockets::send(&socket, server.socket(Family::V4, 7004), 200, 1000);
        sockets::send(&socket, server.socket(Family::V4, CLOSED), 5, 8);
        for (from, to) in [(client, server), (server, client)] {
            let closed = to.socket(Family::V4, CLOSED);
            from.run(|| {
                for _ in 0..5 {
                    // Refused: that is what it is for.
                    let _ = TcpStream::connect(closed);
                }
            })?;
        }
        let silent = client.socket(Family::V4, SILENT);
        // Long enough for the kernel to send the SYN again, a second later.
        server.run(|| TcpStream::connect_timeout(&silent, Duration::from_millis(1500)).is_err())?;
        self.late_reader().context("a read that comes late")?;
        self.dns().context("a question and its answer")
    }

    /// Data waits in the server's socket before it is read.
    fn late_reader(&self) -> Result<()> {
        let listener = self.server.run(|| TcpListener::bind(sockets::any(Family::V4, 0)))??;
        let to = self.server.socket(Family::V4, listener.local_addr()?.port());
        let mut near = self.client.run(|| TcpStream::connect(to))??;
        let (mut far, _) = listener.accept()?;
        near.write_all(b"late")?;
        std::thread::sleep(Duration::from_millis(50));
        far.read_exact(&mut [0; 4])?;
        Ok(())
    }

    /// The client asks the server over UDP; one answer says that there is no such name.
    fn dns(&self) -> Result<()> {
        let server = sockets::udp(&self.server, Family::V4, DNS)?;
        let client = sockets::udp(&self.client, Family::V4, 0)?;
        for socket in [&server, &client] {
            socket.set_read_timeout(Some(Duration::from_secs(30)))?;
        }
        let to: SocketAddr = self.server.socket(Family::V4, DNS);
        for (id, code) in [(1, 0), (2, 3)] {
            // Header (a question, recursion desired), the name `a.b`, type A, class IN.
            let question = [0, id, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'a', 1, b'b', 0, 0, 1, 0, 1];
            client.send_to(&question, to)?;
            let mut buffer = [0; 512];
            let (length, from) = server.recv_from(&mut buffer)?;
            buffer[2] |= 0x80;
            buffer[3] = 0x80 | code;
            server.send_to(&buffer[..length], from)?;
            client.recv_from(&mut buffer)?;
        }
        Ok(())
    }
}
