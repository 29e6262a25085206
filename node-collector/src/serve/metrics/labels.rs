//! `metrics.labels` and KubeSkoop's `additionalLabels`: labels of series made of the labels and annotations of their pod.

use std::collections::BTreeMap;

use sonde_common::config::Metrics;
use sonde_common::prom::escape_value;

use super::kubeskoop;
use crate::pods::Pod;
use crate::probes;

/// Labels of every series of a subject, before the probe's own.
pub const STANDARD: [&str; 3] = ["k8s_node", "k8s_namespace", "k8s_pod"];
/// What Prometheus itself puts on buckets.
const RESERVED: [&str; 2] = ["le", "quantile"];

/// Key, value and what was expected, in one line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: `{value}`: {what}")]
pub struct LabelProblem {
    key: &'static str,
    value: String,
    what: String,
}

const LABELS: &str = "metrics.labels";
const ADDITIONAL: &str = "metrics.additional_labels";

/// The labels that the configuration asks for, in the order in which they are written.
#[derive(Debug, Default)]
pub struct ExtraLabels(Vec<(String, Vec<Part>)>);

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Text(String),
    Label(String),
    Annotation(String),
}

impl ExtraLabels {
    pub fn new(config: &Metrics) -> Result<Self, LabelProblem> {
        let mut all = Self::default();
        for (name, text) in &config.labels {
            let fail = |what: &str| problem(LABELS, &format!("{name}: {text}"), what);
            let parts = parse(text).map_err(|what| fail(&what))?;
            all.add(name, parts).map_err(|what| fail(&what))?;
        }
        for entry in &config.additional_labels {
            let fail = |what: &str| problem(ADDITIONAL, entry, what);
            // The first `=` parts them: the text may have more.
            let (name, text) = entry.split_once('=').ok_or_else(|| fail("expected `NAME=TEXT`"))?;
            all.add(name.trim(), parse_leniently(text))
                .map_err(|what| fail(&what))?;
        }
        Ok(all)
    }

    fn add(&mut self, name: &str, parts: Vec<Part>) -> Result<(), String> {
        check_name(name)?;
        if self.0.iter().any(|(other, _)| other == name) {
            return Err(format!("label `{name}` is given twice"));
        }
        self.0.push((name.to_owned(), parts));
        Ok(())
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    /// `,team="a"` for a pod; for the node, which has no labels, what stands there as plain text.
    pub(super) fn write(&self, out: &mut String, pod: Option<&Pod>) {
        let of = |map: fn(&Pod) -> &BTreeMap<String, String>, key: &String| {
            pod.and_then(|pod| map(pod).get(key)).map_or("", String::as_str)
        };
        for (name, parts) in &self.0 {
            out.push(',');
            out.push_str(name);
            out.push_str("=\"");
            for part in parts {
                match part {
                    Part::Text(text) => escape_value(out, text),
                    Part::Label(key) => escape_value(out, of(|pod| &pod.labels, key)),
                    Part::Annotation(key) => escape_value(out, of(|pod| &pod.annotations, key)),
                }
            }
            out.push('"');
        }
    }
}

fn problem(key: &'static str, value: &str, what: &str) -> LabelProblem {
    LabelProblem {
        key,
        value: value.to_owned(),
        what: what.to_owned(),
    }
}

fn check_name(name: &str) -> Result<(), String> {
    let bytes = name.as_bytes();
    let fits = bytes
        .first()
        .is_some_and(|first| first.is_ascii_alphabetic() || *first == b'_')
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_');
    if !fits || name.starts_with("__") {
        return Err(format!(
            "label name `{name}`: expected a letter or `_`, then letters, digits or `_`, and no `__` in front"
        ));
    }
    if STANDARD.contains(&name) || RESERVED.contains(&name) {
        return Err(format!("label name `{name}` is taken"));
    }
    let specs = probes::specs();
    let owner = specs
        .iter()
        .find(|spec| spec.labels.iter().any(|label| label.name == name));
    if let Some(spec) = owner {
        return Err(format!("label name `{name}` is taken by probe `{}`", spec.name));
    }
    if kubeskoop::LABELS.contains(&name) {
        return Err(format!("label name `{name}` is taken by KubeSkoop's metrics"));
    }
    Ok(())
}

/// A reference `${labels:KEY}` at the start of a text, and what follows it.
fn reference(text: &str) -> Option<(Part, &str)> {
    let (inside, rest) = text.strip_prefix("${")?.split_once('}')?;
    let (source, key) = inside.split_once(':')?;
    if key.is_empty() {
        return None;
    }
    match source {
        "labels" => Some((Part::Label(key.to_owned()), rest)),
        "annotations" => Some((Part::Annotation(key.to_owned()), rest)),
        _ => None,
    }
}

fn parse(text: &str) -> Result<Vec<Part>, String> {
    let parts = parse_leniently(text);
    let unknown = |part: &Part| matches!(part, Part::Text(text) if text.contains("${"));
    if parts.iter().any(unknown) {
        return Err("expected `${labels:KEY}` or `${annotations:KEY}`".into());
    }
    Ok(parts)
}

/// What is no reference is text.
fn parse_leniently(mut text: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut plain = String::new();
    while let Some(first) = text.chars().next() {
        if let Some((part, rest)) = reference(text) {
            if !plain.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut plain)));
            }
            parts.push(part);
            text = rest;
        } else {
            plain.push(first);
            text = &text[first.len_utf8()..];
        }
    }
    if !plain.is_empty() {
        parts.push(Part::Text(plain));
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(labels: &[(&str, &str)], additional: &[&str], pod: Option<&Pod>) -> String {
        let mut out = String::new();
        extra(labels, additional).unwrap().write(&mut out, pod);
        out
    }

    fn extra(labels: &[(&str, &str)], additional: &[&str]) -> Result<ExtraLabels, String> {
        let config = Metrics {
            labels: labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
            additional_labels: additional.iter().map(|entry| (*entry).into()).collect(),
            ..Metrics::default()
        };
        ExtraLabels::new(&config).map_err(|e| e.to_string())
    }

    fn pod() -> Pod {
        let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        Pod {
            labels: map(&[("team", "a\"b"), ("app.kubernetes.io/name", "shop")]),
            annotations: map(&[("owner", "x=y")]),
            ..Pod::default()
        }
    }

    #[test]
    fn text_and_references_become_one_value() {
        let labels = [
            ("team", "${labels:team}"),
            (
                "app",
                "<${labels:app.kubernetes.io/name}/${labels:none}> $5 ${annotations:owner}",
            ),
        ];
        assert_eq!(
            written(&labels, &[], Some(&pod())),
            ",app=\"<shop/> $5 x=y\",team=\"a\\\"b\""
        );
        assert_eq!(written(&labels, &[], None), ",app=\"</> $5 \",team=\"\"");
    }

    #[test]
    fn kubeskoops_list_keeps_what_follows_the_first_equals_sign() {
        let list = [
            "team = ${labels:team}",
            "query=a=b=${labels:none}c",
            "odd=${x:y} ${labels:",
        ];
        assert_eq!(
            written(&[], &list, Some(&pod())),
            ",team=\" a\\\"b\",query=\"a=b=c\",odd=\"${x:y} ${labels:\""
        );
    }

    #[test]
    fn what_cannot_be_a_label_is_said_in_one_line() {
        let list = |entry| extra(&[], &[entry]).unwrap_err();
        assert_eq!(list("team"), "metrics.additional_labels: `team`: expected `NAME=TEXT`");
        assert_eq!(
            extra(&[("a", "${pod:x}")], &[]).unwrap_err(),
            "metrics.labels: `a: ${pod:x}`: expected `${labels:KEY}` or `${annotations:KEY}`"
        );
        for (entry, what) in [
            ("k8s_pod=x", "label name `k8s_pod` is taken"),
            ("le=x", "label name `le` is taken"),
            ("device=x", "label name `device` is taken by probe `netdev`"),
            ("a-b=x", "label name `a-b`: expected a letter"),
            ("=x", "label name ``: expected a letter"),
            ("__a=x", "and no `__` in front"),
            ("1a=x", "expected a letter"),
        ] {
            assert!(list(entry).contains(what), "{}", list(entry));
        }
        let twice = extra(&[("team", "x")], &["team=y"]).unwrap_err();
        assert_eq!(
            twice,
            "metrics.additional_labels: `team=y`: label `team` is given twice"
        );
    }
}
