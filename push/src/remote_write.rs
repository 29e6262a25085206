//! Prometheus remote-write: `POST /api/v1/write`, protobuf in a snappy block.
//!
//! Source: `prompb/remote.proto`, `prompb/types.proto` and `prompb/io/prometheus/write/v2/types.proto` of Prometheus, and its
//! specifications "Remote-Write 1.0" and "2.0". Labels are in the order of their names, `__name__` among them.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;

use crate::wire::Wire;
use crate::{Http, HttpError, Outcome};

pub const PATH: &str = "/api/v1/write";
const NAME: &str = "__name__";

/// The value that says that a series has ended (`value.StaleNaN` in Prometheus).
pub const STALE: f64 = f64::from_bits(0x7ff0_0000_0000_0002);

/// What a metric is, by the numbers that both versions have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Kind {
    Counter = 1,
    Gauge = 2,
    Histogram = 3,
}

/// A metric family.
#[derive(Clone, Copy, Debug)]
pub struct Family<'a> {
    pub name: &'a str,
    pub help: &'a str,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V1,
    V2,
}

impl Version {
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::V1 => "application/x-protobuf",
            Self::V2 => "application/x-protobuf;proto=io.prometheus.write.v2.Request",
        }
    }

    /// The headers that all requests have.
    pub fn prepared(self, http: Http) -> Result<Http, HttpError> {
        let version = match self {
            Self::V1 => "0.1.0",
            Self::V2 => "2.0.0",
        };
        http.header("content-encoding", "snappy")?
            .header("x-prometheus-remote-write-version", version)
    }
}

/// Any 2xx is for the whole request.
pub fn verdict(_answer: &Bytes, _count: u64) -> Outcome {
    Outcome::Sent
}

/// Labels of a row without its name, in the order of names.
#[derive(Clone, Debug, Default)]
pub struct Labels {
    sorted: Vec<(String, String)>,
}

impl Labels {
    /// Labels with an empty value are none.
    pub fn new<'a>(labels: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut sorted: Vec<_> = labels
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        sorted.sort();
        Self { sorted }
    }

    /// With the name, and perhaps one more.
    fn all<'a>(&'a self, name: &'a str, more: Option<(&'a str, &'a str)>) -> Vec<(&'a str, &'a str)> {
        let mut all: Vec<_> = self.sorted.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        for label in [Some((NAME, name)), more].into_iter().flatten() {
            let at = all.partition_point(|(key, _)| *key < label.0);
            all.insert(at, label);
        }
        all
    }
}

/// A request in the making.
#[derive(Debug)]
pub struct Writer {
    version: Version,
    wire: Wire,
    values: u64,
    /// Families that are described already.
    described: HashSet<String>,
    symbols: Symbols,
}

/// Texts of version 2, each once. The first is empty.
#[derive(Debug)]
struct Symbols {
    places: HashMap<String, u64>,
    texts: Vec<String>,
}

impl Default for Symbols {
    fn default() -> Self {
        Self {
            places: HashMap::from([(String::new(), 0)]),
            texts: vec![String::new()],
        }
    }
}

impl Symbols {
    fn place(&mut self, text: &str) -> u64 {
        if let Some(place) = self.places.get(text) {
            return *place;
        }
        let place = self.texts.len() as u64;
        self.places.insert(text.to_owned(), place);
        self.texts.push(text.to_owned());
        place
    }
}

impl Writer {
    pub fn new(version: Version) -> Self {
        Self {
            version,
            wire: Wire::new(),
            values: 0,
            described: HashSet::new(),
            symbols: Symbols::default(),
        }
    }

    pub const fn values(&self) -> u64 {
        self.values
    }

    pub fn is_empty(&self) -> bool {
        self.values == 0
    }

    /// Bytes so far, before they are packed.
    pub fn len(&self) -> usize {
        self.wire.len()
    }

    /// One sample of one series. `name` is the family's, with the suffix of a histogram's series; `more` such as `le`.
    pub fn sample(
        &mut self,
        family: &Family<'_>,
        name: &str,
        labels: &Labels,
        more: Option<(&str, &str)>,
        time_ms: i64,
        value: f64,
    ) {
        self.values += 1;
        let labels = labels.all(name, more);
        let sample = |w: &mut Wire| {
            w.double(1, value);
            w.varint(2, time_ms as u64);
        };
        match self.version {
            Version::V1 => {
                self.wire.message(1, |w| {
                    for (key, value) in labels {
                        w.message(1, |w| {
                            w.bytes(1, key);
                            w.bytes(2, value);
                        });
                    }
                    w.message(2, sample);
                });
                if !self.described.contains(family.name) {
                    self.described.insert(family.name.to_owned());
                    self.wire.message(3, |w| {
                        w.varint(1, family.kind as u64);
                        w.bytes(2, family.name);
                        w.bytes(4, family.help);
                    });
                }
            }
            Version::V2 => {
                let symbols = &mut self.symbols;
                let texts = labels.into_iter().flat_map(|(key, value)| [key, value]);
                let refs: Vec<u64> = texts.map(|text| symbols.place(text)).collect();
                let help = symbols.place(family.help);
                self.wire.message(5, |w| {
                    w.packed_varint(1, refs);
                    w.message(2, sample);
                    w.message(5, |w| {
                        w.varint(1, family.kind as u64);
                        w.varint(3, help);
                    });
                });
            }
        }
    }

    /// The message.
    pub fn finish(mut self) -> Vec<u8> {
        if self.version == Version::V2 {
            for text in &self.symbols.texts {
                self.wire.bytes(4, text);
            }
        }
        self.wire.as_bytes().to_vec()
    }

    /// The body of a request.
    pub fn pack(self) -> Bytes {
        let message = self.finish();
        let packed = snap::raw::Encoder::new().compress_vec(&message);
        packed.expect("shorter than 4 GiB").into()
    }
}
