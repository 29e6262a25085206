//! The newest values, at an interval. What has not been read again since is not sent again.

use std::sync::Arc;
use std::time::Duration;

use sonde_common::shutdown::Shutdown;
use sonde_push::{Pusher, Request};
use tokio::time::MissedTickBehavior;

use crate::live::{LiveTable, Reading};

/// Requests that wait, some fifty megabytes at most: those of a million series once.
pub(super) const QUEUE: usize = 512;

/// Makes requests of readings.
pub(super) trait Encode: Send + 'static {
    /// All that is there now; `send` takes a request as soon as it is full.
    fn encode(&mut self, readings: Vec<Reading>, send: &mut dyn FnMut(Request));
}

pub(super) struct Sending<E> {
    pub live: Arc<LiveTable>,
    pub pusher: Pusher<Request>,
    pub interval: Duration,
    pub encode: E,
    pub shutdown: Shutdown,
}

impl<E: Encode> Sending<E> {
    /// Until the shutdown: what it has then is old before anybody can send it again.
    pub(super) async fn run(mut self) {
        let mut ticks = tokio::time::interval(self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.shutdown.recv() => break,
            }
            let (live, mut encode, pusher) = (Arc::clone(&self.live), self.encode, self.pusher);
            // A million series take a second, which no thread that answers others has.
            let round = tokio::task::spawn_blocking(move || {
                encode.encode(live.readings(), &mut |request| pusher.push([request]));
                (encode, pusher)
            });
            match round.await {
                Ok((encode, pusher)) => (self.encode, self.pusher) = (encode, pusher),
                // A panic, which is in the log.
                Err(_) => return,
            }
        }
        self.pusher.end(Duration::ZERO).await;
    }
}
