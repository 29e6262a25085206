//! Bodies that a task writes piece by piece. One piece waits at most: the rest is the task's to make when there is room. Who
//! reads nothing for too long is left, and who has gone is noticed at once.

use std::io;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;

/// The way to the reader.
#[derive(Debug)]
pub(super) struct Out {
    sender: mpsc::Sender<Bytes>,
    patience: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stopped {
    /// There is no reader any more.
    Gone,
    /// It took nothing for as long as we wait.
    Slow,
}

/// How a task ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The body is whole.
    Whole,
    /// It is whole after this; a slow reader finds it behind what was sent before.
    Last(Bytes),
    /// The connection is cut, so that nobody takes it for whole.
    Cut(String),
}

impl Out {
    pub(super) async fn send(&self, piece: Bytes) -> Result<(), Stopped> {
        match tokio::time::timeout(self.patience, self.sender.send(piece)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Stopped::Gone),
            Err(_) => Err(Stopped::Slow),
        }
    }

    /// Resolves when there is no reader any more.
    pub(super) async fn gone(&self) {
        self.sender.closed().await;
    }
}

pub(super) fn body<F>(patience: Duration, task: impl FnOnce(Out) -> F) -> Body
where
    F: Future<Output = End> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(1);
    let (said, end) = oneshot::channel();
    let task = task(Out { sender, patience });
    tokio::spawn(async move {
        let end = task.await;
        let _ = said.send(end);
    });
    let end = stream::once(end).filter_map(|end| async {
        match end.unwrap_or_else(|_| End::Cut("its task is gone".into())) {
            End::Whole => None,
            End::Last(piece) => Some(Ok(piece)),
            End::Cut(why) => Some(Err(io::Error::other(why))),
        }
    });
    Body::from_stream(ReceiverStream::new(receiver).map(Ok).chain(end))
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;

    use super::*;

    const LONG: Duration = Duration::from_secs(600);

    #[tokio::test]
    async fn pieces_come_in_order_and_a_cut_is_no_end() {
        let two = |end: End| async {
            let body = body(LONG, |out| async move {
                out.send("a".into()).await.unwrap();
                out.send("b".into()).await.unwrap();
                end
            });
            to_bytes(body, 100).await
        };
        assert_eq!(two(End::Whole).await.unwrap(), "ab");
        assert_eq!(two(End::Last("c".into())).await.unwrap(), "abc");
        assert!(two(End::Cut("why".into())).await.is_err());
    }

    #[tokio::test]
    async fn a_reader_that_takes_nothing_is_left_and_finds_why() {
        let (tell, told) = oneshot::channel();
        let body = body(Duration::from_millis(20), |out| async move {
            let mut sent = 0;
            let stopped = loop {
                match out.send("x".into()).await {
                    Ok(()) => sent += 1,
                    Err(stopped) => break stopped,
                }
            };
            tell.send((sent, stopped)).unwrap();
            End::Last("slow".into())
        });
        assert_eq!(told.await.unwrap(), (1, Stopped::Slow));
        assert_eq!(to_bytes(body, 100).await.unwrap(), "xslow");
    }

    #[tokio::test]
    async fn a_reader_that_goes_is_noticed_without_sending() {
        let (tell, told) = oneshot::channel();
        let body = body(LONG, |out| async move {
            out.gone().await;
            tell.send(out.send("x".into()).await).unwrap();
            End::Whole
        });
        drop(body);
        assert_eq!(told.await.unwrap(), Err(Stopped::Gone));
    }
}
