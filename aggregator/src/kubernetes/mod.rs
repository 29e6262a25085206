//! Facts and changes of the cluster, from the Kubernetes API: one aggregator watches for all nodes, and writes what it
//! learns; the others read that from the database.
//!
//! Not here: how peers of events get their names (`store/cluster/addresses.rs`).

mod access;
mod api;
mod changes;
mod cluster;
mod endpoints;
mod object;
mod scope;
mod status;
#[cfg(test)]
mod tests;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use sonde_common::config;
use sonde_common::shutdown::Shutdown;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::store::Store;
use crate::store::cluster::{LeadError, Leader, Round, Span};
use crate::store::query::Micros;
use cluster::{Cluster, Heard};
use scope::Scope;
use watch::{Message, Watch};

pub use access::AccessError;
pub use changes::KINDS;
pub use status::{Role, Status};
pub use watch::Pace;

/// Messages of all watches that wait; each may be a page of a list.
const QUEUE: usize = 16;
/// A round of this many rows is written without waiting.
const ENOUGH: usize = 1000;
/// Without news the connection that holds the right to write is tried this often.
const IDLE: Duration = Duration::from_secs(10);
const PRUNE: Duration = Duration::from_secs(3600);

/// The task, and what it says of itself.
pub struct Kubernetes {
    pub status: Arc<Status>,
    client: Option<Client>,
    scopes: Vec<Scope>,
    pace: Pace,
}

impl std::fmt::Debug for Kubernetes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kubernetes")
            .field("status", &self.status)
            .field("scopes", &self.scopes)
            .finish_non_exhaustive()
    }
}

impl Kubernetes {
    /// Decides whether the API is read, and how. Nothing is asked of it yet.
    pub async fn new(config: &config::Kubernetes, pace: Pace) -> Result<Self, AccessError> {
        let access = access::plan(config, access::Around::look())?;
        let client = access::client(&access).await?;
        let role = match access {
            access::Access::Off(why) => {
                tracing::info!(why, "cluster facts are not read from the kubernetes api");
                Role::Off(why.into())
            }
            _ => Role::Follower,
        };
        Ok(Self {
            status: Status::new(role),
            client,
            scopes: Scope::all(&config.namespaces),
            pace,
        })
    }

    /// Until the shutdown.
    pub async fn run(self, store: Store, mut shutdown: Shutdown) {
        let Some(client) = self.client.clone() else { return };
        loop {
            let role = tokio::select! {
                role = self.lead(&store, &client) => role,
                () = shutdown.recv() => return,
            };
            self.status.set_role(role);
            tokio::select! {
                () = tokio::time::sleep(self.pace.election) => {}
                () = shutdown.recv() => return,
            }
        }
    }

    /// Watches for as long as it has the right to write; then what it is instead.
    async fn lead(&self, store: &Store, client: &Client) -> Role {
        match self.try_lead(store, client).await {
            Ok(()) => Role::Follower,
            Err(error) => Role::Failed(error.to_string()),
        }
    }

    async fn try_lead(&self, store: &Store, client: &Client) -> Result<(), LeadError> {
        let Some(mut leader) = store.lead().await? else {
            return Ok(());
        };
        let result = self.watch(&mut leader, client).await;
        leader.resign().await;
        result
    }

    async fn watch(&self, leader: &mut Leader, client: &Client) -> Result<(), LeadError> {
        let mut round = Round::default();
        let loaded = leader.load().await?;
        let cluster = Cluster::load(loaded, &self.scopes, &mut round);
        leader.write(&mut round).await?;
        self.status.set_role(Role::Leader);
        let (out, messages) = mpsc::channel(QUEUE);
        // Dropped with this future, and the watches with it.
        let mut watches = JoinSet::new();
        for (place, scope) in self.scopes.iter().enumerate() {
            self.status.scope(&scope.name(), |_| {});
            let watch = Watch {
                client: client.clone(),
                scope: scope.clone(),
                place,
                out: out.clone(),
                pace: self.pace,
            };
            watches.spawn(watch.run());
        }
        let desk = Desk {
            kubernetes: self,
            cluster,
            lists: vec![None; self.scopes.len()],
            listed: Vec::new(),
            round: Round::default(),
        };
        desk.work(leader, messages).await
    }
}

/// Takes what the watches say, and has it written.
struct Desk<'a> {
    kubernetes: &'a Kubernetes,
    cluster: Cluster,
    /// By place of the scope: the list that is being read.
    lists: Vec<Option<Heard>>,
    /// Places of scopes whose list is in this round.
    listed: Vec<usize>,
    round: Round,
}

impl Desk<'_> {
    /// Until something cannot be written.
    async fn work(
        mut self,
        leader: &mut Leader,
        mut messages: mpsc::Receiver<(usize, Message)>,
    ) -> Result<(), LeadError> {
        let mut due = Instant::now() + IDLE;
        let mut pruned = None::<Instant>;
        loop {
            tokio::select! {
                message = messages.recv() => {
                    let Some((place, message)) = message else { return Ok(()) };
                    self.take(place, message);
                    due = due.min(Instant::now() + self.kubernetes.pace.flush);
                    if self.round.len() < ENOUGH {
                        continue;
                    }
                }
                () = tokio::time::sleep_until(due) => {}
            }
            self.flush(leader).await?;
            due = Instant::now() + IDLE;
            if pruned.is_none_or(|at| at.elapsed() >= PRUNE) {
                pruned = Some(Instant::now());
                leader.prune().await?;
            }
        }
    }

    async fn flush(&mut self, leader: &mut Leader) -> Result<(), LeadError> {
        self.cluster.settle(&mut self.round);
        leader.write(&mut self.round).await?;
        self.cluster.stored(&self.round.changes);
        let status = &self.kubernetes.status;
        status.count_changes(self.round.changes.iter().map(|c| &c.kind));
        for scope in &self.kubernetes.scopes {
            let name = scope.name();
            if self.round.seen.contains_key(&name) {
                let objects = self.cluster.count(scope);
                status.scope(&name, |s| s.objects = objects);
            }
        }
        for place in self.listed.drain(..) {
            status.scope(&self.kubernetes.scopes[place].name(), |s| {
                s.lists += 1;
                s.synced = true;
            });
        }
        self.round = Round::default();
        Ok(())
    }

    fn take(&mut self, place: usize, message: Message) {
        let scope = &self.kubernetes.scopes[place];
        let status = &self.kubernetes.status;
        let name = scope.name();
        let round = &mut self.round;
        match message {
            Message::Begin(at) => {
                let seen = self.cluster.begin_list(scope);
                self.lists[place] = Some(Heard {
                    span: Span {
                        since: seen.unwrap_or(at).min(at),
                        at,
                    },
                    first: seen.is_none(),
                });
                status.heard(&name, at, 0);
            }
            Message::Page(objects) => {
                let Some(heard) = self.lists[place] else { return };
                status.scope(&name, |s| s.messages += objects.len() as u64);
                for object in objects {
                    self.cluster.observe(scope, object, heard, round);
                }
            }
            Message::End => {
                let Some(heard) = self.lists[place].take() else { return };
                self.cluster.end_list(scope, heard.span, round);
                self.listed.push(place);
            }
            Message::Now(object, span) => {
                self.cluster
                    .observe(scope, *object, Heard { span, first: false }, round);
                self.heard(place, span.at);
            }
            Message::Gone(uid, span) => {
                self.cluster.gone(scope.kind, &uid, span, round);
                self.heard(place, span.at);
            }
            Message::Alive(at) => self.heard(place, at),
            Message::Trouble(trouble) => status.trouble(&name, trouble),
        }
    }

    fn heard(&mut self, place: usize, at: Micros) {
        let scope = &self.kubernetes.scopes[place];
        self.cluster.heard(scope, at, &mut self.round);
        self.kubernetes.status.heard(&scope.name(), at, 1);
    }
}
