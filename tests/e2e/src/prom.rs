//! Reads Prometheus' text format, and has the real programs read it.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
    /// Where the line has one.
    pub time_ms: Option<i64>,
}

impl Sample {
    /// Whether it has all these labels.
    pub fn has(&self, labels: &[(&str, &str)]) -> bool {
        labels
            .iter()
            .all(|(name, value)| self.labels.get(*name).map(String::as_str) == Some(value))
    }
}

/// The sum of a family's samples that have these labels; `None` when there is none.
pub fn sum(samples: &[Sample], name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let mut matching = samples.iter().filter(|s| s.name == name && s.has(labels)).peekable();
    matching.peek()?;
    Some(matching.map(|s| s.value).sum())
}

pub fn parse(text: &str) -> Result<Vec<Sample>> {
    text.lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| parse_line(line).with_context(|| format!("not a sample: {line}")))
        .collect()
}

fn parse_line(line: &str) -> Result<Sample> {
    let end = line.find(['{', ' ']).context("no value")?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, after) = rest.split_once("=\"").context("a label without value")?;
            let (value, after) = quoted(after)?;
            ensure!(labels.insert(label.to_owned(), value).is_none(), "label {label} twice");
            rest = after.strip_prefix(',').unwrap_or(after);
        }
        rest = &rest[1..];
    }
    let mut rest = rest.split_ascii_whitespace();
    let value = rest.next().context("no value")?;
    Ok(Sample {
        name: name.to_owned(),
        labels,
        value: value.parse().context("value")?,
        time_ms: rest.next().map(str::parse).transpose().context("time")?,
    })
}

/// Text up to the closing quote, and what follows it.
fn quoted(text: &str) -> Result<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((value, &text[at + 1..])),
            '\\' => value.push(match chars.next() {
                Some((_, 'n')) => '\n',
                Some((_, c @ ('\\' | '"'))) => c,
                other => bail!("escape {other:?}"),
            }),
            c => value.push(c),
        }
    }
    bail!("no closing quote")
}

/// `promtool check metrics`: its complaints, empty when it has none.
pub fn promtool(page: &str) -> Result<String> {
    let output = sonde_lab::apart(|| -> Result<_> {
        let mut child = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("promtool")?;
        let mut stdin = child.stdin.take().context("promtool has no stdin")?;
        stdin.write_all(page.as_bytes())?;
        drop(stdin);
        Ok(child.wait_with_output()?)
    })??;
    let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
    said.push_str(&String::from_utf8_lossy(&output.stderr));
    if !output.status.success() && said.is_empty() {
        said = output.status.to_string();
    }
    Ok(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_with_escapes_and_without_labels() {
        let text = "# HELP a b\na 1\nb{x=\"q\\\"}\\\\\",y=\"\"} 2.5 1700\n";
        let samples = parse(text).unwrap();
        assert_eq!((samples[0].name.as_str(), samples[0].value), ("a", 1.0));
        assert_eq!(samples[1].labels["x"], "q\"}\\");
        assert_eq!((samples[0].time_ms, samples[1].time_ms), (None, Some(1700)));
        assert!(samples[1].has(&[("y", "")]) && !samples[1].has(&[("y", "z")]));
        assert_eq!(sum(&samples, "b", &[("y", "")]), Some(2.5));
        assert_eq!(sum(&samples, "c", &[]), None);
        assert!(parse("a{x=\"1} 2").is_err());
    }
}
