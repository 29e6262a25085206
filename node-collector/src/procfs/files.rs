//! The files of one network namespace, kept open, and the buffers they are read into.
//!
//! An open handle stays with its namespace whoever reads it, and reading it again from offset 0 asks the kernel anew.
//! Measured on 6.18 with the six files of a pod: 74 us a pod with handles kept, 126 us when entered and opened each
//! time. The price: an open handle keeps its namespace alive, so it must be closed as soon as the pod is gone.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use sonde_common::paths::HostPaths;

use super::{ParseError, ReadError};

/// A file below `/proc/<pid>/net`, or below `/proc/sys/net`, which shows the namespace of who opens it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum NetFile {
    Dev,
    Snmp,
    Snmp6,
    Netstat,
    Sockstat,
    Sockstat6,
    SoftnetStat,
    Conntrack,
    ArpCache,
    NdiscCache,
    IpVs,
    Protocols,
    ConntrackCount,
    ConntrackMax,
    PortRange,
    ReservedPorts,
    TcpMem,
    UdpMem,
    MaxOrphans,
    ArpThreshold1,
    ArpThreshold2,
    ArpThreshold3,
    NdiscThreshold1,
    NdiscThreshold2,
    NdiscThreshold3,
}

const COUNT: usize = NetFile::ALL.len();
/// What begins the name of a file below `/proc`, not below `/proc/<pid>/net`.
const SYSCTL: &str = "sys/net/";

impl NetFile {
    pub const ALL: [Self; 25] = [
        Self::Dev,
        Self::Snmp,
        Self::Snmp6,
        Self::Netstat,
        Self::Sockstat,
        Self::Sockstat6,
        Self::SoftnetStat,
        Self::Conntrack,
        Self::ArpCache,
        Self::NdiscCache,
        Self::IpVs,
        Self::Protocols,
        Self::ConntrackCount,
        Self::ConntrackMax,
        Self::PortRange,
        Self::ReservedPorts,
        Self::TcpMem,
        Self::UdpMem,
        Self::MaxOrphans,
        Self::ArpThreshold1,
        Self::ArpThreshold2,
        Self::ArpThreshold3,
        Self::NdiscThreshold1,
        Self::NdiscThreshold2,
        Self::NdiscThreshold3,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::Snmp => "snmp",
            Self::Snmp6 => "snmp6",
            Self::Netstat => "netstat",
            Self::Sockstat => "sockstat",
            Self::Sockstat6 => "sockstat6",
            Self::SoftnetStat => "softnet_stat",
            Self::Conntrack => "stat/nf_conntrack",
            Self::ArpCache => "stat/arp_cache",
            Self::NdiscCache => "stat/ndisc_cache",
            Self::IpVs => "ip_vs_stats",
            Self::Protocols => "protocols",
            Self::ConntrackCount => "sys/net/netfilter/nf_conntrack_count",
            Self::ConntrackMax => "sys/net/netfilter/nf_conntrack_max",
            Self::PortRange => "sys/net/ipv4/ip_local_port_range",
            Self::ReservedPorts => "sys/net/ipv4/ip_local_reserved_ports",
            Self::TcpMem => "sys/net/ipv4/tcp_mem",
            Self::UdpMem => "sys/net/ipv4/udp_mem",
            Self::MaxOrphans => "sys/net/ipv4/tcp_max_orphans",
            Self::ArpThreshold1 => "sys/net/ipv4/neigh/default/gc_thresh1",
            Self::ArpThreshold2 => "sys/net/ipv4/neigh/default/gc_thresh2",
            Self::ArpThreshold3 => "sys/net/ipv4/neigh/default/gc_thresh3",
            Self::NdiscThreshold1 => "sys/net/ipv6/neigh/default/gc_thresh1",
            Self::NdiscThreshold2 => "sys/net/ipv6/neigh/default/gc_thresh2",
            Self::NdiscThreshold3 => "sys/net/ipv6/neigh/default/gc_thresh3",
        }
    }

    /// The file that is read rather than this one where it is there.
    const fn stands_in_for(self) -> Option<Self> {
        match self {
            // CONFIG_NF_CONNTRACK_PROCFS is off on some kernels.
            Self::ConntrackCount => Some(Self::Conntrack),
            _ => None,
        }
    }

    /// Where it is for the calling thread.
    pub fn path(self, paths: &HostPaths) -> PathBuf {
        if self.is_sysctl() {
            paths.proc.join(self.name())
        } else {
            paths.proc.join("thread-self/net").join(self.name())
        }
    }

    /// A setting or figure below `/proc/sys/net`.
    pub fn is_sysctl(self) -> bool {
        self.name().starts_with(SYSCTL)
    }

    /// Whether the kernel writes the whole file in one piece, so that one read that does not fill the buffer has it
    /// all. The others come in pieces of a page and end with an empty read.
    const fn in_one_piece(self) -> bool {
        matches!(
            self,
            Self::Snmp | Self::Snmp6 | Self::Netstat | Self::Sockstat | Self::Sockstat6 | Self::IpVs
        )
    }

    /// For a sysctl the kernel takes and clears as much memory as it is asked for, so ask for little.
    fn buffer_len(self) -> usize {
        if self.is_sysctl() { 128 } else { 16 * 1024 }
    }
}

/// How a file of a namespace can be had.
#[derive(Debug)]
enum Slot {
    Kept(File),
    /// The kernel has no such file: IPv6 is disabled.
    Absent,
    /// Not kept, for want of file descriptors: opened for each reading, inside the namespace.
    Reopened,
    Failed(Arc<ReadError>),
    /// No probe wants it.
    Unwanted,
}

/// The handles of one network namespace.
#[derive(Debug)]
pub struct NetFiles {
    slots: [Slot; COUNT],
}

impl NetFiles {
    /// Opens the wanted files while in the namespace. With `keep` false they are only looked for.
    pub fn open(paths: &HostPaths, wanted: &[NetFile], keep: bool) -> Self {
        let slots = NetFile::ALL.map(|file| {
            let better = file.stands_in_for().filter(|better| wanted.contains(better));
            if !wanted.contains(&file) || better.is_some_and(|better| better.path(paths).exists()) {
                return Slot::Unwanted;
            }
            match File::open(file.path(paths)) {
                Ok(handle) if keep => Slot::Kept(handle),
                Ok(_) => Slot::Reopened,
                Err(e) if e.kind() == io::ErrorKind::NotFound => Slot::Absent,
                Err(source) => Slot::Failed(Arc::new(ReadError::Open {
                    file: file.name(),
                    source,
                })),
            }
        });
        Self { slots }
    }

    /// A namespace that could not be entered: every reading gives this error.
    pub fn failed(error: Arc<ReadError>) -> Self {
        Self {
            slots: NetFile::ALL.map(|_| Slot::Failed(Arc::clone(&error))),
        }
    }

    /// Whether a reading needs its thread to be inside the namespace.
    pub fn needs_entering(&self) -> bool {
        self.slots.iter().any(|slot| matches!(slot, Slot::Reopened))
    }

    /// Descriptors held.
    pub fn kept(&self) -> usize {
        self.slots.iter().filter(|slot| matches!(slot, Slot::Kept(_))).count()
    }
}

/// A text that was read, is absent, or failed; `Unread` before the first question.
#[derive(Clone, Debug)]
enum State {
    Unread,
    Present(usize),
    Absent,
    Failed(Arc<ReadError>),
}

/// Texts of the namespace at hand: each file is read at most once, when first asked for, into a buffer that stays.
#[derive(Debug)]
pub struct Reader {
    buffers: [Vec<u8>; COUNT],
    states: [State; COUNT],
}

impl Default for Reader {
    fn default() -> Self {
        Self {
            buffers: NetFile::ALL.map(|file| vec![0; file.buffer_len()]),
            states: std::array::from_fn(|_| State::Unread),
        }
    }
}

impl Reader {
    /// A reader of one namespace; `paths` is where files that are not kept are opened.
    pub fn of<'a>(&'a mut self, files: &'a NetFiles, paths: &'a HostPaths) -> Texts<'a> {
        self.states.fill(State::Unread);
        Texts {
            reader: self,
            files,
            paths,
        }
    }
}

/// What [`Reader::of`] gives: the texts of one namespace at one time.
#[derive(Debug)]
pub struct Texts<'a> {
    reader: &'a mut Reader,
    files: &'a NetFiles,
    paths: &'a HostPaths,
}

impl Texts<'_> {
    /// The text, or `None` where the kernel has no such file.
    pub fn get(&mut self, file: NetFile) -> Result<Option<&[u8]>, Arc<ReadError>> {
        let i = file as usize;
        if matches!(self.reader.states[i], State::Unread) {
            self.reader.states[i] = self.read(file);
        }
        match &self.reader.states[i] {
            State::Present(len) => Ok(Some(&self.reader.buffers[i][..*len])),
            State::Absent | State::Unread => Ok(None),
            State::Failed(error) => Err(Arc::clone(error)),
        }
    }

    /// The text through a parser, its error with the name of the file. `None` where the kernel has no such file.
    pub fn parse<T>(
        &mut self,
        file: NetFile,
        parser: impl FnOnce(&[u8]) -> Result<T, ParseError>,
    ) -> Result<Option<T>, Arc<ReadError>> {
        let Some(text) = self.get(file)? else {
            return Ok(None);
        };
        parser(text).map(Some).map_err(|source| {
            Arc::new(ReadError::Parse {
                file: file.name(),
                source,
            })
        })
    }

    fn read(&mut self, file: NetFile) -> State {
        let buffer = &mut self.reader.buffers[file as usize];
        let result = match &self.files.slots[file as usize] {
            Slot::Kept(handle) => read_whole(handle, buffer, file),
            Slot::Reopened => match File::open(file.path(self.paths)) {
                Ok(handle) => read_whole(&handle, buffer, file),
                // It was there when the namespace was found.
                Err(source) if source.kind() == io::ErrorKind::NotFound => Err(ReadError::Vanished {
                    file: file.name(),
                    source,
                }),
                Err(source) => Err(ReadError::Open {
                    file: file.name(),
                    source,
                }),
            },
            Slot::Absent | Slot::Unwanted => return State::Absent,
            Slot::Failed(error) => return State::Failed(Arc::clone(error)),
        };
        match result {
            Ok(len) => State::Present(len),
            Err(error) => State::Failed(Arc::new(error)),
        }
    }
}

fn read_whole(handle: &File, buffer: &mut Vec<u8>, file: NetFile) -> Result<usize, ReadError> {
    let mut len = 0;
    loop {
        let space = buffer.len() - len;
        match handle.read_at(&mut buffer[len..], len as u64) {
            Ok(0) => return Ok(len),
            Ok(n) => {
                len += n;
                if n < space && (file.in_one_piece() || file.is_sysctl()) {
                    return Ok(len);
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => {
                let file = file.name();
                return Err(match source.raw_os_error() {
                    // The namespace or the process behind the file has ended.
                    Some(libc::ENOENT | libc::ESRCH | libc::EINVAL | libc::ENODEV) => {
                        ReadError::Vanished { file, source }
                    }
                    _ => ReadError::Read { file, source },
                });
            }
        }
        if len == buffer.len() {
            buffer.resize(buffer.len() * 2, 0);
            if file.is_sysctl() {
                // It answers to the offset 0 alone, and cuts what does not fit.
                len = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Tree {
        _dir: tempfile::TempDir,
        paths: HostPaths,
        net: PathBuf,
    }

    fn tree(files: &[(NetFile, &str)]) -> Tree {
        let dir = tempfile::tempdir().unwrap();
        let paths = HostPaths::below(dir.path());
        for (file, text) in files {
            let path = file.path(&paths);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        Tree {
            net: paths.proc.join("thread-self/net"),
            paths,
            _dir: dir,
        }
    }

    #[test]
    fn absent_failed_and_present_are_three_answers() {
        let dir = tree(&[(NetFile::Snmp, "Tcp: A\nTcp: 1\n")]);
        // A directory in the place of a file can be opened and not read.
        std::fs::create_dir(dir.net.join("netstat")).unwrap();
        let files = NetFiles::open(&dir.paths, &NetFile::ALL, true);
        let mut reader = Reader::default();
        let mut texts = reader.of(&files, &dir.paths);
        assert_eq!(texts.get(NetFile::Snmp).unwrap(), Some(&b"Tcp: A\nTcp: 1\n"[..]));
        assert_eq!(texts.get(NetFile::Snmp6).unwrap(), None);
        assert_eq!(texts.get(NetFile::Netstat).unwrap_err().kind(), "read");
    }

    #[test]
    fn a_file_that_vanishes_is_an_error_of_its_own() {
        let dir = tree(&[(NetFile::Snmp, "x"), (NetFile::Dev, "y")]);
        let files = NetFiles::open(&dir.paths, &[NetFile::Snmp, NetFile::Dev], false);
        assert!(files.needs_entering() && files.kept() == 0);
        std::fs::remove_file(dir.net.join("snmp")).unwrap();
        let mut reader = Reader::default();
        let mut texts = reader.of(&files, &dir.paths);
        assert_eq!(texts.get(NetFile::Snmp).unwrap_err().kind(), "vanished");
        assert_eq!(texts.get(NetFile::Dev).unwrap(), Some(&b"y"[..]));
        // A file that no probe asked for is not read even if it is there.
        assert_eq!(texts.get(NetFile::Netstat).unwrap(), None);
    }

    #[test]
    fn a_file_longer_than_the_buffer_is_read_whole_and_anew_each_time() {
        let long = "0123456789abcdef".repeat(5000);
        let dir = tree(&[
            (NetFile::Dev, &long),
            (NetFile::Netstat, &long),
            (NetFile::ReservedPorts, &long),
        ]);
        let files = NetFiles::open(&dir.paths, &NetFile::ALL, true);
        let mut reader = Reader::default();
        for file in [NetFile::Dev, NetFile::Netstat, NetFile::ReservedPorts] {
            assert_eq!(reader.of(&files, &dir.paths).get(file).unwrap(), Some(long.as_bytes()));
        }
        std::fs::write(dir.net.join("dev"), "short").unwrap();
        assert_eq!(
            reader.of(&files, &dir.paths).get(NetFile::Dev).unwrap(),
            Some(&b"short"[..])
        );
    }

    #[test]
    fn a_namespace_that_cannot_be_entered_fails_every_file() {
        let files = NetFiles::failed(Arc::new(ReadError::Enter(io::Error::from_raw_os_error(libc::EPERM))));
        let (mut reader, paths) = (Reader::default(), HostPaths::default());
        let mut texts = reader.of(&files, &paths);
        for file in NetFile::ALL {
            assert_eq!(texts.get(file).unwrap_err().kind(), "enter");
        }
    }
}
