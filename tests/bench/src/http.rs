//! A GET over one connection, body and all.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Context as _;

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

pub(crate) fn get(address: SocketAddr, path: &str) -> anyhow::Result<Answer> {
    let mut body = Vec::new();
    let status = read(address, path, &[], |piece| body.extend_from_slice(piece))?;
    Ok(Answer { status, body })
}

/// The body piece by piece, for one that is not to be in memory. Gives the status.
pub(crate) fn read(
    address: SocketAddr,
    path: &str,
    headers: &[(&str, &str)],
    mut take: impl FnMut(&[u8]),
) -> anyhow::Result<u16> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(120)))?;
    // HTTP/1.0: the body ends with the connection, or has a length; nothing is chunked.
    let headers: String = headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n{headers}\r\n")?;
    let mut reader = BufReader::with_capacity(1 << 20, stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).context("no status line")?.parse()?;
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    loop {
        let piece = reader.fill_buf()?;
        if piece.is_empty() {
            return Ok(status);
        }
        take(piece);
        let length = piece.len();
        reader.consume(length);
    }
}
