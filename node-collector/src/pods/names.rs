//! Which named network namespaces are pods, and of what name.

use glob::{MatchOptions, Pattern};

/// Globs over names.
#[derive(Clone, Debug)]
pub struct Globs(Vec<Pattern>);

/// A pattern of `pods.netns.include` that is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("pods.netns.include: `{pattern}`: {what}; expected a glob with `*`, `?` or `[a-z]`")]
pub struct BadGlob {
    pattern: String,
    what: &'static str,
}

impl Globs {
    pub fn new(patterns: &[String]) -> Result<Self, BadGlob> {
        let parse = |pattern: &String| {
            Pattern::new(pattern).map_err(|e| BadGlob {
                pattern: pattern.clone(),
                what: e.msg,
            })
        };
        patterns.iter().map(parse).collect::<Result<_, _>>().map(Self)
    }

    pub fn matches(&self, name: &str) -> bool {
        const OPTIONS: MatchOptions = MatchOptions {
            case_sensitive: true,
            require_literal_separator: false,
            require_literal_leading_dot: false,
        };
        self.0.iter().any(|pattern| pattern.matches_with(name, OPTIONS))
    }
}

/// `NS.POD` is pod POD of namespace NS: the first dot parts them. Any other name is a pod of namespace `netns`.
pub fn namespace_and_pod(name: &str) -> (&str, &str) {
    match name.split_once('.') {
        Some((namespace, pod)) if !namespace.is_empty() && !pod.is_empty() => (namespace, pod),
        _ => ("netns", name),
    }
}

/// Whether a container runtime makes such names: `cni-<uuid>` (containerd) and `<uuid>` (CRI-O).
pub fn is_of_a_runtime(name: &str) -> bool {
    let uuid = name.strip_prefix("cni-").unwrap_or(name);
    uuid.len() == 36 && uuid::Uuid::try_parse(uuid).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_dot_parts_namespace_and_pod() {
        for (name, parts) in [
            ("demo.server", ("demo", "server")),
            ("demo.server.1", ("demo", "server.1")),
            ("blue", ("netns", "blue")),
            (
                "cni-2b6f6f2e-0000-4bd0-8e44-000000000000",
                ("netns", "cni-2b6f6f2e-0000-4bd0-8e44-000000000000"),
            ),
            (".x", ("netns", ".x")),
            ("x.", ("netns", "x.")),
        ] {
            assert_eq!(namespace_and_pod(name), parts, "{name}");
        }
    }

    #[test]
    fn any_glob_takes_a_name() {
        let globs = Globs::new(&["demo.*".into(), "node[0-3]".into(), "x?".into()]).unwrap();
        for name in ["demo.a", "demo.", "demo.a.b", "node2", "xy"] {
            assert!(globs.matches(name), "{name}");
        }
        for name in ["demo", "Demo.a", "node4", "x", "xyz", ""] {
            assert!(!globs.matches(name), "{name}");
        }
        assert!(!Globs::new(&[]).unwrap().matches("a"));
        let error = Globs::new(&["a".into(), "[b".into()]).unwrap_err().to_string();
        assert!(error.starts_with("pods.netns.include: `[b`: "), "{error}");
    }

    #[test]
    fn runtimes_name_their_namespaces_by_uuids() {
        for name in [
            "cni-2b6f6f2e-0000-4bd0-8e44-000000000000",
            "2b6f6f2e-0000-4bd0-8e44-000000000000",
        ] {
            assert!(is_of_a_runtime(name), "{name}");
        }
        for name in [
            "cni-blue",
            "demo.cni-2b6f6f2e-0000-4bd0-8e44-000000000000",
            "2b6f6f2e00004bd08e44000000000000",
            "cni-",
            "",
        ] {
            assert!(!is_of_a_runtime(name), "{name}");
        }
    }
}
