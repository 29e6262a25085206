//! Readings out of the database, in pieces that fit in memory: binary COPY, in whatever order they lie.

use futures::TryStreamExt as _;
use sonde_proto::ABSENT;
use sqlx::PgConnection;

use super::fold::{Hour, Key, Part, Readings};
use crate::store::catalogue::Definition;
use crate::store::query::{Micros, POSTGRES_EPOCH, rfc3339};
use crate::store::schema::ident;

/// Values of one piece: the span that is read at once becomes longer or shorter to come near to it.
const VALUES: usize = 2_000_000;
const SHORTEST: Micros = 10_000_000;
/// Where nothing is known yet.
const FIRST: Micros = 60_000_000;

/// How readings of a probe are asked for.
pub(super) struct Source {
    columns: String,
    view: String,
    labels: usize,
    /// What is read at once.
    span: Micros,
}

impl Source {
    pub(super) fn new(probe: &str, definition: &Definition) -> Self {
        let names = definition
            .labels
            .iter()
            .map(|l| &l.name)
            .chain(definition.columns.iter().map(|c| &c.name));
        Self {
            columns: names.map(|name| format!(", {}", ident(name))).collect(),
            view: format!("sonde_store.{}", ident(&format!("readings_{probe}"))),
            labels: definition.labels.len(),
            span: FIRST,
        }
    }

    /// Whether there is any reading in that span.
    pub(super) async fn any(&self, db: &mut PgConnection, (from, to): (Micros, Micros)) -> sqlx::Result<bool> {
        let sql = format!(
            "select exists (select from {} where time >= '{}' and time < '{}')",
            self.view,
            rfc3339(from),
            rfc3339(to)
        );
        sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(db).await
    }

    /// What comes is more than what was: nothing is known of it.
    pub(super) fn restart(&mut self) {
        self.span = self.span.min(FIRST);
    }

    /// Folds all readings of these nodes in that span into `hour`. False: given up, as they have more than `most` series.
    pub(super) async fn fold(
        &mut self,
        db: &mut PgConnection,
        nodes: &[i32],
        (from, to): (Micros, Micros),
        hour: &mut Hour,
        most: usize,
    ) -> sqlx::Result<bool> {
        let mut readings = Readings::default();
        let mut at = from;
        while at < to {
            let end = (at + self.span).min(to);
            self.read(db, nodes, (at, end), hour, &mut readings).await?;
            let seen = readings.len();
            hour.take(&mut readings);
            if hour.series.len() > most {
                return Ok(false);
            }
            at = end;
            if seen > VALUES {
                self.span = (self.span / 2).max(SHORTEST);
            } else if seen < VALUES / 4 {
                self.span = (self.span * 4).min(super::fold::HOUR);
            }
        }
        Ok(true)
    }

    async fn read(
        &self,
        db: &mut PgConnection,
        nodes: &[i32],
        (from, to): (Micros, Micros),
        hour: &mut Hour,
        readings: &mut Readings,
    ) -> sqlx::Result<()> {
        let nodes: Vec<String> = nodes.iter().map(ToString::to_string).collect();
        let sql = format!(
            "copy (select time, node_id, pod_id{} from {} where node_id = any('{{{}}}') and time >= '{}' and time < '{}') \
             to stdout (format binary)",
            self.columns,
            self.view,
            nodes.join(","),
            rfc3339(from),
            rfc3339(to)
        );
        let mut rows = Decoder {
            labels: self.labels,
            parts: hour.parts.clone(),
            values: vec![ABSENT; hour.width()],
            ..Decoder::default()
        };
        let mut stream = db.copy_out_raw(&sql).await?;
        while let Some(bytes) = stream.try_next().await? {
            rows.push(&bytes, |time, key, values| {
                let series = hour.number(key);
                readings.push(series, time, values);
            })
            .map_err(|what| sqlx::Error::Protocol(format!("readings of {}: {what}", self.view)))?;
        }
        Ok(())
    }
}

/// Rows of a binary COPY, however it is cut into messages.
#[derive(Default)]
struct Decoder {
    labels: usize,
    parts: Vec<Part>,
    begun: bool,
    rest: Vec<u8>,
    key: Key,
    values: Vec<i64>,
}

/// Signature, flags, length of the extension: there is none.
const HEADER: usize = 19;

impl Decoder {
    fn push(&mut self, bytes: &[u8], mut row: impl FnMut(Micros, &Key, &[i64])) -> Result<(), &'static str> {
        self.rest.extend_from_slice(bytes);
        let held = std::mem::take(&mut self.rest);
        let mut left = held.as_slice();
        if !self.begun {
            if left.len() < HEADER {
                self.rest = held;
                return Ok(());
            }
            left = &left[HEADER..];
            self.begun = true;
        }
        loop {
            let mut fields = left;
            match self.row(&mut fields) {
                None => break,
                Some(Ok(Some(time))) => row(time, &self.key, &self.values),
                Some(Ok(None)) => {
                    left = &[];
                    break;
                }
                Some(Err(what)) => return Err(what),
            }
            left = fields;
        }
        let done = held.len() - left.len();
        self.rest = held;
        self.rest.drain(..done);
        Ok(())
    }

    /// None: not all of it is there yet. `Some(Ok(None))`: the end.
    fn row(&mut self, from: &mut &[u8]) -> Option<Result<Option<Micros>, &'static str>> {
        let fields = i16::from_be_bytes(take(from)?);
        if fields == -1 {
            return Some(Ok(None));
        }
        if fields as usize != 3 + self.labels + self.parts.len() {
            return Some(Err("a row has another number of fields than was asked for"));
        }
        let time = i64::from_be_bytes(field(from)??) + POSTGRES_EPOCH;
        self.key.node = i32::from_be_bytes(field(from)??);
        self.key.pod = i32::from_be_bytes(field(from)??);
        self.key.labels.clear();
        for _ in 0..self.labels {
            // A null label is one that the view does not have for an old reading: the empty text.
            let label = field(from)?.map_or(0, i32::from_be_bytes);
            self.key.labels.push(label);
        }
        self.values.fill(ABSENT);
        for at in 0..self.parts.len() {
            let part = &self.parts[at];
            let values = &mut self.values[part.at..part.at + part.width];
            let length = i32::from_be_bytes(take(from)?);
            if length < 0 {
                continue;
            }
            let (mut bytes, after) = from.split_at_checked(length as usize)?;
            *from = after;
            match (part.width, bytes.len()) {
                (1, 8) => values[0] = i64::from_be_bytes(take(&mut bytes)?),
                (1, _) => return Some(Err("a value is no bigint")),
                _ => array(bytes, values)?,
            }
        }
        Some(Ok(Some(time)))
    }
}

fn take<const N: usize>(from: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = from.split_first_chunk::<N>()?;
    *from = rest;
    Some(*first)
}

/// A field of fixed length; the inner none is null.
fn field<const N: usize>(from: &mut &[u8]) -> Option<Option<[u8; N]>> {
    let length = i32::from_be_bytes(take(from)?);
    if length < 0 {
        return Some(None);
    }
    let (bytes, rest) = from.split_at_checked(length as usize)?;
    *from = rest;
    Some(bytes.try_into().ok())
}

/// `bigint[]` of one dimension. One of another length than the column's says nothing.
fn array(mut bytes: &[u8], values: &mut [i64]) -> Option<()> {
    let bytes = &mut bytes;
    let dimensions = i32::from_be_bytes(take(bytes)?);
    let _flags: [u8; 4] = take(bytes)?;
    let _type: [u8; 4] = take(bytes)?;
    if dimensions != 1 {
        return Some(());
    }
    let length = i32::from_be_bytes(take(bytes)?);
    let _lower: [u8; 4] = take(bytes)?;
    if length as usize != values.len() {
        return Some(());
    }
    for value in values {
        if let Some(number) = field(bytes)? {
            *value = i64::from_be_bytes(number);
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::catalogue::Kind;
    use crate::store::copy::CopyBuffer;

    #[test]
    fn rows_are_read_wherever_the_stream_is_cut() {
        let part = |kind, at, width| Part { kind, at, width };
        let parts = vec![part(Kind::Counter, 0, 1), part(Kind::Histogram, 1, 3)];
        let mut copy = CopyBuffer::default();
        copy.begin();
        for n in 0..2 {
            copy.row(6);
            copy.time(1_000_000_000_000_000_000);
            copy.i32(1);
            copy.i32(n);
            copy.i32(9);
            copy.opt_i64((n == 0).then_some(5));
            copy.i64_array(&[1, ABSENT, i64::from(n)], ABSENT);
        }
        copy.end();
        for cut in 1..copy.len() {
            let mut decoder = Decoder {
                labels: 1,
                parts: parts.clone(),
                values: vec![0; 4],
                ..Decoder::default()
            };
            let mut rows = Vec::new();
            for bytes in copy.as_bytes().chunks(cut) {
                decoder
                    .push(bytes, |time, key, values| {
                        rows.push((time, key.clone(), values.to_vec()))
                    })
                    .unwrap();
            }
            let key = |pod| Key {
                node: 1,
                pod,
                labels: vec![9],
            };
            assert_eq!(
                rows,
                [
                    (1_000_000_000_000_000, key(0), vec![5, 1, ABSENT, 0]),
                    (1_000_000_000_000_000, key(1), vec![ABSENT, 1, ABSENT, 1])
                ],
                "cut at {cut}"
            );
        }
    }
}
