//! Takes batches out of the queue and sends them, one after the other, until they are sent, refused or given up.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::queue::Queue;
use crate::{Backoff, Reason, Stats, Timed};

/// Where batches go.
pub trait Target: Send + 'static {
    type Item: Timed + Send + Sync + 'static;

    /// Sends the batch. It may be dropped before it is done: at the end, or when it takes longer than [`Pace::timeout`].
    fn send(&mut self, batch: &Arc<[Self::Item]>, from: usize) -> impl Future<Output = Outcome> + Send;
}

/// What became of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Sent,
    /// Not now. The first `done` items are sent and are not sent again; `after`: not before.
    Retry {
        done: usize,
        why: String,
        after: Option<Duration>,
    },
    /// Sent, but so much of it was left out by the other side.
    Partial {
        rejected: u64,
        why: String,
    },
    /// Never: it is as it should not be.
    Refused {
        why: String,
    },
}

impl Outcome {
    pub fn retry(why: impl Into<String>) -> Self {
        Self::Retry {
            done: 0,
            why: why.into(),
            after: None,
        }
    }
}

/// How much, how long, how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Items that may wait; a batch on its way is not among them.
    pub queue: usize,
    /// Items of a batch, at most.
    pub batch: usize,
    /// How long a batch waits for more items.
    pub linger: Duration,
    /// How long a try may take; `None`: for ever.
    pub timeout: Option<Duration>,
    /// The waits between tries double from the first to the longest.
    pub first_wait: Duration,
    pub longest_wait: Duration,
    /// How long a batch is tried; `None`: for ever.
    pub retry_for: Option<Duration>,
}

/// No answer may ask for a longer pause than this.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// A queue and its worker.
#[derive(Debug)]
pub struct Pusher<T> {
    name: &'static str,
    queue: Arc<Queue<T>>,
    stats: Arc<Stats>,
    /// Items that were handed over.
    pushed: AtomicU64,
    end: watch::Sender<Option<Instant>>,
    task: JoinHandle<()>,
}

impl<T: Timed + Send + Sync + 'static> Pusher<T> {
    /// On the runtime of the caller. `name` is for the log.
    pub fn start(name: &'static str, target: impl Target<Item = T>, pace: Pace) -> Self {
        let queue = Arc::new(Queue::new(pace.queue));
        let stats = Arc::new(Stats::default());
        let (end, ends) = watch::channel(None);
        let worker = Worker {
            name,
            target,
            pace,
            queue: Arc::clone(&queue),
            stats: Arc::clone(&stats),
            end: ends,
        };
        Self {
            name,
            queue,
            stats,
            pushed: AtomicU64::new(0),
            end,
            task: tokio::spawn(worker.run()),
        }
    }

    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Never waits. What has no room is counted, and so is what it drives out.
    pub fn push(&self, items: impl IntoIterator<Item = T>) {
        let items = items.into_iter().inspect(|_| {
            self.pushed.fetch_add(1, Ordering::Relaxed);
        });
        let gone = self.queue.push(items);
        if !gone.is_empty() {
            self.stats.lose(&gone, Reason::Full, &self.stats.state().last_error);
        }
    }

    /// Resolves when all that was pushed until now is sent, or counted as lost.
    pub async fn settled(&self) {
        let pushed = self.pushed.load(Ordering::Relaxed);
        // The sender is in the statistics, which live as long as we do.
        let _ = self.stats.settled().wait_for(|settled| *settled >= pushed).await;
    }

    pub fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Sends what is there, for so long; the rest is counted as lost.
    pub async fn end(self, within: Duration) {
        self.queue.close();
        self.end.send_replace(Some(Instant::now() + within));
        // An error is a panic of the target, which is in the log.
        let _ = self.task.await;
        // A worker that is gone leaves its queue.
        self.stats.lose(&self.queue.drain(), Reason::Ended, "");
    }
}

struct Worker<G: Target> {
    name: &'static str,
    target: G,
    pace: Pace,
    queue: Arc<Queue<G::Item>>,
    stats: Arc<Stats>,
    /// When to leave off.
    end: watch::Receiver<Option<Instant>>,
}

impl<G: Target> Worker<G> {
    async fn run(mut self) {
        while let Some(batch) = self.queue.take(self.pace.batch, self.pace.linger).await {
            if !self.deliver(batch.into()).await {
                break;
            }
        }
        let why = self.stats.state().last_error;
        self.stats.lose(&self.queue.drain(), Reason::Ended, &why);
    }

    /// `false`: the end came.
    async fn deliver(&mut self, batch: Arc<[G::Item]>) -> bool {
        let begun = Instant::now();
        let mut backoff = Backoff::new(self.pace.first_wait, self.pace.longest_wait);
        let mut from = 0;
        loop {
            let outcome = tokio::select! {
                outcome = attempt(&mut self.target, &batch, from, self.pace.timeout) => outcome,
                () = ended(self.end.clone()) => Outcome::retry("no answer until the end"),
            };
            match outcome {
                Outcome::Sent => {
                    self.stats.sent(&batch[from..]);
                    if self.stats.worked() {
                        tracing::info!(to = self.name, "can be sent again");
                    }
                    return true;
                }
                Outcome::Partial { rejected, why } => {
                    self.stats.sent_partly(&batch[from..], rejected, &why);
                    self.stats.worked();
                    tracing::warn!(to = self.name, count = rejected, %why, "some of it was left out");
                    return true;
                }
                Outcome::Refused { why } => {
                    self.stats.lose(&batch[from..], Reason::Refused, &why);
                    let before = self.stats.state();
                    // Said once: a server that refuses one batch for its form refuses the next ones too.
                    if !self.stats.failed(&why) || before.last_error != why {
                        tracing::warn!(to = self.name, count = batch.len() - from, %why, "refused, not sent again");
                    }
                    return true;
                }
                Outcome::Retry { done, why, after } => {
                    let done = done.min(batch.len() - from);
                    self.stats.sent(&batch[from..from + done]);
                    from += done;
                    if !self.stats.failed(&why) {
                        tracing::warn!(to = self.name, %why, "cannot be sent, is tried again");
                    }
                    let given_up = self.pace.retry_for.is_some_and(|most| begun.elapsed() >= most);
                    if given_up {
                        self.stats.lose(&batch[from..], Reason::GivenUp, &why);
                        return true;
                    }
                    let wait = after.map_or_else(|| backoff.wait(), |after| after.min(LONGEST_PAUSE));
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        () = ended(self.end.clone()) => {
                            self.stats.lose(&batch[from..], Reason::Ended, &why);
                            return false;
                        }
                    }
                    self.stats.retried();
                }
            }
        }
    }
}

async fn attempt<G: Target>(target: &mut G, batch: &Arc<[G::Item]>, from: usize, timeout: Option<Duration>) -> Outcome {
    let send = target.send(batch, from);
    match timeout {
        None => send.await,
        Some(most) => tokio::time::timeout(most, send)
            .await
            .unwrap_or_else(|_| Outcome::retry(format!("no answer within {most:?}"))),
    }
}

/// Resolves at the time of the end, once it is known.
async fn ended(mut end: watch::Receiver<Option<Instant>>) {
    let deadline = match end.wait_for(Option::is_some).await {
        Ok(deadline) => *deadline,
        // Whoever could tell is gone.
        Err(_) => None,
    };
    if let Some(deadline) = deadline {
        tokio::time::sleep_until(deadline).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Loss;
    use parking_lot::Mutex;
    use std::collections::VecDeque;

    #[derive(Clone, Debug, PartialEq)]
    struct At(u64);

    impl Timed for At {
        fn time_ns(&self) -> u64 {
            self.0
        }
    }

    /// Answers as told, then sends everything.
    #[derive(Clone, Default)]
    struct Told {
        answers: Arc<Mutex<VecDeque<Outcome>>>,
        got: Arc<Mutex<Vec<Vec<u64>>>>,
        hangs: bool,
    }

    impl Target for Told {
        type Item = At;

        async fn send(&mut self, batch: &Arc<[At]>, from: usize) -> Outcome {
            if self.hangs {
                std::future::pending::<()>().await;
            }
            self.got.lock().push(batch[from..].iter().map(|at| at.0).collect());
            self.answers.lock().pop_front().unwrap_or(Outcome::Sent)
        }
    }

    const PACE: Pace = Pace {
        queue: 4,
        batch: 2,
        linger: Duration::ZERO,
        timeout: Some(Duration::from_secs(10)),
        first_wait: Duration::from_secs(1),
        longest_wait: Duration::from_secs(30),
        retry_for: Some(Duration::from_secs(300)),
    };

    async fn until(what: impl Fn() -> bool) {
        while !what() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_is_tried_until_it_is_sent_without_what_was_sent_before() {
        let told = Told::default();
        let after = Some(Duration::from_secs(100));
        *told.answers.lock() = [
            Outcome::retry("down"),
            Outcome::Retry {
                done: 1,
                why: "slow".into(),
                after,
            },
        ]
        .into();
        let pusher = Pusher::start("test", told.clone(), PACE);
        pusher.push([At(1), At(2)]);
        let begun = Instant::now();
        until(|| pusher.stats().state().sent == 2).await;
        assert_eq!(*told.got.lock(), [vec![1, 2], vec![1, 2], vec![2]]);
        assert!(begun.elapsed() >= Duration::from_secs(100), "as long as was asked for");
        let state = pusher.stats().state();
        assert_eq!((state.retries, state.dropped, state.failing), (2, [0; 4], false));
        assert_eq!(state.last_error, "slow");
        assert!(pusher.stats().take_losses().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_refused_is_counted_and_what_comes_after_is_sent() {
        let told = Told::default();
        *told.answers.lock() = [Outcome::Refused { why: "bad".into() }].into();
        let pusher = Pusher::start("test", told.clone(), PACE);
        pusher.push([At(3), At(1), At(7)]);
        until(|| pusher.stats().state().sent == 1).await;
        let loss = Loss {
            reason: Reason::Refused,
            count: 2,
            from_ns: 1,
            to_ns: 3,
            detail: "bad".into(),
        };
        assert_eq!(pusher.stats().take_losses(), [loss]);
        assert!(pusher.stats().take_losses().is_empty(), "told once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_target_that_hangs_costs_what_has_no_room_and_then_its_batch() {
        let told = Told {
            hangs: true,
            ..Told::default()
        };
        let pusher = Pusher::start("test", told, PACE);
        pusher.push([At(1), At(2)]);
        until(|| pusher.queued() == 0).await;
        pusher.push((3..9).map(At));
        let losses = pusher.stats().take_losses();
        assert_eq!((losses[0].reason, losses[0].count), (Reason::Full, 2));
        assert_eq!((losses[0].from_ns, losses[0].to_ns), (3, 4), "the oldest that waited");
        until(|| pusher.stats().state().dropped[Reason::GivenUp as usize] == 2).await;
        assert!(pusher.stats().state().last_error.starts_with("no answer within"));
        let stats = Arc::clone(pusher.stats());
        pusher.end(Duration::from_secs(2)).await;
        assert_eq!(stats.state().dropped, [2, 0, 2, 4], "nothing is left uncounted");
        assert_eq!(stats.state().sent, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_pushed_is_settled_when_it_is_sent_or_lost() {
        let told = Told::default();
        *told.answers.lock() = [Outcome::retry("down"), Outcome::Refused { why: "bad".into() }].into();
        let pusher = Pusher::start("test", told.clone(), PACE);
        pusher.settled().await;
        // Six for four places and a batch of two: what has no room is settled too.
        pusher.push((1..=6).map(At));
        pusher.settled().await;
        let state = pusher.stats().state();
        assert_eq!(state.sent + state.dropped.iter().sum::<u64>(), 6, "{state:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn at_the_end_what_is_there_is_still_sent() {
        let told = Told::default();
        let linger = Duration::from_secs(3600);
        let pusher = Pusher::start(
            "test",
            told.clone(),
            Pace {
                batch: 100,
                linger,
                ..PACE
            },
        );
        pusher.push([At(1)]);
        let stats = Arc::clone(pusher.stats());
        pusher.end(Duration::from_secs(2)).await;
        assert_eq!((stats.state().sent, stats.state().dropped), (1, [0; 4]));
    }
}
