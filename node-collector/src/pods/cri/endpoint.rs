//! Which socket the container runtime listens on.

use std::path::{Path, PathBuf};

use sonde_common::paths::HostPaths;

/// Below `/run`, in the order they are looked for. k3s and RKE2 bring a containerd of their own, at one and the same
/// place; Docker is spoken to through cri-dockerd.
const KNOWN: [&str; 4] = [
    "containerd/containerd.sock",
    "crio/crio.sock",
    "cri-dockerd.sock",
    "k3s/containerd/containerd.sock",
];

/// The socket that is configured, whether it is there or not; else all that are, in the order to be tried.
pub(super) fn candidates(configured: &str, paths: &HostPaths) -> Vec<PathBuf> {
    if configured.is_empty() {
        let known = KNOWN.iter().map(|known| paths.run.join(known));
        return known.filter(|path| path.exists()).collect();
    }
    let path = Path::new(configured.strip_prefix("unix://").unwrap_or(configured));
    let here = paths.of_host(path);
    // Named as this program sees it, not as the host does.
    let literal = !here.exists() && path.exists();
    vec![if literal { path.to_owned() } else { here }]
}

/// What was looked for, for people.
pub(super) fn looked_for(paths: &HostPaths) -> String {
    KNOWN
        .map(|known| paths.run.join(known).display().to_string())
        .join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_socket_there_is_or_the_one_configured() {
        let dir = tempfile::tempdir().unwrap();
        let paths = HostPaths::below(dir.path());
        let of = |configured: &str| candidates(configured, &paths);
        assert!(of("").is_empty());
        let touch = |path: &str| {
            let path = paths.run.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, "").unwrap();
            path
        };
        let k3s = touch("k3s/containerd/containerd.sock");
        assert!(of("").iter().eq([&k3s]));
        let docker = touch("cri-dockerd.sock");
        assert_eq!(of(""), [docker.clone(), k3s.clone()]);
        let containerd = touch("containerd/containerd.sock");
        assert_eq!(of(""), [containerd, docker.clone(), k3s]);
        // As the host sees it, also when it is not there yet; as we see it, when it is there.
        assert!(of("/run/cri-dockerd.sock").iter().eq([&docker]));
        assert_eq!(of("unix:///var/run/cri-dockerd.sock"), [docker]);
        assert_eq!(of("/run/x.sock"), [paths.run.join("x.sock")]);
        let elsewhere = dir.path().join("elsewhere.sock");
        std::fs::write(&elsewhere, "").unwrap();
        assert_eq!(of(elsewhere.to_str().unwrap()), [elsewhere]);
        assert!(looked_for(&paths).contains("crio/crio.sock, "));
    }
}
