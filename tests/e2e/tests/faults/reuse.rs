//! Pods that end: their late events, and a namespace whose inode is used again.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use sonde_e2e::prom;
use sonde_e2e::site::Site;
use sonde_lab::faults::Fault;
use sonde_lab::wait::{Look, until};
use sonde_lab::{Family, Pod};

use crate::shared::Shared;

const DROPS: u64 = 9;

/// A scene whose server drops what the client sends, and the drops made.
fn drops(site: &Site, namespace: &str) -> Result<sonde_lab::faults::Scene> {
    let fault = Fault::find("nft-drop-input").context("no such fault")?;
    let scene = fault.scene(&site.lab, namespace)?;
    site.await_pods(&scene.pods())?;
    let injected = scene.inject(Family::V4, DROPS)?;
    ensure!(injected.dropped == DROPS, "{injected:?}");
    Ok(scene)
}

fn named(event: &Value, pod: &Pod) -> bool {
    event["namespace"] == pod.namespace() && event["pod"] == pod.name()
}

pub(crate) fn late_events(shared: &Shared) -> Result<()> {
    let running = shared.running()?;
    let site = &running.site;
    let scene = drops(site, "late")?;
    // At once: the events are still on their way.
    scene.server.delete()?;
    scene.client.delete()?;
    running.settle()?;
    let events = site.events(&[("ip", &scene.client.address(Family::V4).to_string())])?;
    ensure!(events.len() as u64 == DROPS, "{events:#?}");
    for event in &events {
        ensure!(named(event, &scene.server), "not of {}: {event:#}", scene.server);
    }
    site.until("the end of the pod in /api/v1/pods", || {
        let query = [
            ("namespace", scene.server.namespace()),
            ("pod", scene.server.name()),
            ("all", "true"),
        ];
        let answer = sonde_e2e::http::json(site.http, "/api/v1/pods", &query)?;
        let ended = answer["pods"][0]["valid_to"].is_string();
        Ok(if ended { Ok(()) } else { Err(answer.to_string()) })
    })?;
    site.until("the end of its series in /federate", || {
        let samples = site.federate(&format!("{{k8s_namespace=\"{}\"}}", scene.server.namespace()))?;
        Ok(if samples.is_empty() {
            Ok(())
        } else {
            Err(format!("{} series", samples.len()))
        })
    })
}

pub(crate) fn reused_inode(shared: &Shared) -> Result<()> {
    let running = shared.running()?;
    let site = &running.site;
    let old = drops(site, "before")?;
    let inode = old.server.inode();
    old.server.delete()?;
    // The kernel gives the number away as soon as nobody holds the namespace any more, Sonde included.
    let heir = until(
        &format!("a namespace with inode {inode}"),
        Duration::from_secs(60),
        || {
            let pod = site.lab.pod("after", "server")?;
            if pod.inode() == inode {
                return Ok(Look::Found(pod));
            }
            let other = pod.inode();
            pod.delete()?;
            Ok(Look::NotYet(other.to_string()))
        },
    )?;
    let client = site.lab.pod("after", "client")?;
    site.lab.link(&client, &heir)?;
    site.await_pods(&[&client, &heir])?;
    let closed = sonde_lab::sockets::udp(&client, Family::V4, 40_002)?;
    let sent = sonde_lab::sockets::send(&closed, heir.socket(Family::V4, 9), 4, 8);
    ensure!(sent.accepted == 4, "{sent:?}");
    running.settle()?;

    let events = |pod: &Pod| site.events(&[("namespace", pod.namespace()), ("pod", pod.name())]);
    let (before, after) = (events(&old.server)?, events(&heir)?);
    ensure!(
        before.len() as u64 == DROPS && before.iter().all(|e| e["reason"] == "NETFILTER_DROP"),
        "of the first pod: {before:#?}"
    );
    ensure!(
        after.len() == 4 && after.iter().all(|e| e["reason"] == "NO_SOCKET"),
        "of its heir: {after:#?}"
    );
    // Exactly its own drops, and none of the reason that only the first one had.
    let labels = [
        ("k8s_namespace", heir.namespace()),
        ("k8s_pod", heir.name()),
        ("class", "suspect"),
    ];
    site.until("the heir's drops in /federate", || {
        let samples = site.federate(&format!("{{k8s_namespace=\"{}\"}}", heir.namespace()))?;
        let found = prom::sum(&samples, "sonde_packetloss_drops_total", &labels);
        Ok(if found == Some(4.0) {
            Ok(())
        } else {
            Err(format!("{found:?}"))
        })
    })
}
