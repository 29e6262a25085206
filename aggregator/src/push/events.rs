//! Events as they are stored, handed on page by page. At least once: what was on its way when an aggregator ended is sent again.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use sonde_common::event_text::event_text;
use sonde_common::shutdown::Shutdown;
use sonde_push::{Pusher, Timed};

use super::PAGE;
use super::status::Status;
use crate::http::Event;
use crate::store::query::events::EventRow;
use crate::store::query::filter::{EventFilter, Window};
use crate::store::{PushCursor, PushTarget, Store};

/// How often the lock is tried that another aggregator has, and the database that does not answer.
const ELECTION: Duration = Duration::from_secs(5);
/// Events are looked for no more often than this.
const LOOK: Duration = Duration::from_millis(200);

/// An event as `/api/v1/events` shows it.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    time_ns: u64,
    json: Arc<Value>,
}

impl From<EventRow> for Stored {
    fn from(row: EventRow) -> Self {
        let time_ns = row.time as u64 * 1000;
        let json = serde_json::to_value(Event::from(row)).expect("an event is plain data");
        Self {
            time_ns,
            json: Arc::new(json),
        }
    }
}

impl Timed for Stored {
    fn time_ns(&self) -> u64 {
        self.time_ns
    }
}

impl Stored {
    pub(super) fn json(&self) -> &Value {
        &self.json
    }

    /// Empty where there is none.
    pub(super) fn text(&self, key: &str) -> &str {
        self.json[key].as_str().unwrap_or_default()
    }

    pub(super) fn line(&self) -> String {
        event_text(&self.json)
    }
}

/// Follows what is stored, for one target.
pub(super) struct Tail {
    pub to: PushTarget,
    pub pusher: Pusher<Stored>,
    pub store: Store,
    pub status: Arc<Status>,
    pub shutdown: Shutdown,
}

impl Tail {
    pub(super) async fn run(self) {
        let mut shutdown = self.shutdown.clone();
        tokio::select! {
            () = self.follow_for_ever() => {}
            () = shutdown.recv() => {}
        }
        self.pusher.end(Duration::ZERO).await;
    }

    async fn follow_for_ever(&self) {
        self.store.prepared().await;
        loop {
            if let Err(why) = self.try_follow().await {
                tracing::warn!(to = self.to.name(), %why, "events cannot be read to be sent on");
            }
            self.status.leads(self.to.name(), false);
            tokio::time::sleep(ELECTION).await;
        }
    }

    /// Until the database cannot be asked; at once where another aggregator sends.
    async fn try_follow(&self) -> Result<(), String> {
        let Some(mut cursor) = self.store.push_cursor(self.to).await? else {
            return Ok(());
        };
        self.status.leads(self.to.name(), true);
        let result = self.follow(&mut cursor).await;
        cursor.resign().await;
        result
    }

    async fn follow(&self, cursor: &mut PushCursor) -> Result<(), String> {
        let mut newest = self.store.newest_event();
        loop {
            let up_to = match newest.wait_for(|newest| *newest > cursor.at()).await {
                Ok(newest) => *newest,
                Err(_) => return Ok(()), // the store ended
            };
            self.status.behind(self.to.name(), (up_to - cursor.at()) as u64);
            cursor.still_held().await?;
            let rows = self.page(cursor.at(), up_to).await?;
            // A page that is not full was the whole of it.
            let is_full = rows.len() == PAGE;
            let last = rows.last().filter(|_| is_full).map_or(up_to, |row| row.id);
            self.pusher.push(rows.into_iter().map(Stored::from));
            self.pusher.settled().await;
            cursor.advance(last).await?;
            self.status.behind(self.to.name(), (up_to - last) as u64);
            if !is_full {
                tokio::time::sleep(LOOK).await;
            }
        }
    }

    async fn page(&self, after: i64, up_to: i64) -> Result<Vec<EventRow>, String> {
        let (every, whenever) = (EventFilter::default(), Window { from: None, to: None });
        let rows = self.store.events_since(&every, whenever, after, up_to, PAGE as u32);
        rows.await.map_err(|error| error.to_string())
    }
}
