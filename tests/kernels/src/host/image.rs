//! The initramfs: the guest's program as its first process, the collector, the tools of the lab, each with the shared
//! libraries that `ldd` names, and the kernel's modules.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::kernels::{Kernel, run};

/// What the lab calls.
const TOOLS: &[&str] = &["ip", "tc", "nft", "ss"];

/// Everything but the modules: the same for all kernels.
pub struct Image {
    common: Archive,
}

impl Image {
    /// `guest` and `collector` are programs of this build. With `tests` (a program and a filter) these run in the
    /// guest, and nothing else.
    pub fn new(guest: &Path, collector: &Path, tests: Option<(&Path, &str)>) -> Result<Self> {
        let mut archive = Archive::default();
        for dir in ["proc", "sys", "dev", "run", "tmp", "modules", "var/lib"] {
            archive.directory(dir);
        }
        archive.console();
        let work = tempfile::tempdir()?;
        let mut paths = BTreeSet::new();
        let programs = [(guest, "init"), (collector, "sonde-collector")];
        for (program, name) in programs.into_iter().chain(tests.map(|(program, _)| (program, "tests"))) {
            let stripped = work.path().join(name);
            run(Command::new("strip").arg("-o").arg(&stripped).arg(program))?;
            archive.file(name, &fs::read(&stripped)?, 0o755);
            paths.extend(libraries(program)?);
        }
        if let Some((_, filter)) = tests {
            archive.file("tests.filter", filter.as_bytes(), 0o644);
        }
        for tool in TOOLS {
            let path = find_tool(tool).with_context(|| format!("no program {tool}"))?;
            paths.extend(libraries(&path)?);
            archive.file(&format!("bin/{tool}"), &fs::read(&path)?, 0o755);
        }
        for path in paths {
            let name = path.to_string_lossy();
            archive.file(name.trim_start_matches('/'), &fs::read(&path)?, 0o755);
        }
        Ok(Self { common: archive })
    }

    /// Writes the whole initramfs for a kernel.
    pub(super) fn write(&self, kernel: &Kernel, to: &Path) -> Result<()> {
        let mut archive = self.common.clone();
        for module in &kernel.modules {
            let name = module.file_name().unwrap_or_default().to_string_lossy();
            archive.file(&format!("modules/{name}"), &fs::read(module)?, 0o644);
        }
        let mut file = fs::File::create(to).with_context(|| to.display().to_string())?;
        Ok(file.write_all(&archive.finish())?)
    }
}

fn find_tool(name: &str) -> Option<PathBuf> {
    let dirs = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    dirs.iter()
        .map(|dir| Path::new(dir).join(name))
        .find(|path| path.exists())
}

/// As `ldd` names them: at these paths the guest's loader looks for them too.
fn libraries(program: &Path) -> Result<BTreeSet<PathBuf>> {
    let text = run(Command::new("ldd").arg(program))?;
    let text = String::from_utf8_lossy(&text);
    // "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x...)", "/lib64/ld-linux-x86-64.so.2 (0x...)"
    let words = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        words.find(|word| word.starts_with('/'))
    });
    Ok(words.map(PathBuf::from).collect())
}

/// A cpio archive of the kind the kernel unpacks ("newc").
#[derive(Clone, Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    directories: BTreeSet<String>,
}

impl Archive {
    fn directory(&mut self, name: &str) {
        for (at, _) in name.match_indices('/').chain([(name.len(), "")]) {
            let dir = &name[..at];
            if !dir.is_empty() && self.directories.insert(dir.to_owned()) {
                self.entry(dir, 0o40755, &[], [0, 0]);
            }
        }
    }

    fn file(&mut self, name: &str, content: &[u8], mode: u32) {
        if let Some((dir, _)) = name.rsplit_once('/') {
            self.directory(dir);
        }
        self.entry(name, 0o100_000 | mode, content, [0, 0]);
    }

    /// What the first process has as its standard output.
    fn console(&mut self) {
        self.entry("dev/console", 0o20600, &[], [5, 1]);
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8], device: [u32; 2]) {
        self.entries += 1;
        let [major, minor] = device;
        let numbers = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            content.len() as u32,
            0,
            0,
            major,
            minor,
            name.len() as u32 + 1,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for number in numbers {
            self.bytes.extend_from_slice(format!("{number:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[], [0, 0]);
        self.bytes
    }
}

/// Whether a program can be had at all, for a word on what is missing.
pub(super) fn is_program(name: &str) -> bool {
    let is_executable = |path: PathBuf| fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o111 != 0);
    find_tool(name).is_some_and(is_executable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpio_reads_what_was_written() {
        let mut archive = Archive::default();
        archive.file("a/b/c", b"hello", 0o755);
        archive.file("a/d", b"", 0o644);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.cpio");
        fs::write(&path, archive.finish()).unwrap();
        let bytes = fs::read(&path).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        // Names in their order: folders before what is in them.
        let at = |name: &str| text.find(&format!("{name}\0")).unwrap();
        assert!(at("a/b") < at("a/b/c") && at("a/b/c") < at("a/d"));
        assert!(bytes.len().is_multiple_of(4) && text.contains("hello"));
        assert!(text.trim_end_matches('\0').ends_with("TRAILER!!!"));
    }
}
