//! Files of one process: `/proc/PID/stat`, `io` and `fd`. Threads are not looked at: what they did is in their process.

use std::collections::HashSet;
use std::ffi::CStr;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::path::PathBuf;

use nix::dir::Dir;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use sonde_proto::ABSENT;

use super::named::Named;
use super::{ParseError, ReadError};

/// Counters of `/proc/PID/io`, in the order of the file.
pub const IO_COUNTERS: usize = 7;
pub type IoCounters = [i64; IO_COUNTERS];

const IO_NAMES: [&str; IO_COUNTERS] = [
    "rchar:",
    "wchar:",
    "syscr:",
    "syscw:",
    "read_bytes:",
    "write_bytes:",
    "cancelled_write_bytes:",
];

/// A process is there, has ended, or has no such file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<T> {
    Is(T),
    Ended,
    /// The kernel keeps no such thing.
    Absent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Ended, and not yet waited for.
    pub is_zombie: bool,
    pub parent: u32,
    /// Clock ticks since boot; with its number it names a process for good.
    pub start: u64,
}

/// A process held open: what is read through it is its own, even if it ends and its number is used again. It also saves
/// the kernel the look-up of `/proc/PID` for each file.
#[derive(Debug)]
pub struct Handle(OwnedFd);

/// Reads files of processes below one `/proc`.
#[derive(Debug)]
pub struct Processes {
    proc: PathBuf,
    buffer: Vec<u8>,
    io: Named,
}

impl Processes {
    pub fn new(proc: PathBuf) -> Self {
        Self {
            proc,
            buffer: Vec::with_capacity(1024),
            io: Named::new(&IO_NAMES),
        }
    }

    /// Every process there is now.
    pub fn all(&self) -> io::Result<Vec<u32>> {
        let entries = fs::read_dir(&self.proc)?.filter_map(Result::ok);
        Ok(entries
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect())
    }

    pub fn open(&self, pid: u32) -> Result<Answer<Handle>, ReadError> {
        let path = self.proc.join(pid.to_string());
        match nix::fcntl::open(
            &path,
            OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        ) {
            Ok(dir) => Ok(Answer::Is(Handle(dir))),
            Err(errno) => ended_or(errno, |source| ReadError::Open {
                file: "/proc/PID",
                source,
            }),
        }
    }

    /// Inode of the network namespace of its main thread. Needs the rights of a debugger (CAP_SYS_PTRACE).
    pub fn netns(&self, process: &Handle) -> Result<Answer<u32>, ReadError> {
        let mut buffer = [0; LINK];
        let link = match link(process.0.as_raw_fd(), c"ns/net", &mut buffer) {
            Ok(link) => link,
            // Of a zombie too.
            Err(errno) => return ended_or(errno, |source| ReadError::Open { file: "ns/net", source }),
        };
        let inode = inode(link, b"net:[").and_then(|inode| u32::try_from(inode).ok());
        inode.map(Answer::Is).ok_or(ReadError::Parse {
            file: "ns/net",
            source: ParseError::Shape {
                line: 1,
                what: "expected `net:[` and an inode",
            },
        })
    }

    pub fn stat(&mut self, process: &Handle) -> Result<Answer<Stat>, ReadError> {
        match self.read(process, "stat")? {
            Answer::Is(()) => parse_stat(&self.buffer)
                .map(Answer::Is)
                .map_err(|source| ReadError::Parse { file: "stat", source }),
            Answer::Ended | Answer::Absent => Ok(Answer::Ended),
        }
    }

    /// Includes what its ended threads did, and the children that it waited for. Needs the rights of a debugger
    /// (CAP_SYS_PTRACE).
    pub fn io(&mut self, process: &Handle) -> Result<Answer<IoCounters>, ReadError> {
        match self.read(process, "io")? {
            Answer::Is(()) => {}
            Answer::Ended => return Ok(Answer::Ended),
            // Of one that has ended nothing is there.
            Answer::Absent if self.stat(process)? == Answer::Ended => return Ok(Answer::Ended),
            Answer::Absent => return Ok(Answer::Absent),
        }
        let mut values = [ABSENT; IO_COUNTERS];
        self.io
            .parse(&self.buffer, &mut values)
            .map_err(|source| ReadError::Parse { file: "io", source })?;
        if values.contains(&ABSENT) {
            let source = ParseError::Shape {
                line: 1,
                what: "expected seven counters",
            };
            return Err(ReadError::Parse { file: "io", source });
        }
        Ok(Answer::Is(values))
    }

    /// How many files it has open. The inodes of those that are sockets are added to `sockets`, as long as `links`, how
    /// many may still be looked at, is not used up: then they are not all there.
    pub fn open_files(
        &self,
        process: &Handle,
        sockets: &mut HashSet<u64>,
        links: &mut usize,
    ) -> Result<Answer<i64>, ReadError> {
        let failed = |errno| ended_or(errno, |source| ReadError::Open { file: "fd", source });
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut list = match Dir::openat(&process.0, "fd", flags, Mode::empty()) {
            Ok(list) => list,
            Err(errno) => return failed(errno),
        };
        // The same descriptor lists and leads: it is open as long as the list is.
        let dir = list.as_raw_fd();
        let mut count = 0;
        let mut buffer = [0; LINK];
        for entry in list.iter() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(errno) => return failed(errno),
            };
            if entry.file_name().to_bytes().starts_with(b".") {
                continue;
            }
            count += 1;
            *links = links.saturating_sub(1);
            if *links == 0 {
                continue;
            }
            // Closed meanwhile, if it cannot be read: it was open when it was listed.
            let link = link(dir, entry.file_name(), &mut buffer).unwrap_or_default();
            sockets.extend(inode(link, b"socket:["));
        }
        Ok(Answer::Is(count))
    }

    /// The whole file into the buffer.
    fn read(&mut self, process: &Handle, file: &'static str) -> Result<Answer<()>, ReadError> {
        let mut handle = match openat(&process.0, file, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()) {
            Ok(handle) => File::from(handle),
            Err(nix::errno::Errno::ENOENT) => return Ok(Answer::Absent),
            Err(errno) => return ended_or(errno, |source| ReadError::Open { file, source }),
        };
        self.buffer.clear();
        match handle.read_to_end(&mut self.buffer) {
            Ok(_) => Ok(Answer::Is(())),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(Answer::Ended),
            Err(source) => Err(ReadError::Read { file, source }),
        }
    }
}

/// Longer links are none of those that are looked for.
const LINK: usize = 64;

/// Where a link leads, cut to the length of the buffer.
fn link<'a>(dir: RawFd, name: &CStr, buffer: &'a mut [u8; LINK]) -> Result<&'a [u8], nix::errno::Errno> {
    // SAFETY: the name ends with NUL and the buffer has the length that is told.
    let len = unsafe { libc::readlinkat(dir, name.as_ptr(), buffer.as_mut_ptr().cast(), LINK) };
    let len = nix::errno::Errno::result(len)?;
    Ok(&buffer[..usize::try_from(len).unwrap_or(0).min(LINK)])
}

/// The number of `socket:[4711]`.
fn inode(link: &[u8], prefix: &[u8]) -> Option<u64> {
    let digits = link.strip_prefix(prefix)?.strip_suffix(b"]")?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn ended_or<T>(errno: nix::errno::Errno, error: impl FnOnce(io::Error) -> ReadError) -> Result<Answer<T>, ReadError> {
    match errno {
        nix::errno::Errno::ENOENT | nix::errno::Errno::ESRCH => Ok(Answer::Ended),
        errno => Err(error(errno.into())),
    }
}

/// `4242 (a name) S 1 ...`: the name may hold blanks and parentheses, so fields are counted from the last one.
fn parse_stat(text: &[u8]) -> Result<Stat, ParseError> {
    let shape = |what| ParseError::Shape { line: 1, what };
    let end = memchr::memrchr(b')', text).ok_or(shape("expected a name in parentheses"))?;
    let rest = std::str::from_utf8(&text[end + 1..]).map_err(|_| shape("expected digits behind the name"))?;
    // Fields 3 (state), 4 (parent) and 22 (start) of proc(5).
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next().ok_or(shape("expected a state"))?;
    let parent = fields.next().and_then(|field| field.parse().ok());
    let start = fields.nth(17).and_then(|field| field.parse().ok());
    match (parent, start) {
        (Some(parent), Some(start)) => Ok(Stat {
            is_zombie: matches!(state, "Z" | "X"),
            parent,
            start,
        }),
        _ => Err(shape("expected numbers at fields 4 and 22")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    #[test]
    fn the_name_of_a_process_may_hold_anything() {
        let text = "42 (a) S 9 (b) (c)) Z 7 42 42 0 -1 4228300 0 0 0 0 0 0 0 0 20 0 1 0 98765 0 0\n";
        let expected = Stat {
            is_zombie: true,
            parent: 7,
            start: 98765,
        };
        assert_eq!(parse_stat(text.as_bytes()), Ok(expected));
        let running = text.replace(") Z", ") R");
        assert!(!parse_stat(running.as_bytes()).unwrap().is_zombie);
        let no_text = b"42 (\xff\xfe) R 7 42 42 0 -1 4228300 0 0 0 0 0 0 0 0 20 0 1 0 98765";
        assert_eq!(parse_stat(no_text).unwrap().start, 98765);
    }

    #[test]
    fn a_cut_line_is_an_error() {
        let letter = "42 (a) S x 42 42 0 -1 4 0 0 0 0 0 0 0 0 20 0 1 0 9";
        for text in ["", "42", "42 (a)", "42 (a) S", "42 (a) S 1 2 3", letter] {
            assert!(parse_stat(text.as_bytes()).is_err(), "{text}");
        }
    }

    fn process(proc: &Path, pid: u32, files: &[(&str, &str)]) {
        fs::create_dir_all(proc.join(format!("{pid}/fd"))).unwrap();
        for (name, text) in files {
            fs::write(proc.join(format!("{pid}/{name}")), text).unwrap();
        }
    }

    fn handle(processes: &Processes, pid: u32) -> Handle {
        match processes.open(pid).unwrap() {
            Answer::Is(handle) => handle,
            other => panic!("{other:?}"),
        }
    }

    const STAT: &str = "8 (a) R 7 42 42 0 -1 4228300 0 0 0 0 0 0 0 0 20 0 1 0 98765 0 0\n";
    const IO: &str =
        "rchar: 1\nwchar: 2\nsyscr: 3\nsyscw: 4\nread_bytes: 5\nwrite_bytes: 6\ncancelled_write_bytes: 7\n";

    #[test]
    fn ended_absent_and_failed_are_three_answers() {
        let dir = tempfile::tempdir().unwrap();
        let mut processes = Processes::new(dir.path().to_owned());
        process(dir.path(), 7, &[("io", IO)]);
        process(dir.path(), 8, &[("stat", STAT)]);
        process(dir.path(), 9, &[("io", "rchar: 1\nwchar: 2\n")]);
        process(dir.path(), 10, &[("io", &IO.replace("syscw: 4", "syscw: 4 5"))]);
        let mut io = |pid| {
            let handle = handle(&processes, pid);
            processes.io(&handle)
        };
        assert_eq!(io(7).unwrap(), Answer::Is([1, 2, 3, 4, 5, 6, 7]));
        assert_eq!(io(8).unwrap(), Answer::Absent);
        let error = io(9).unwrap_err().to_string();
        assert_eq!(
            error, "io: line 1: expected seven counters",
            "a file cut short is no sum"
        );
        assert_eq!(io(10).unwrap_err().kind(), "parse");
        // A directory in the place of the file can be opened and not read.
        fs::create_dir(dir.path().join("8/io")).unwrap();
        assert_eq!(io(8).unwrap_err().kind(), "read");
        assert!(matches!(processes.open(6), Ok(Answer::Ended)));
        let gone = handle(&processes, 7);
        fs::remove_dir_all(dir.path().join("7")).unwrap();
        assert_eq!(processes.stat(&gone).unwrap(), Answer::Ended);
        assert_eq!(processes.io(&gone).unwrap(), Answer::Ended);
        let mut all = processes.all().unwrap();
        all.sort_unstable();
        assert_eq!(all, [8, 9, 10]);
    }

    #[test]
    fn sockets_are_told_apart_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let processes = Processes::new(dir.path().to_owned());
        process(dir.path(), 7, &[]);
        for (number, target) in ["/dev/null", "socket:[11]", "pipe:[11]", "socket:[12]", "socket:[11]"]
            .iter()
            .enumerate()
        {
            symlink(target, dir.path().join(format!("7/fd/{number}"))).unwrap();
        }
        let mut sockets = HashSet::new();
        let mut links = 100;
        let seven = handle(&processes, 7);
        assert_eq!(
            processes.open_files(&seven, &mut sockets, &mut links).unwrap(),
            Answer::Is(5)
        );
        assert_eq!((sockets.len(), links), (2, 95));
        let mut links = 3;
        assert_eq!(
            processes.open_files(&seven, &mut sockets, &mut links).unwrap(),
            Answer::Is(5)
        );
        assert_eq!(links, 0);
        fs::remove_dir_all(dir.path().join("7")).unwrap();
        let ended = processes.open_files(&seven, &mut sockets, &mut 9).unwrap();
        assert_eq!(ended, Answer::Ended);
    }

    #[test]
    fn the_own_files_are_read() {
        let mut processes = Processes::new("/proc".into());
        let me = handle(&processes, std::process::id());
        let Answer::Is(stat) = processes.stat(&me).unwrap() else {
            panic!("this process has ended")
        };
        assert_eq!(stat.parent, std::os::unix::process::parent_id());
        assert!(!stat.is_zombie && stat.start > 0);
        assert!(matches!(processes.netns(&me), Ok(Answer::Is(inode)) if inode > 0));
        let Answer::Is(before) = processes.io(&me).unwrap() else {
            panic!("this kernel keeps no account")
        };
        assert!(before[2] > 0, "{before:?}");
    }
}
