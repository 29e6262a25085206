//! Every path of the host comes from here, so that a test or a DaemonSet mount moves the whole host at once.

use std::path::{Path, PathBuf};

/// Where the host's pseudo file systems are mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPaths {
    pub proc: PathBuf,
    pub sys: PathBuf,
    /// Named network namespaces, as `ip netns` keeps them.
    pub netns: PathBuf,
    /// Sockets of container runtimes.
    pub run: PathBuf,
    /// Control groups, of version 1, 2 or both.
    pub cgroup: PathBuf,
}

impl HostPaths {
    /// The host seen below another root: `/host` gives `/host/proc`, `/host/sys`, `/host/run/netns`.
    pub fn below(root: &Path) -> Self {
        Self {
            proc: root.join("proc"),
            sys: root.join("sys"),
            netns: root.join("run/netns"),
            run: root.join("run"),
            cgroup: root.join("sys/fs/cgroup"),
        }
    }

    /// Where a path that a program of the host speaks of (`/var/run/netns/cni-1`) is seen from here. One outside of what
    /// is known here is taken as it is.
    pub fn of_host(&self, path: &Path) -> PathBuf {
        let mounts = [
            ("/var/run/netns", &self.netns),
            ("/run/netns", &self.netns),
            ("/var/run", &self.run),
            ("/run", &self.run),
            ("/proc", &self.proc),
            ("/sys/fs/cgroup", &self.cgroup),
        ];
        mounts
            .iter()
            .find_map(|(mount, here)| Some(here.join(path.strip_prefix(mount).ok()?)))
            .unwrap_or_else(|| path.to_owned())
    }
}

impl Default for HostPaths {
    fn default() -> Self {
        Self::below(Path::new("/"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_host_says_is_found_where_it_is_mounted() {
        let paths = HostPaths {
            netns: "/names".into(),
            ..HostPaths::below(Path::new("/host"))
        };
        for (host, here) in [
            ("/var/run/netns/cni-1", "/names/cni-1"),
            ("/run/netns/cni-1", "/names/cni-1"),
            ("/run/netnsx/cni-1", "/host/run/netnsx/cni-1"),
            ("/run/crio/crio.sock", "/host/run/crio/crio.sock"),
            ("/proc/7/ns/net", "/host/proc/7/ns/net"),
            ("/sys/fs/cgroup/kubepods", "/host/sys/fs/cgroup/kubepods"),
            ("/var/lib/k/ns", "/var/lib/k/ns"),
        ] {
            assert_eq!(paths.of_host(Path::new(host)), Path::new(here), "{host}");
        }
        assert_eq!(
            HostPaths::default().of_host(Path::new("/var/run/netns/x")),
            Path::new("/run/netns/x")
        );
    }
}
