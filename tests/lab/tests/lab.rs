//! The lab itself: what it makes, and that it goes.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use sonde_lab::{Family, Lab, healthy, sockets, sweep, wait};

#[test]
fn healthy_traffic_goes_through_and_no_counter_of_loss_moves() {
    let Some(lab) = Lab::for_test("healthy") else { return };
    let (client, server) = (lab.pod("h", "client").unwrap(), lab.pod("h", "server").unwrap());
    lab.link(&client, &server).unwrap();
    let before = [client.counters().unwrap(), server.counters().unwrap()];
    healthy::healthy(&client, &server).unwrap();
    let after = [client.counters().unwrap(), server.counters().unwrap()];
    for (before, after) in before.iter().zip(&after) {
        for lost in [
            "Udp.NoPorts",
            "Udp6.NoPorts",
            "Udp.RcvbufErrors",
            "Udp6.RcvbufErrors",
            "Tcp.OutRsts",
            "Tcp.AttemptFails",
            "Ip.OutNoRoutes",
            "Ip.InHdrErrors",
            "Ip.OutDiscards",
            "Ip.InDiscards",
            "Ip6.OutNoRoutes",
            "Ip6.InDiscards",
            "TcpExt.ListenDrops",
        ] {
            assert_eq!(after.since(before, lost).unwrap(), 0, "{lost}");
        }
    }
}

#[test]
fn two_labs_at_once_do_not_meet() {
    let (Some(one), Some(two)) = (Lab::for_test("one"), Lab::for_test("two")) else {
        return;
    };
    assert_ne!(one.prefix(), two.prefix());
    let (a, b) = (one.pod("demo", "server").unwrap(), two.pod("demo", "server").unwrap());
    assert_ne!(a.netns(), b.netns());
    assert_eq!(a.netns(), format!("{}-demo.server", one.prefix()));
    assert_eq!(
        (a.namespace(), a.name()),
        (&*format!("{}-demo", one.prefix()), "server")
    );
    drop((one, a));
    assert!(b.path().exists(), "the end of one lab took a pod of the other");
}

#[test]
fn pods_behind_a_node_reach_each_other_and_another_node() {
    let Some(lab) = Lab::for_test("nodes") else { return };
    let (n1, n2) = (lab.node("n1").unwrap(), lab.node("n2").unwrap());
    let a = n1.pod("demo", "a").unwrap();
    let b = n1.pod("demo", "b").unwrap();
    let c = n2.pod("demo", "c").unwrap();
    let underlay = lab.link(n1.host(), n2.host()).unwrap();
    for (node, pod, via) in [(&n1, &c, &underlay.b), (&n2, &a, &underlay.a)] {
        node.host()
            .ip(&format!("route add {}/32 via {}", pod.address(Family::V4), via.v4))
            .unwrap();
        node.host()
            .ip(&format!("-6 route add {}/128 via {}", pod.address(Family::V6), via.v6))
            .unwrap();
    }
    for family in Family::BOTH {
        for server in [&b, &c] {
            let _listener = sockets::tcp_listen(server, family, 80, 8).unwrap();
            sockets::tcp_connect(&a, 0, server.socket(family, 80), Duration::from_secs(20))
                .unwrap()
                .unwrap();
        }
    }
    let links = n1.host().ip("-o link show type veth").unwrap();
    assert!(links.contains(&n1.host_device(&a)), "{links}");
}

#[test]
fn everything_goes_with_the_lab_also_when_a_test_panics() {
    let Some(lab) = Lab::for_test("panic") else { return };
    let prefix = lab.prefix().to_owned();
    let path = lab.pod("demo", "server").unwrap().path();
    assert!(path.exists());
    let panicked = std::thread::spawn(move || {
        let _pod = lab.pod("demo", "client").unwrap();
        panic!("as a failed assertion does");
    });
    assert!(panicked.join().is_err());
    assert!(!path.exists());
    assert!(!Path::new("/run/sonde-lab").join(format!("{prefix}.json")).exists());
}

#[test]
fn a_panic_in_a_pod_goes_on_in_the_test() {
    let Some(lab) = Lab::for_test("inner") else { return };
    let pod = lab.pod("demo", "server").unwrap();
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| pod.run(|| panic!("inside"))));
    assert_eq!(caught.unwrap_err().downcast_ref::<&str>(), Some(&"inside"));
}

/// Not a test of its own: the process that the test below kills.
#[test]
fn helper_that_is_killed() {
    if std::env::var_os("SONDE_LAB_HELPER").is_none() {
        return;
    }
    let lab = Lab::new("killed").unwrap();
    lab.pod("demo", "server").unwrap();
    #[expect(clippy::zombie_processes, reason = "this process is killed before it could wait")]
    let child = Command::new("sleep").arg("600").process_group(0).spawn().unwrap();
    lab.adopt(child.id()).unwrap();
    println!("\nready {} {}", lab.prefix(), child.id());
    std::thread::park();
}

#[test]
fn what_a_killed_run_leaves_goes_with_the_next() {
    let Some(_lab) = Lab::for_test("killer") else { return };
    let mut helper = Command::new(std::env::current_exe().unwrap())
        .args(["helper_that_is_killed", "--exact", "--nocapture"])
        .env("SONDE_LAB_HELPER", "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let ready = {
        use std::io::{BufRead, BufReader};
        BufReader::new(helper.stdout.take().unwrap())
            .lines()
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("ready ").map(str::to_owned))
            .expect("the helper says that it is ready")
    };
    let (prefix, child) = ready.split_once(' ').unwrap();
    let netns = format!("/run/netns/{prefix}-demo.server");
    sweep(false).unwrap();
    assert!(Path::new(&netns).exists(), "a sweep took a lab whose owner lives");
    helper.kill().unwrap();
    helper.wait().unwrap();
    // Another test's lab may have swept first; the state is the same.
    sweep(false).unwrap();
    assert!(!Path::new(&netns).exists());
    wait::until(&format!("process {child} to end"), Duration::from_secs(20), || {
        let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        Ok(match stat.is_empty() || stat.contains(") Z") {
            true => wait::Look::Found(()),
            false => wait::Look::NotYet(stat),
        })
    })
    .unwrap();
}
