//! Which installed server to run: the newest, or for a directory that exists the one that made it.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::EmbeddedError;
use super::layout::Paths;

/// Oldest major version that the schema and the settings work with.
const OLDEST: u32 = 13;

/// An installed server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Binaries {
    pub(super) bin: PathBuf,
    pub(super) major: u32,
    /// As it says itself, `15.14`.
    pub(super) version: String,
}

impl Binaries {
    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }
}

/// The server for this data directory.
pub(super) fn choose(layout: &Paths) -> Result<Binaries, EmbeddedError> {
    let places = places();
    let mut found: Vec<Binaries> = places.iter().filter_map(|place| probe(place)).collect();
    found.sort_by_key(|b| std::cmp::Reverse(b.major));
    found.dedup_by_key(|b| b.major);
    if found.is_empty() {
        let looked = places.iter().map(|p| p.display().to_string()).collect::<Vec<_>>();
        return Err(EmbeddedError::NotInstalled {
            looked: looked.join(", "),
        });
    }
    select(found, layout.made_by()?, layout)
}

fn select(found: Vec<Binaries>, made_by: Option<String>, layout: &Paths) -> Result<Binaries, EmbeddedError> {
    let installed = found.iter().map(|b| b.version.clone()).collect::<Vec<_>>().join(", ");
    let fits = |b: &Binaries| made_by.as_ref().is_none_or(|made_by| *made_by == b.major.to_string());
    found.into_iter().find(fits).ok_or_else(|| EmbeddedError::OtherVersion {
        dir: layout.data.clone(),
        made_by: made_by.unwrap_or_default(),
        installed,
    })
}

/// Directories that may hold a server: Debian's, Red Hat's, `pg_config`'s, and those of PATH.
fn places() -> Vec<PathBuf> {
    let mut places = Vec::new();
    for (parent, inner) in [("/usr/lib/postgresql", "bin"), ("/usr", "bin")] {
        for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if parent != "/usr" || name.to_string_lossy().starts_with("pgsql-") {
                places.push(entry.path().join(inner));
            }
        }
    }
    if let Ok(output) = Command::new("pg_config").arg("--bindir").output() {
        let text = String::from_utf8_lossy(&output.stdout);
        places.push(PathBuf::from(text.trim()));
    }
    places.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    places.retain(|p| p.is_absolute());
    places.sort();
    places.dedup();
    places
}

fn probe(bin: &Path) -> Option<Binaries> {
    if !bin.join("initdb").exists() {
        return None;
    }
    let output = Command::new(bin.join("postgres")).arg("--version").output().ok()?;
    let (major, version) = parse_version(&String::from_utf8_lossy(&output.stdout))?;
    (major >= OLDEST).then(|| Binaries {
        bin: bin.to_owned(),
        major,
        version,
    })
}

/// `postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)` or `... 18devel`.
fn parse_version(text: &str) -> Option<(u32, String)> {
    let version = text.split("(PostgreSQL) ").nth(1)?.split_whitespace().next()?;
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    Some((digits.parse().ok()?, version.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_as_the_server_prints_it() {
        let debian = "postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n";
        assert_eq!(parse_version(debian), Some((15, "15.14".into())));
        assert_eq!(
            parse_version("postgres (PostgreSQL) 18devel\n"),
            Some((18, "18devel".into()))
        );
        assert_eq!(parse_version("bash: postgres: not found"), None);
    }

    #[test]
    fn a_directory_keeps_the_server_that_made_it() {
        let server = |major: u32| Binaries {
            bin: PathBuf::new(),
            major,
            version: format!("{major}.1"),
        };
        let layout = Paths::below(Path::new("/data"));
        let choose = |made_by: Option<&str>| select(vec![server(17), server(15)], made_by.map(Into::into), &layout);
        assert_eq!(choose(None).unwrap().major, 17);
        assert_eq!(choose(Some("15")).unwrap().major, 15);
        let error = choose(Some("14")).unwrap_err().to_string();
        assert!(
            error.contains("made by PostgreSQL 14, but only 17.1, 15.1 is installed"),
            "{error}"
        );
    }
}
