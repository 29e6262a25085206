//! One `match[]`: an instant vector selector as Prometheus reads it.

use std::borrow::Cow;

use promql_parser::label::{METRIC_NAME, MatchOp, Matcher};
use promql_parser::parser::{self, Expr};
use promql_parser::util::escape_string;

use super::labels::RowLabels;
use super::meta::{ColumnMeta, LE, NAMESPACE, NODE, POD, ProbeMeta, Suffix};
use super::snapshot::Snapshot;

/// Which of the selectors of a page want something: a bit for each.
pub(crate) type Mask = u128;
/// Selectors that one page may have.
pub const MAX_SELECTORS: usize = 100;
const _: () = assert!(MAX_SELECTORS <= Mask::BITS as usize);
/// Longer ones are refused unread.
const MAX_LENGTH: usize = 16 << 10;
/// Bytes beside the braces: no name of a metric is as long.
const MOST_BESIDE: usize = 256;
/// Each may take 10 MB (the limit of the crate `regex`).
const MAX_REGEXES: usize = 16;

#[derive(Clone, Debug)]
pub struct Selector {
    matchers: Vec<Matcher>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "match[] `{shown}`: {reason}; expected a series selector such as `sonde_netdev_receive_bytes_total{{k8s_namespace=\"shop\"}}`"
)]
pub struct SelectorError {
    shown: String,
    reason: String,
}

impl std::str::FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let refuse = |reason: &str| SelectorError {
            shown: text.chars().take(200).collect(),
            reason: reason.into(),
        };
        if text.len() > MAX_LENGTH {
            return Err(refuse("longer than 16 KiB"));
        }
        let plain = without_raw_strings(text);
        bounded(&plain).map_err(refuse)?;
        let selector = match parser::parse(&plain) {
            Err(reason) => return Err(refuse(&reason)),
            Ok(Expr::VectorSelector(selector)) => selector,
            Ok(Expr::MatrixSelector(_)) => return Err(refuse("a range is not permitted here")),
            Ok(_) => return Err(refuse("an expression is not permitted here")),
        };
        if selector.offset.is_some() || selector.at.is_some() {
            return Err(refuse("`offset` and `@` are not permitted here"));
        }
        if !selector.matchers.or_matchers.is_empty() {
            return Err(refuse("`or` between matchers is not permitted here"));
        }
        let mut matchers = selector.matchers.matchers;
        if let Some(name) = selector.name {
            matchers.extend(Matcher::new_metric_name_matcher(name));
        }
        Ok(Self { matchers })
    }
}

/// Text in backquotes put in double quotes. To Prometheus a backslash there is one like any other character; the parser takes
/// it for the beginning of an escape.
fn without_raw_strings(text: &str) -> Cow<'_, str> {
    if !text.contains('`') {
        return text.into();
    }
    let mut out = String::with_capacity(text.len() * 2);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, chars.as_str().split_once('`')) {
            ('`', Some((raw, rest))) => {
                out.push_str(&format!("\"{}\"", escape_string(raw)));
                chars = rest.chars();
            }
            ('"' | '\'', _) => {
                out.push(c);
                while let Some(quoted) = chars.next() {
                    out.push(quoted);
                    match quoted {
                        '\\' => out.extend(chars.next()),
                        end if end == c => break,
                        _ => {}
                    }
                }
            }
            _ => out.push(c),
        }
    }
    out.into()
}

/// Refuses what the parser must not see: it takes any expression, and one of thousands of levels is more than the stack of a
/// thread holds when it is dropped; and it compiles every regular expression, each of which may take megabytes. Reads
/// quotes, braces and comments as the parser does.
fn bounded(text: &str) -> Result<(), &'static str> {
    let (mut beside, mut inside, mut regexes) = (0, false, 0);
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' | b'\'' | b'`' => {
                while let Some(quoted) = bytes.next().filter(|quoted| *quoted != byte) {
                    if quoted == b'\\' {
                        bytes.next();
                    }
                }
            }
            b'#' => return Err("a comment is not permitted here"),
            b'{' => inside = true,
            b'}' => inside = false,
            b'~' => regexes += 1,
            _ => {}
        }
        beside += usize::from(!inside);
        if beside > MOST_BESIDE {
            return Err("an expression is not permitted here");
        }
        if regexes > MAX_REGEXES {
            return Err("more than 16 regular expressions are not taken");
        }
    }
    Ok(())
}

/// A selector worked out for one probe: what is left to ask of each row.
#[derive(Debug)]
pub(super) struct ForProbe<'a> {
    names: Vec<&'a Matcher>,
    node: Vec<&'a Matcher>,
    rows: Vec<(Source, &'a Matcher)>,
    le: Vec<&'a Matcher>,
}

#[derive(Clone, Copy, Debug)]
enum Source {
    Namespace,
    Pod,
    Label(usize),
}

impl Selector {
    /// How many of its matchers are regular expressions.
    pub fn regexes(&self) -> usize {
        let is_regex = |matcher: &&Matcher| matches!(matcher.op, MatchOp::Re(_) | MatchOp::NotRe(_));
        self.matchers.iter().filter(is_regex).count()
    }

    /// None: no row of this probe can match. A label that a series lacks is empty, as in Prometheus.
    pub(super) fn for_probe(&self, meta: &ProbeMeta) -> Option<ForProbe<'_>> {
        let mut out = ForProbe {
            names: vec![],
            node: vec![],
            rows: vec![],
            le: vec![],
        };
        for matcher in &self.matchers {
            match matcher.name.as_str() {
                METRIC_NAME => out.names.push(matcher),
                NODE => out.node.push(matcher),
                NAMESPACE => out.rows.push((Source::Namespace, matcher)),
                POD => out.rows.push((Source::Pod, matcher)),
                LE => out.le.push(matcher),
                name => match meta.labels.iter().position(|l| l == name) {
                    Some(i) => out.rows.push((Source::Label(i), matcher)),
                    None if matcher.is_match("") => {}
                    None => return None,
                },
            }
        }
        Some(out)
    }
}

impl ForProbe<'_> {
    pub(super) fn has_series(&self, column: &ColumnMeta, suffix: Suffix) -> bool {
        let name = format!("{}{}", column.family, suffix.as_str());
        all(&self.names, &name) && (suffix == Suffix::Bucket || all(&self.le, ""))
    }

    /// Whether it wants the same series of every row.
    pub(super) fn has_all_rows(&self) -> bool {
        self.rows.is_empty()
    }

    pub(super) fn has_node(&self, snapshot: &Snapshot) -> bool {
        all(&self.node, &snapshot.node)
    }

    pub(super) fn has_row(&self, row: RowLabels<'_>) -> bool {
        self.rows.iter().all(|(source, matcher)| {
            matcher.is_match(match source {
                Source::Namespace => row.namespace(),
                Source::Pod => row.name(),
                Source::Label(i) => row.value(*i),
            })
        })
    }

    pub(super) fn has_bucket(&self, le: &str) -> bool {
        all(&self.le, le)
    }
}

fn all(matchers: &[&Matcher], value: &str) -> bool {
    matchers.iter().all(|m| m.is_match(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_instant_vector_selectors() {
        for good in [
            "sonde_tcp_in_segments_total",
            "{__name__=~\"sonde_.+\"}",
            "sonde_ip{k8s_pod!=\"\", k8s_namespace=~'a|b'}",
            " {k8s_pod=\"x\"} ",
            "up{a=\"(((#{\\\"[\", b='{', c!=`\\\\`}",
            "{__name__=\"up\",}",
        ] {
            assert!(good.parse::<Selector>().is_ok(), "{good}");
        }
    }

    #[test]
    fn text_in_backquotes_is_taken_as_it_stands() {
        for (raw, plain) in [
            ("up", "up"),
            ("{a=`b`}", "{a=\"b\"}"),
            ("{a=~`\\d\"`,b='`c`'}", "{a=~\"\\\\d\\\"\",b='`c`'}"),
            ("{a=`\\`,b=\"\\\"`\"}", "{a=\"\\\\\",b=\"\\\"`\"}"),
            ("{a=`\n`}", "{a=\"\\n\"}"),
            ("{a=`b}", "{a=`b}"),
            ("{a=\"b", "{a=\"b"),
        ] {
            assert_eq!(without_raw_strings(raw), plain);
        }
        let selector: Selector = "{a=~`x\\d+`}".parse().unwrap();
        assert!(selector.matchers[0].is_match("x12") && !selector.matchers[0].is_match("xd"));
    }

    #[test]
    fn anything_else_is_refused_with_what_was_expected() {
        for (bad, why) in [
            ("", "no expression"),
            ("{}", "non-empty matcher"),
            ("{k8s_pod=~\".*\"}", "non-empty matcher"),
            ("up[5m]", "range"),
            ("up offset 5m", "offset"),
            ("up @ 5", "offset"),
            ("sum(up)", "expression"),
            ("1", "expression"),
            ("up{a=\"x\" or b=\"y\"}", "or"),
            ("up{", "brace"),
            ("up{a=~\"(\"}", "regex"),
            ("up{__name__=\"x\"}", "twice"),
            ("\u{0}", "unexpected"),
        ] {
            let error = bad.parse::<Selector>().expect_err(bad).to_string();
            assert!(error.contains(why), "{bad:?}: {error}");
            assert!(error.contains("expected a series selector"), "{error}");
        }
        for deep in [
            "sum(",
            "(",
            "-",
            "up+",
            "up or ",
            "!",
            "#\n(",
            "\"\"+",
            "up{}+",
            "up[5m:1m]",
        ] {
            let text = deep.repeat(MAX_LENGTH / deep.len());
            assert!(text.parse::<Selector>().is_err(), "{deep}");
            assert!(format!("up{{{text}}}").parse::<Selector>().is_err(), "{deep}");
        }
        // A backquote that nothing ends, and one after a backslash.
        let unended = format!("up{{a=`{}", "(".repeat(10_000));
        assert!(unended.parse::<Selector>().is_err());
        let unquoted = format!("up{{a=`\\`}} `}}{}`", "(".repeat(10_000));
        assert!(unquoted.parse::<Selector>().is_err());
        let many = |count| format!("{{a=~\"x+\"{}}}", ",b=~\"x\"".repeat(count)).parse::<Selector>();
        assert!(many(MAX_REGEXES - 1).is_ok());
        assert!(
            many(MAX_REGEXES)
                .unwrap_err()
                .to_string()
                .contains("regular expressions")
        );
        assert!("x".repeat(MAX_LENGTH + 1).parse::<Selector>().is_err());
    }
}
