//! What the types of `sinks` cannot say.

use std::path::Path;

use super::{ConfigError, FileSink, LokiSink, Sinks};
use crate::time::Span;

/// What `${...}` may stand for in `sinks.loki.labels`: what has few values.
pub const LOKI_PARTS: [&str; 4] = ["node", "probe", "type", "namespace"];

/// More than this Loki does not take, by default.
const MOST_LABELS: usize = 15;

type Checked = Result<(), ConfigError>;

fn fail(key: &'static str, value: &dyn std::fmt::Display, what: impl Into<String>) -> Checked {
    Err(ConfigError::Value {
        key,
        value: value.to_string(),
        what: what.into(),
    })
}

pub(super) fn check(sinks: &Sinks) -> Checked {
    if !(1..=1_000_000).contains(&sinks.queue) {
        return fail("sinks.queue", &sinks.queue, "expected 1 to 1000000 events");
    }
    file(&sinks.file)?;
    loki(&sinks.loki)
}

fn file(file: &FileSink) -> Checked {
    absolute("sinks.file.path", &file.path)?;
    if file.max_bytes != 0 && file.max_bytes < 4096 {
        let what = "expected 0 (it is rotated by others) or at least 4096";
        return fail("sinks.file.max_bytes", &file.max_bytes, what);
    }
    if !(1..=1000).contains(&file.keep) {
        return fail("sinks.file.keep", &file.keep, "expected 1 to 1000 files");
    }
    Ok(())
}

fn loki(loki: &LokiSink) -> Checked {
    for (key, path) in [
        ("sinks.loki.password_file", &loki.password_file),
        ("sinks.loki.bearer_token_file", &loki.bearer_token_file),
        ("sinks.loki.ca_file", &loki.ca_file),
    ] {
        absolute(key, path)?;
    }
    let passwords = given(&loki.password_file, &loki.password_env);
    let tokens = given(&loki.bearer_token_file, &loki.bearer_token_env);
    let user = &loki.username;
    if !user.is_empty() && passwords != 1 {
        let what = "expected exactly one of `password_file` and `password_env` beside it";
        return fail("sinks.loki.username", user, what);
    }
    if user.is_empty() && passwords > 0 {
        return fail("sinks.loki.username", user, "expected the user whose password is given");
    }
    if tokens > 1 || tokens == 1 && !user.is_empty() {
        let what = "expected one way to say who one is: a user with a password, or one bearer token";
        return fail("sinks.loki.bearer_token_env", &loki.bearer_token_env, what);
    }
    if user.contains(':') {
        return fail("sinks.loki.username", user, "expected no `:` in it");
    }
    for (key, span, least, most) in [
        ("sinks.loki.timeout", loki.timeout, 100, 120_000),
        ("sinks.loki.linger", loki.linger, 1, 60_000),
        ("sinks.loki.retry_for", loki.retry_for, 1000, 86_400_000),
    ] {
        let [least, most] = [least, most].map(|millis| Span(std::time::Duration::from_millis(millis)));
        if span < least || span > most {
            return fail(key, &span, format!("expected {least} to {most}"));
        }
    }
    labels(loki)
}

fn labels(loki: &LokiSink) -> Checked {
    const KEY: &str = "sinks.loki.labels";
    if loki.labels.is_empty() || loki.labels.len() > MOST_LABELS {
        return fail(KEY, &loki.labels.len(), format!("expected 1 to {MOST_LABELS} labels"));
    }
    for (name, text) in &loki.labels {
        let shown = format!("{name}: {text}");
        let good = |at: usize, c: char| c == '_' || c.is_ascii_alphabetic() || at > 0 && c.is_ascii_digit();
        if name.is_empty() || !name.char_indices().all(|(at, c)| good(at, c)) {
            return fail(
                KEY,
                &shown,
                "expected a name of letters, digits and `_` that begins with no digit",
            );
        }
        let mut rest = text.as_str();
        while let Some((_, after)) = rest.split_once("${") {
            let part = after.split_once('}');
            let Some((_, next)) = part.filter(|(name, _)| LOKI_PARTS.contains(name)) else {
                let known = LOKI_PARTS.map(|part| format!("`${{{part}}}`")).join(", ");
                let what = format!(
                    "expected text with no other parts than {known}: what has many values belongs into the line"
                );
                return fail(KEY, &shown, what);
            };
            rest = next;
        }
    }
    Ok(())
}

fn given(file: &Path, variable: &str) -> usize {
    usize::from(!file.as_os_str().is_empty()) + usize::from(!variable.is_empty())
}

fn absolute(key: &'static str, path: &Path) -> Checked {
    if path.as_os_str().is_empty() || path.is_absolute() {
        return Ok(());
    }
    fail(key, &path.display(), "expected a path that begins with `/`")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(change: impl FnOnce(&mut Sinks)) -> String {
        let mut sinks = Sinks::default();
        change(&mut sinks);
        check(&sinks).unwrap_err().to_string()
    }

    #[test]
    fn what_makes_no_sense_is_said_with_key_and_value() {
        check(&Sinks::default()).unwrap();
        assert!(error(|s| s.queue = 0).starts_with("sinks.queue: `0`"));
        assert!(error(|s| s.file.path = "events.log".into()).starts_with("sinks.file.path: `events.log`"));
        assert!(error(|s| s.file.max_bytes = 5).starts_with("sinks.file.max_bytes: `5`"));
        assert!(error(|s| s.file.keep = 0).starts_with("sinks.file.keep: `0`"));
        assert!(error(|s| s.loki.username = "me".into()).contains("password_file"));
        assert!(error(|s| s.loki.password_env = "P".into()).contains("whose password"));
        let both = error(|s| {
            s.loki.username = "me".into();
            s.loki.password_env = "P".into();
            s.loki.bearer_token_file = "/t".into();
        });
        assert!(both.contains("one bearer token"), "{both}");
        assert_eq!(
            error(|s| s.loki.timeout = Span::from_secs(1000)),
            "sinks.loki.timeout: `1000s`: expected 100ms to 2m"
        );
    }

    #[test]
    fn labels_of_streams_have_few_values() {
        let with = |name: &str, text: &str| {
            let mut sinks = Sinks::default();
            sinks.loki.labels.insert(name.into(), text.into());
            check(&sinks).map_err(|error| error.to_string())
        };
        with("x_1", "a-${type}-${namespace}$}").unwrap();
        assert!(with("1x", "a").unwrap_err().starts_with("sinks.loki.labels: `1x: a`"));
        let error = with("x", "${pod}").unwrap_err();
        assert!(error.contains("`${node}`") && error.contains("many values"), "{error}");
        assert!(with("x", "${type").is_err());
    }
}
