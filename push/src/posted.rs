//! Requests that are made where the values are, and only sent here.

use std::sync::Arc;

use bytes::Bytes;

use crate::{Http, Outcome, Target, Timed};

/// One request, packed and ready.
#[derive(Clone, Debug)]
pub struct Request {
    pub body: Bytes,
    /// Values in it.
    pub values: u64,
    pub time_ns: u64,
}

impl Timed for Request {
    fn time_ns(&self) -> u64 {
        self.time_ns
    }

    fn count(&self) -> u64 {
        self.values
    }
}

/// What a server says of a request that it took: not all of it, perhaps.
pub type Verdict = fn(&Bytes, u64) -> Outcome;

/// Posts each request by itself.
#[derive(Debug)]
pub struct Posted {
    http: Http,
    kind: &'static str,
    verdict: Verdict,
}

impl Posted {
    pub const fn new(http: Http, kind: &'static str, verdict: Verdict) -> Self {
        Self { http, kind, verdict }
    }
}

impl Target for Posted {
    type Item = Request;

    async fn send(&mut self, batch: &Arc<[Request]>, from: usize) -> Outcome {
        for (done, request) in batch[from..].iter().enumerate() {
            let outcome = match self.http.ask(self.kind, request.body.clone()).await {
                Ok(answer) => (self.verdict)(&answer, request.values),
                Err(outcome) => outcome,
            };
            match outcome {
                Outcome::Sent => {}
                // Of one of several requests.
                Outcome::Retry { why, after, .. } => return Outcome::Retry { done, why, after },
                outcome => return outcome,
            }
        }
        Outcome::Sent
    }
}
