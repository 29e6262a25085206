//! What a scraper wants of a metrics page: its format (`Accept`) and whether packed (`Accept-Encoding`), RFC 9110.

use crate::prom::Format;

/// A format, and what becomes of names that are no names of the old kind (`[a-zA-Z_:][a-zA-Z0-9_:]*`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exposition {
    pub format: Format,
    pub escaping: Escaping,
}

/// All names of Sonde are of the old kind, and come out of each of these as they are. Not so of `dots`, which doubles
/// underscores: who asks for it is told that it was not done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Escaping {
    /// Nothing was asked for: a scraper from before there was a choice.
    #[default]
    Unsaid,
    AllowUtf8,
    Underscores,
    Values,
}

impl Exposition {
    pub fn content_type(self) -> String {
        let escaping = match self.escaping {
            Escaping::Unsaid => "",
            Escaping::AllowUtf8 => "; escaping=allow-utf-8",
            Escaping::Underscores => "; escaping=underscores",
            Escaping::Values => "; escaping=values",
        };
        format!("{}{escaping}", self.format.content_type())
    }
}

/// The format wanted most of those there are.
pub fn format(accept: &str) -> Format {
    exposition(accept).format
}

/// What is wanted most of what there is. Of two wanted alike the first named; text where none fits, as for a browser: a
/// page in another format than hoped for is of more use than a refusal.
pub fn exposition(accept: &str) -> Exposition {
    let mut best = (0.0, Exposition::default());
    for range in accept.split(',') {
        let (kind, parameters) = split(range);
        let Some(format) = format_of(kind, parameters) else {
            continue;
        };
        let wanted = quality(parameters);
        if wanted > best.0 {
            let escaping = escaping_of(parameters);
            best = (wanted, Exposition { format, escaping });
        }
    }
    best.1
}

fn escaping_of(parameters: &str) -> Escaping {
    match parameter(parameters, "escaping") {
        None => Escaping::Unsaid,
        Some("allow-utf-8") => Escaping::AllowUtf8,
        Some("values") => Escaping::Values,
        Some(_) => Escaping::Underscores,
    }
}

fn format_of(kind: &str, parameters: &str) -> Option<Format> {
    let version = parameter(parameters, "version");
    let is = |name: &str| kind.eq_ignore_ascii_case(name);
    if is("application/openmetrics-text") {
        // 0.0.1 was a draft.
        matches!(version, None | Some("1.0.0")).then_some(Format::OpenMetrics)
    } else if is("text/plain") {
        // 1.0.0 has names in quotes beside what 0.0.4 has; there are none here.
        matches!(version, None | Some("0.0.4" | "1.0.0")).then_some(Format::Text)
    } else if is("application/*") {
        Some(Format::OpenMetrics)
    } else {
        (is("text/*") || is("*/*")).then_some(Format::Text)
    }
}

/// Whether gzip is taken, and not less liked than no packing at all.
pub fn gzip(accept_encoding: &str) -> bool {
    let named = |name: &str| {
        accept_encoding.split(',').find_map(|coding| {
            let (coding, parameters) = split(coding);
            coding.eq_ignore_ascii_case(name).then(|| quality(parameters))
        })
    };
    let gzip = named("gzip")
        .or_else(|| named("x-gzip"))
        .or_else(|| named("*"))
        .unwrap_or(0.0);
    gzip > 0.0 && gzip >= named("identity").unwrap_or(0.0)
}

fn split(item: &str) -> (&str, &str) {
    let (name, parameters) = item.split_once(';').unwrap_or((item, ""));
    (name.trim(), parameters)
}

fn parameter<'a>(parameters: &'a str, name: &str) -> Option<&'a str> {
    parameters.split(';').find_map(|parameter| {
        let (key, value) = parameter.split_once('=')?;
        key.trim()
            .eq_ignore_ascii_case(name)
            .then(|| value.trim().trim_matches('"'))
    })
}

/// 1 where nothing is said, 0 ("not at all") where what is said is no number.
fn quality(parameters: &str) -> f64 {
    match parameter(parameters, "q") {
        None => 1.0,
        Some(text) => text.parse().ok().filter(|q| (0.0..=1.0).contains(q)).unwrap_or(0.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_wanted_most_is_given_and_text_where_none_fits() {
        for (accept, wanted) in [
            ("", Format::Text),
            ("text/html,application/xhtml+xml;q=0.9,*/*;q=0.8", Format::Text),
            // Prometheus 2.26, 2.42 and 3.
            (
                "application/openmetrics-text; version=0.0.1,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                Format::Text,
            ),
            (
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                Format::OpenMetrics,
            ),
            (
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
                Format::OpenMetrics,
            ),
            (
                "text/plain;version=0.0.4;q=0.9, Application/OpenMetrics-Text; Q=0.5",
                Format::Text,
            ),
            ("application/openmetrics-text; version=\"1.0.0\"", Format::OpenMetrics),
            ("application/openmetrics-text;version=2.0.0", Format::Text),
            ("application/openmetrics-text;q=0, text/plain;q=0.1", Format::Text),
            ("application/openmetrics-text;q=x", Format::Text),
            ("application/json", Format::Text),
        ] {
            assert_eq!(format(accept), wanted, "{accept}");
        }
    }

    #[test]
    fn escaping_is_the_one_of_the_range_that_won() {
        let (text, open) = (Format::Text, Format::OpenMetrics);
        // Prometheus 3.
        let three = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        for (accept, format, escaping) in [
            (three, open, Escaping::AllowUtf8),
            (
                "text/plain;version=1.0.0;escaping=underscores, */*;q=0.1;escaping=values",
                text,
                Escaping::Underscores,
            ),
            ("text/plain;escaping=values", text, Escaping::Values),
            (
                "application/openmetrics-text;escaping=dots",
                open,
                Escaping::Underscores,
            ),
            ("text/plain;version=0.0.4", text, Escaping::Unsaid),
            ("application/json;escaping=allow-utf-8", text, Escaping::Unsaid),
        ] {
            assert_eq!(exposition(accept), Exposition { format, escaping }, "{accept}");
        }
        let all = [
            Escaping::Unsaid,
            Escaping::AllowUtf8,
            Escaping::Underscores,
            Escaping::Values,
        ];
        for format in Format::ALL {
            for escaping in all {
                let said = Exposition { format, escaping }.content_type();
                assert_eq!(exposition(&said), Exposition { format, escaping }, "{said}");
            }
        }
    }

    #[test]
    fn gzip_is_for_those_who_take_it() {
        for yes in [
            "gzip",
            "deflate, GZIP;q=0.5",
            "*",
            "x-gzip",
            "gzip;q=1.0, identity; q=0.5",
        ] {
            assert!(gzip(yes), "{yes}");
        }
        for no in [
            "",
            "identity",
            "gzip;q=0",
            "*, gzip;q=0",
            "gzip;q=0.1, identity",
            "br",
            "gzipp",
            "gzip;q=2",
        ] {
            assert!(!gzip(no), "{no}");
        }
    }
}
