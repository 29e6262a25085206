//! Variables of dashboards and how they are put into queries, as Grafana's front end does: public/app/features/templating/
//! template_srv.ts and packages/grafana-sql/src/datasource/SqlDatasource.ts (`interpolateVariable`) for SQL,
//! packages/grafana-prometheus/src/escaping.ts (`interpolateQueryExpr`) and pkg/promlib/models/query.go
//! (`interpolateVariables`, `calculateRateInterval`) for PromQL.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::Source;
use super::macros::{Range, format_interval};

#[derive(Clone, Debug)]
pub struct Variable {
    pub name: String,
    pub kind: Kind,
    /// Several values, or All, can be chosen: what is put in then is a list or a regular expression.
    pub many: bool,
    pub all: Option<String>,
}

#[derive(Clone, Debug)]
pub enum Kind {
    Datasource,
    Text,
    Query { source: Source, text: String },
}

/// What somebody chose.
#[derive(Clone, Debug)]
pub enum Chosen {
    All,
    One(String),
    Several(Vec<String>),
}

/// Everything that can be put in, by name.
pub type Variables = BTreeMap<String, (Variable, Chosen)>;

impl Variable {
    pub(super) fn read(json: &Value) -> Result<Self> {
        let name = json["name"].as_str().context("a variable has no name")?.to_owned();
        let kind = match json["type"].as_str() {
            Some("datasource") => Kind::Datasource,
            Some("textbox") => Kind::Text,
            Some("query") => Kind::Query {
                source: Source::read(json)?,
                text: json["definition"].as_str().context("no definition")?.to_owned(),
            },
            other => bail!("variable {name}: type {other:?}"),
        };
        Ok(Self {
            name,
            kind,
            many: json["multi"] == true || json["includeAll"] == true,
            all: json["allValue"].as_str().map(str::to_owned),
        })
    }
}

#[derive(Clone, Copy)]
enum Form {
    Sql,
    PromQl,
    Regex,
}

fn put_in(variable: &Variable, chosen: &Chosen, form: Form) -> Result<String> {
    let values: Vec<&str> = match chosen {
        // A value of its own for All is put in as it is.
        Chosen::All => {
            return variable
                .all
                .clone()
                .with_context(|| format!("${}: no value for All", variable.name));
        }
        Chosen::One(value) => vec![value],
        Chosen::Several(values) => values.iter().map(String::as_str).collect(),
    };
    ensure!(variable.many || values.len() == 1, "${} takes one value", variable.name);
    let quoted = |value: &&str| format!("'{}'", value.replace('\'', "''"));
    Ok(match form {
        Form::Sql if variable.many => values.iter().map(quoted).collect::<Vec<_>>().join(","),
        Form::Sql => values[0].replace('\'', "''"),
        Form::PromQl if variable.many => alternatives(&values, |value| {
            // Two backslashes: one for the string of PromQL, one for the expression in it.
            escape(&value.replace('\\', "\\\\\\\\"), "$^*{}[]+?.()|", "\\\\")
        }),
        Form::PromQl => values[0].replace('\\', "\\\\").replace('\'', "\\\\'"),
        Form::Regex => alternatives(&values, |value| escape(value, "\\^$*+?.()|[]{}/", "\\")),
    })
}

fn alternatives(values: &[&str], escape: impl Fn(&str) -> String) -> String {
    let escaped: Vec<String> = values.iter().map(|value| escape(value)).collect();
    match escaped.as_slice() {
        [one] => one.clone(),
        several => format!("({})", several.join("|")),
    }
}

fn escape(text: &str, special: &str, with: &str) -> String {
    text.chars()
        .map(|c| {
            if special.contains(c) {
                format!("{with}{c}")
            } else {
                c.to_string()
            }
        })
        .collect()
}

/// `$name`, `${name}` and `${name:format}`. Names that nobody declared stay as they are.
fn interpolate(text: &str, variables: &Variables, form: Form) -> Result<String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let tail = &rest[at + 1..];
        let word = |text: &str| {
            text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                .unwrap_or(text.len())
        };
        let (name, format, after) = match tail.strip_prefix('{').and_then(|t| t.split_once('}')) {
            Some((inside, after)) => {
                let (name, format) = inside.split_once(':').map_or((inside, None), |(n, f)| (n, Some(f)));
                (name, format, after)
            }
            None => {
                let (name, after) = tail.split_at(word(tail));
                (name, None, after)
            }
        };
        let Some((variable, chosen)) = variables.get(name) else {
            out.push('$');
            rest = tail;
            continue;
        };
        let form = match format {
            None => form,
            Some("regex") => Form::Regex,
            Some(other) => bail!("${{{name}:{other}}}: this format is not known here"),
        };
        out.push_str(&put_in(variable, chosen, form)?);
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

/// The whole way of a query to the database.
pub(crate) fn for_database(text: &str, variables: &Variables, range: Range) -> Result<String> {
    super::macros::sql(&interpolate(text, variables, Form::Sql)?, range)
}

/// `$__rate_interval`: a step and a scrape, but four scrapes at least. In milliseconds.
pub fn prometheus_interval(step: u64, scrape: u64) -> u64 {
    (step + scrape).max(4 * scrape)
}

/// The whole way of a query to Prometheus, which was scraped every so many milliseconds.
pub fn prometheus(text: &str, variables: &Variables, range: Range, scrape: u64) -> Result<String> {
    let span = (range.to - range.from + 500) / 1000;
    let rate = prometheus_interval(range.interval, scrape);
    // Built-in ones come last, and the longer names of those with a common beginning first.
    let built_in = [
        ("$__interval_ms", range.interval.to_string()),
        ("$__interval", format_interval(range.interval)),
        ("$__range_ms", (range.to - range.from).to_string()),
        ("$__range_s", span.to_string()),
        ("$__range", format!("{span}s")),
        ("$__rate_interval_ms", rate.to_string()),
        ("$__rate_interval", format!("{rate}ms")),
    ];
    let text = interpolate(text, variables, Form::PromQl)?;
    Ok(built_in
        .iter()
        .fold(text, |text, (name, value)| text.replace(name, value)))
}

impl super::Query<'_> {
    /// What is asked, with everything put in.
    pub fn expand(&self, variables: &Variables, range: Range, scrape: u64) -> Result<String> {
        match self.source {
            Source::Prometheus => prometheus(self.text, variables, range, scrape),
            Source::Database => for_database(self.text, variables, range),
        }
        .with_context(|| self.of.clone())
    }
}

impl Variable {
    /// The query for its choices, given those before it.
    pub fn expand(&self, variables: &Variables, range: Range) -> Result<Option<(Source, String)>> {
        Ok(match &self.kind {
            Kind::Query {
                source: Source::Database,
                text,
            } => Some((Source::Database, for_database(text, variables, range)?)),
            Kind::Query { source, text } => Some((*source, interpolate(text, variables, Form::PromQl)?)),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(many: bool, chosen: Chosen) -> Variables {
        let variable = Variable {
            name: "v".into(),
            kind: Kind::Text,
            many,
            all: many.then(|| ".*".to_owned()),
        };
        [("v".to_owned(), (variable, chosen))].into()
    }

    #[test]
    fn values_are_quoted_and_escaped_as_each_language_needs_it() {
        let two = || Chosen::Several(vec!["a.b".into(), "it's".into()]);
        let one = || Chosen::One("a.b".into());
        for (many, chosen, sql, promql, regex) in [
            (true, Chosen::All, ".*", ".*", ".*"),
            (true, one(), "'a.b'", r"a\\.b", r"a\.b"),
            (true, two(), "'a.b','it''s'", r"(a\\.b|it's)", r"(a\.b|it's)"),
            (false, one(), "a.b", "a.b", r"a\.b"),
        ] {
            let variables = variables(many, chosen);
            let is = |text, form| interpolate(text, &variables, form).unwrap();
            assert_eq!(is("$v", Form::Sql), sql);
            assert_eq!(is("${v}", Form::PromQl), promql);
            assert_eq!(is("${v:regex}", Form::Sql), regex);
        }
    }

    #[test]
    fn unknown_names_stay_and_names_end_where_words_do() {
        let variables = variables(false, Chosen::One("x".into()));
        let text = interpolate("$v, $vv, $v-1, '$w', ^(${v:regex})$", &variables, Form::Sql).unwrap();
        assert_eq!(text, "x, $vv, x-1, '$w', ^(x)$");
        assert!(interpolate("${v:csv}", &variables, Form::Sql).is_err());
    }

    #[test]
    fn a_rate_covers_four_scrapes_or_a_step_and_one() {
        assert_eq!(prometheus_interval(1000, 15_000), 60_000);
        assert_eq!(prometheus_interval(120_000, 15_000), 135_000);
        let range = Range {
            from: 0,
            to: 300_000,
            interval: 15_000,
        };
        let none = Variables::new();
        let text = prometheus("rate(x[$__rate_interval]) $__range $__interval_ms", &none, range, 1000).unwrap();
        assert_eq!(text, "rate(x[16000ms]) 300s 15000");
    }
}
