//! What the writer makes of a batch that passed its check, without a database.

use super::batch::Batch;
use super::cluster::addresses::ClusterAddresses;
use super::copy::CopyBuffer;
use super::encode::{self, Numbers};
use super::frames::{Frames, Ids, Out, Reading};
use super::pods::Pods;

/// Every row, event and gap of it.
pub(crate) fn encode(batch: &Batch) {
    let body = &batch.body;
    let numbers = Numbers {
        words: (0..).take(body.strings.len()).collect(),
        stacks: (0..).take(body.stacks.len()).collect(),
        pods: (1..).take(body.pods.len()).collect(),
    };
    let mut out = CopyBuffer::default();
    out.begin();
    let (mut frames, mut keys, mut ids) = (Frames::default(), CopyBuffer::default(), Ids::default());
    for rows in &body.rows {
        let probe = &batch.stream.probes[&rows.probe];
        let reading = Reading::new(&probe.table, probe, batch.stream.node_id, rows, &numbers);
        let mut out = Out {
            keys: &mut keys,
            deltas: &mut out,
            ids: &mut ids,
        };
        while out.ids.left() < Frames::most_ids(rows.subjects.len()) {
            out.ids.add(out.ids.left() as i64);
        }
        frames.write(&probe.table, &rows.probe, &reading, &mut out);
    }
    let known = (&Pods::default(), &ClusterAddresses::default());
    for event in &body.events {
        encode::event(&mut out, 1, batch, event, &numbers, known);
    }
    for gap in &body.gaps {
        encode::gap(&mut out, gap.from_ns, batch.stream.node_id, gap, &numbers);
    }
    out.end();
    assert!(out.len() > 0);
}
