//! OpenMetrics 1.0 read as the specification has it, without any forgiveness.

use std::collections::{BTreeMap, HashSet};

/// A page: type and unit of each family, and the value of each series as it is written.
#[derive(Debug, Default)]
pub(crate) struct Read {
    pub(crate) families: BTreeMap<String, (String, String)>,
    pub(crate) series: BTreeMap<String, String>,
}

#[derive(Default)]
struct Family {
    name: String,
    kind: String,
    unit: String,
    described: HashSet<String>,
    sampled: bool,
    /// Of the histogram series in the making: its labels, the bound and count of the last bucket.
    histogram: Option<(String, f64, f64)>,
    finished: HashSet<String>,
}

pub(crate) fn read(page: &str) -> Result<Read, String> {
    let body = page.strip_suffix("# EOF\n").ok_or("the page does not end with # EOF")?;
    let mut out = Read::default();
    let mut family = Family::default();
    for line in body.split_terminator('\n') {
        let what = |what: &str| format!("{what}: {line}");
        if let Some(rest) = line.strip_prefix("# ") {
            let mut words = rest.splitn(3, ' ');
            let (Some(key), Some(name)) = (words.next(), words.next()) else {
                return Err(what("neither metadata nor sample"));
            };
            let text = words.next().unwrap_or_default();
            if name != family.name {
                close(&family, &mut out).map_err(|e| what(&e))?;
                if out.families.contains_key(name) {
                    return Err(what("family begun twice"));
                }
                check_name(name, true).map_err(|e| what(&e))?;
                family = Family {
                    name: name.to_owned(),
                    kind: "unknown".into(),
                    ..Family::default()
                };
            }
            if family.sampled || !family.described.insert(key.to_owned()) {
                return Err(what("metadata after samples, or twice"));
            }
            match key {
                "TYPE" if ["counter", "gauge", "histogram", "unknown"].contains(&text) => family.kind = text.into(),
                "UNIT" if name.ends_with(&format!("_{text}")) && !text.is_empty() => family.unit = text.into(),
                "HELP" => _ = unescape(text).map_err(|e| what(&e))?,
                _ => return Err(what("no such metadata")),
            }
        } else {
            sample(line, &mut family, &mut out).map_err(|e| what(&e))?;
        }
    }
    close(&family, &mut out)?;
    for (name, (kind, _)) in &out.families {
        let suffixes: &[&str] = match kind.as_str() {
            "counter" => &["_total", "_created"],
            "histogram" => &["_bucket", "_count", "_sum", "_created"],
            _ => &[],
        };
        for suffix in suffixes {
            if out.families.contains_key(&format!("{name}{suffix}")) {
                return Err(format!("family {name}{suffix} clashes with {name}"));
            }
        }
    }
    Ok(out)
}

fn close(family: &Family, out: &mut Read) -> Result<(), String> {
    if family.histogram.is_some() {
        return Err("histogram without count".into());
    }
    if !family.name.is_empty() {
        let about = (family.kind.clone(), family.unit.clone());
        out.families.insert(family.name.clone(), about);
    }
    Ok(())
}

fn sample(line: &str, family: &mut Family, out: &mut Read) -> Result<(), String> {
    let (name, labels, value) = parts(line)?;
    let number = number(value)?;
    let suffix = name
        .strip_prefix(family.name.as_str())
        .ok_or("sample of another family")?;
    family.sampled = true;
    let key = format!("{name}{{{labels}}}");
    let pairs = pairs(labels)?;
    match (family.kind.as_str(), suffix) {
        ("counter", "_total") => {
            if number < 0.0 || number.is_nan() {
                return Err("a counter is not negative".into());
            }
        }
        ("gauge" | "unknown", "") => {}
        ("histogram", "_bucket" | "_sum" | "_count") => histogram(family, suffix, &pairs, number)?,
        (kind, _) => return Err(format!("{kind} has no such sample")),
    }
    match out.series.insert(key, value.to_owned()) {
        None => Ok(()),
        Some(_) => Err("the series stands twice".into()),
    }
}

fn histogram(family: &mut Family, suffix: &str, pairs: &[(String, String)], number: f64) -> Result<(), String> {
    let others: Vec<_> = pairs.iter().filter(|(name, _)| name != "le").collect();
    let labels = format!("{others:?}");
    if suffix == "_bucket" {
        let le = &pairs
            .iter()
            .find(|(name, _)| name == "le")
            .ok_or("bucket without le")?
            .1;
        if le != "+Inf" && !le.contains(['.', 'e']) {
            return Err("le is no float".into());
        }
        let bound = self::number(le)?;
        if let Some((of, last, count)) = &family.histogram
            && (*of != labels || bound <= *last || number < *count)
        {
            return Err("buckets out of order".into());
        }
        if !family.finished.contains(&labels) {
            family.histogram = Some((labels, bound, number));
            return Ok(());
        }
        return Err("histogram begun twice".into());
    }
    if others.len() != pairs.len() {
        return Err("le without a bucket".into());
    }
    match &family.histogram {
        Some((of, bound, count)) if *of == labels && *bound == f64::INFINITY => {
            if suffix == "_count" {
                if *count != number {
                    return Err("count is not that of the last bucket".into());
                }
                family.histogram = None;
                family.finished.insert(labels);
            }
            Ok(())
        }
        _ => Err("histogram without its last bucket".into()),
    }
}

/// Name, what is between the braces, value. Nothing may follow: no page of ours has times or exemplars.
fn parts(line: &str) -> Result<(&str, &str, &str), String> {
    let end = line.find(['{', ' ']).ok_or("no value")?;
    let name = &line[..end];
    check_name(name, true)?;
    if line.as_bytes()[end] == b' ' {
        return Ok((name, "", &line[end + 1..]));
    }
    let (mut quoted, mut escaped) = (false, false);
    for (at, c) in line.char_indices().skip(end + 1) {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '}' if !quoted => {
                let value = line[at + 1..].strip_prefix(' ').ok_or("no blank before the value")?;
                return Ok((name, &line[end + 1..at], value));
            }
            _ => {}
        }
    }
    Err("labels have no end".into())
}

fn pairs(mut labels: &str) -> Result<Vec<(String, String)>, String> {
    let mut all: Vec<(String, String)> = Vec::new();
    while !labels.is_empty() {
        let (name, rest) = labels.split_once("=\"").ok_or("label without a value")?;
        check_name(name, false)?;
        let mut escaped = false;
        let end = rest.find(|c| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        let (value, rest) = rest.split_at(end.ok_or("value without an end")?);
        if all.iter().any(|(other, _)| other == name) {
            return Err(format!("label {name} stands twice"));
        }
        all.push((name.to_owned(), unescape(value)?));
        labels = match &rest[1..] {
            "" => "",
            more => more
                .strip_prefix(',')
                .filter(|more| !more.is_empty())
                .ok_or("no comma")?,
        };
    }
    Ok(all)
}

fn check_name(name: &str, colons: bool) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || (colons && c == ':');
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) || !name.chars().all(fits) {
        return Err(format!("`{name}` is no name"));
    }
    Ok(())
}

fn unescape(text: &str) -> Result<String, String> {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => return Err("a quote that is not escaped".into()),
            '\\' => match chars.next() {
                Some('n') => out.push('\n'),
                Some(c @ ('"' | '\\')) => out.push(c),
                _ => return Err("an escape there is not".into()),
            },
            c => out.push(c),
        }
    }
    Ok(out)
}

fn number(text: &str) -> Result<f64, String> {
    let word = matches!(text, "+Inf" | "-Inf" | "NaN");
    let digits = text.trim_start_matches(['+', '-']);
    if !word && !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(format!("`{text}` is no number"));
    }
    text.parse().map_err(|_| format!("`{text}` is no number"))
}

#[test]
fn what_breaks_a_rule_is_refused() {
    let good = "# HELP a h\n# TYPE a counter\na_total{x=\"a\\\"b\"} 1\n# TYPE b_bytes gauge\n# UNIT b_bytes bytes\nb_bytes -1.5\n";
    let page = read(&format!("{good}# EOF\n")).unwrap();
    assert_eq!(page.families["b_bytes"], ("gauge".into(), "bytes".into()));
    assert_eq!(page.series["a_total{x=\"a\\\"b\"}"], "1");
    for bad in [
        "a 1\n",
        "# TYPE a counter\na 1\n",
        "# TYPE a counter\na_total -1\n",
        "# TYPE a_total counter\n# TYPE a counter\na_total 1\n",
        "# TYPE a gauge\na 1\na 1\n",
        "# TYPE a gauge\na{b=\"1\",b=\"2\"} 1\n",
        "# TYPE a gauge\na{b=\"\\x\"} 1\n",
        "# TYPE a gauge\na{b=\"1\",} 1\n",
        "# TYPE a gauge\na 1 \n",
        "# TYPE a gauge\n\na 1\n",
        "# TYPE a gauge\na x\n",
        "# TYPE a gauge\na 1\n# HELP a h\n",
        "# HELP a \"h\"\n# TYPE a gauge\na 1\n",
        "# TYPE a gauge\na 1\n# TYPE b gauge\nb 1\n# TYPE a gauge\n",
        "# TYPE a gauge\n# UNIT a bytes\na 1\n",
        "# TYPE a histogram\na_bucket{le=\"1\"} 1\na_bucket{le=\"+Inf\"} 1\na_sum 1\na_count 1\n",
        "# TYPE a histogram\na_bucket{le=\"1.0\"} 2\na_bucket{le=\"+Inf\"} 1\na_sum 1\na_count 1\n",
        "# TYPE a histogram\na_bucket{le=\"+Inf\"} 1\na_sum 1\na_count 2\n",
        "# TYPE a histogram\na_bucket{le=\"1.0\"} 1\na_sum 1\na_count 1\n",
        "# TYPE a histogram\na_bucket{le=\"+Inf\"} 1\n",
    ] {
        assert!(read(&format!("{bad}# EOF\n")).is_err(), "{bad}");
    }
    assert!(read(good).is_err(), "no end");
    let histogram = "# TYPE a histogram\na_bucket{le=\"1.0\"} 1\na_bucket{le=\"+Inf\"} 1\na_sum 1\na_count 1\n# EOF\n";
    read(histogram).unwrap();
}
