//! A pod: a named network namespace, what runs in it, and its settings.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use nix::sched::{CloneFlags, setns};

use crate::counters::{self, Counters, NftCounter, Qdisc};
use crate::error::{At, LabError, Result};
use crate::exec;
use crate::flow::Family;
use crate::lab::Shared;

/// A handle; clones are the same pod.
#[derive(Clone, Debug)]
pub struct Pod(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Keeps the lab as long as there is a pod.
    _lab: Arc<Shared>,
    namespace: String,
    name: String,
    netns: String,
    inode: u64,
    interfaces: Mutex<Vec<Interface>>,
}

/// One end of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

impl Interface {
    pub fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }
}

impl Pod {
    pub(crate) fn create(lab: Arc<Shared>, namespace: &str, name: &str, netns: &str) -> Result<Self> {
        exec::run(netns, "ip", &["netns", "add", netns], "")?;
        let path = path_of(netns);
        let inode = fs::metadata(&path).at(|| path.display().to_string())?.ino();
        let pod = Self(Arc::new(Inner {
            _lab: lab,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            netns: netns.to_owned(),
            inode,
            interfaces: Mutex::default(),
        }));
        // Duplicate address detection would keep addresses from use for seconds, and no router advertises here.
        for scope in ["all", "default"] {
            pod.sysctl(&format!("net.ipv6.conf.{scope}.accept_dad"), "0")?;
            pod.sysctl(&format!("net.ipv6.conf.{scope}.accept_ra"), "0")?;
        }
        pod.ip("link set lo up")?;
        Ok(pod)
    }

    pub(crate) fn forward(&self) -> Result<()> {
        self.sysctl("net.ipv4.ip_forward", "1")?;
        self.sysctl("net.ipv6.conf.all.forwarding", "1")
    }

    /// `<prefix>-demo`: the namespace as Sonde names it.
    pub fn namespace(&self) -> &str {
        &self.0.namespace
    }

    /// The pod as Sonde names it.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Name of the network namespace, below `/run/netns`.
    pub fn netns(&self) -> &str {
        &self.0.netns
    }

    pub fn path(&self) -> PathBuf {
        path_of(&self.0.netns)
    }

    /// Of the network namespace. The next one made may get the same as soon as this is gone.
    pub fn inode(&self) -> u64 {
        self.0.inode
    }

    pub fn interfaces(&self) -> Vec<Interface> {
        self.interfaces_mut().clone()
    }

    pub(crate) fn interfaces_mut(&self) -> std::sync::MutexGuard<'_, Vec<Interface>> {
        self.0
            .interfaces
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The address on the first link.
    ///
    /// # Panics
    /// When the pod has no link.
    pub fn address(&self, family: Family) -> IpAddr {
        self.interfaces_mut()
            .first()
            .unwrap_or_else(|| panic!("{} has no link", self.0.netns))
            .address(family)
    }

    /// [`Pod::address`] with a port.
    pub fn socket(&self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.address(family), port)
    }

    /// Runs `f` on a thread of its own that is in the pod's network namespace. A socket that `f` makes stays in that
    /// namespace wherever it is used later. A panic of `f` goes on here.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        let path = self.path();
        let netns = File::open(&path).at(|| path.display().to_string())?;
        let entered = std::thread::scope(|scope| {
            std::thread::Builder::new()
                .name("lab-pod".into())
                .spawn_scoped(scope, || {
                    setns(&netns, CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from)?;
                    Ok(f())
                })
                .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        entered
            .and_then(|inner| inner)
            .at(|| format!("{}: cannot be entered", self.0.netns))
    }

    /// Standard output of a program that runs in the pod's network namespace.
    pub fn command(&self, program: &str, args: &[&str]) -> Result<String> {
        self.run(|| exec::run(&self.0.netns, program, args, ""))?
    }

    /// `ip` with these arguments, split at spaces.
    pub fn ip(&self, arguments: &str) -> Result<String> {
        let args: Vec<&str> = arguments.split_ascii_whitespace().collect();
        self.command("ip", &args)
    }

    /// `tc` with these arguments, split at spaces.
    pub fn tc(&self, arguments: &str) -> Result<String> {
        let args: Vec<&str> = arguments.split_ascii_whitespace().collect();
        self.command("tc", &args)
    }

    /// A script for `nft -f`: one transaction.
    pub fn nft(&self, script: &str) -> Result<()> {
        self.run(|| exec::run(&self.0.netns, "nft", &["-f", "-"], script))?
            .map(drop)
    }

    /// Sets `net.ipv4.ip_forward` and the like.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        self.run(|| fs::write(&path, value))?
            .at(|| format!("{}: {key}={value}", self.0.netns))
    }

    /// Every number of the namespace's `/proc/net/{snmp,netstat,snmp6}`.
    pub fn counters(&self) -> Result<Counters> {
        let read = |file: &str| {
            let path = format!("/proc/thread-self/net/{file}");
            fs::read_to_string(&path).at(|| format!("{}: {path}", self.0.netns))
        };
        self.run(|| {
            let mut all = counters::parse_pairs(&read("snmp")?)?;
            all.merge(counters::parse_pairs(&read("netstat")?)?);
            all.merge(counters::parse_snmp6(&read("snmp6")?)?);
            Ok(all)
        })?
    }

    /// The named counter objects of nftables, `NAME` of any table.
    pub fn nft_counter(&self, name: &str) -> Result<NftCounter> {
        let text = self.command("nft", &["-j", "list", "counters"])?;
        counters::parse_nft_counters(&text)?
            .remove(name)
            .ok_or_else(|| LabError::Unexpected {
                what: format!("{}: nft counter {name}", self.0.netns),
                expected: "one in `nft -j list counters`",
                found: text,
            })
    }

    /// The root qdisc of a device, `tc -s`.
    pub fn qdisc(&self, device: &str) -> Result<Qdisc> {
        let text = self.command("tc", &["-s", "-j", "qdisc", "show", "dev", device, "root"])?;
        counters::parse_qdisc(&text)
    }

    /// Removes the name: the kernel ends the namespace once nothing is in it, and its inode may be reused at once.
    pub fn delete(&self) -> Result<()> {
        exec::run(&self.0.netns, "ip", &["netns", "del", &self.0.netns], "").map(drop)
    }
}

impl std::fmt::Display for Pod {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.netns)
    }
}

fn path_of(netns: &str) -> PathBuf {
    PathBuf::from("/run/netns").join(netns)
}
