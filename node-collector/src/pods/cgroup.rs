//! Where a pod's control group is, and which processes are in it.
//!
//! A kubelet gives each pod a group of its own, named by the pod's uid, and below it one for each container. Runtimes
//! name a group in two ways: as a path (`/kubepods/burstable/pod<uid>/<id>`) or, with systemd, as
//! `<slice>:<prefix>:<name>`. Paths here are those below the root of a hierarchy, as `/proc/PID/cgroup` has them.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use sonde_common::paths::HostPaths;

/// The path of what an OCI specification calls `cgroupsPath`. `None`: it is no such thing.
pub fn path_of(cgroups_path: &str) -> Option<String> {
    if let [slice, prefix, name] = cgroups_path.split(':').collect::<Vec<_>>()[..] {
        let unit = match (prefix, name) {
            (_, "") => return None,
            (_, slice) if slice.ends_with(".slice") => slice.to_owned(),
            ("", name) => format!("{name}.scope"),
            (prefix, name) => format!("{prefix}-{name}.scope"),
        };
        return Some(format!("{}/{unit}", expand_slice(slice)?.trim_end_matches('/')));
    }
    if cgroups_path.is_empty() || cgroups_path.contains(':') {
        return None;
    }
    if !cgroups_path.contains('/') && cgroups_path.ends_with(".slice") {
        return expand_slice(cgroups_path);
    }
    let plain = Path::new(cgroups_path)
        .components()
        .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    plain.then(|| format!("/{}", cgroups_path.trim_matches('/')))
}

/// A slice lies in those that its name begins with: `a-b.slice` is `/a.slice/a-b.slice`. Without one it is system.slice.
fn expand_slice(slice: &str) -> Option<String> {
    if slice.is_empty() {
        return Some("/system.slice".to_owned());
    }
    /// Of a file's name. The path grows with the square of it.
    const LONGEST: usize = 255;
    let name = slice.strip_suffix(".slice").filter(|name| !name.contains('/'))?;
    if slice.len() > LONGEST {
        return None;
    }
    if name == "-" {
        return Some("/".to_owned());
    }
    let (mut path, mut begun) = (String::new(), String::new());
    for part in name.split('-') {
        if part.is_empty() {
            return None;
        }
        if !begun.is_empty() {
            begun.push('-');
        }
        begun.push_str(part);
        path.push_str(&format!("/{begun}.slice"));
    }
    Some(path)
}

/// The pod's own group: the one named by its uid. Without one (a runtime used without a kubelet, or a kubelet that
/// makes none) what lies above a container is shared with others.
pub fn of_pod(path: &str, uid: &str) -> Option<String> {
    // Shorter ones, of tests or files by hand, may be part of anything.
    if uid.len() < 8 {
        return None;
    }
    let escaped = uid.replace('-', "_");
    let mut end = path.len();
    loop {
        let (above, name) = path[..end].rsplit_once('/')?;
        if name.contains(uid) || name.contains(&escaped) {
            return Some(path[..end].to_owned());
        }
        end = above.len();
    }
}

/// The roots of the hierarchies, in the order to be asked: version 2 first, then those of version 1 that runtimes
/// always use.
pub fn hierarchies(paths: &HostPaths) -> Vec<PathBuf> {
    let root = &paths.cgroup;
    if root.join("cgroup.controllers").exists() {
        return vec![root.clone()];
    }
    const FIRST: [&str; 5] = ["unified", "systemd", "pids", "memory", "cpu,cpuacct"];
    let mut others: Vec<PathBuf> = fs::read_dir(root)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_dir() && FIRST.iter().all(|first| !path.ends_with(first)))
        .collect();
    others.sort_unstable();
    let first = FIRST.iter().map(|name| root.join(name)).filter(|path| path.is_dir());
    first.chain(others).collect()
}

/// Processes of a group and all below it, without those that end meanwhile. Threads are no processes: `cgroup.procs`
/// has a line for each process, `tasks` one for each thread. `None`: no hierarchy has such a group.
pub fn processes(hierarchies: &[PathBuf], path: &str, out: &mut Vec<u32>) -> io::Result<Option<()>> {
    let mut found = None;
    for root in hierarchies {
        let dir = root.join(path.trim_start_matches('/'));
        if !dir.is_dir() {
            continue;
        }
        found = Some(());
        out.clear();
        walk(&dir, 0, out)?;
        if !out.is_empty() {
            break;
        }
    }
    out.sort_unstable();
    out.dedup();
    Ok(found)
}

/// Deeper trees than that are not made for containers.
const DEEPEST: usize = 16;

fn walk(dir: &Path, depth: usize, out: &mut Vec<u32>) -> io::Result<()> {
    match fs::read_to_string(dir.join("cgroup.procs")) {
        Ok(text) => {
            for line in text.lines() {
                match line.parse() {
                    // What the kernel says of a process that this PID namespace does not have.
                    Ok(0) => return Err(io::Error::other("its processes are of another PID namespace")),
                    Ok(pid) => out.push(pid),
                    Err(_) => return Err(io::Error::other(format!("cgroup.procs has {line:?}"))),
                }
            }
        }
        // A group of threads: its processes stand in the group above. Or it has just been removed.
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EOPNOTSUPP | libc::ENODEV | libc::ENOENT)
            ) => {}
        Err(error) => return Err(error),
    }
    if depth == DEEPEST {
        return Ok(());
    }
    let Ok(entries) = fs::read_dir(dir) else {
        return Ok(());
    };
    for entry in entries.filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), depth + 1, out)?;
        }
    }
    Ok(())
}

/// Whether any hierarchy has such a group.
pub fn exists(hierarchies: &[PathBuf], path: &str) -> bool {
    let below = path.trim_start_matches('/');
    hierarchies.iter().any(|root| root.join(below).is_dir())
}

/// The groups a process is in, that of version 2 first: lines of `number:controllers:path`.
pub fn of_process(paths: &HostPaths, pid: u32) -> Vec<String> {
    let text = fs::read_to_string(paths.proc.join(format!("{pid}/cgroup"))).unwrap_or_default();
    let mut lines: Vec<(bool, String)> = text
        .lines()
        .filter_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (number, _, path) = (parts.next()?, parts.next()?, parts.next()?);
            Some((number != "0", path.to_owned()))
        })
        .collect();
    lines.sort_by_key(|(is_old, _)| *is_old);
    lines.into_iter().map(|(_, path)| path).collect()
}

/// The group whose name holds a container's id: for runtimes that tell neither process nor path (cri-dockerd). Of
/// several the uppermost.
pub fn find_by_id(hierarchies: &[PathBuf], id: &str) -> Option<String> {
    /// Groups looked at, a bound for hosts with very many.
    const MOST: usize = 50_000;
    if id.len() < 12 {
        return None;
    }
    for root in hierarchies {
        let mut level = vec![root.clone()];
        let mut seen = 0;
        while !level.is_empty() && seen < MOST {
            let mut next = Vec::new();
            for dir in &level {
                for entry in fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok) {
                    if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                        continue;
                    }
                    seen += 1;
                    let path = entry.path();
                    if entry.file_name().to_string_lossy().contains(id) {
                        let below = path.strip_prefix(root).ok()?;
                        return Some(format!("/{}", below.display()));
                    }
                    next.push(path);
                }
            }
            level = next;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "6b1f2c3d-0000-4bd0-8e44-000000000000";

    #[test]
    fn both_ways_to_name_a_group_are_paths() {
        let slice = "kubepods-burstable-pod6b1f2c3d_0000_4bd0_8e44_000000000000.slice";
        let expanded = format!("/kubepods.slice/kubepods-burstable.slice/{slice}");
        for (named, path) in [
            ("/kubepods/burstable/podX/abc", Some("/kubepods/burstable/podX/abc")),
            ("k8s.io/abc/", Some("/k8s.io/abc")),
            ("/", Some("/")),
            (
                &format!("{slice}:cri-containerd:abc"),
                Some(&*format!("{expanded}/cri-containerd-abc.scope")),
            ),
            (
                &format!("{slice}:crio:abc"),
                Some(&format!("{expanded}/crio-abc.scope")),
            ),
            (&format!("{slice}::abc"), Some(&format!("{expanded}/abc.scope"))),
            (slice, Some(&expanded)),
            (":docker:abc", Some("/system.slice/docker-abc.scope")),
            ("-.slice:docker:abc", Some("/docker-abc.scope")),
            ("", None),
            ("/a/../../etc", None),
            ("a--b.slice:x:y", None),
            ("not-a-slice:x:y", None),
            ("a/b.slice:x:y", None),
            ("a.slice:x:", None),
            ("a:b", None),
        ] {
            assert_eq!(path_of(named).as_deref(), path, "{named}");
        }
    }

    #[test]
    fn only_a_group_named_by_the_uid_is_the_pods() {
        let escaped = UID.replace('-', "_");
        for (path, pod) in [
            (
                format!("/kubepods/burstable/pod{UID}/abc"),
                Some(format!("/kubepods/burstable/pod{UID}")),
            ),
            (format!("/kubepods/pod{UID}"), Some(format!("/kubepods/pod{UID}"))),
            (
                format!("/a.slice/a-pod{escaped}.slice/crio-abc.scope"),
                Some(format!("/a.slice/a-pod{escaped}.slice")),
            ),
            ("/k8s.io/abc".to_owned(), None),
            ("/".to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(of_pod(&path, UID), pod, "{path}");
        }
        assert_eq!(
            of_pod("/kubepods/pod1/abc", "1"),
            None,
            "a short uid is part of anything"
        );
    }

    fn group(root: &Path, path: &str, processes: &str) {
        fs::create_dir_all(root.join(path)).unwrap();
        fs::write(root.join(path).join("cgroup.procs"), processes).unwrap();
    }

    fn host() -> (tempfile::TempDir, HostPaths) {
        let dir = tempfile::tempdir().unwrap();
        let paths = HostPaths::below(dir.path());
        fs::create_dir_all(&paths.cgroup).unwrap();
        (dir, paths)
    }

    #[test]
    fn version_2_is_one_tree() {
        let (_dir, paths) = host();
        fs::write(paths.cgroup.join("cgroup.controllers"), "cpu memory\n").unwrap();
        group(&paths.cgroup, "kubepods/pod1/a", "7\n5\n");
        group(&paths.cgroup, "kubepods/pod1/b/nested", "9\n");
        group(&paths.cgroup, "kubepods/pod1", "");
        group(&paths.cgroup, "kubepods/pod2", "11\n");
        let mut pids = Vec::new();
        let roots = hierarchies(&paths);
        assert!(roots.iter().eq([&paths.cgroup]));
        assert_eq!(processes(&roots, "/kubepods/pod1", &mut pids).unwrap(), Some(()));
        assert_eq!(pids, [5, 7, 9]);
        assert_eq!(processes(&roots, "/kubepods/pod3", &mut pids).unwrap(), None);
    }

    #[test]
    fn a_hybrid_host_has_them_in_one_tree_or_the_other() {
        let (_dir, paths) = host();
        group(&paths.cgroup, "unified/kubepods/pod1", "");
        group(&paths.cgroup, "unified/kubepods/pod2", "3\n");
        group(&paths.cgroup, "memory/kubepods/pod1/a", "7\n");
        group(&paths.cgroup, "memory/kubepods/pod2/a", "4\n");
        // Threads of the same process: never read.
        fs::write(paths.cgroup.join("memory/kubepods/pod1/a/tasks"), "7\n8\n9\n").unwrap();
        group(&paths.cgroup, "blkio/kubepods/pod3", "12\n");
        let roots = hierarchies(&paths);
        assert_eq!(
            roots
                .iter()
                .map(|r| r.file_name().unwrap().to_str().unwrap())
                .collect::<Vec<_>>(),
            ["unified", "memory", "blkio"]
        );
        let of = |path| {
            let mut pids = Vec::new();
            processes(&roots, path, &mut pids).unwrap().map(|()| pids)
        };
        assert_eq!(
            of("/kubepods/pod1"),
            Some(vec![7]),
            "version 2 has the group but not the processes"
        );
        assert_eq!(of("/kubepods/pod2"), Some(vec![3]));
        assert_eq!(of("/kubepods/pod3"), Some(vec![12]));
        assert_eq!(of("/kubepods/pod4"), None);
    }

    #[test]
    fn processes_of_another_pid_namespace_are_an_error_not_nothing() {
        let (_dir, paths) = host();
        fs::write(paths.cgroup.join("cgroup.controllers"), "").unwrap();
        group(&paths.cgroup, "pod1", "0\n0\n");
        let error = processes(&hierarchies(&paths), "/pod1", &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("PID namespace"), "{error}");
    }

    #[test]
    fn a_process_tells_its_groups() {
        let (_dir, paths) = host();
        fs::create_dir_all(paths.proc.join("7")).unwrap();
        let text = "4:memory:/kubepods/pod1/a\n1:name=systemd:/x:y\n0::/kubepods/pod1/b\nbroken\n";
        fs::write(paths.proc.join("7/cgroup"), text).unwrap();
        assert_eq!(of_process(&paths, 7), ["/kubepods/pod1/b", "/kubepods/pod1/a", "/x:y"]);
        assert!(of_process(&paths, 8).is_empty());
    }

    #[test]
    fn a_container_is_found_by_its_id() {
        let (_dir, paths) = host();
        fs::write(paths.cgroup.join("cgroup.controllers"), "").unwrap();
        let id = "0123456789abcdef";
        group(
            &paths.cgroup,
            &format!("kubepods.slice/kubepods-pod1.slice/docker-{id}.scope/inner"),
            "4\n",
        );
        let roots = hierarchies(&paths);
        assert_eq!(
            find_by_id(&roots, id).as_deref(),
            Some("/kubepods.slice/kubepods-pod1.slice/docker-0123456789abcdef.scope")
        );
        assert_eq!(find_by_id(&roots, "fedcba9876543210"), None);
        assert_eq!(find_by_id(&roots, ""), None);
    }
}
