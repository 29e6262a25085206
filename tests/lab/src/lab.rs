//! One run of the lab: a prefix of namespaces, their subnets, and their end.

use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use crate::error::{At, LabError, Result};
use crate::exec;
use crate::link::{Link, Subnet};
use crate::node::Node;
use crate::pod::Pod;
use crate::registry::Claim;

/// Makes pods and links. All of them go when the last of `Lab`, [`Pod`] and [`Node`] is dropped, also by a panic; what
/// a killed process leaves goes when the next lab starts.
#[derive(Clone, Debug)]
pub struct Lab(Arc<Shared>);

#[derive(Debug)]
pub(crate) struct Shared {
    claim: Mutex<Claim>,
    prefix: String,
    id: u16,
    next_subnet: AtomicU16,
}

impl Lab {
    /// Why this process cannot have a lab, as a test prints it after `SKIPPED: `.
    pub fn available() -> Result<(), String> {
        static ANSWER: OnceLock<Result<(), String>> = OnceLock::new();
        ANSWER.get_or_init(probe).clone()
    }

    /// A lab for a test. Where there can be none it prints why and gives `None`.
    pub fn for_test(name: &str) -> Option<Self> {
        match Self::available() {
            Ok(()) => Some(Self::new(name).unwrap_or_else(|error| panic!("lab {name}: {error}"))),
            Err(why) => {
                println!("SKIPPED: {why}");
                None
            }
        }
    }

    /// `name` is for people who look at `/run/sonde-lab`.
    pub fn new(name: &str) -> Result<Self> {
        let claim = Claim::new(name)?;
        Ok(Self(Arc::new(Shared {
            prefix: claim.prefix.clone(),
            id: claim.id,
            claim: Mutex::new(claim),
            next_subnet: AtomicU16::new(0),
        })))
    }

    /// `lab3f2a`: begins the namespace of every pod, and no other run has it.
    pub fn prefix(&self) -> &str {
        &self.0.prefix
    }

    /// The glob over named network namespaces that takes the pods of this lab and nothing else (not its nodes).
    pub fn glob(&self) -> String {
        format!("{}-*", self.0.prefix)
    }

    /// Pod `name` of namespace `<prefix>-<namespace>`, with `lo` up and nothing else.
    pub fn pod(&self, namespace: &str, name: &str) -> Result<Pod> {
        Pod::create(
            Arc::clone(&self.0),
            &format!("{}-{namespace}", self.0.prefix),
            name,
            &format!("{}-{namespace}.{name}", self.0.prefix),
        )
    }

    /// A pod that forwards IPv4 and IPv6.
    pub fn router(&self, namespace: &str, name: &str) -> Result<Pod> {
        let router = self.pod(namespace, name)?;
        router.forward()?;
        Ok(router)
    }

    /// A machine: a namespace (`<prefix>_<name>`, outside [`Lab::glob`]) with a bridge that pods attach to.
    pub fn node(&self, name: &str) -> Result<Node> {
        let netns = format!("{}_{name}", self.0.prefix);
        let pod = Pod::create(Arc::clone(&self.0), "netns", &netns, &netns)?;
        Node::create(self.clone(), pod)
    }

    /// A veth pair with a subnet of its own, up, with usable IPv4 and IPv6 addresses. Devices are `eth0`, `eth1`, ...
    pub fn link(&self, a: &Pod, b: &Pod) -> Result<Link> {
        Link::create(a, b, self.subnet()?)
    }

    pub(crate) fn subnet(&self) -> Result<Subnet> {
        let number = self.0.next_subnet.fetch_add(1, Ordering::Relaxed);
        Subnet::new(self.0.id, number).ok_or_else(|| LabError::Unexpected {
            what: "subnets of one lab".into(),
            expected: "at most 512",
            found: number.to_string(),
        })
    }

    /// Leaves everything in place when the process ends, until `sonde-lab sweep`.
    pub fn keep(&self) -> Result<()> {
        self.0.claim().keep()
    }

    /// A process that belongs to this run: should the run be killed, the next lab ends it.
    pub fn adopt(&self, pid: u32) -> Result<()> {
        let pid = i32::try_from(pid).map_err(|_| LabError::Unexpected {
            what: "process id".into(),
            expected: "a number of 31 bits",
            found: pid.to_string(),
        })?;
        self.0.claim().adopt(pid)
    }
}

impl Shared {
    fn claim(&self) -> std::sync::MutexGuard<'_, Claim> {
        self.claim.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let claim = self.claim();
        if claim.is_kept() {
            return;
        }
        if let Err(error) = claim.release() {
            eprintln!("lab {}: not cleaned up: {error}", self.prefix);
        }
    }
}

/// Tries what a lab needs in a namespace that has no name and ends with its thread.
fn probe() -> Result<(), String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("not root: network namespaces cannot be made".into());
    }
    let attempt = std::thread::spawn(|| -> Result<()> {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).at(|| "a network namespace cannot be made".into())?;
        exec::run(
            "probe",
            "ip",
            &[
                "link", "add", "name", "probe0", "type", "veth", "peer", "name", "probe1",
            ],
            "",
        )?;
        exec::run("probe", "tc", &["qdisc", "show"], "")?;
        exec::run("probe", "nft", &["-f", "-"], "table inet probe {}")?;
        Ok(())
    });
    match attempt.join() {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(_) => Err("the probe of the lab panicked".into()),
    }
}
