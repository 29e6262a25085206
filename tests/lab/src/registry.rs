//! Who owns which namespaces. Each lab has a file under `/run/sonde-lab` and holds a lock on it as long as its process
//! lives, so a file that can be locked belongs to a run that died: its namespaces and processes go.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::error::{At, Result};
use crate::exec;

const DIR: &str = "/run/sonde-lab";
const NETNS_DIR: &str = "/run/netns";

/// The right to all namespaces that begin with `prefix`.
#[derive(Debug)]
pub(crate) struct Claim {
    /// `lab` and four hexadecimal digits.
    pub(crate) prefix: String,
    /// The digits.
    pub(crate) id: u16,
    path: PathBuf,
    file: File,
    state: State,
}

#[derive(Debug, Default)]
struct State {
    name: String,
    /// Left in place on purpose: only an explicit sweep takes it away.
    keep: bool,
    /// Process id and start time of what the run started.
    processes: Vec<(i32, u64)>,
}

impl Claim {
    /// Clears what dead runs left and takes a prefix nobody has.
    pub(crate) fn new(name: &str) -> Result<Self> {
        let _gate = gate()?;
        sweep_locked(false)?;
        loop {
            let id = random_id()?;
            let prefix = format!("lab{id:04x}");
            let path = Path::new(DIR).join(format!("{prefix}.json"));
            let file = match OpenOptions::new().read(true).write(true).create_new(true).open(&path) {
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => continue,
                other => other.at(|| path.display().to_string())?,
            };
            file.try_lock()
                .map_err(std::io::Error::from)
                .at(|| format!("{}: cannot be locked", path.display()))?;
            let state = State {
                name: name.to_owned(),
                ..State::default()
            };
            let mut claim = Self {
                prefix,
                id,
                path,
                file,
                state,
            };
            claim.write()?;
            return Ok(claim);
        }
    }

    /// From now on the namespaces outlive this process.
    pub(crate) fn keep(&mut self) -> Result<()> {
        self.state.keep = true;
        self.write()
    }

    pub(crate) fn is_kept(&self) -> bool {
        self.state.keep
    }

    /// Remembers a process that a later sweep ends if this one cannot any more.
    pub(crate) fn adopt(&mut self, pid: i32) -> Result<()> {
        if let Some(start) = start_time(pid) {
            self.state.processes.push((pid, start));
        }
        self.write()
    }

    fn write(&mut self) -> Result<()> {
        let state = json!({
            "name": self.state.name, "pid": std::process::id(), "keep": self.state.keep, "processes": self.state.processes,
        });
        let path = &self.path;
        self.file.set_len(0).at(|| path.display().to_string())?;
        self.file.rewind().at(|| path.display().to_string())?;
        self.file
            .write_all(state.to_string().as_bytes())
            .at(|| path.display().to_string())
    }

    /// Removes the namespaces and gives the prefix back.
    pub(crate) fn release(&self) -> Result<()> {
        remove_namespaces(&self.prefix)?;
        fs::remove_file(&self.path).at(|| self.path.display().to_string())
    }
}

/// Ends what dead runs left: processes that are still the same, namespaces, files. `kept` takes the ones left on
/// purpose too. Gives the prefixes.
pub fn sweep(kept: bool) -> Result<Vec<String>> {
    let _gate = gate()?;
    sweep_locked(kept)
}

/// Making a file and locking it are two steps: nobody sweeps between them.
fn gate() -> Result<File> {
    fs::create_dir_all(DIR).at(|| DIR.to_owned())?;
    let path = Path::new(DIR).join(".gate");
    let gate = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .at(|| path.display().to_string())?;
    gate.lock().at(|| path.display().to_string())?;
    Ok(gate)
}

fn sweep_locked(kept: bool) -> Result<Vec<String>> {
    let mut swept = Vec::new();
    for entry in fs::read_dir(DIR).at(|| DIR.to_owned())? {
        let path = entry.at(|| DIR.to_owned())?.path();
        let Some(prefix) = prefix_of(&path) else { continue };
        // A lab that ends takes its file away without asking the gate.
        let Ok(mut file) = File::open(&path) else { continue };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => continue,
            Err(TryLockError::Error(e)) => Err(e).at(|| path.display().to_string())?,
        }
        let mut text = String::new();
        file.read_to_string(&mut text).at(|| path.display().to_string())?;
        let state = parse_state(&text);
        if state.keep && !kept {
            continue;
        }
        for (pid, start) in state.processes {
            if start_time(pid) == Some(start) {
                // It may end by itself between the look and the signal.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        remove_namespaces(&prefix)?;
        let _ = fs::remove_file(&path);
        swept.push(prefix);
    }
    Ok(swept)
}

fn prefix_of(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?.strip_suffix(".json")?;
    let digits = name.strip_prefix("lab")?;
    (digits.len() == 4 && digits.bytes().all(|b| b.is_ascii_hexdigit())).then(|| name.to_owned())
}

/// A run that died while it wrote leaves half a document: then nothing but its prefix is known.
fn parse_state(text: &str) -> State {
    let value: Value = serde_json::from_str(text).unwrap_or_default();
    let processes = value["processes"].as_array().map_or(&[][..], Vec::as_slice);
    State {
        name: value["name"].as_str().unwrap_or_default().to_owned(),
        keep: value["keep"] == true,
        processes: processes
            .iter()
            .filter_map(|p| Some((i32::try_from(p[0].as_i64()?).ok()?, p[1].as_u64()?)))
            .collect(),
    }
}

fn remove_namespaces(prefix: &str) -> Result<()> {
    let Ok(entries) = fs::read_dir(NETNS_DIR) else {
        return Ok(());
    };
    let mut lines = Vec::new();
    for entry in entries {
        let name = entry.at(|| NETNS_DIR.to_owned())?.file_name();
        let name = name.to_string_lossy();
        if name
            .strip_prefix(prefix)
            .is_some_and(|rest| rest.starts_with(['-', '_']))
        {
            lines.push(format!("netns del {name}"));
        }
    }
    if lines.is_empty() {
        return Ok(());
    }
    // -force: one that is gone already does not keep the others.
    let _ = exec::run(prefix, "ip", &["-force", "-batch", "-"], &(lines.join("\n") + "\n"));
    let left: Vec<&str> = lines
        .iter()
        .filter_map(|line| line.strip_prefix("netns del "))
        .filter(|name| Path::new(NETNS_DIR).join(name).exists())
        .collect();
    if left.is_empty() {
        return Ok(());
    }
    Err(crate::LabError::Unexpected {
        what: format!("{prefix}: namespaces after `ip netns del`"),
        expected: "none",
        found: left.join(" "),
    })
}

/// Start time in clock ticks since boot: with the process id it names a process for good.
fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold spaces and parentheses; field 22 is the 20th after its end.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

fn random_id() -> Result<u16> {
    let mut bytes = [0; 2];
    File::open("/dev/urandom")
        .and_then(|mut f| f.read_exact(&mut bytes))
        .at(|| "/dev/urandom".to_owned())?;
    Ok(u16::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_document_is_a_run_that_kept_nothing() {
        let state = parse_state("{\"keep\": tr");
        assert!(!state.keep && state.processes.is_empty());
        let state = parse_state(r#"{"name":"n","keep":true,"processes":[[7,99]]}"#);
        assert!(state.keep);
        assert_eq!((state.name.as_str(), state.processes), ("n", vec![(7, 99)]));
    }

    #[test]
    fn only_files_of_labs_are_read() {
        assert_eq!(prefix_of(Path::new("/x/lab00ff.json")).as_deref(), Some("lab00ff"));
        for other in [".gate", "lab00ff", "lab0ff.json", "labzzzz.json", "x00ff.json"] {
            assert_eq!(prefix_of(Path::new(other)), None, "{other}");
        }
    }

    #[test]
    fn the_own_start_time_is_read() {
        assert!(start_time(std::process::id() as i32).is_some_and(|t| t > 0));
    }
}
