//! Two hundred event streams at 1,000 events a second, and some whose readers have stopped reading.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::ensure;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{arrivals, last};
use crate::report::{Report, mebibytes, thousands};
use crate::store::Store;

const STREAMS: usize = 200;
const STOPPED: usize = 20;
const SPAN: Duration = Duration::from_secs(30);

pub(super) async fn run(report: &mut Report, store: &Store) -> anyhow::Result<()> {
    let http = store.aggregator.http;
    // They hold a connection and nothing else.
    let mut stopped = Vec::new();
    for _ in 0..STOPPED {
        stopped.push(open(http).await?);
    }
    let mut readers = Vec::new();
    for _ in 0..STREAMS {
        let stream = open(http).await?;
        readers.push(tokio::spawn(read(stream)));
    }
    let (memory, cpu) = (store.aggregator.resident()?, store.aggregator.cpu()?);
    let mut database = store.database().await?;
    let before = last(&mut database).await?;
    arrivals(store.grpc.clone(), 1000.0, SPAN).await?;
    let after = last(&mut database).await?;
    let mut counts = Vec::new();
    for reader in readers {
        let ids = reader.await??;
        let new: Vec<i64> = ids.into_iter().filter(|id| *id > before && *id <= after).collect();
        ensure!(
            new.is_sorted_by(|a, b| a + 1 == *b),
            "a stream missed or repeated events"
        );
        counts.push(new.len());
    }
    let cpu = store.aggregator.cpu()?.saturating_sub(cpu);
    let all: usize = counts.iter().sum();
    report.row(
        &format!(
            "{STREAMS} streams, {} events in {} s: events sent",
            after - before,
            SPAN.as_secs()
        ),
        thousands(all as f64),
    );
    report.row(
        "the same: fewest events of a stream, without a gap in its ids",
        counts.iter().min().copied().unwrap_or(0),
    );
    report.row(
        "CPU of the aggregator for it, ingest included",
        format!("{:.1} s", cpu.as_secs_f64()),
    );
    report.row(
        &format!("memory it took more, {STOPPED} readers that stopped reading included"),
        mebibytes(store.aggregator.resident()?.saturating_sub(memory)),
    );
    drop(stopped);
    Ok(())
}

async fn open(http: SocketAddr) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(http).await?;
    let request = format!("GET /api/v1/events/stream HTTP/1.0\r\nhost: {http}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    Ok(stream)
}

/// Ids of events until nothing more has come for some seconds.
async fn read(mut stream: TcpStream) -> anyhow::Result<Vec<i64>> {
    let (mut ids, mut rest, mut piece) = (Vec::new(), Vec::new(), vec![0; 256 << 10]);
    let mut event = false;
    loop {
        let patience = if ids.is_empty() { SPAN } else { Duration::from_secs(5) };
        let Ok(read) = tokio::time::timeout(patience, stream.read(&mut piece)).await else {
            return Ok(ids);
        };
        let read = read?;
        ensure!(read > 0, "a stream was ended");
        rest.extend_from_slice(&piece[..read]);
        let whole = rest.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        for line in rest[..whole].split(|b| *b == b'\n') {
            if line == b"event: event" {
                event = true;
            } else if event && let Some(id) = line.strip_prefix(b"id: ") {
                ids.push(std::str::from_utf8(id)?.parse()?);
                event = false;
            }
        }
        rest.drain(..whole);
    }
}
