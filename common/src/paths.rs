//! Every path of the host comes from here, so that a test or a DaemonSet mount moves the whole host at once.

use std::path::{Path, PathBuf};

/// Where the host's pseudo file systems are mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPaths {
    pub proc: PathBuf,
    pub sys: PathBuf,
    /// Named network namespaces, as `ip netns` keeps them.
    pub netns: PathBuf,
}

impl HostPaths {
    /// The host seen below another root: `/host` gives `/host/proc`, `/host/sys`, `/host/run/netns`.
    pub fn below(root: &Path) -> Self {
        Self {
            proc: root.join("proc"),
            sys: root.join("sys"),
            netns: root.join("run/netns"),
        }
    }
}

impl Default for HostPaths {
    fn default() -> Self {
        Self::below(Path::new("/"))
    }
}
