//! Which kernels, and how each comes from its Debian package to a bootable image and modules in the cache.
//!
//! Nothing is pinned to a build: the newest of a series that its suite has now is taken, and named in what is reported.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use super::apt::{Archive, Package, Suite};

/// A series of kernels in a suite of Debian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Series {
    /// What it is called in the table and on the command line.
    pub name: &'static str,
    archive: Archive,
    suite: &'static str,
    /// What its versions begin with.
    version: &'static str,
}

const fn series(name: &'static str, archive: Archive, suite: &'static str, version: &'static str) -> Series {
    Series {
        name,
        archive,
        suite,
        version,
    }
}

/// Oldest first.
pub const ALL: [Series; 7] = [
    series("5.10", Archive::Security, "bullseye-security", "5.10."),
    series("6.1", Archive::Security, "bookworm-security", "6.1."),
    series("6.12-bpo", Archive::Main, "bookworm-backports", "6.12."),
    series("6.12", Archive::Security, "trixie-security", "6.12."),
    series("6.18", Archive::Main, "trixie-backports", "6.18."),
    series("7.2", Archive::Main, "trixie-backports", "7.2."),
    series("7.3", Archive::Main, "trixie-backports", "7.3."),
];

/// A kernel in the cache.
#[derive(Clone, Debug)]
pub(super) struct Kernel {
    pub series: Series,
    /// Version of the package.
    pub version: String,
    pub vmlinuz: PathBuf,
    /// Uncompressed, each after those it needs.
    pub modules: Vec<PathBuf>,
}

/// Modules that the lab's faults or the checks need. What a kernel has built in, or not at all, is left out.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_net",
    "veth",
    "bridge",
    "dummy",
    "sch_netem",
    "sch_tbf",
    "sch_ingress",
    "cls_bpf",
    "nf_tables",
    "nft_ct",
    "nft_limit",
    "nft_counter",
    "nft_objref",
    "nft_numgen",
    "nft_reject_inet",
    "nf_conntrack",
    "vxlan",
    "ipip",
    "sit",
    "ip_gre",
    "ip6_tunnel",
    "8021q",
    "inet_diag",
    "tcp_diag",
    "af_packet_diag",
];

/// Where downloads are kept: `SONDE_KERNELS_CACHE`, else `sonde-kernels` in the user's cache folder.
pub(super) fn cache() -> PathBuf {
    if let Some(dir) = std::env::var_os("SONDE_KERNELS_CACHE") {
        return dir.into();
    }
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"));
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
    base.unwrap_or_else(std::env::temp_dir).join("sonde-kernels")
}

impl Series {
    pub fn find(name: &str) -> Option<Self> {
        ALL.into_iter().find(|series| series.name == name)
    }

    /// The newest kernel of the series, from the cache if it is there. Without a mirror, the newest in the cache.
    pub(super) fn get(self) -> Result<Kernel> {
        let suite = Suite::new(self.archive, self.suite, &cache().join("apt"));
        let package = suite.packages().and_then(|packages| self.newest(&packages));
        let dir = cache().join("kernels").join(self.name);
        let package = match package {
            Ok(package) => package,
            Err(error) => {
                let cached = self.cached(&dir);
                return cached.with_context(|| format!("{error:#}, and there is none in {}", dir.display()));
            }
        };
        let ready = dir.join(&package.version);
        if !ready.join(DONE).exists() {
            self.unpack(&suite, &package, &dir)
                .with_context(|| format!("{} {}", package.name, package.version))?;
        }
        self.open(&package.version, &ready)
    }

    fn newest(self, packages: &[Package]) -> Result<Package> {
        let ours = packages.iter().filter(|package| {
            let name = ["linux-binary-", "linux-image-"]
                .iter()
                .find_map(|prefix| package.name.strip_prefix(prefix));
            let abi = name.and_then(|name| name.strip_suffix("-cloud-amd64"));
            // linux-image-6.12-cloud-amd64 is the newest one by another name, and holds nothing.
            let is_abi = abi.is_some_and(|abi| abi.contains(['+', '-']) || abi.matches('.').count() > 1);
            is_abi && package.version.starts_with(self.version)
        });
        // Where the kernel is split, linux-image is empty.
        let newest = ours.max_by_key(|package| (numbers(&package.version), package.name.starts_with("linux-binary-")));
        newest
            .cloned()
            .with_context(|| format!("{} has no kernel {}*", self.suite, self.version))
    }

    fn unpack(self, suite: &Suite, package: &Package, dir: &Path) -> Result<()> {
        fs::create_dir_all(dir)?;
        let work = tempfile::tempdir_in(dir)?;
        let mut names = vec![package.name.clone()];
        if let Some(abi) = package.name.strip_prefix("linux-binary-") {
            names.push(format!("linux-modules-{abi}"));
        }
        let root = work.path().join("root");
        for deb in suite.download(&names, &package.version, work.path())? {
            run(Command::new("dpkg").arg("-x").arg(deb).arg(&root))?;
        }
        let ready = work.path().join("ready");
        fs::create_dir(&ready)?;
        let vmlinuz = find(&root, &|name| name == "vmlinuz" || name.starts_with("vmlinuz-"))?;
        let [vmlinuz] = vmlinuz.as_slice() else {
            bail!("{} kernels in the package", vmlinuz.len());
        };
        fs::copy(vmlinuz, ready.join("vmlinuz"))?;
        Modules::new(&root)?.copy(&ready)?;
        fs::write(ready.join(DONE), "")?;
        let place = dir.join(&package.version);
        if place.exists() {
            fs::remove_dir_all(&place)?;
        }
        fs::rename(&ready, place)?;
        Ok(())
    }

    fn cached(self, dir: &Path) -> Result<Kernel> {
        let versions = fs::read_dir(dir)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let complete = versions.filter(|version| dir.join(version).join(DONE).exists());
        let newest = complete.max_by_key(|version| numbers(version)).context("none")?;
        self.open(&newest, &dir.join(&newest))
    }

    fn open(self, version: &str, dir: &Path) -> Result<Kernel> {
        let mut modules = find(dir, &|name| name.ends_with(".ko"))?;
        modules.sort();
        Ok(Kernel {
            series: self,
            version: version.to_owned(),
            vmlinuz: dir.join("vmlinuz"),
            modules,
        })
    }
}

/// Tells that everything is there; its name changes with what that is.
const DONE: &str = ".done-4";

/// The numbers in a version: in this order, versions of one series are older and newer.
fn numbers(version: &str) -> Vec<u64> {
    let numbers = version.split(|c: char| !c.is_ascii_digit());
    numbers.filter_map(|number| number.parse().ok()).collect()
}

/// Modules of an unpacked package by name.
struct Modules(Vec<(String, PathBuf)>);

impl Modules {
    fn new(root: &Path) -> Result<Self> {
        let files = find(root, &|name| name.ends_with(".ko") || name.ends_with(".ko.xz"))?;
        let name = |path: &Path| Some(path.file_name()?.to_str()?.split('.').next()?.replace('-', "_"));
        let named = files.into_iter().filter_map(|path| Some((name(&path)?, path)));
        let found: Vec<_> = named.collect();
        ensure!(!found.is_empty(), "no modules in the package");
        Ok(Self(found))
    }

    /// What is wanted and what that needs, as `NNN-NAME.ko` in the order in which they load.
    fn copy(&self, to: &Path) -> Result<()> {
        let mut done = Vec::new();
        for name in MODULES {
            self.add(name, to, &mut done)?;
        }
        Ok(())
    }

    fn add(&self, name: &str, to: &Path, done: &mut Vec<String>) -> Result<()> {
        let Some((_, path)) = self.0.iter().find(|(other, _)| other == name) else {
            return Ok(());
        };
        if done.iter().any(|other| other == name) {
            return Ok(());
        }
        let bytes = match path.extension().is_some_and(|extension| extension == "xz") {
            false => fs::read(path)?,
            true => run(Command::new("xz").arg("-dc").arg(path))?,
        };
        for needed in needs(&bytes) {
            self.add(&needed, to, done)?;
        }
        fs::write(to.join(format!("{:03}-{name}.ko", done.len())), bytes)?;
        done.push(name.to_owned());
        Ok(())
    }
}

/// `depends=a,b` and `softdep=pre: a b` of a module's .modinfo, which is text between zeroes.
fn needs(module: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    for text in module.split(|byte| *byte == 0) {
        let Ok(text) = std::str::from_utf8(text) else { continue };
        if let Some(depends) = text.strip_prefix("depends=") {
            names.extend(depends.split(',').map(str::to_owned));
        } else if let Some(pre) = text.strip_prefix("softdep=pre: ") {
            names.extend(pre.split_ascii_whitespace().map(str::to_owned));
        }
    }
    names.retain(|name| !name.is_empty());
    names.iter_mut().for_each(|name| *name = name.replace('-', "_"));
    names
}

/// Files below a folder, links not followed.
fn find(dir: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(find(&entry.path(), wanted)?);
        } else if entry.file_type()?.is_file() && entry.file_name().to_str().is_some_and(wanted) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Standard output of a program that must succeed.
pub(super) fn run(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{command:?}: {}: {}",
        output.status,
        said.trim()
    );
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, version: &str) -> Package {
        Package {
            name: name.into(),
            version: version.into(),
        }
    }

    #[test]
    fn the_newest_of_the_series_is_taken_and_never_an_empty_package() {
        let packages = [
            package("linux-image-6.12-cloud-amd64", "6.12.118-1"),
            package("linux-image-6.12.95+deb13-cloud-amd64", "6.12.95-1"),
            package("linux-image-6.12.118+deb13-cloud-amd64", "6.12.118-1"),
            package("linux-image-6.12.118+deb13-amd64", "6.12.118-1"),
            package("linux-binary-7.2.9+deb13-cloud-amd64", "7.2.9-1~bpo13+1"),
            package("linux-image-7.2.12+deb13-cloud-amd64", "7.2.12-1~bpo13+1"),
            package("linux-binary-7.2.12+deb13-cloud-amd64", "7.2.12-1~bpo13+1"),
        ];
        let newest = |name| Series::find(name).unwrap().newest(&packages);
        assert_eq!(newest("6.12").unwrap().name, "linux-image-6.12.118+deb13-cloud-amd64");
        assert_eq!(newest("7.2").unwrap().name, "linux-binary-7.2.12+deb13-cloud-amd64");
        let missing = newest("5.10").unwrap_err().to_string();
        assert_eq!(missing, "bullseye-security has no kernel 5.10.*");
        let old = [package("linux-image-5.10.0-46-cloud-amd64", "5.10.262-1")];
        assert!(Series::find("5.10").unwrap().newest(&old).is_ok());
    }

    #[test]
    fn a_module_says_what_it_needs() {
        let module = b"\0license=GPL\0depends=nf-tables,x\0softdep=pre: crc32c\0name=y\0";
        assert_eq!(needs(module), ["nf_tables", "x", "crc32c"]);
        assert!(needs(b"\0depends=\0").is_empty());
    }
}
