//! What a collector of a newer version says that this one does not know: left out, not refused. The rest of what it says
//! is as good as ever.

use std::collections::HashMap;

use sonde_proto::v1;

/// What has to be left out of every batch of a stream.
#[derive(Debug, Default)]
pub(super) struct Newer {
    /// By probe: places of columns of a kind that is not known here, highest first.
    columns: HashMap<String, Vec<usize>>,
}

impl Newer {
    /// Takes columns of unknown kinds out of a catalogue: how many values they have in a row cannot be known either.
    pub(super) fn take_from(catalogue: &mut v1::Catalogue) -> Self {
        let mut newer = Self::default();
        for probe in &mut catalogue.probes {
            // Not given at all is a mistake, and is refused as one.
            let unknown = |column: &v1::ColumnDef| v1::Kind::try_from(column.kind).is_err();
            let places: Vec<usize> = (0..probe.columns.len())
                .rev()
                .filter(|at| unknown(&probe.columns[*at]))
                .collect();
            for at in &places {
                let column = probe.columns.remove(*at);
                tracing::info!(probe = %probe.name, column = %column.name, kind = column.kind, "left out a column of a kind that is not known here");
            }
            if !places.is_empty() {
                newer.columns.insert(probe.name.clone(), places);
            }
        }
        newer
    }

    pub(super) fn leave_out(&self, body: &mut v1::BatchBody) {
        if !self.columns.is_empty() {
            for rows in &mut body.rows {
                for at in self.columns.get(&rows.probe).into_iter().flatten() {
                    if *at < rows.columns.len() {
                        rows.columns.remove(*at);
                    }
                }
            }
        }
        for event in &mut body.events {
            if v1::Direction::try_from(event.direction).is_err() {
                event.direction = v1::Direction::Unspecified.into();
            }
        }
    }
}
