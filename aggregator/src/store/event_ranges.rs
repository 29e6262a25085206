//! The index of events by their ids is one of block ranges: it knows what each has once the range has been summarized. The server does
//! that when its upkeep comes by, once a minute at best: until then each question for the newest events looks into all that came
//! since. So ranges are summarized here as soon as they are full. One that is not would have to be changed with each event.

use std::collections::HashMap;

use sqlx::{Connection as _, PgConnection};

use super::database::waited_too_long;

/// How far a partition has got: its name, and blocks.
#[derive(Debug, Default)]
pub(super) struct Ranges(HashMap<String, i64>);

/// Of a partition that was not looked at before so many ranges may be new; upkeep has seen to those before.
const MOST: i64 = 256;

/// Each partition, the index of its ids, the blocks of a range, and those that there are.
const LEAVES: &str = "select c.relname::text, x.indexrelid::regclass::text, \
         coalesce((select option_value::bigint from pg_options_to_table(ic.reloptions) where option_name = 'pages_per_range'), 128), \
         coalesce(pg_relation_size(c.oid), 0) / current_setting('block_size')::bigint \
     from pg_inherits xi join pg_index x on x.indexrelid = xi.inhrelid \
     join pg_class c on c.oid = x.indrelid join pg_class ic on ic.oid = x.indexrelid \
     where xi.inhparent = 'sonde_store.events_id_idx'::regclass";

impl Ranges {
    /// Those that have become full. Where upkeep is at the partition it is left to it.
    pub(super) async fn summarize(&mut self, db: &mut PgConnection) -> sqlx::Result<()> {
        let leaves: Vec<(String, String, i64, i64)> = sqlx::query_as(LEAVES).fetch_all(&mut *db).await?;
        self.0.retain(|known, _| leaves.iter().any(|(name, ..)| name == known));
        for (name, index, pages, blocks) in leaves {
            let full = blocks / pages;
            let first = self.0.get(&name).map_or(full - MOST, |blocks| blocks / pages).max(0);
            if first >= full || summarize(db, &index, (first, full), pages).await? {
                self.0.insert(name, blocks);
            }
        }
        Ok(())
    }
}

/// Whether that was done. The server's upkeep gives way to those that wait for it longer than this does.
async fn summarize(db: &mut PgConnection, index: &str, (first, full): (i64, i64), pages: i64) -> sqlx::Result<bool> {
    let mut tx = db.begin().await?;
    sqlx::query("set local lock_timeout = '100ms'")
        .execute(&mut *tx)
        .await?;
    let done = sqlx::query(
        "select brin_summarize_range($1::text::regclass, range * $4) from generate_series($2, $3 - 1) range",
    )
    .bind(index)
    .bind(first)
    .bind(full)
    .bind(pages)
    .execute(&mut *tx)
    .await;
    match done {
        Ok(_) => tx.commit().await.map(|()| true),
        Err(e) if waited_too_long(&e) => tx.rollback().await.map(|()| false),
        Err(e) => Err(e),
    }
}
