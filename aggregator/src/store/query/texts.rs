//! What holds a wanted text: words and stacks of the dictionaries, and attributes, as far as the digest of events knows them.

use std::collections::BTreeSet;

use sqlx::{PgConnection, Postgres, QueryBuilder};

use super::QueryError;
use super::filter::Window;

/// More are not looked for one by one: so many are frequent enough to be met on the way. Few attributes differ in more than numbers.
const MOST_ATTRIBUTES: i64 = 300;

/// Words, stacks and attributes that hold a text. No attributes: any may, or nobody has to know.
#[derive(Debug)]
pub(super) struct TextIds {
    text: String,
    pub(super) words: Vec<i32>,
    pub(super) stacks: Vec<i32>,
    pub(super) attributes: Option<Attributes>,
}

/// Those of the window's days that hold a text.
#[derive(Debug, Default)]
pub(super) struct Attributes {
    /// Each as a JSON object of its own.
    pub(super) objects: Vec<String>,
    /// When there were some.
    hours: BTreeSet<i32>,
}

/// What holds one of the wanted texts: words, stacks, and attributes, of which `hours` had some.
#[derive(Debug, Default)]
pub(super) struct Texts {
    pub(super) words: Vec<i32>,
    pub(super) stacks: Vec<i32>,
    pub(super) objects: Vec<String>,
    pub(super) hours: Vec<i32>,
}

impl Texts {
    /// Those of all alternatives together.
    pub(super) fn of(alternatives: &[TextIds]) -> Self {
        let mut all = Self::default();
        let mut hours = BTreeSet::new();
        for ids in alternatives {
            all.words.extend(&ids.words);
            all.stacks.extend(&ids.stacks);
            if let Some(attributes) = &ids.attributes {
                all.objects.extend(attributes.objects.iter().cloned());
                hours.extend(&attributes.hours);
            }
        }
        all.hours = hours.into_iter().collect();
        all
    }
}

impl TextIds {
    /// ` or ...` for each place in which the text may be.
    pub(super) fn push(&self, sql: &mut QueryBuilder<Postgres>) {
        for column in ["e.reason", "e.comm"] {
            sql.push(" or coalesce(")
                .push(column)
                .push(" = any(")
                .push_bind(self.words.clone())
                .push("), false)");
        }
        sql.push(" or coalesce(e.stack_id = any(")
            .push_bind(self.stacks.clone())
            .push("), false)");
        sql.push(" or ");
        if let Some(word) = plain_word(&self.text) {
            sql.push("position(lower(").push_bind(word.to_owned());
            sql.push(") in lower(e.attributes::text)) > 0 and ");
        }
        sql.push("exists (select from jsonb_each_text(e.attributes) a where position(lower(");
        sql.push_bind(self.text.clone())
            .push(") in lower(a.key || ' ' || a.value)) > 0)");
    }
}

/// With their attributes where a window is given.
pub(super) async fn text_ids(
    db: &mut PgConnection,
    texts: &[String],
    window: Option<Window>,
) -> Result<Vec<TextIds>, QueryError> {
    let mut out = Vec::with_capacity(texts.len());
    for text in texts {
        let words = "select id from sonde_store.strings where position(lower($1) in lower(text)) > 0";
        let stacks = "select id from sonde_store.stacks where position(lower($1) in text) > 0";
        out.push(TextIds {
            text: text.clone(),
            words: sqlx::query_scalar(words).bind(text).fetch_all(&mut *db).await?,
            stacks: sqlx::query_scalar(stacks).bind(text).fetch_all(&mut *db).await?,
            attributes: match window {
                Some(window) => attributes(db, text, window).await?,
                None => None,
            },
        });
    }
    Ok(out)
}

/// None where more attributes hold the text than are looked for one by one, or where it is not known which.
async fn attributes(db: &mut PgConnection, text: &str, window: Window) -> Result<Option<Attributes>, QueryError> {
    let mut sql = QueryBuilder::<Postgres>::new(
        "select text, more <> 0, array_agg((extract(epoch from time) / 3600)::int), array_agg(hours) \
         from sonde_store.event_attributes e where (more = 2 or position(lower(",
    );
    sql.push_bind(text);
    sql.push(") in lower(text)) > 0 or more = 1 and position(lower(rtrim(")
        .push_bind(text);
    sql.push(", '0123456789')) in lower(text)) > 0)");
    window.push_buckets(&mut sql, "1 day");
    sql.push(" group by 1, 2 limit ").push_bind(MOST_ATTRIBUTES + 1);
    let found: Vec<(String, bool, Vec<i32>, Vec<i32>)> = sql.build_query_as().persistent(false).fetch_all(db).await?;
    if found.len() as i64 > MOST_ATTRIBUTES || found.iter().any(|(_, more, _, _)| *more) {
        return Ok(None);
    }
    let mut there = Attributes::default();
    for (text, _, days, hours) in &found {
        there.objects.extend(objects(text));
        let of_days = days.iter().zip(hours);
        let hours = of_days.flat_map(|(day, hours)| (0..24).filter(move |n| hours >> n & 1 == 1).map(move |n| day + n));
        there.hours.extend(hours);
    }
    Ok(Some(there))
}

/// What an attribute may be that is `key value` in the digest: either may have spaces of its own.
fn objects(text: &str) -> impl Iterator<Item = String> {
    text.match_indices(' ').map(|(at, _)| {
        let (key, value) = (&text[..at], &text[at + 1..]);
        serde_json::json!({ key: value }).to_string()
    })
}

/// The longest part of a text that stands in attributes as JSON just as it does in their keys and values, which a space joins: it is
/// looked for first, as that takes a fifth of the time that taking attributes apart does.
fn plain_word(text: &str) -> Option<&str> {
    let words = text.split(|c: char| !c.is_ascii_graphic() || matches!(c, '"' | '\\'));
    words.max_by_key(|word| word.len()).filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_word_that_is_written_plainly_stands_for_a_text() {
        for (text, expected) in [
            ("FORWARD rule 31", Some("FORWARD")),
            ("rule", Some("rule")),
            ("say \"hello\\n\"", Some("hello")),
            ("a\tbc", Some("bc")),
            ("größe", Some("gr")),
            ("häé", Some("h")),
            ("éé", None),
            (" ", None),
            ("\"\\", None),
        ] {
            assert_eq!(plain_word(text), expected, "{text}");
        }
    }
}
