//! Cursors: where a page ended, sealed with what was asked. Opaque to callers; a cursor of another question is refused.

use std::hash::{DefaultHasher, Hash, Hasher};

use crate::http::params::Params;
use crate::http::problem::Problem;

/// First field, so that a later version can tell its own cursors from these.
const VERSION: &str = "1";

/// A number that differs between questions: all parameters as given, except where and how much of the answer to show.
pub(crate) fn digest(endpoint: &str, params: &Params) -> u64 {
    let mut pairs: Vec<_> = params
        .pairs()
        .filter(|(name, _)| !["cursor", "limit"].contains(name))
        .collect();
    pairs.sort_unstable();
    let mut hasher = DefaultHasher::new();
    (endpoint, pairs).hash(&mut hasher);
    hasher.finish()
}

/// `fields` may hold anything but line feeds; the text is safe in a URL.
pub(crate) fn write(digest: u64, fields: &[&str]) -> String {
    let digest = format!("{digest:x}");
    let seal = seal(fields);
    let mut all = vec![VERSION, &digest, &seal];
    all.extend(fields);
    all.join("\n").bytes().map(|b| format!("{b:02x}")).collect()
}

/// So that a cursor that was cut or changed on its way is refused, and does not show some other place.
fn seal(fields: &[impl AsRef<str>]) -> String {
    let mut hasher = DefaultHasher::new();
    fields.iter().for_each(|f| f.as_ref().hash(&mut hasher));
    format!("{:x}", hasher.finish())
}

/// The fields of the `cursor` parameter, if there is one; their number is checked.
pub(crate) fn read<const N: usize>(digest: u64, params: &Params) -> Result<Option<[String; N]>, Problem> {
    let Some(text) = params.one("cursor")? else {
        return Ok(None);
    };
    let fields = decode(text).ok_or_else(unreadable)?;
    let [version, of, sealed, fields @ ..] = fields.as_slice() else {
        return Err(unreadable());
    };
    if version != VERSION || *sealed != seal(fields) {
        return Err(unreadable());
    }
    if u64::from_str_radix(of, 16) != Ok(digest) {
        return Err(Problem::bad(
            "cursor",
            "this cursor belongs to another question: expected the one that came with the page before, and the same filters, times and order",
        ));
    }
    fields.to_vec().try_into().map(Some).map_err(|_| unreadable())
}

pub(crate) fn unreadable() -> Problem {
    Problem::bad("cursor", "expected `next_cursor` of the page before, as it was")
}

/// Three instants and a number.
pub(crate) fn numbers(fields: &[String; 4]) -> Option<[i64; 4]> {
    let mut numbers = [0; 4];
    for (number, field) in numbers.iter_mut().zip(fields) {
        *number = field.parse().ok()?;
    }
    // Instants that PostgreSQL can read: a cursor is opaque, but nobody keeps callers from making one up.
    numbers[..3]
        .iter()
        .all(|t| (0..=253_402_300_799_999_999).contains(t))
        .then_some(numbers)
}

fn decode(text: &str) -> Option<Vec<String>> {
    if !text.len().is_multiple_of(2) || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let byte = |i: usize| u8::from_str_radix(&text[i..i + 2], 16).ok();
    let bytes: Option<Vec<u8>> = (0..text.len()).step_by(2).map(byte).collect();
    Some(String::from_utf8(bytes?).ok()?.split('\n').map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use utoipa::IntoParams;

    use super::*;

    #[derive(IntoParams)]
    #[expect(dead_code, reason = "documents parameters")]
    struct Known {
        a: String,
        b: String,
        limit: String,
        cursor: String,
    }

    fn params(query: &str) -> Params {
        Params::read::<Known>(Some(query)).unwrap()
    }

    #[test]
    fn a_cursor_comes_back_as_it_went() {
        let digest = digest("x", &params("a=1"));
        let text = write(digest, &["-5", "", "ü:x"]);
        let back = read::<3>(digest, &params(&format!("a=1&cursor={text}")))
            .unwrap()
            .unwrap();
        assert_eq!(back, ["-5", "", "ü:x"]);
        assert!(read::<3>(digest, &params("a=1")).unwrap().is_none());
    }

    #[test]
    fn a_cursor_belongs_to_its_question() {
        let one = |query: &str| digest("x", &params(query));
        assert_eq!(one("a=1&b=2&limit=5"), one("b=2&a=1&cursor=00"));
        for other in ["a=1", "a=1&b=3", "a=2&b=1", "a=1&b=2&b=2"] {
            assert_ne!(one("a=1&b=2"), one(other), "{other}");
        }
        assert_ne!(one("a=1"), digest("y", &params("a=1")));
        let text = write(one("a=1"), &["1"]);
        let problem = read::<1>(one("a=2"), &params(&format!("cursor={text}"))).unwrap_err();
        assert!(problem.detail().contains("another question"));
    }

    #[test]
    fn a_spoilt_cursor_is_refused() {
        let good = write(7, &["1", "2"]);
        let mut bad: Vec<String> = ["", "0", "zz", "é", "00", "ff", "31"].map(str::to_owned).into();
        bad.push(good[..good.len() - 1].into());
        bad.push(write(7, &["1"]));
        bad.push(write(7, &["1", "2", "3"]));
        bad.push(good.replacen("31", "32", 1));
        for text in bad {
            assert!(read::<2>(7, &params(&format!("cursor={text}"))).is_err(), "{text}");
        }
        assert!(read::<2>(7, &params(&format!("cursor={good}&cursor={good}"))).is_err());
    }
}
