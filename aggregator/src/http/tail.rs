//! The newest events, read once and written once for all streams: a stream that keeps up finds what it wants here and asks
//! the database nothing. What is kept has a bound; a stream that is further behind reads from the database, so none holds
//! memory or another one up.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use super::api::events::Event;
use crate::store::Store;
use crate::store::query::filter::{EventFilter, Window};
use crate::store::query::matches::Candidate;
use crate::store::query::{Micros, QueryError};

/// Events that are kept, and bytes of them as messages.
const MOST: usize = 20_000;
const MOST_BYTES: usize = 16 << 20;
/// Events asked for at once.
const PAGE: u32 = 2000;
/// Further behind than this, streams read on their own: it is more than all of them could take.
const TOO_FAR: i64 = 50_000;
/// New events are asked for no more often than this, however many commits there are.
const PACE: Duration = Duration::from_millis(100);
/// How often it is looked whether a stream is left, and how long a database that does not answer is left alone.
const IDLE: Duration = Duration::from_secs(2);
/// A piece of a stream. The last message may go beyond.
const PIECE: usize = 64 << 10;

/// Reads while streams are open.
#[derive(Clone, Debug, Default)]
pub(super) struct Tail {
    running: Arc<Mutex<Weak<Newest>>>,
}

/// What streams share while at least one is open.
#[derive(Debug)]
pub(super) struct Newest {
    kept: RwLock<Kept>,
    /// Up to which id events are kept.
    through: watch::Sender<i64>,
}

/// All events above `from` and up to `through`.
#[derive(Debug)]
struct Kept {
    from: i64,
    through: i64,
    events: VecDeque<(Candidate, Bytes)>,
    bytes: usize,
}

/// What comes next for a stream.
#[derive(Debug)]
pub(super) enum Next {
    /// These messages; then the stream has seen everything up to the id.
    Messages(Bytes, i64),
    /// It is too far behind.
    Behind,
    Nothing,
}

impl Tail {
    /// Begins to read with the first stream.
    pub(super) fn join(&self, store: &Store) -> Arc<Newest> {
        let mut running = self.running.lock();
        if let Some(newest) = running.upgrade() {
            return newest;
        }
        let now = *store.newest_event().borrow();
        let newest = Arc::new(Newest {
            kept: RwLock::new(Kept::new(now)),
            through: watch::Sender::new(now),
        });
        *running = Arc::downgrade(&newest);
        tokio::spawn(read(Arc::downgrade(&newest), store.clone()));
        newest
    }
}

async fn read(newest: Weak<Newest>, store: Store) {
    let mut committed = store.newest_event();
    let filter = EventFilter::default();
    while let Some(shared) = newest.upgrade() {
        let through = shared.kept.read().through;
        // Not while it is waited: the last stream takes it with it.
        drop(shared);
        match tokio::time::timeout(IDLE, committed.wait_for(|id| *id > through)).await {
            Err(_) => continue,
            Ok(Err(_)) => return,
            Ok(Ok(_)) => {}
        }
        let up_to = *committed.borrow_and_update();
        let rows = if up_to - through > TOO_FAR {
            None
        } else {
            match store
                .events_since(&filter, Window::default(), through, up_to, PAGE)
                .await
            {
                Ok(rows) => Some(rows),
                Err(error) => {
                    tracing::warn!(%error, "new events cannot be read for streams");
                    tokio::time::sleep(IDLE).await;
                    continue;
                }
            }
        };
        let Some(shared) = newest.upgrade() else { return };
        let full = rows.as_ref().is_some_and(|rows| rows.len() == PAGE as usize);
        {
            let mut kept = shared.kept.write();
            match rows {
                None => *kept = Kept::new(up_to),
                Some(rows) => {
                    // A page that is not full was the whole of it.
                    let through = rows.last().filter(|_| full).map_or(up_to, |row| row.id);
                    for row in rows {
                        let message = match message(Event::from(row.clone())) {
                            Ok(message) => message,
                            Err(error) => {
                                tracing::error!(%error, "an event cannot be written");
                                continue;
                            }
                        };
                        kept.push(Candidate::from(row), message);
                    }
                    kept.through = through;
                }
            }
            shared.through.send_replace(kept.through);
        }
        drop(shared);
        if !full {
            tokio::time::sleep(PACE).await;
        }
    }
}

impl Kept {
    fn new(at: i64) -> Self {
        Self {
            from: at,
            through: at,
            events: VecDeque::new(),
            bytes: 0,
        }
    }

    fn push(&mut self, event: Candidate, message: Bytes) {
        self.bytes += message.len();
        self.events.push_back((event, message));
        while self.events.len() > MOST || self.bytes > MOST_BYTES {
            let Some((event, message)) = self.events.pop_front() else {
                return;
            };
            self.bytes -= message.len();
            self.from = event.row.id;
        }
    }

    fn next(&self, after: i64, filter: &EventFilter, since: Option<Micros>) -> Next {
        if after < self.from {
            return Next::Behind;
        }
        if after >= self.through {
            return Next::Nothing;
        }
        let mut piece = BytesMut::new();
        let begin = self.events.partition_point(|(event, _)| event.row.id <= after);
        for (event, message) in self.events.range(begin..) {
            if since.is_none_or(|since| event.row.time >= since) && event.matches(filter) {
                piece.put_slice(message);
                if piece.len() >= PIECE {
                    return Next::Messages(piece.freeze(), event.row.id);
                }
            }
        }
        Next::Messages(piece.freeze(), self.through)
    }
}

impl Newest {
    /// The next messages for a stream that has seen everything up to `after`.
    pub(super) fn next(&self, after: i64, filter: &EventFilter, since: Option<Micros>) -> Next {
        self.kept.read().next(after, filter, since)
    }

    /// Changes when there is something new.
    pub(super) fn changes(&self) -> watch::Receiver<i64> {
        self.through.subscribe()
    }
}

/// Messages of the events that a stream read on its own; up to which id it has seen everything then.
pub(super) async fn on_its_own(
    store: &Store,
    filter: &EventFilter,
    window: Window,
    after: i64,
) -> Result<(Bytes, i64), QueryError> {
    const OWN_PAGE: u32 = 500;
    let up_to = *store.newest_event().borrow();
    let rows = store.events_since(filter, window, after, up_to, OWN_PAGE).await?;
    let full = rows.len() == OWN_PAGE as usize;
    let through = rows.last().filter(|_| full).map_or(up_to, |row| row.id);
    let mut piece = BytesMut::new();
    for row in rows {
        match message(Event::from(row)) {
            Ok(message) => piece.put_slice(&message),
            Err(error) => tracing::error!(%error, "an event cannot be written"),
        }
    }
    Ok((piece.freeze(), through))
}

/// JSON has no line feeds of its own.
fn message(event: Event) -> serde_json::Result<Bytes> {
    let mut text = BytesMut::with_capacity(512).writer();
    let id = event.id.to_string();
    for part in ["event: event\nid: ", &id, "\ndata: "] {
        text.get_mut().put_slice(part.as_bytes());
    }
    serde_json::to_writer(&mut text, &event)?;
    let mut text = text.into_inner();
    text.put_slice(b"\n\n");
    Ok(text.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::query::events::EventRow;
    use crate::store::query::filter::Terms;

    fn event(id: i64, node: &str) -> (Candidate, Bytes) {
        let row = EventRow {
            id,
            time: id,
            node: node.into(),
            ..EventRow::default()
        };
        let text = message(Event::from(row.clone())).unwrap();
        (Candidate::from(row), text)
    }

    fn kept(ids: std::ops::RangeInclusive<i64>) -> Kept {
        let mut kept = Kept::new(ids.start() - 1);
        for id in ids.clone() {
            let (event, text) = event(id, if id % 2 == 0 { "even" } else { "odd" });
            kept.push(event, text);
        }
        kept.through = *ids.end();
        kept
    }

    fn ids(messages: &Bytes) -> Vec<i64> {
        let lines = std::str::from_utf8(messages).unwrap().lines();
        lines.filter_map(|l| l.strip_prefix("id: ")?.parse().ok()).collect()
    }

    /// All that a stream gets, and how many pieces it came in.
    fn all(kept: &Kept, after: i64, filter: &EventFilter) -> (Vec<i64>, usize) {
        let (mut at, mut seen, mut pieces) = (after, Vec::new(), 0);
        loop {
            match kept.next(at, filter, None) {
                Next::Messages(messages, through) => {
                    assert!(through > at);
                    at = through;
                    seen.extend(ids(&messages));
                    pieces += 1;
                }
                Next::Nothing => return (seen, pieces),
                Next::Behind => panic!("behind at {at}"),
            }
        }
    }

    #[test]
    fn a_stream_gets_what_it_wants_in_pieces_and_each_once() {
        let kept = kept(11..=3010);
        let (seen, pieces) = all(&kept, 10, &EventFilter::default());
        assert_eq!(seen, (11..=3010).collect::<Vec<_>>());
        assert!(pieces > 1, "a piece has a bound");
        let even = EventFilter {
            node: Terms {
                any: vec!["even".into()],
                none: vec![],
            },
            ..EventFilter::default()
        };
        assert_eq!(all(&kept, 3000, &even).0, [3002, 3004, 3006, 3008, 3010]);
        assert!(matches!(kept.next(3010, &even, None), Next::Nothing));
        assert!(matches!(kept.next(9, &even, None), Next::Behind));
        let Next::Messages(messages, 3010) = kept.next(10, &even, Some(3007)) else {
            panic!("all was looked at");
        };
        assert_eq!(ids(&messages), [3008, 3010]);
    }

    #[test]
    fn what_is_too_much_goes_and_streams_that_wanted_it_are_behind() {
        let kept = kept(1..=MOST as i64 + 5);
        assert_eq!((kept.events.len(), kept.from), (MOST, 5));
        assert!(matches!(kept.next(4, &EventFilter::default(), None), Next::Behind));
        assert!(matches!(
            kept.next(5, &EventFilter::default(), None),
            Next::Messages(..)
        ));
        let bytes: usize = kept.events.iter().map(|(_, text)| text.len()).sum();
        assert_eq!(kept.bytes, bytes);
    }
}
