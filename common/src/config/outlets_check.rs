//! What the types of `sinks` and `push` cannot say.

use std::path::Path;

use super::{Access, ConfigError, FileSink, LokiSink, OtlpPush, Push, RemoteWritePush, Sinks};
use crate::time::Span;

/// What `${...}` may stand for in the labels of Loki's streams: what has few values.
pub const LOKI_PARTS: [&str; 4] = ["node", "probe", "type", "namespace"];

/// More than this Loki does not take, by default.
const MOST_LABELS: usize = 15;

type Checked = Result<(), ConfigError>;

fn fail(key: impl Into<String>, value: &dyn std::fmt::Display, what: impl Into<String>) -> Checked {
    Err(ConfigError::Value {
        key: key.into(),
        value: value.to_string(),
        what: what.into(),
    })
}

pub(super) fn check(sinks: &Sinks) -> Checked {
    if !(1..=1_000_000).contains(&sinks.queue) {
        return fail("sinks.queue", &sinks.queue, "expected 1 to 1000000 events");
    }
    file(&sinks.file)?;
    loki("sinks.loki", &sinks.loki)
}

pub(super) fn check_push(push: &Push) -> Checked {
    loki("push.loki", &push.loki)?;
    otlp(&push.otlp)?;
    remote_write(&push.remote_write)
}

fn otlp(otlp: &OtlpPush) -> Checked {
    access("push.otlp", &otlp.access())?;
    span("push.otlp.interval", otlp.interval, INTERVAL)
}

fn remote_write(write: &RemoteWritePush) -> Checked {
    access("push.remote_write", &write.access())?;
    span("push.remote_write.interval", write.interval, INTERVAL)?;
    if !matches!(write.version, 1 | 2) {
        return fail("push.remote_write.version", &write.version, "expected 1 or 2");
    }
    write.labels.keys().try_for_each(|name| {
        // `__name__` and its like are Prometheus' own.
        if is_label_name(name) && !name.starts_with("__") {
            return Ok(());
        }
        let what = "expected a name of letters, digits and `_` that begins with no digit and not with `__`";
        fail("push.remote_write.labels", name, what)
    })
}

/// Milliseconds between two times that metrics are sent.
const INTERVAL: [u64; 2] = [1000, 3_600_000];

fn span(key: impl Into<String>, span: Span, range: [u64; 2]) -> Checked {
    let [least, most] = range.map(|millis| Span(std::time::Duration::from_millis(millis)));
    if span < least || span > most {
        return fail(key, &span, format!("expected {least} to {most}"));
    }
    Ok(())
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

fn loki(section: &str, loki: &LokiSink) -> Checked {
    access(section, &loki.access())?;
    span(format!("{section}.linger"), loki.linger, [1, 60_000])?;
    labels(&format!("{section}.labels"), loki)
}

fn access(section: &str, access: &Access<'_>) -> Checked {
    let key = |name: &str| format!("{section}.{name}");
    for (name, path) in [
        ("password_file", access.password_file),
        ("bearer_token_file", access.bearer_token_file),
        ("ca_file", access.ca_file),
    ] {
        absolute(key(name), path)?;
    }
    let passwords = given(access.password_file, access.password_env);
    let tokens = given(access.bearer_token_file, access.bearer_token_env);
    let user = &access.username;
    if !user.is_empty() && passwords != 1 {
        let what = "expected exactly one of `password_file` and `password_env` beside it";
        return fail(key("username"), user, what);
    }
    if user.is_empty() && passwords > 0 {
        return fail(key("username"), user, "expected the user whose password is given");
    }
    if tokens > 1 || tokens == 1 && !user.is_empty() {
        let what = "expected one way to say who one is: a user with a password, or one bearer token";
        return fail(key("bearer_token_env"), &access.bearer_token_env, what);
    }
    if user.contains(':') {
        return fail(key("username"), user, "expected no `:` in it");
    }
    span(key("timeout"), access.timeout, [100, 120_000])?;
    span(key("retry_for"), access.retry_for, [1000, 86_400_000])
}

fn is_label_name(name: &str) -> bool {
    let good = |at: usize, c: char| c == '_' || c.is_ascii_alphabetic() || at > 0 && c.is_ascii_digit();
    !name.is_empty() && name.char_indices().all(|(at, c)| good(at, c))
}

fn labels(key: &str, loki: &LokiSink) -> Checked {
    if loki.labels.is_empty() || loki.labels.len() > MOST_LABELS {
        return fail(key, &loki.labels.len(), format!("expected 1 to {MOST_LABELS} labels"));
    }
    for (name, text) in &loki.labels {
        let shown = format!("{name}: {text}");
        if !is_label_name(name) {
            return fail(
                key,
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
                return fail(key, &shown, what);
            };
            rest = next;
        }
    }
    Ok(())
}

fn given(file: &Path, variable: &str) -> usize {
    usize::from(!file.as_os_str().is_empty()) + usize::from(!variable.is_empty())
}

fn absolute(key: impl Into<String>, path: &Path) -> Checked {
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
    fn a_push_is_checked_as_a_sink_is() {
        let error = |change: &dyn Fn(&mut Push)| {
            let mut push = Push::default();
            change(&mut push);
            check_push(&push).unwrap_err().to_string()
        };
        check_push(&Push::default()).unwrap();
        assert_eq!(
            error(&|p| p.loki.timeout = Span::from_secs(1000)),
            "push.loki.timeout: `1000s`: expected 100ms to 2m"
        );
        assert!(error(&|p| p.otlp.ca_file = "ca.pem".into()).starts_with("push.otlp.ca_file: `ca.pem`"));
        assert_eq!(
            error(&|p| p.otlp.interval = Span::from_secs(0)),
            "push.otlp.interval: `0s`: expected 1s to 1h"
        );
        assert_eq!(
            error(&|p| p.remote_write.version = 3),
            "push.remote_write.version: `3`: expected 1 or 2"
        );
        for name in ["__name__", "a-b", ""] {
            let error = error(&|p| drop(p.remote_write.labels.insert(name.into(), "x".into())));
            assert!(
                error.starts_with(&format!("push.remote_write.labels: `{name}`")),
                "{error}"
            );
        }
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
