//! The command line against the running system.

use anyhow::{Result, ensure};
use serde_json::Value;
use sonde_e2e::process::{Process, command, output};
use sonde_e2e::site::Site;
use sonde_lab::faults::{FROM_PORT, Fault, TO_PORT};
use sonde_lab::{Family, sockets};

use crate::shared::Shared;

const DROPS: u64 = 6;

pub(crate) fn check(shared: &Shared) -> Result<()> {
    let running = shared.running()?;
    let site = &running.site;
    let fault = Fault::find("udp-closed-port").expect("it is in the list");
    let scene = fault.scene(&site.lab, "cli")?;
    site.await_pods(&scene.pods())?;
    let namespace = scene.server.namespace();

    let mut follow = command("sonde")?;
    follow.args(["events", "-f", "-o", "json", "--namespace", namespace, "--server"]);
    follow.arg(format!("http://{}", site.http));
    let mut follow = Process::start(&site.lab, "sonde events -f", follow, &site.path().join("follow.log"))?;
    // A stream begins now, whenever that is: datagrams from another port until the first is seen.
    let other = sockets::udp(&scene.client, Family::V6, 0)?;
    site.until("a first line of `sonde events -f`", || {
        ensure!(follow.ended()?.is_none(), "it ended: {}", follow.log());
        sockets::send(&other, scene.server.socket(Family::V6, TO_PORT), 1, 8);
        Ok(if follow.log().is_empty() {
            Err("none".into())
        } else {
            Ok(())
        })
    })?;
    let injected = scene.inject(Family::V4, DROPS)?;
    running.settle()?;
    let is_mine = |event: &Value| event["sport"] == FROM_PORT && event["pod"] == "server";
    site.until("the events in `sonde events -f`", || {
        let log = follow.log();
        let events: Vec<Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let mine = events.iter().filter(|event| is_mine(event)).count() as u64;
        Ok(if mine == injected.dropped {
            Ok(())
        } else {
            Err(format!("{mine} of {}", injected.dropped))
        })
    })?;
    // Ctrl-C is how a person ends it.
    follow.signal(nix::sys::signal::Signal::SIGINT)?;
    follow.wait()?;

    let port = FROM_PORT.to_string();
    let text = sonde(
        site,
        &["events", "-o", "text", "--namespace", namespace, "--port", &port],
    )?;
    let expected = format!(
        "type=PACKETLOSS pod=server namespace={namespace} protocol=UDP saddr={} sport={FROM_PORT} daddr={} dport={TO_PORT} ",
        scene.client.address(Family::V4),
        scene.server.address(Family::V4),
    );
    let fitting = text
        .lines()
        .filter(|line| line.contains(&expected) && line.contains(" stacktrace:"))
        .count();
    ensure!(
        fitting as u64 == DROPS && text.lines().count() == fitting,
        "{expected}\n{text}"
    );

    for (arguments, expected) in [
        (&["pods", "--namespace", namespace][..], vec!["client", "server"]),
        (&["status"], vec![site.node.as_str()]),
        (&["probes"], vec!["packetloss", "tcpext", "PACKETLOSS"]),
    ] {
        let shown = sonde(site, arguments)?;
        for word in expected {
            ensure!(shown.contains(word), "sonde {arguments:?}: no {word} in {shown}");
        }
    }
    Ok(())
}

/// What `sonde` says.
fn sonde(site: &Site, arguments: &[&str]) -> Result<String> {
    let mut sonde = command("sonde")?;
    sonde
        .args(arguments)
        .arg("--server")
        .arg(format!("http://{}", site.http));
    let (code, stdout, stderr) = output(sonde)?;
    ensure!(code == Some(0), "sonde {arguments:?}: {code:?}: {stderr}");
    Ok(stdout)
}
