//! One watch: a list, page by page, then what changes from there on, for ever. Its own loop and not kube-runtime's
//! because that keeps disconnects and bookmarks to itself, and they are what says in which span a change happened.

use std::time::Duration;

use futures::StreamExt as _;
use kube::Client;
use kube::core::params::{ListParams, WatchParams};
use kube::core::{Request, WatchEvent};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::api::{self, Page};
use super::object::{Kind, Object, Read};
use super::scope::Scope;
use crate::store::cluster::Span;
use crate::store::query::Micros;

/// Times and sizes; tests have shorter ones.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Objects in a page of a list.
    pub page: u32,
    /// Before a failed request is sent again; doubled each time, up to the longest.
    pub first_pause: Duration,
    pub longest_pause: Duration,
    /// For a page of a list, and for the head of a watch.
    pub answer: Duration,
    /// Without a word of the API this long a watch is taken for dead: bookmarks come about every minute, and the API
    /// itself ends each watch before that.
    pub silence: Duration,
    /// What is heard is written this often.
    pub flush: Duration,
    /// How often somebody who does not watch asks whether to.
    pub election: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            page: 500,
            first_pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(30),
            answer: Duration::from_secs(60),
            silence: Duration::from_secs(330),
            flush: Duration::from_millis(200),
            election: Duration::from_secs(5),
        }
    }
}

fn now_micros() -> Micros {
    Micros::try_from(sonde_common::time::now_ns() / 1000).unwrap_or(Micros::MAX)
}

/// What the API is asked to end a watch after, seconds.
const WATCH_SECONDS: u32 = 290;
/// A watch that took longer than this to come back may tell first what happened meanwhile.
const NOTABLE: Duration = Duration::from_secs(1);
/// What happened meanwhile comes in one go: it is over after a pause, or at last after a while.
const CAUGHT_UP: Duration = Duration::from_millis(500);
const LATE: Duration = Duration::from_secs(10);

/// What a watch says of its scope.
#[derive(Debug)]
pub(super) enum Message {
    /// A list begins; it shows how things were then.
    Begin(Micros),
    Page(Vec<Object>),
    /// The list is whole.
    End,
    Now(Box<Object>, Span),
    Gone(String, Span),
    /// Nothing happened up to then.
    Alive(Micros),
    Trouble(Trouble),
}

/// What went wrong. The kinds are a fixed set, for the metric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    pub(super) kind: &'static str,
    pub(super) words: String,
}

/// Kinds of trouble.
pub(super) const TROUBLES: [&str; 6] = ["connection", "status", "expired", "decode", "timeout", "closed"];

impl Trouble {
    fn new(kind: &'static str, words: impl Into<String>) -> Self {
        debug_assert!(TROUBLES.contains(&kind), "{kind}");
        let words: String = words.into();
        let one_line = words.split_whitespace().collect::<Vec<_>>().join(" ");
        Self {
            kind,
            words: one_line.chars().take(300).collect(),
        }
    }

    fn is_expired(&self) -> bool {
        self.kind == "expired"
    }
}

impl From<kube::Error> for Trouble {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => status_trouble(status.code, &status.reason, &status.message),
            kube::Error::SerdeError(e) => Self::new("decode", format!("the API's answer is not understood: {e}")),
            kube::Error::Service(e) => Self::new("connection", chain(&*e)),
            other => Self::new("connection", chain(&other)),
        }
    }
}

/// 410: the version is too old, or the rest of a list is no longer to be had.
fn status_trouble(code: u16, reason: &str, message: &str) -> Trouble {
    let kind = if code == 410 || reason == "Expired" {
        "expired"
    } else {
        "status"
    };
    Trouble::new(kind, format!("{code} {reason}: {message}"))
}

/// An error with its causes: the outermost alone says "error trying to connect".
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

pub(super) struct Watch {
    pub(super) client: Client,
    pub(super) scope: Scope,
    pub(super) place: usize,
    pub(super) out: mpsc::Sender<(usize, Message)>,
    pub(super) pace: Pace,
}

/// Nobody listens any more.
struct Deaf;

/// Why a stream of changes ended.
enum End {
    /// By the API, in order.
    Closed,
    Trouble(Trouble),
    Deaf,
}

impl Watch {
    pub(super) async fn run(self) {
        // An error means that the owner has ended.
        let _ = match self.scope.kind {
            Kind::ReplicaSet | Kind::Job => self.run_as::<api::MetaOnly>().await,
            Kind::ControllerRevision => self.run_as::<api::ControllerRevision>().await,
            Kind::Node => self.run_as::<api::Node>().await,
            Kind::Service => self.run_as::<api::Service>().await,
            Kind::EndpointSlice => self.run_as::<api::EndpointSlice>().await,
            Kind::Pod => self.run_as::<api::Pod>().await,
        };
    }

    async fn send(&self, message: Message) -> Result<(), Deaf> {
        self.out.send((self.place, message)).await.map_err(|_| Deaf)
    }

    async fn run_as<T: Read>(&self) -> Result<(), Deaf> {
        let mut pause = self.pace.first_pause;
        loop {
            let listed = now_micros();
            let trouble = match self.list::<T>().await? {
                Ok(version) => self.follow::<T>(version, listed, &mut pause).await?,
                Err(trouble) => trouble,
            };
            self.send(Message::Trouble(trouble)).await?;
            sleep(pause).await;
            pause = (pause * 2).min(self.pace.longest_pause);
        }
    }

    /// All objects, and the version that the list shows.
    async fn list<T: Read>(&self) -> Result<Result<String, Trouble>, Deaf> {
        let mut params = ListParams::default().limit(self.pace.page);
        loop {
            let page = match self.page::<T>(&params).await {
                Ok(page) => page,
                Err(trouble) => return Ok(Err(trouble)),
            };
            if params.continue_token.is_none() {
                self.send(Message::Begin(now_micros())).await?;
            }
            let kind = self.scope.kind;
            let objects = page.items.into_iter().map(|item| item.object(kind)).collect();
            self.send(Message::Page(objects)).await?;
            if page.metadata.next.is_empty() {
                self.send(Message::End).await?;
                return Ok(Ok(page.metadata.resource_version));
            }
            params.continue_token = Some(page.metadata.next);
        }
    }

    async fn page<T: Read>(&self, params: &ListParams) -> Result<Page<T>, Trouble> {
        let request = Request::new(self.scope.path());
        let request = if self.scope.kind.is_metadata_only() {
            request.list_metadata(params)
        } else {
            request.list(params)
        };
        let request = request.map_err(|e| Trouble::new("connection", e.to_string()))?;
        let text = timeout(self.pace.answer, self.client.request_text(request))
            .await
            .map_err(|_| Trouble::new("timeout", "the API did not answer to a list in time"))??;
        // Not by the client, which would put the whole page into the log.
        serde_json::from_str(&text).map_err(|e| Trouble::new("decode", format!("a list is not understood: {e}")))
    }

    /// Changes from a version on, until that has expired: then a list must be made again.
    async fn follow<T: Read>(
        &self,
        mut version: String,
        listed: Micros,
        pause: &mut Duration,
    ) -> Result<Trouble, Deaf> {
        let mut alive = listed;
        loop {
            let begun = Instant::now();
            let before = alive;
            let end = self.stream::<T>(&mut version, &mut alive).await;
            if alive > before {
                *pause = self.pace.first_pause;
            }
            match end {
                End::Deaf => return Err(Deaf),
                End::Trouble(trouble) if trouble.is_expired() => return Ok(trouble),
                End::Trouble(trouble) => self.send(Message::Trouble(trouble)).await?,
                End::Closed => {
                    alive = now_micros();
                    self.send(Message::Alive(alive)).await?;
                    // Some proxies end every watch at once: that must not become a flood of requests.
                    if begun.elapsed() > NOTABLE {
                        continue;
                    }
                    let words = "a watch was ended as soon as it began";
                    self.send(Message::Trouble(Trouble::new("closed", words))).await?;
                }
            }
            sleep(*pause).await;
            *pause = (*pause * 2).min(self.pace.longest_pause);
        }
    }

    /// One request of changes. `alive` moves with every word of the API.
    async fn stream<T: Read>(&self, version: &mut String, alive: &mut Micros) -> End {
        let params = WatchParams::default().timeout(WATCH_SECONDS);
        let request = Request::new(self.scope.path());
        let request = if self.scope.kind.is_metadata_only() {
            request.watch_metadata(&params, version)
        } else {
            request.watch(&params, version)
        };
        let request = match request {
            Ok(request) => request,
            Err(e) => return End::Trouble(Trouble::new("connection", e.to_string())),
        };
        let events = match timeout(self.pace.answer, self.client.request_events::<T>(request)).await {
            Ok(Ok(events)) => events,
            Ok(Err(e)) => return End::Trouble(e.into()),
            Err(_) => return End::Trouble(Trouble::new("timeout", "the API did not answer to a watch in time")),
        };
        tokio::pin!(events);
        let connected = Instant::now();
        let away = *alive;
        let mut late = now_micros() - away > NOTABLE.as_micros() as Micros;
        let mut last = connected;
        let mut patience = NOTABLE;
        loop {
            let event = match timeout(patience, events.next()).await {
                Ok(Some(Ok(event))) => event,
                Ok(Some(Err(e))) => return End::Trouble(e.into()),
                Ok(None) => return End::Closed,
                // What it had to tell would have come by now: it is open, and nothing happens.
                Err(_) if patience < self.pace.silence => {
                    patience = self.pace.silence;
                    late = false;
                    *alive = now_micros();
                    if self.send(Message::Alive(*alive)).await.is_err() {
                        return End::Deaf;
                    }
                    continue;
                }
                Err(_) => return End::Trouble(Trouble::new("timeout", "nothing was heard of the API for too long")),
            };
            patience = self.pace.silence;
            let at = now_micros();
            late = late && last.elapsed() < CAUGHT_UP && connected.elapsed() < LATE;
            last = Instant::now();
            let span = Span {
                since: if late { away } else { at },
                at,
            };
            let message = match event {
                WatchEvent::Added(item) | WatchEvent::Modified(item) => {
                    let object = item.object(self.scope.kind);
                    version.clone_from(&object.version);
                    Message::Now(Box::new(object), span)
                }
                WatchEvent::Deleted(item) => {
                    let object = item.object(self.scope.kind);
                    *version = object.version;
                    Message::Gone(object.uid, span)
                }
                WatchEvent::Bookmark(bookmark) => {
                    *version = bookmark.metadata.resource_version;
                    late = false;
                    Message::Alive(at)
                }
                WatchEvent::Error(status) => {
                    return End::Trouble(status_trouble(status.code, &status.reason, &status.message));
                }
            };
            *alive = at;
            if self.send(message).await.is_err() {
                return End::Deaf;
            }
        }
    }
}
