//! Pods of a real container runtime: containerd with runc and CNI, in a network namespace that plays the node.

mod image;
mod node;
mod program;
mod watched;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sonde_collector::event::{NetnsKey, Subject};
use sonde_collector::pods::Pod;
use sonde_collector::serve::metrics::render;
use sonde_common::prom::Page;
use sonde_common::time::now_ns;
use sonde_lab::wait;

use node::{Node, Sandbox, Wanted, drop_datagrams, pairs};
use watched::{Watched, column, name, value};

const PATIENCE: Duration = Duration::from_secs(20);

fn node() -> Option<Node> {
    match Node::available() {
        Ok(()) => Some(Node::start().unwrap_or_else(|error| panic!("{error:#}"))),
        Err(why) => {
            println!("SKIPPED: {why}");
            None
        }
    }
}

fn by_netns(watched: &Watched, inode: u64, cookie: u64, at_ns: u64) -> String {
    let key = NetnsKey {
        inode: u32::try_from(inode).unwrap(),
        cookie,
    };
    name(&watched.index.by_netns(key, at_ns))
}

fn assert_same(found: &Pod, wanted: &Wanted, sandbox: &Sandbox) {
    assert_eq!(found.sandbox, sandbox.id);
    assert_eq!(
        (found.namespace.as_str(), &found.name),
        (wanted.namespace, &wanted.name)
    );
    assert_eq!((&found.uid, found.attempt), (&wanted.uid, wanted.attempt));
    assert_eq!(found.labels, pairs(&wanted.labels), "without what repeats the name");
    assert_eq!(found.annotations, pairs(&wanted.annotations));
    assert_eq!(found.ips, sandbox.ips);
    assert_eq!(found.cgroup, Some(wanted.cgroup()));
    assert_eq!(found.host_network, wanted.host_network);
    assert!(found.valid_from_ns <= now_ns() && found.valid_from_ns + 60_000_000_000 > now_ns());
    if !wanted.host_network {
        assert_eq!(u64::from(found.netns.inode), sandbox.inode);
        assert_ne!(found.netns.cookie, 0, "the kernel of this test has cookies");
    }
}

#[test]
fn pods_of_every_kind_are_found_with_their_names_addresses_and_numbers() {
    let Some(mut node) = node() else { return };
    let mut web = Wanted::new("default", "web-5d4f6c7b8-x2x4z");
    web.labels = vec![("app", "web"), ("pod-template-hash", "5d4f6c7b8")];
    web.annotations = vec![("team", "net"), ("kubernetes.io/config.source", "api")];
    let mut proxy = Wanted::new("kube-system", "proxy-bcdf2");
    proxy.labels = vec![("controller-revision-hash", "6f7c8d9b4")];
    proxy.host_network = true;
    let (web_ran, proxy_ran) = (node.run(&web).unwrap(), node.run(&proxy).unwrap());
    let app = node.container(&web, &web_ran).unwrap();

    let watched = Watched::start(&node, Path::new("/"));
    let found = watched.pod(&web_ran.id).expect("known when the sources have started");
    assert_same(&found, &web, &web_ran);
    assert_eq!(
        (web_ran.ips.len(), web_ran.ips[0].is_ipv4(), web_ran.ips[1].is_ipv6()),
        (2, true, true)
    );
    assert_eq!(
        (found.workload_kind.as_str(), found.workload.as_str()),
        ("Deployment", "web")
    );
    for ip in &web_ran.ips {
        assert_eq!(
            watched.index.by_ip(*ip, now_ns()).as_ref().map(name).as_deref(),
            Some("web-5d4f6c7b8-x2x4z")
        );
    }
    assert_eq!(by_netns(&watched, web_ran.inode, 0, now_ns()), "web-5d4f6c7b8-x2x4z");
    // Named in /run/netns too, and the globs of the test take that name: one pod all the same, the runtime's.
    assert!(
        web_ran.netns.file_name().unwrap().to_str().unwrap().starts_with("cni-"),
        "{web_ran:?}"
    );
    let of_inode = |inode: u64| {
        watched
            .index
            .live()
            .iter()
            .filter(|pod| u64::from(pod.netns.inode) == inode)
            .count()
    };
    assert_eq!(of_inode(web_ran.inode), 1);

    // On the host network: a pod, but the node's namespace stays the node's, and is read once.
    let shared = watched.pod(&proxy_ran.id).unwrap();
    assert_same(&shared, &proxy, &proxy_ran);
    assert!(shared.ips.is_empty() && shared.netns == NetnsKey::default());
    assert_eq!(
        (shared.workload_kind.as_str(), shared.workload.as_str()),
        ("DaemonSet", "proxy")
    );
    let own = watched.targets.load();
    assert!(
        own.iter()
            .all(|target| target.subject != Subject::Pod(Arc::clone(&shared)))
    );
    assert!(!watched.keys.lock().contains(&NetnsKey::default()));

    numbers(&watched, &web_ran, app, &proxy_ran);
    attempts(&mut node, &watched);
    two_seconds(&mut node, &watched);

    node.stop(&web_ran.id).unwrap();
    watched.wait_for_end(&found);
    assert!(found.valid_to_ns.load(Ordering::Acquire) > found.valid_from_ns);
    // The runtime still names the namespace of a stopped sandbox.
    let (_, info) = node.info(&web_ran.id).unwrap();
    let text = info["runtimeSpec"]["linux"]["namespaces"].to_string();
    assert!(
        text.contains(web_ran.netns.to_str().unwrap()) && info["pid"] == 0,
        "{text}"
    );
    assert!(!Path::new(&web_ran.netns).exists());
    node.stop(&proxy_ran.id).unwrap();
    watched.wait_for_end(&shared);
    assert_eq!(watched.missing.list(), Default::default());
}

/// Of the network namespace and of processes, moved by exact amounts.
fn numbers(watched: &Watched, web: &Sandbox, app: i32, proxy: &Sandbox) {
    let pod = "web-5d4f6c7b8-x2x4z";
    let before = watched.tables();
    assert_eq!(
        value(&before, "fd", "processes", pod),
        2,
        "the sandbox's own and the container's"
    );
    assert_eq!(value(&before, "fd", "open_sockets", pod), 0);
    assert_eq!(
        value(&before, "fd", "processes", "proxy-bcdf2"),
        1,
        "counted by its control group"
    );
    drop_datagrams(&web.netns, 21).unwrap();
    kill(Pid::from_raw(app), Signal::SIGUSR1).unwrap();
    wait::until_true("the program's work", PATIENCE, || {
        let fds = std::fs::read_dir(format!("/proc/{app}/fd")).unwrap().count();
        Ok(fds as i64 >= 3 + image::SOCKETS)
    })
    .unwrap();
    let after = watched.tables();
    let moved = |probe: &str, of: &str, key: &str| column(&after, probe, of)[key] - column(&before, probe, of)[key];
    assert_eq!(moved("udp", "no_ports", &format!("{pod} ipv4")), 21);
    assert_eq!(moved("io", "write_syscalls", &format!("{pod} ")), image::WRITES);
    assert_eq!(
        moved("io", "write_bytes", &format!("{pod} ")),
        image::WRITES * image::WRITE_BYTES
    );
    assert_eq!(moved("io", "read_syscalls", &format!("{pod} ")), 0);
    assert_eq!(moved("fd", "open_sockets", &format!("{pod} ")), image::SOCKETS);
    assert_eq!(moved("fd", "open_files", &format!("{pod} ")), image::SOCKETS);
    assert_eq!(moved("io", "write_syscalls", "proxy-bcdf2 "), 0);
    assert!(!column(&after, "udp", "no_ports").contains_key("proxy-bcdf2 ipv4"));
    assert!(proxy.netns.as_os_str().is_empty());
}

/// A pod of a set comes again under its name, and for a while both sandboxes are there.
fn attempts(node: &mut Node, watched: &Watched) {
    let mut db = Wanted::new("default", "db-0");
    db.labels = vec![("statefulset.kubernetes.io/pod-name", "db-0")];
    let first = node.run(&db).unwrap();
    let old = watched.wait_for(&first.id);
    let again = Wanted {
        attempt: 1,
        ..db.clone()
    };
    let second = node.run(&again).unwrap();
    let found = watched.wait_for(&second.id);
    assert_same(&found, &again, &second);
    assert_eq!(
        (found.workload_kind.as_str(), found.workload.as_str()),
        ("StatefulSet", "db")
    );
    assert!(!old.has_ended());

    drop_datagrams(&first.netns, 3).unwrap();
    drop_datagrams(&second.netns, 4).unwrap();
    let mut page = Page::new();
    render(&mut page, "node-1", &watched.tables());
    let text = page.finish();
    let series =
        "sonde_udp_no_ports_total{k8s_node=\"node-1\",k8s_namespace=\"default\",k8s_pod=\"db-0\",family=\"ipv4\"}";
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with(series)).collect();
    assert_eq!(lines, [format!("{series} 7")], "one series, of both");

    node.stop(&first.id).unwrap();
    watched.wait_for_end(&old);
    let at_ns = now_ns();
    assert_eq!(by_netns(watched, first.inode, old.netns.cookie, at_ns), "db-0");
    assert_eq!(watched.index.live().iter().filter(|pod| pod.name == "db-0").count(), 1);
    node.stop(&second.id).unwrap();
    watched.wait_for_end(&found);
}

/// What lived two seconds is found while it lives and is known after.
fn two_seconds(node: &mut Node, watched: &Watched) {
    let job = Wanted {
        labels: vec![("job-name", "import")],
        ..Wanted::new("default", "import-x2x4z")
    };
    let begun = Instant::now();
    let ran = node.run(&job).unwrap();
    let at_ns = now_ns();
    let ready = begun.elapsed();
    let found = watched.wait_for(&ran.id);
    println!("found {:?} after it ran, which took {ready:?}", begun.elapsed() - ready);
    assert_same(&found, &job, &ran);
    std::thread::sleep(Duration::from_secs(2).saturating_sub(begun.elapsed()));
    node.stop(&ran.id).unwrap();
    node.remove(&ran.id).unwrap();
    watched.wait_for_end(&found);
    for (cookie, why) in [(found.netns.cookie, "by cookie"), (0, "by time")] {
        assert_eq!(by_netns(watched, ran.inode, cookie, at_ns), "import-x2x4z", "{why}");
    }
    let owner = watched.index.by_ip(ran.ips[0], at_ns);
    assert_eq!(owner.as_ref().map(name).as_deref(), Some("import-x2x4z"));
}

#[test]
fn pods_outlive_their_runtime_and_their_first_process() {
    let Some(mut node) = node() else { return };
    let watched = Watched::start(&node, Path::new("/"));
    let (a, b) = (Wanted::new("default", "a"), Wanted::new("default", "b"));
    let (a_ran, b_ran) = (node.run(&a).unwrap(), node.run(&b).unwrap());
    let (a_found, b_found) = (watched.wait_for(&a_ran.id), watched.wait_for(&b_ran.id));

    // The first process killed: not ready, no process, but the namespace is there, and what it does is the pod's.
    kill(Pid::from_raw(b_ran.pid), Signal::SIGKILL).unwrap();
    wait::until_true("b not ready", PATIENCE, || {
        let (status, info) = node.info(&b_ran.id).unwrap();
        Ok(status.state == 1 && info["pid"] == 0)
    })
    .unwrap();
    let (status, info) = node.info(&b_ran.id).unwrap();
    assert!(info["netNamespaceClosed"] == false && !status.network.unwrap().ip.is_empty());
    watched.wait_for_lists(3);
    assert!(!b_found.has_ended());
    let before = watched.tables();
    drop_datagrams(&b_ran.netns, 6).unwrap();
    let moved = value(&watched.tables(), "udp", "no_ports", "b") - value(&before, "udp", "no_ports", "b");
    assert_eq!(moved, 6);

    // The runtime killed: nothing of it answers, its pods go on.
    node.kill_containerd().unwrap();
    wait::until_true("said that it is away", PATIENCE, || {
        Ok(!watched.missing.list().is_empty())
    })
    .unwrap();
    let said = watched.missing.list();
    assert!(
        said["pods of the container runtime"].contains("containerd.sock: "),
        "{said:?}"
    );
    std::thread::sleep(Duration::from_secs(2));
    assert!(!a_found.has_ended() && !b_found.has_ended());
    drop_datagrams(&a_ran.netns, 2).unwrap();
    assert_eq!(value(&watched.tables(), "udp", "no_ports", "a"), 2);

    // It comes back: the same pods, not found again; a new one is found, a stopped one ends.
    node.start_containerd().unwrap();
    let late = Wanted::new("default", "late");
    let late_ran = node.run(&late).unwrap();
    let late_found = watched.wait_for(&late_ran.id);
    assert_same(&late_found, &late, &late_ran);
    assert_eq!(watched.missing.list(), Default::default(), "it is there again");
    for (pod, id) in [(&a_found, &a_ran.id), (&b_found, &b_ran.id)] {
        assert!(Arc::ptr_eq(&watched.pod(id).unwrap(), pod));
    }
    node.stop(&b_ran.id).unwrap();
    watched.wait_for_end(&b_found);

    // All of it killed, as by a node that ran out of memory: the namespace stays until somebody clears it away.
    node.kill_containerd().unwrap();
    node.kill_pod(&late_ran).unwrap();
    node.start_containerd().unwrap();
    wait::until_true("late not ready", PATIENCE, || {
        Ok(node.info(&late_ran.id).unwrap().0.state == 1)
    })
    .unwrap();
    watched.wait_for_lists(3);
    assert!(!late_found.has_ended() && late_ran.netns.exists());
    node.stop(&late_ran.id).unwrap();
    watched.wait_for_end(&late_found);
    let last = Wanted::new("default", "last");
    let last_ran = node.run(&last).unwrap();
    let last_found = watched.wait_for(&last_ran.id);

    // What is stopped while nobody asks is ended when somebody does. A collector that starts later knows it is none.
    node.stop(&a_ran.id).unwrap();
    watched.wait_for_end(&a_found);
    drop(watched);
    let later = Watched::start(&node, Path::new("/"));
    assert_eq!(later.names(), ["default/last"]);
    assert_eq!(
        later.pod(&last_ran.id).unwrap().valid_from_ns,
        last_found.valid_from_ns,
        "the runtime knows since when"
    );
}

#[test]
fn a_namespace_that_is_not_mounted_here_is_found_by_its_process() {
    let Some(mut node) = node() else { return };
    // As in a container whose mounts are its own: what is mounted later is a plain file here.
    let watched = std::thread::scope(|scope| {
        let start = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
            let private = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE;
            nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
            Watched::start(&node, Path::new("/"))
        };
        scope.spawn(start).join().unwrap()
    });
    let pod = Wanted::new("default", "pod");
    let ran = node.run(&pod).unwrap();
    let found = watched.wait_for(&ran.id);
    assert_same(&found, &pod, &ran);
    drop_datagrams(&ran.netns, 9).unwrap();
    assert_eq!(value(&watched.tables(), "udp", "no_ports", "pod"), 9);
    node.stop(&ran.id).unwrap();
    watched.wait_for_end(&found);
}

#[test]
fn the_program_names_the_pod_of_a_drop() {
    let Some(mut node) = node() else { return };
    program::drops_name_their_pod(&mut node);
}
