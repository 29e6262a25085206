//! Files of one process: `/proc/PID/stat`, `io` and `fd`. Threads are not looked at: what they did is in their process.
//!
//! Measured on 6.18, for each process: opening and reading `stat` 7.7 us and `io` 5.7 us, reading `io` again where it is
//! open 2.0 us, asking how many files are open 1.2 us, listing twelve of them 9 us, and looking where they lead 30 us more.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{AccessFlags, Whence, faccessat, lseek};
use rustix::fs::RawDir;
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
/// the kernel the look-up of `/proc/PID` for each file. What was opened of it stays open with it.
#[derive(Debug)]
pub struct Handle {
    dir: OwnedFd,
    io: Option<File>,
    files: Option<OwnedFd>,
}

impl Handle {
    /// Descriptors that one takes, at most.
    pub const DESCRIPTORS: usize = 3;
}

/// Reads files of processes below one `/proc`.
#[derive(Debug)]
pub struct Processes {
    proc: PathBuf,
    buffer: Vec<u8>,
    /// Room for a part of a directory.
    list: Vec<u8>,
    io: Named,
    /// Whether the size of `/proc/PID/fd` is the number of open files (Linux 6.2, proc_fd_getattr).
    sized: bool,
}

impl Processes {
    pub fn new(proc: PathBuf) -> Self {
        Self {
            sized: is_sized(&proc),
            proc,
            buffer: vec![0; 4096],
            list: Vec::with_capacity(8192),
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
            Ok(dir) => Ok(Answer::Is(Handle {
                dir,
                io: None,
                files: None,
            })),
            Err(errno) => ended_or(errno, |source| ReadError::Open {
                file: "/proc/PID",
                source,
            }),
        }
    }

    /// Inode of the network namespace of its main thread. Needs the rights of a debugger (CAP_SYS_PTRACE).
    pub fn netns(&self, process: &Handle) -> Result<Answer<u32>, ReadError> {
        let mut buffer = [0; LINK];
        let link = match link(process.dir.as_fd(), c"ns/net", &mut buffer) {
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

    /// Whether it is still there, if only as a zombie.
    pub fn is_there(&self, process: &Handle) -> bool {
        faccessat(&process.dir, "stat", AccessFlags::F_OK, AtFlags::empty()).is_ok()
    }

    pub fn stat(&mut self, process: &Handle) -> Result<Answer<Stat>, ReadError> {
        let opened = openat(&process.dir, "stat", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty());
        let file = match opened {
            Ok(file) => File::from(file),
            Err(errno) => return ended_or(errno, |source| ReadError::Open { file: "stat", source }),
        };
        match self.read(&file, "stat")? {
            Answer::Is(text) => parse_stat(text)
                .map(Answer::Is)
                .map_err(|source| ReadError::Parse { file: "stat", source }),
            Answer::Ended | Answer::Absent => Ok(Answer::Ended),
        }
    }

    /// Includes what its ended threads did, and the children that it waited for. Needs the rights of a debugger
    /// (CAP_SYS_PTRACE).
    pub fn io(&mut self, process: &mut Handle) -> Result<Answer<IoCounters>, ReadError> {
        let file = match process.io.take() {
            Some(file) => file,
            None => match openat(&process.dir, "io", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()) {
                Ok(file) => File::from(file),
                Err(nix::errno::Errno::ENOENT) if self.is_there(process) => return Ok(Answer::Absent),
                Err(errno) => return ended_or(errno, |source| ReadError::Open { file: "io", source }),
            },
        };
        let Answer::Is(text) = self.read(&file, "io")? else {
            return Ok(Answer::Ended);
        };
        let len = text.len();
        let mut values = [ABSENT; IO_COUNTERS];
        self.io
            .parse(&self.buffer[..len], &mut values)
            .map_err(|source| ReadError::Parse { file: "io", source })?;
        if values.contains(&ABSENT) {
            let source = ParseError::Shape {
                line: 1,
                what: "expected seven counters",
            };
            return Err(ReadError::Parse { file: "io", source });
        }
        process.io = Some(file);
        Ok(Answer::Is(values))
    }

    /// How many files it has open.
    pub fn open_files(&mut self, process: &mut Handle) -> Result<Answer<i64>, ReadError> {
        if !self.sized {
            let mut count = 0;
            return Ok(match self.each_file(process, |_, _| count += 1)? {
                Answer::Is(()) => Answer::Is(count),
                Answer::Ended | Answer::Absent => Answer::Ended,
            });
        }
        let files = match files_of(process) {
            Ok(files) => files,
            Err(errno) => return ended_or(errno, |source| ReadError::Open { file: "fd", source }),
        };
        match fstat(files) {
            Ok(stat) => Ok(Answer::Is(stat.st_size)),
            Err(errno) => ended_or(errno, |source| ReadError::Read { file: "fd", source }),
        }
    }

    /// The inodes of those of its open files that are sockets, one that has several descriptors for each. At most `links`
    /// files are looked at, and taken from it; when it is 0 afterwards they may not be all.
    pub fn sockets(&mut self, process: &mut Handle, links: &mut usize) -> Result<Answer<Vec<u64>>, ReadError> {
        let mut sockets = Vec::new();
        let mut buffer = [0; LINK];
        let answer = self.each_file(process, |dir, name| {
            *links = links.saturating_sub(1);
            if *links > 0 {
                // Closed meanwhile, if it cannot be read: it was open when it was listed.
                let link = link(dir, name, &mut buffer).unwrap_or_default();
                sockets.extend(inode(link, b"socket:["));
            }
        })?;
        Ok(match answer {
            Answer::Is(()) => Answer::Is(sockets),
            Answer::Ended | Answer::Absent => Answer::Ended,
        })
    }

    /// The directory of its open files and the name of each.
    fn each_file(
        &mut self,
        process: &mut Handle,
        mut each: impl FnMut(BorrowedFd<'_>, &CStr),
    ) -> Result<Answer<()>, ReadError> {
        let failed = |errno| ended_or(errno, |source| ReadError::Read { file: "fd", source });
        let files = match files_of(process) {
            Ok(files) => files,
            Err(errno) => return ended_or(errno, |source| ReadError::Open { file: "fd", source }),
        };
        if let Err(errno) = lseek(files, 0, Whence::SeekSet) {
            return failed(errno);
        }
        let mut list = RawDir::new(files, self.list.spare_capacity_mut());
        while let Some(entry) = list.next() {
            match entry {
                Ok(entry) if entry.file_name().to_bytes().starts_with(b".") => {}
                Ok(entry) => each(files, entry.file_name()),
                Err(errno) => return failed(nix::errno::Errno::from_raw(errno.raw_os_error())),
            }
        }
        Ok(Answer::Is(()))
    }

    /// The whole file, which the kernel writes in one piece.
    fn read(&mut self, file: &File, name: &'static str) -> Result<Answer<&[u8]>, ReadError> {
        match file.read_at(&mut self.buffer, 0) {
            Ok(len) => Ok(Answer::Is(&self.buffer[..len])),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(Answer::Ended),
            Err(source) => Err(ReadError::Read { file: name, source }),
        }
    }
}

/// Its directory of open files, kept open.
fn files_of(process: &mut Handle) -> nix::Result<BorrowedFd<'_>> {
    if process.files.is_none() {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        process.files = Some(openat(&process.dir, "fd", flags, Mode::empty())?);
    }
    Ok(process.files.as_ref().expect("it was opened above").as_fd())
}

fn is_sized(proc: &Path) -> bool {
    let is_proc =
        nix::sys::statfs::statfs(proc).is_ok_and(|fs| fs.filesystem_type() == nix::sys::statfs::PROC_SUPER_MAGIC);
    is_proc && fs::metadata(proc.join("self/fd")).is_ok_and(|own| own.len() > 0)
}

/// Longer links are none of those that are looked for.
const LINK: usize = 64;

/// Where a link leads, cut to the length of the buffer.
fn link<'a>(dir: BorrowedFd<'_>, name: &CStr, buffer: &'a mut [u8; LINK]) -> Result<&'a [u8], nix::errno::Errno> {
    // SAFETY: the name ends with NUL and the buffer has the length that is told.
    let len = unsafe { libc::readlinkat(dir.as_raw_fd(), name.as_ptr(), buffer.as_mut_ptr().cast(), LINK) };
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
pub(super) fn parse_stat(text: &[u8]) -> Result<Stat, ParseError> {
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
            let mut handle = handle(&processes, pid);
            processes.io(&mut handle)
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
        let mut gone = handle(&processes, 7);
        fs::remove_dir_all(dir.path().join("7")).unwrap();
        assert_eq!(processes.stat(&gone).unwrap(), Answer::Ended);
        assert_eq!(processes.io(&mut gone).unwrap(), Answer::Ended);
        let mut all = processes.all().unwrap();
        all.sort_unstable();
        assert_eq!(all, [8, 9, 10]);
    }

    #[test]
    fn sockets_are_told_apart_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let mut processes = Processes::new(dir.path().to_owned());
        process(dir.path(), 7, &[]);
        for (number, target) in ["/dev/null", "socket:[11]", "pipe:[11]", "socket:[12]", "socket:[11]"]
            .iter()
            .enumerate()
        {
            symlink(target, dir.path().join(format!("7/fd/{number}"))).unwrap();
        }
        let mut links = 100;
        let mut seven = handle(&processes, 7);
        assert_eq!(processes.open_files(&mut seven).unwrap(), Answer::Is(5));
        let Answer::Is(mut sockets) = processes.sockets(&mut seven, &mut links).unwrap() else {
            panic!("it has ended")
        };
        sockets.sort_unstable();
        assert_eq!((sockets, links), (vec![11, 11, 12], 95));
        let mut links = 3;
        assert!(matches!(processes.sockets(&mut seven, &mut links), Ok(Answer::Is(_))));
        assert_eq!(links, 0);
        let mut ended = handle(&processes, 7);
        fs::remove_dir_all(dir.path().join("7")).unwrap();
        assert_eq!(processes.open_files(&mut ended).unwrap(), Answer::Ended);
        assert_eq!(processes.sockets(&mut ended, &mut 9).unwrap(), Answer::Ended);
    }

    #[test]
    fn what_is_kept_open_says_what_is_now_and_when_it_has_ended() {
        use std::io::{Read as _, Write as _};
        let mut child = std::process::Command::new("sh")
            .args(["-c", "echo; read x; exec 7</dev/null; echo; read x"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let (mut to, mut from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut said = [0];
        from.read_exact(&mut said).unwrap();
        let mut processes = Processes::new("/proc".into());
        let mut other = Processes::new("/proc".into());
        other.sized = false;
        let mut shell = handle(&processes, child.id());
        let mut look = |shell: &mut Handle| {
            let Answer::Is(io) = processes.io(shell).unwrap() else {
                panic!("it has ended")
            };
            let files = processes.open_files(shell).unwrap();
            assert_eq!(files, other.open_files(shell).unwrap(), "by its size, and listed");
            let Answer::Is(files) = files else {
                panic!("it has ended")
            };
            (io[3], files)
        };
        let before = look(&mut shell);
        writeln!(to).unwrap();
        from.read_exact(&mut said).unwrap();
        assert_eq!(look(&mut shell), (before.0 + 1, before.1 + 1), "one write, one file");
        assert_eq!(look(&mut shell), (before.0 + 1, before.1 + 1));
        child.kill().unwrap();
        let is_zombie =
            |processes: &mut Processes| matches!(processes.stat(&shell), Ok(Answer::Is(stat)) if stat.is_zombie);
        while !is_zombie(&mut processes) {
            std::thread::yield_now();
        }
        assert!(processes.is_there(&shell));
        child.wait().unwrap();
        assert!(!processes.is_there(&shell));
        assert_eq!(processes.io(&mut shell).unwrap(), Answer::Ended);
        assert_eq!(processes.open_files(&mut shell).unwrap(), Answer::Ended);
        assert_eq!(other.open_files(&mut shell).unwrap(), Answer::Ended);
        assert_eq!(processes.sockets(&mut shell, &mut 9).unwrap(), Answer::Ended);
    }

    #[test]
    fn the_own_files_are_read() {
        let mut processes = Processes::new("/proc".into());
        let mut me = handle(&processes, std::process::id());
        let Answer::Is(stat) = processes.stat(&me).unwrap() else {
            panic!("this process has ended")
        };
        assert_eq!(stat.parent, std::os::unix::process::parent_id());
        assert!(!stat.is_zombie && stat.start > 0);
        assert!(matches!(processes.netns(&me), Ok(Answer::Is(inode)) if inode > 0));
        let Answer::Is(before) = processes.io(&mut me).unwrap() else {
            panic!("this kernel keeps no account")
        };
        assert!(before[2] > 0, "{before:?}");
    }
}
