//! What a run came to.

use std::fmt;
use std::time::Duration;

#[derive(Clone, Debug, Default)]
pub struct Report {
    /// From the first batch to the last ack.
    pub elapsed: Duration,
    /// Acknowledged values of rows; a histogram is one.
    pub samples: u64,
    /// The same with each bucket of a histogram for one.
    pub numbers: u64,
    pub events: u64,
    pub batches: u64,
    /// Of batches, compressed.
    pub bytes: u64,
    /// Streams that broke and were made again.
    pub reconnects: u64,
    /// Readings that were not made in time because too much was unacknowledged.
    pub late: u64,
    /// Ascending: when a batch was due to when its ack came.
    pub latencies: Vec<Duration>,
}

impl Report {
    pub fn samples_per_second(&self) -> f64 {
        self.samples as f64 / self.elapsed.as_secs_f64()
    }

    pub fn events_per_second(&self) -> f64 {
        self.events as f64 / self.elapsed.as_secs_f64()
    }

    /// `share` of all acks came at least so fast; 1.0 = the slowest.
    pub fn latency(&self, share: f64) -> Duration {
        let last = self.latencies.len().saturating_sub(1);
        let at = (share * self.latencies.len() as f64).ceil() as usize;
        self.latencies
            .get(at.saturating_sub(1).min(last))
            .copied()
            .unwrap_or_default()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.elapsed.as_secs_f64();
        writeln!(f, "seconds            {seconds:.1}")?;
        writeln!(f, "samples/s          {:.0}", self.samples_per_second())?;
        writeln!(
            f,
            "numbers/s          {:.0}   (each bucket of a histogram is one)",
            self.numbers as f64 / seconds
        )?;
        writeln!(f, "events/s           {:.0}", self.events_per_second())?;
        writeln!(f, "batches            {}", self.batches)?;
        writeln!(f, "bytes on the wire  {}", self.bytes)?;
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| self.latency(share).as_secs_f64() * 1e3);
        writeln!(
            f,
            "ack latency        p50 {p50:.0} ms, p99 {p99:.0} ms, max {max:.0} ms"
        )?;
        writeln!(f, "late readings      {}", self.late)?;
        write!(f, "reconnects         {}", self.reconnects)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_what_was_seen() {
        let report = Report {
            latencies: (1..=200).map(Duration::from_millis).collect(),
            ..Report::default()
        };
        let ms = |share| report.latency(share).as_millis();
        assert_eq!((ms(0.0), ms(0.5), ms(0.99), ms(1.0)), (1, 100, 198, 200));
        assert_eq!(Report::default().latency(0.5), Duration::ZERO);
    }
}
