//! What a container runtime says of a sandbox, and names of control groups.

use std::path::{Component, Path};

use sonde_mutate::Target;

use super::cgroup;
use super::cri::{Sandbox, v1};

pub(crate) const TARGETS: [Target; 2] = [
    Target {
        name: "cri_status",
        seeds: || {
            let status = r#"{"pid":42,"runtimeSpec":{"linux":{"namespaces":[{"type":"network","path":"/run/netns/cni-1"}],
                "cgroupsPath":"kubepods-burstable-pod0a1b2c3d_4e5f.slice:cri-containerd:0123456789ab"}},
                "config":{"linux":{"cgroup_parent":"/kubepods/burstable/pod0a1b2c3d-4e5f"}}}"#;
            vec![status.as_bytes().to_vec()]
        },
        run: cri_status,
    },
    Target {
        name: "cgroup_path",
        seeds: || {
            let paths = [
                "/kubepods/burstable/pod0a1b2c3d-4e5f/0123456789ab",
                "kubepods-burstable-pod0a1b2c3d_4e5f.slice:cri-containerd:0123456789ab",
                "system.slice",
                "-.slice:x:y.slice",
            ];
            paths.map(|path| path.as_bytes().to_vec()).into()
        },
        run: cgroup_path,
    },
];

const UID: &str = "0a1b2c3d-4e5f";

fn cri_status(input: &[u8]) {
    let text = String::from_utf8_lossy(input).into_owned();
    let metadata = v1::PodSandboxMetadata {
        name: "pod".into(),
        uid: UID.into(),
        ..Default::default()
    };
    let response = v1::PodSandboxStatusResponse {
        status: Some(v1::PodSandboxStatus {
            id: "0123456789ab".into(),
            metadata: Some(metadata),
            ..Default::default()
        }),
        info: [("info".to_owned(), text)].into(),
    };
    let sandbox = Sandbox::new(response, true).expect("it has a name, whatever the text says");
    if let Some(path) = sandbox.cgroup {
        stays_below(&path);
        assert!(path.contains(UID) || path.contains(&UID.replace('-', "_")), "{path}");
    }
}

fn cgroup_path(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Some(path) = cgroup::path_of(text) {
        stays_below(&path);
        // As many names as there are dashes, each no longer than the whole.
        assert!(path.len() <= (text.len() + 16) * (text.len() + 16));
    }
    if let Some(own) = cgroup::of_pod(text, UID) {
        assert!(text.starts_with(&own));
    }
}

/// Joined to the root of a hierarchy it must not lead out of it.
fn stays_below(path: &str) {
    let inside = |part| matches!(part, Component::RootDir | Component::Normal(_));
    assert!(
        path.starts_with('/') && Path::new(path).components().all(inside),
        "{path}"
    );
}
