//! What processes read, write and have open, summed up by pod: hosts made of files, and real processes.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use sonde_collector::event::NetnsKey;
use sonde_collector::pods::Pod;
use sonde_collector::probes::PROCESS_PROBES;
use sonde_collector::processes::{Finder, ProcessRounds};
use sonde_collector::serve::metrics::render;
use sonde_common::paths::HostPaths;
use sonde_common::prom::Page;
use sonde_common::time::now_ns;
use sonde_lab::{Lab, wait};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn pod(name: &str, inode: u32, cgroup: Option<&str>) -> Arc<Pod> {
    Arc::new(Pod {
        sandbox: name.into(),
        namespace: "demo".into(),
        name: name.into(),
        netns: NetnsKey { inode, cookie: 0 },
        cgroup: cgroup.map(str::to_owned),
        ..Pod::default()
    })
}

fn rounds(paths: &HostPaths) -> ProcessRounds {
    ProcessRounds::new(PROCESS_PROBES, paths, Finder::with_walks(paths, Duration::ZERO), 1_000)
}

/// The metrics of a host's pods, and the errors of its probes.
fn page(host: &str, pods: &[Arc<Pod>]) -> Vec<String> {
    let mut rounds = rounds(&HostPaths::below(&fixture(host)));
    let (tables, _) = rounds.read(1_700_000_000_000_000_000, pods);
    let mut page = Page::new();
    render(&mut page, "node-1", &tables);
    let golden = fixture(host).join("metrics.prom");
    let text = page.finish();
    if std::env::var_os("SONDE_GOLDEN").is_some_and(|v| v == "write") {
        std::fs::write(&golden, &text).unwrap();
    }
    let expected = std::fs::read_to_string(&golden).unwrap();
    for (line, (is, should)) in text.lines().zip(expected.lines()).enumerate() {
        assert_eq!(is, should, "{}:{}", golden.display(), line + 1);
    }
    assert_eq!(text.lines().count(), expected.lines().count(), "{}", golden.display());
    let stats = rounds.stats();
    let stats = stats.lock();
    let failing = stats.iter().filter(|stats| stats.failing);
    failing
        .map(|stats| format!("{}: {}", stats.name, stats.last_error))
        .collect()
}

const SLICE: &str =
    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod6b1f2c3d_0000_4bd0_8e44_00000000000";

#[test]
fn control_groups_of_version_2() {
    let group = |last: &str| format!("{SLICE}{last}.slice");
    let pods = [
        pod("web", 4_026_532_001, Some(&group("a"))),
        pod("empty", 4_026_532_002, Some(&group("b"))),
        pod("cut-short", 4_026_532_003, Some(&group("c"))),
        pod("gone", 4_026_532_005, Some(&group("d"))),
        pod("named", 4_026_532_004, None),
        Arc::new(Pod {
            host_network: true,
            name: "shared".into(),
            sandbox: "shared".into(),
            ..Pod::default()
        }),
    ];
    let errors = page("processes-cgroup-v2", &pods);
    assert_eq!(
        errors,
        ["io: io: line 1: expected seven counters"],
        "a part of a pod's processes is not its sum"
    );
}

#[test]
fn threads_in_control_groups_of_version_1_are_no_processes() {
    let group = "/kubepods/burstable/pod6b1f2c3d-0000-4bd0-8e44-00000000000a";
    let errors = page("processes-cgroup-hybrid", &[pod("web", 4_026_532_001, Some(group))]);
    assert_eq!(errors, [""; 0]);
}

/// Values of the pod's only row of each probe.
#[derive(Clone, Copy, Debug)]
struct Reading {
    writes: i64,
    write_bytes: i64,
    processes: i64,
    files: i64,
    sockets: i64,
}

/// A pod of the lab, its rounds, and shells that run in it.
struct Scene {
    place: sonde_lab::Pod,
    pod: Arc<Pod>,
    rounds: ProcessRounds,
    last: Reading,
}

impl Scene {
    fn new(lab: &Lab, name: &str) -> Self {
        let place = lab.pod("io", name).unwrap();
        let zero = Reading {
            writes: 0,
            write_bytes: 0,
            processes: 0,
            files: 0,
            sockets: 0,
        };
        Self {
            pod: pod(name, u32::try_from(place.inode()).unwrap(), None),
            place,
            rounds: rounds(&HostPaths::default()),
            last: zero,
        }
    }

    /// Children whose parent ends become its own, as in a container they become those of its first process.
    fn shell(&self) -> Shell {
        let spawn = || {
            let mut command = Command::new("bash");
            command
                .args(["--noprofile", "--norc"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped());
            // SAFETY: between fork and exec it makes a system call and nothing else.
            unsafe { command.pre_exec(|| Ok(nix::sys::prctl::set_child_subreaper(true)?)) };
            command.spawn()
        };
        let mut child = self.place.run(spawn).unwrap().unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        let mut shell = Shell { child, said };
        shell.run("exec 3>/dev/null");
        shell
    }

    fn read(&mut self) -> Reading {
        let (tables, gaps) = self.rounds.read(now_ns(), &[Arc::clone(&self.pod)]);
        assert!(gaps.is_empty(), "{gaps:?}");
        let value = |probe: &str, column: &str| {
            let table = tables.iter().find(|table| table.spec.name == probe).unwrap();
            let at = table.spec.columns.iter().position(|c| c.name == column).unwrap();
            assert_eq!(table.columns[at].len(), 1);
            table.columns[at][0]
        };
        Reading {
            writes: value("io", "write_syscalls"),
            write_bytes: value("io", "write_bytes"),
            processes: value("fd", "processes"),
            files: value("fd", "open_files"),
            sockets: value("fd", "open_sockets"),
        }
    }

    /// Reads, and says how many writes of how many bytes were made since the last time.
    fn written(&mut self) -> (i64, i64) {
        let now = self.read();
        let last = std::mem::replace(&mut self.last, now);
        (now.writes - last.writes, now.write_bytes - last.write_bytes)
    }
}

/// A shell that does what it is told and says when it is done, in one write of five bytes.
struct Shell {
    child: Child,
    said: BufReader<std::process::ChildStdout>,
}

impl Shell {
    fn run(&mut self, line: &str) {
        let input = self.child.stdin.as_mut().unwrap();
        writeln!(input, "{line}\necho done").unwrap();
        let mut said = String::new();
        self.said.read_line(&mut said).unwrap();
        assert_eq!(said, "done\n", "{line}");
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn every_write_of_a_pod_is_counted_once_whoever_made_it() {
    let Some(lab) = Lab::for_test("collector-io") else {
        return;
    };
    let mut scene = Scene::new(&lab, "writer");
    let mut shell = scene.shell();
    scene.written();
    assert_eq!(scene.last.processes, 1);
    shell.run("for ((i = 0; i < 37; i++)); do printf '%01000d' 0 >&3; done");
    assert_eq!(scene.written(), (37 + 1, 37_000 + 5));
    assert_eq!(scene.written(), (0, 0));

    // A child that comes and goes unseen: its parent has waited for it.
    shell.run("( for ((i = 0; i < 4; i++)); do printf '%0500d' 0 >&3; done )");
    assert_eq!(scene.written(), (4 + 1, 2000 + 5));

    // One that is seen, and waited for later.
    shell.run("( printf '%0300d' 0 >&3; exec sleep 1000 ) & child=$!; while [ ! -e /proc/$child ]; do :; done");
    let before = scene.last;
    until("the child's write", || {
        let now = scene.read();
        now.processes == 2 && now.write_bytes == before.write_bytes + 300 + 5
    });
    scene.written();
    shell.run("kill $child; wait $child");
    assert_eq!(scene.written(), (1, 5), "not counted again with its parent");
    assert_eq!(scene.last.processes, 1);

    // One whose parent ended before it, and that another has waited for then.
    shell.run("( ( printf '%0300d' 0 >&3; exec sleep 1000 ) & exec sleep 1000 ) & middle=$!");
    let before = scene.last;
    until("the grandchild's write", || {
        let now = scene.read();
        now.processes == 3 && now.write_bytes == before.write_bytes + 300 + 5
    });
    scene.written();
    shell.run("read -r grandchild </proc/$middle/task/$middle/children; kill $middle; wait $middle");
    assert_eq!(scene.written(), (1, 5));
    assert_eq!((scene.last.processes, scene.written()), (2, (0, 0)));
    shell.run("kill $grandchild; while [ -e /proc/$grandchild ]; do :; done");
    assert_eq!(scene.written(), (1, 5), "not counted again with who waited for it");
    assert_eq!(scene.last.processes, 1);

    // One whose parent is not of the pod: what it did stays.
    let mut other = scene.shell();
    until("the other shell", || scene.read().processes == 2);
    scene.written();
    other.run("for ((i = 0; i < 6; i++)); do printf '%0100d' 0 >&3; done");
    assert_eq!(scene.written(), (6 + 1, 600 + 5));
    drop(other);
    assert_eq!(scene.written(), (0, 0));
    assert_eq!(scene.last.processes, 1);
}

#[test]
fn every_socket_of_a_pod_is_counted_once_whoever_has_it() {
    let Some(lab) = Lab::for_test("collector-fd") else {
        return;
    };
    let mut scene = Scene::new(&lab, "opener");
    let mut shell = scene.shell();
    let before = scene.read();
    assert_eq!((before.processes, before.sockets), (1, 0));
    shell.run("for fd in 4 5 6 7; do eval \"exec $fd<>/dev/udp/127.0.0.1/9\"; done");
    let opened = scene.read();
    assert_eq!((opened.files - before.files, opened.sockets), (4, 4));
    // A second process with the same sockets.
    shell.run("sleep 1000 & child=$!");
    until("the child", || scene.read().processes == 2);
    until("its files", || {
        scene.read().sockets == 4 && scene.read().files >= opened.files + 4 + 3
    });
    shell.run("kill $child; wait $child; exec 4>&- 5>&-");
    let closed = scene.read();
    assert_eq!(
        (closed.files - before.files, closed.sockets, closed.processes),
        (2, 2, 1)
    );
    // Another place's processes are none of this one's.
    let mut elsewhere = Scene::new(&lab, "idle");
    assert_eq!(elsewhere.read().processes, 0);
}

fn until(what: &str, mut is: impl FnMut() -> bool) {
    wait::until_true(what, Duration::from_secs(20), || Ok(is())).unwrap();
}
