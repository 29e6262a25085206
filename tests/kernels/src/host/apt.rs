//! One suite of Debian, through apt, in a private root: the machine's own sources stay as they are.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::kernels::run;

/// Which of Debian's two archives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Archive {
    Main,
    Security,
}

impl Archive {
    /// The end of its address.
    const fn path(self) -> &'static str {
        match self {
            Self::Main => "/debian",
            Self::Security => "/debian-security",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Package {
    pub name: String,
    pub version: String,
}

pub(super) struct Suite {
    archive: Archive,
    name: &'static str,
    root: PathBuf,
}

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

impl Suite {
    /// Its root is a folder in `cache`.
    pub(super) fn new(archive: Archive, name: &'static str, cache: &Path) -> Self {
        Self {
            archive,
            name,
            root: cache.join(name),
        }
    }

    /// What the suite has now. An error where the mirror cannot be reached or the suite has left it.
    pub(super) fn packages(&self) -> Result<Vec<Package>> {
        self.prepare()?;
        let update = self.apt("apt-get").args(["update", "-qq", "--error-on=any"]).output()?;
        let said = String::from_utf8_lossy(&update.stderr);
        let why = said.lines().find(|line| line.starts_with("E:")).unwrap_or_default();
        ensure!(update.status.success(), "suite {} cannot be had: {why}", self.name);
        let text = run(self.apt("apt-cache").arg("dumpavail"))?;
        Ok(parse(&String::from_utf8_lossy(&text)))
    }

    /// The packages of this version, as files in `dir`.
    pub(super) fn download(&self, names: &[String], version: &str, dir: &Path) -> Result<Vec<PathBuf>> {
        let wanted = names.iter().map(|name| format!("{name}={version}"));
        run(self
            .apt("apt-get")
            .current_dir(dir)
            .args(["download", "-qq"])
            .args(wanted))?;
        let files = fs::read_dir(dir)?.filter_map(|entry| Some(entry.ok()?.path()));
        let debs: Vec<_> = files
            .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .collect();
        ensure!(debs.len() == names.len(), "{names:?}: {} packages came", debs.len());
        Ok(debs)
    }

    fn prepare(&self) -> Result<()> {
        let root = self.root.display();
        for dir in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(self.root.join(dir)).with_context(|| format!("{root}/{dir}"))?;
        }
        let mirror = mirror(self.archive).context("no Debian mirror in /etc/apt")?;
        let source = format!("deb [signed-by={KEYRING}] {mirror} {} main\n", self.name);
        fs::write(self.root.join("sources.list"), source)?;
        let settings = format!(
            "Dir::Etc::sourcelist \"{root}/sources.list\";\n\
             Dir::Etc::sourceparts \"-\";\n\
             Dir::State::lists \"{root}/lists\";\n\
             Dir::Cache \"{root}/cache\";\n\
             APT::Architectures {{ \"amd64\"; }};\n\
             APT::Sandbox::User \"\";\n\
             Acquire::Languages \"none\";\n\
             Acquire::Retries \"3\";\n\
             Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n"
        );
        Ok(fs::write(self.root.join("apt.conf"), settings)?)
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", self.root.join("apt.conf")).env("LC_ALL", "C");
        command
    }
}

/// The address of an archive as the machine's own sources have it.
fn mirror(archive: Archive) -> Option<String> {
    let parts = fs::read_dir("/etc/apt/sources.list.d").ok();
    let parts = parts.into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let texts = std::iter::once(PathBuf::from("/etc/apt/sources.list")).chain(parts);
    let texts: Vec<_> = texts.filter_map(|path| fs::read_to_string(path).ok()).collect();
    texts.iter().find_map(|text| find_mirror(text, archive))
}

fn find_mirror(text: &str, archive: Archive) -> Option<String> {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    let mut words = lines.flat_map(str::split_ascii_whitespace);
    let found = words.find(|word| word.starts_with("http") && word.trim_end_matches('/').ends_with(archive.path()))?;
    Some(found.trim_end_matches('/').to_owned())
}

/// Name and version of each stanza.
fn parse(text: &str) -> Vec<Package> {
    let stanzas = text.split("\n\n");
    let field = |stanza: &str, name: &str| Some(stanza.lines().find_map(|line| line.strip_prefix(name))?.to_owned());
    let package = |stanza: &str| {
        Some(Package {
            name: field(stanza, "Package: ")?,
            version: field(stanza, "Version: ")?,
        })
    };
    stanzas.filter_map(package).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_the_one_of_the_machine() {
        let deb822 = "Types: deb\n# http://old/debian\nURIs: http://near/debian/\nSuites: x\n\nURIs: http://near/debian-security\n";
        assert_eq!(
            find_mirror(deb822, Archive::Main).as_deref(),
            Some("http://near/debian")
        );
        assert_eq!(
            find_mirror(deb822, Archive::Security).as_deref(),
            Some("http://near/debian-security")
        );
        assert_eq!(
            find_mirror("deb https://a.b/debian bookworm main", Archive::Main).as_deref(),
            Some("https://a.b/debian")
        );
        assert_eq!(
            find_mirror("deb https://a.b/debian bookworm main", Archive::Security),
            None
        );
    }

    #[test]
    fn stanzas_are_read() {
        let text = "Package: a\nVersion: 1-2\nDepends: b\n\nPackage: c\nVersion: 3\n";
        let found: Vec<_> = parse(text).into_iter().map(|p| (p.name, p.version)).collect();
        assert_eq!(found, [("a".into(), "1-2".into()), ("c".into(), "3".into())]);
    }
}
