//! Connections that begin, carry data both ways and end as they should.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

use super::{Habit, LIMIT};
use crate::error::{At, Result};
use crate::flow::Family;
use crate::pod::Pod;
use crate::sockets;
use crate::wait;

const PORT: u16 = 7_201;

struct Pair {
    _listener: TcpListener,
    client: TcpStream,
    server: TcpStream,
}

/// A connection from `from` (0: any port).
fn connect(client: &Pod, server: &Pod, family: Family, from: u16) -> Result<Pair> {
    accept(
        sockets::tcp_listen(server, family, PORT, 16)?,
        client,
        server,
        family,
        from,
    )
}

fn accept(listener: TcpListener, client: &Pod, server: &Pod, family: Family, from: u16) -> Result<Pair> {
    let to = server.socket(family, PORT);
    let here = sockets::tcp_connect(client, from, to, LIMIT)?.at(|| format!("{client}: connect to {to}"))?;
    let there = listener.accept().at(|| format!("{server}: accept"))?.0;
    for stream in [&here, &there] {
        stream.set_read_timeout(Some(LIMIT)).at(|| "read timeout".into())?;
        stream.set_write_timeout(Some(LIMIT)).at(|| "write timeout".into())?;
    }
    Ok(Pair {
        _listener: listener,
        client: here,
        server: there,
    })
}

/// `length` bytes from one to the other.
fn carry(from: &mut TcpStream, to: &mut TcpStream, length: usize) -> io::Result<()> {
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| from.write_all(&vec![7; length]));
        to.read_exact(&mut vec![0; length])?;
        writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Data both ways, then `first` and `second` close, each after it read the end of the other.
fn talk_and_close(mut first: TcpStream, mut second: TcpStream) -> io::Result<()> {
    carry(&mut first, &mut second, 2000)?;
    carry(&mut second, &mut first, 2000)?;
    first.shutdown(Shutdown::Write)?;
    expect_end(&mut second)?;
    drop(second);
    expect_end(&mut first)
}

fn expect_end(stream: &mut TcpStream) -> io::Result<()> {
    match stream.read(&mut [0; 1])? {
        0 => Ok(()),
        _ => Err(io::Error::other("data where the end should be")),
    }
}

pub(super) const CLIENT_CLOSES_FIRST: Habit = Habit {
    name: "tcp-client-closes-first",
    run: |client, server, family| {
        for _ in 0..5 {
            let pair = connect(client, server, family, 0)?;
            talk_and_close(pair.client, pair.server).at(|| format!("{client} talks to {server}"))?;
        }
        Ok(())
    },
};

pub(super) const SERVER_CLOSES_FIRST: Habit = Habit {
    name: "tcp-server-closes-first",
    run: |client, server, family| {
        for _ in 0..5 {
            let pair = connect(client, server, family, 0)?;
            talk_and_close(pair.server, pair.client).at(|| format!("{server} talks to {client}"))?;
        }
        Ok(())
    },
};

/// The server's end is in TIME_WAIT when the same ports are used again: the SYN meets a TIME_WAIT socket.
pub(super) const PORT_IN_TIME_WAIT: Habit = Habit {
    name: "tcp-port-in-time-wait",
    run: |client, server, family| {
        for _ in 0..3 {
            let pair = connect(client, server, family, 40_301)?;
            talk_and_close(pair.server, pair.client).at(|| format!("{server} talks to {client}"))?;
        }
        Ok(())
    },
};

/// Both ends shut down both ways once all is read, at the same time.
pub(super) const SHUTDOWN_BOTH_WAYS: Habit = Habit {
    name: "tcp-shutdown-both-ways",
    run: |client, server, family| {
        let mut pair = connect(client, server, family, 0)?;
        (|| {
            carry(&mut pair.client, &mut pair.server, 1000)?;
            pair.client.shutdown(Shutdown::Both)?;
            expect_end(&mut pair.server)?;
            pair.server.shutdown(Shutdown::Both)
        })()
        .at(|| format!("{client} and {server} shut down"))
    },
};

/// The reader pauses until the sender probes its zero window, then reads on.
pub(super) const ZERO_WINDOW: Habit = Habit {
    name: "tcp-zero-window",
    run: |client, server, family| {
        let place = || format!("{client} fills the window of {server}");
        // Accepted sockets have the listener's buffer from the start: a window once offered is never taken back.
        let listener = sockets::tcp_listen(server, family, PORT, 16)?;
        SockRef::from(&listener).set_recv_buffer_size(32 << 10).at(place)?;
        let Pair {
            client: mut writer,
            server: mut reader,
            ..
        } = accept(listener, client, server, family, 0)?;
        let before = client.counters()?;
        let length = 2 << 20;
        let sender = std::thread::spawn(move || -> io::Result<()> {
            writer.write_all(&vec![7; length])?;
            writer.shutdown(Shutdown::Write)
        });
        wait::until_true("a probe of the zero window", LIMIT, || {
            Ok(client.counters()?.since(&before, "TcpExt.TCPWinProbe")? >= 1)
        })?;
        let read = io::copy(&mut reader, &mut io::sink()).at(place)?;
        assert_eq!(read, length as u64, "{server}");
        sender
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            .at(place)
    },
};

/// An idle connection whose client asks whether the server is still there: with a sequence number from the past.
pub(super) const KEEPALIVE: Habit = Habit {
    name: "tcp-keepalive",
    run: |client, server, family| {
        let pair = connect(client, server, family, 0)?;
        let every_second = TcpKeepalive::new()
            .with_time(Duration::from_secs(1))
            .with_interval(Duration::from_secs(1));
        SockRef::from(&pair.client)
            .set_tcp_keepalive(&every_second)
            .at(|| format!("{client}: keepalive"))?;
        let before = client.counters()?;
        wait::until_true("a keepalive probe", LIMIT, || {
            Ok(client.counters()?.since(&before, "TcpExt.TCPKeepAlive")? >= 1)
        })?;
        talk_and_close(pair.client, pair.server).at(|| format!("{client} talks to {server}"))
    },
};

/// Enough data for large segments and a growing window.
pub(super) const BULK: Habit = Habit {
    name: "tcp-bulk",
    run: |client, server, family| {
        let mut pair = connect(client, server, family, 0)?;
        (|| {
            carry(&mut pair.client, &mut pair.server, 8 << 20)?;
            carry(&mut pair.server, &mut pair.client, 8 << 20)?;
            talk_and_close(pair.client, pair.server)
        })()
        .at(|| format!("{client} and {server} exchange bulk data"))
    },
};

/// Not the network, but freed through the same door: a Unix socket closed with unread data.
pub(super) const UNIX_SOCKETS: Habit = Habit {
    name: "unix-closed-unread",
    run: |client, _server, _family| {
        client
            .run(|| {
                let (here, there) = UnixDatagram::pair()?;
                for _ in 0..5 {
                    here.send(b"never read")?;
                }
                drop(there);
                drop(here);
                Ok::<_, io::Error>(())
            })?
            .at(|| format!("{client}: unix sockets"))
    },
};
