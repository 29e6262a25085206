//! What the collector holds of one network namespace to read it from any thread: files and netlink sockets, opened
//! while inside; and the readings of one round, each made at most once, when a probe first asks.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use sonde_common::paths::HostPaths;

use crate::netlink::dump::DumpError;
use crate::netlink::qdisc::{self, Roots};
use crate::netlink::rdma::{self, Resources};
use crate::netlink::socket::{AskSocket, Transport};
use crate::netlink::tcp::{self, Known, Scratch, TcpSockets};
use crate::probes::Registration;
use crate::procfs::files::{Reader, Texts};
use crate::procfs::pairs::Group;
use crate::procfs::{NetFile, NetFiles, ParseError, ReadError, sockstat};
use crate::sysfs::infiniband;

/// A netlink family that is asked in each namespace, with one socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Netlink {
    SockDiag,
    Route,
    Rdma,
}

impl Netlink {
    pub const ALL: [Self; 3] = [Self::SockDiag, Self::Route, Self::Rdma];

    pub const fn name(self) -> &'static str {
        match self {
            Self::SockDiag => "sock_diag",
            Self::Route => "rtnetlink",
            Self::Rdma => "rdma",
        }
    }

    /// Files that are read beside it.
    const fn needs(self) -> &'static [NetFile] {
        match self {
            // They say whether the sockets must be listed.
            Self::SockDiag => &[NetFile::Sockstat, NetFile::Sockstat6, NetFile::Snmp],
            Self::Route | Self::Rdma => &[],
        }
    }

    /// In the network namespace of the calling thread.
    pub fn open(self) -> io::Result<AskSocket> {
        match self {
            Self::SockDiag => AskSocket::sock_diag(),
            Self::Route => AskSocket::route(),
            Self::Rdma => AskSocket::rdma(),
        }
    }

    /// Whether each reading looks first if there is something to ask for, as the socket alone would load a module.
    const fn on_demand(self) -> bool {
        matches!(self, Self::Rdma)
    }

    pub fn may_be_asked(self, paths: &HostPaths) -> bool {
        !self.on_demand() || infiniband::has_devices(paths)
    }
}

/// What the probes that are on read.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    files: Vec<NetFile>,
    netlink: Vec<Netlink>,
}

impl Wanted {
    pub fn of(probes: impl IntoIterator<Item = &'static Registration>) -> Self {
        let probes: Vec<_> = probes.into_iter().collect();
        let needs = |probe: &Registration, file: &NetFile| {
            let beside = probe.netlink.iter().any(|family| family.needs().contains(file));
            beside || probe.files.contains(file)
        };
        let wants = |file: &NetFile| probes.iter().any(|probe| needs(probe, file));
        let asks = |family: &Netlink| probes.iter().any(|probe| probe.netlink.contains(family));
        Self {
            files: NetFile::ALL.into_iter().filter(wants).collect(),
            netlink: Netlink::ALL.into_iter().filter(asks).collect(),
        }
    }

    /// Everything there is.
    pub fn all() -> Self {
        Self {
            files: NetFile::ALL.to_vec(),
            netlink: Netlink::ALL.to_vec(),
        }
    }

    /// The same without netlink, for a host that is made of files.
    pub fn without_netlink(self) -> Self {
        Self {
            netlink: Vec::new(),
            ..self
        }
    }

    pub fn files(&self) -> &[NetFile] {
        &self.files
    }

    /// Descriptors that keeping all of it takes, at most.
    pub fn count(&self) -> usize {
        self.files.len() + self.netlink.len()
    }
}

/// How a family can be asked.
#[derive(Debug)]
enum Link {
    Kept(Box<dyn Transport>),
    /// This kernel does not have the family.
    Absent,
    /// Not kept, for want of file descriptors: made for each reading, inside the namespace.
    Reopened,
    /// Made for each reading, of the node alone.
    OnDemand,
    Failed(Arc<ReadError>),
    /// No probe wants it.
    Unwanted,
}

/// Everything held of one network namespace. An open file or socket keeps its namespace alive, so this must go as soon
/// as the pod is gone.
#[derive(Debug)]
pub struct Handles {
    files: NetFiles,
    links: [Link; Netlink::ALL.len()],
    paths: HostPaths,
    memory: Mutex<Memory>,
}

/// What the last reading found, where that saves the next one something.
#[derive(Debug, Default)]
struct Memory {
    tcp: tcp::Memory,
    qdisc: qdisc::Memory,
}

/// Opens what is wanted in the network namespace of the calling thread: who calls it has entered the namespace. With
/// `keep` false it is only looked for, and opened anew for each reading, which enters the namespace for that.
pub fn open(paths: &HostPaths, wanted: &Wanted, keep: bool) -> Handles {
    let links = Netlink::ALL.map(|family| {
        if !wanted.netlink.contains(&family) {
            return Link::Unwanted;
        }
        if family.on_demand() {
            return Link::OnDemand;
        }
        match family.open() {
            Ok(socket) if keep => Link::Kept(Box::new(socket)),
            Ok(_) => Link::Reopened,
            Err(error) if is_absent(&error) => Link::Absent,
            Err(source) => Link::Failed(Arc::new(ReadError::Open {
                file: family.name(),
                source,
            })),
        }
    });
    Handles {
        files: NetFiles::open(paths, &wanted.files, keep),
        links,
        paths: paths.clone(),
        memory: Mutex::default(),
    }
}

impl Handles {
    /// A namespace that could not be entered: every reading gives this error.
    pub fn failed(paths: &HostPaths, error: io::Error) -> Self {
        let error = Arc::new(ReadError::Enter(error));
        Self {
            links: Netlink::ALL.map(|_| Link::Failed(Arc::clone(&error))),
            files: NetFiles::failed(error),
            paths: paths.clone(),
            memory: Mutex::default(),
        }
    }

    /// The same with something else in the place of a socket.
    #[must_use]
    pub fn with_transport(mut self, family: Netlink, transport: Box<dyn Transport>) -> Self {
        self.links[family as usize] = Link::Kept(transport);
        self
    }

    /// Whether a reading needs its thread to be inside the namespace.
    pub fn needs_entering(&self) -> bool {
        self.files.needs_entering() || self.links.iter().any(|link| matches!(link, Link::Reopened))
    }

    /// Descriptors held.
    pub fn kept(&self) -> usize {
        self.files.kept() + self.links.iter().filter(|link| matches!(link, Link::Kept(_))).count()
    }
}

/// Buffers and sums that stay from namespace to namespace and from round to round.
#[derive(Debug)]
pub struct Readers {
    files: Reader,
    netlink: Vec<u8>,
    scratch: Scratch,
    segments: Group,
    tcp: (State, TcpSockets),
    qdiscs: (State, Roots),
    rdma: Resources,
}

impl Default for Readers {
    fn default() -> Self {
        Self {
            files: Reader::default(),
            // The kernel fills at most 32 KiB of a dump at once, and more only where a reader before had more room.
            netlink: vec![0; 64 * 1024],
            scratch: Scratch::default(),
            segments: Group::new("Tcp:", &["InSegs", "OutSegs", "RetransSegs", "OutRsts"]),
            tcp: Default::default(),
            qdiscs: Default::default(),
            rdma: Resources::default(),
        }
    }
}

/// A reading that was made, is absent, or failed; `Unread` before the first question.
#[derive(Clone, Debug, Default)]
enum State {
    #[default]
    Unread,
    Present,
    Absent,
    Failed(Arc<ReadError>),
}

impl Readers {
    /// The readings of one namespace at one time.
    pub fn of<'a>(&'a mut self, handles: &'a Handles) -> Readings<'a> {
        self.tcp.0 = State::Unread;
        self.qdiscs.0 = State::Unread;
        Readings {
            texts: self.files.of(&handles.files, &handles.paths),
            netlink: &mut self.netlink,
            scratch: &mut self.scratch,
            segments: &mut self.segments,
            tcp: &mut self.tcp,
            qdiscs: &mut self.qdiscs,
            rdma: &mut self.rdma,
            handles,
        }
    }
}

/// What [`Readers::of`] gives.
#[derive(Debug)]
pub struct Readings<'a> {
    texts: Texts<'a>,
    netlink: &'a mut Vec<u8>,
    scratch: &'a mut Scratch,
    segments: &'a mut Group,
    tcp: &'a mut (State, TcpSockets),
    qdiscs: &'a mut (State, Roots),
    rdma: &'a mut Resources,
    handles: &'a Handles,
}

impl Readings<'_> {
    pub fn paths(&self) -> &HostPaths {
        &self.handles.paths
    }

    /// See [`Texts::parse`].
    pub fn parse<T>(
        &mut self,
        file: NetFile,
        parser: impl FnOnce(&[u8]) -> Result<T, ParseError>,
    ) -> Result<Option<T>, Arc<ReadError>> {
        self.texts.parse(file, parser)
    }

    /// The TCP sockets, or `None` where the kernel does not list them.
    pub fn tcp(&mut self) -> Result<Option<&TcpSockets>, Arc<ReadError>> {
        if matches!(self.tcp.0, State::Unread) {
            let known = self.known();
            let sockets = &mut self.tcp.1;
            self.tcp.0 = ask(self.handles, Netlink::SockDiag, |transport, memory| {
                tcp::read(transport, known, &mut memory.tcp, (self.netlink, self.scratch), sockets)
            });
        }
        match &self.tcp.0 {
            State::Present => Ok(Some(&self.tcp.1)),
            State::Absent | State::Unread => Ok(None),
            State::Failed(error) => Err(Arc::clone(error)),
        }
    }

    /// The root qdiscs with the names of their devices, or `None` where the kernel has none to tell. A device that went
    /// since is left out.
    pub fn qdiscs(&mut self) -> Result<Option<&Roots>, Arc<ReadError>> {
        if matches!(self.qdiscs.0, State::Unread) {
            let roots = &mut self.qdiscs.1;
            self.qdiscs.0 = ask(self.handles, Netlink::Route, |transport, memory| {
                qdisc::read(transport, &mut memory.qdisc, self.netlink, roots)
            });
        }
        match &self.qdiscs.0 {
            State::Present => Ok(Some(&self.qdiscs.1)),
            State::Absent | State::Unread => Ok(None),
            State::Failed(error) => Err(Arc::clone(error)),
        }
    }

    /// What is in use of RDMA devices, or `None` where there are none.
    pub fn rdma(&mut self) -> Result<Option<&Resources>, Arc<ReadError>> {
        if !Netlink::Rdma.may_be_asked(self.paths()) {
            return Ok(None);
        }
        let resources = &mut *self.rdma;
        match ask(self.handles, Netlink::Rdma, |transport, _| {
            rdma::read(transport, self.netlink, resources)
        }) {
            State::Present => Ok(Some(self.rdma)),
            State::Absent | State::Unread => Ok(None),
            State::Failed(error) => Err(error),
        }
    }

    /// What is known of the sockets without listing them; `None` where not all of it can be read.
    fn known(&mut self) -> Option<Known> {
        let (mut v4, mut v6, mut segments) = ([0; 2], [0; 1], [0; 4]);
        self.texts
            .parse(NetFile::Sockstat, |text| {
                sockstat::parse(text, &[("TCP:", "inuse"), ("TCP:", "tw")], &mut v4)
            })
            .ok()??;
        let has_v6 = self
            .texts
            .parse(NetFile::Sockstat6, |text| {
                sockstat::parse(text, &[("TCP6:", "inuse")], &mut v6)
            })
            .ok()?;
        if has_v6.is_none() {
            v6 = [0];
        }
        if [v4[0], v4[1], v6[0]].contains(&sonde_proto::ABSENT) {
            return None;
        }
        let mut known = Known {
            in_use: v4[0].saturating_add(v6[0]),
            time_wait: v4[1],
            segments: None,
        };
        if known.in_use != 0 || known.time_wait != 0 {
            let parsed = self
                .texts
                .parse(NetFile::Snmp, |text| self.segments.parse(text, &mut segments));
            let whole = matches!(parsed, Ok(Some(true))) && !segments.contains(&sonde_proto::ABSENT);
            known.segments = whole.then_some(segments);
        }
        Some(known)
    }
}

/// This kernel does not have the family.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT))
}

fn ask(
    handles: &Handles,
    family: Netlink,
    question: impl FnOnce(&dyn Transport, &mut Memory) -> Result<bool, DumpError>,
) -> State {
    let what = family.name();
    let answer = match &handles.links[family as usize] {
        Link::Kept(transport) => question(transport.as_ref(), &mut handles.memory.lock()),
        Link::Reopened | Link::OnDemand => match family.open() {
            // A new socket has heard nothing.
            Ok(socket) => question(&socket, &mut Memory::default()),
            Err(error) if is_absent(&error) => return State::Absent,
            Err(source) => return State::Failed(Arc::new(ReadError::Open { file: what, source })),
        },
        Link::Absent | Link::Unwanted => return State::Absent,
        Link::Failed(error) => return State::Failed(Arc::clone(error)),
    };
    match answer {
        Ok(true) => State::Present,
        Ok(false) => State::Absent,
        Err(source) => State::Failed(Arc::new(ReadError::Dump { what, source })),
    }
}
