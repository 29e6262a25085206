//! Standard error, each event a line of its own.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::sync::Arc;

use parking_lot::Mutex;
use sonde_push::{Outcome, Target};
use tokio::task::spawn_blocking;

use super::Shared;
use super::text::Format;

pub(super) struct Stderr<W> {
    out: Arc<Mutex<W>>,
    format: Format,
}

impl Stderr<File> {
    /// A descriptor of its own: whoever does not read it holds up this sink, and not who holds the lock of the log.
    pub(super) fn new(format: Format) -> io::Result<Self> {
        let out = File::from(io::stderr().as_fd().try_clone_to_owned()?);
        Ok(Self::to(out, format))
    }
}

impl<W: Write + Send + 'static> Stderr<W> {
    pub(super) fn to(out: W, format: Format) -> Self {
        Self {
            out: Arc::new(Mutex::new(out)),
            format,
        }
    }
}

impl<W: Write + Send + 'static> Target for Stderr<W> {
    type Item = Shared;

    async fn send(&mut self, batch: &Arc<[Shared]>, from: usize) -> Outcome {
        let (out, format, batch) = (Arc::clone(&self.out), self.format.clone(), Arc::clone(batch));
        let written = spawn_blocking(move || {
            let mut out = out.lock();
            for (done, event) in batch[from..].iter().enumerate() {
                // One call for a line: shorter than a page, no other line gets into it.
                let line = format.dated_line(&event.0) + "\n";
                if let Err(error) = out.write_all(line.as_bytes()) {
                    return Outcome::Retry {
                        done,
                        why: error.to_string(),
                        after: None,
                    };
                }
            }
            Outcome::Sent
        });
        written.await.unwrap_or_else(|error| Outcome::retry(error.to_string()))
    }
}
