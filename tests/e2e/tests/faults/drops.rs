//! A fault in, and the same fact out of REST, SQL, federation and the collector's page.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde_json::Value;
use sonde_e2e::prom;
use sonde_e2e::site::Site;
use sonde_lab::faults::{Drop, Fault, Injected, Role, Signal, Topology};
use sonde_lab::{Family, Pod};

use crate::shared::Shared;

const COUNT: u64 = 12;

pub(crate) fn check(shared: &Shared, fault: &'static Fault) -> Result<()> {
    let running = shared.running()?;
    let site = &running.site;
    let scene = fault.scene(&site.lab, fault.name)?;
    site.await_pods(&scene.pods())?;
    let injected = Family::BOTH
        .map(|family| scene.inject(family, COUNT))
        .into_iter()
        .collect::<Result<Vec<_>, _>>()?;
    running.settle()?;

    let namespace = scene.client.namespace();
    let events = site.events(&[("namespace", namespace), ("probe", "packetloss")])?;
    match fault.signal {
        Signal::Event(drop) => {
            for injected in &injected {
                // Of two pods that are linked, the other one; a router's drop has two others.
                let peer = match (scene.fault.topology, drop.place) {
                    (Topology::Pair, Role::Server) => Some(&scene.client),
                    (Topology::Pair, Role::Client) => Some(&scene.server),
                    _ => None,
                };
                events_fit(&events, injected, &drop, peer)?;
            }
            let dropped = injected.iter().map(|i| i.dropped).sum::<u64>();
            ensure!(
                events.len() as u64 == dropped,
                "{dropped} packets were dropped, and these are the events: {events:#?}"
            );
            same_in_sql(site, namespace, &events)?;
            let reason = events[0]["reason"].as_str().unwrap_or_default();
            counted(site, &injected[0].place, reason, dropped)?;
            if fault.name == "tcp-closed-port" {
                resets(site, &injected)?;
            }
        }
        Signal::Counter { v4, v6, .. } => {
            ensure!(events.is_empty(), "no packet was dropped: {events:#?}");
            for (injected, counter) in injected.iter().zip([v4, v6]) {
                counter_fits(site, injected, counter)?;
            }
        }
    }
    Ok(())
}

/// As many events as packets, each with all that is to be known.
fn events_fit(events: &[Value], injected: &Injected, drop: &Drop, peer: Option<&Pod>) -> Result<()> {
    let flow = injected.flow;
    let place = &injected.place;
    let mine: Vec<&Value> = events
        .iter()
        .filter(|e| e["saddr"] == flow.from.ip().to_string())
        .collect();
    ensure!(
        mine.len() as u64 == injected.dropped,
        "{flow}: {} events, {} dropped says {}: {events:#?}",
        mine.len(),
        injected.dropped,
        injected.source
    );
    for event in mine {
        let expected = [
            ("type", Value::from("PACKETLOSS")),
            ("probe", "packetloss".into()),
            ("namespace", place.namespace().into()),
            ("pod", place.name().into()),
            ("protocol", flow.protocol.to_string().into()),
            ("saddr", flow.from.ip().to_string().into()),
            ("sport", flow.from.port().into()),
            ("daddr", flow.to.ip().to_string().into()),
            ("dport", flow.to.port().into()),
            ("direction", drop.direction.into()),
        ];
        for (key, value) in expected {
            ensure!(event[key] == value, "{key}: expected {value} in {event:#}");
        }
        let reason = event["reason"].as_str().unwrap_or_default();
        ensure!(
            drop.reasons.contains(&reason),
            "reason: expected one of {:?} in {event:#}",
            drop.reasons
        );
        if reason == "NETFILTER_DROP" {
            // Not which rule: the fault takes it away again at once.
            let attributes = &event["attributes"];
            let told = attributes["netfilter"].as_str().is_some_and(|who| who.contains("nft"));
            ensure!(
                told && attributes["nft_candidates"].is_string(),
                "expected who dropped it in {event:#}"
            );
        }
        if let Some(interface) = drop.interface {
            ensure!(
                event["interface"] == interface,
                "interface: expected {interface} in {event:#}"
            );
        }
        if let Some(peer) = peer {
            let fits = event["peer"]["namespace"] == peer.namespace() && event["peer"]["pod"] == peer.name();
            ensure!(fits, "peer: expected {peer} in {event:#}");
        }
        let stack = event["stack"].as_array().map_or(0, Vec::len);
        ensure!(stack >= 3, "stack: expected some frames in {event:#}");
    }
    Ok(())
}

/// Each refused connection is a reset sent by the server and one received by the client, told and counted.
fn resets(site: &Site, injected: &[Injected]) -> Result<()> {
    let namespace = injected[0].place.namespace();
    let all = site.events(&[("namespace", namespace), ("probe", "tcpreset")])?;
    for (kind, pod) in [("NOSOCK", "server"), ("RECEIVE", "client")] {
        for injected in injected {
            let (from, to) = (injected.flow.to, injected.flow.from);
            let expected = [
                ("type", Value::from(format!("TCPRESET_{kind}"))),
                ("pod", pod.into()),
                ("saddr", from.ip().to_string().into()),
                ("sport", from.port().into()),
                ("daddr", to.ip().to_string().into()),
                ("dport", to.port().into()),
            ];
            let mine = all
                .iter()
                .filter(|event| expected.iter().all(|(key, value)| event[key] == *value));
            ensure!(mine.count() as u64 == injected.dropped, "{kind} of {from}: {all:#?}");
        }
        let labels = [
            ("k8s_namespace", namespace),
            ("k8s_pod", pod),
            ("type", &*kind.to_lowercase()),
        ];
        let want: u64 = injected.iter().map(|injected| injected.dropped).sum();
        site.until(&format!("{kind} {want} in the collector's /metrics"), || {
            let counted = prom::sum(&site.collector_metrics()?, "sonde_tcpreset_resets_total", &labels);
            Ok(exactly(counted, want))
        })?;
    }
    ensure!(
        all.len() as u64 == 2 * injected.iter().map(|i| i.dropped).sum::<u64>(),
        "{all:#?}"
    );
    Ok(())
}

/// `sonde.events` tells the same as the API, event by event.
fn same_in_sql(site: &Site, namespace: &str, events: &[Value]) -> Result<()> {
    let rows = site.sql(&format!(
        "select id, type, reason, protocol, host(saddr), sport, host(daddr), dport, direction, namespace, pod, \
         coalesce(interface, '') from sonde.events where namespace = '{namespace}' \
         and probe = 'packetloss' order by id"
    ))?;
    let by_id: BTreeMap<u64, &Value> = events.iter().filter_map(|e| Some((e["id"].as_u64()?, e))).collect();
    ensure!(by_id.len() == events.len(), "two events have the same id: {events:#?}");
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    };
    let keys = [
        "id",
        "type",
        "reason",
        "protocol",
        "saddr",
        "sport",
        "daddr",
        "dport",
        "direction",
        "namespace",
        "pod",
        "interface",
    ];
    let expected: Vec<String> = by_id
        .values()
        .map(|event| keys.map(|key| text(&event[key])).join("|"))
        .collect();
    ensure!(rows == expected, "sonde.events: {rows:#?}\nAPI: {expected:#?}");
    Ok(())
}

/// `drops_total` of the pod is what was dropped: exactly, in `/federate` and on the collector's page.
fn counted(site: &Site, place: &Pod, reason: &str, dropped: u64) -> Result<()> {
    let metric = "sonde_packetloss_drops_total";
    let mut labels = vec![
        ("k8s_node", site.node.as_str()),
        ("k8s_namespace", place.namespace()),
        ("k8s_pod", place.name()),
        ("class", "suspect"),
    ];
    for with_reason in [false, true] {
        if with_reason {
            labels.push(("reason", reason));
        }
        site.until(&format!("{metric}{labels:?} of {dropped} in /federate"), || {
            let samples = site.federate("{__name__=~\"sonde_packetloss.*\"}")?;
            Ok(exactly(prom::sum(&samples, metric, &labels), dropped))
        })?;
        site.until(
            &format!("{metric}{labels:?} of {dropped} in the collector's /metrics"),
            || Ok(exactly(prom::sum(&site.collector_metrics()?, metric, &labels), dropped)),
        )?;
    }
    Ok(())
}

fn exactly(found: Option<f64>, expected: u64) -> Result<(), String> {
    match found {
        Some(value) if value == expected as f64 => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

/// The pod's series has the value that the kernel shows for the pod.
fn counter_fits(site: &Site, injected: &Injected, counter: &str) -> Result<()> {
    let place = &injected.place;
    let (metric, family) = match counter {
        "TcpExt.ListenOverflows" => ("sonde_tcpext_listen_overflows_total", None),
        "Ip.OutNoRoutes" => ("sonde_ip_sent_no_routes_total", Some("ipv4")),
        "Ip6.OutNoRoutes" => ("sonde_ip_sent_no_routes_total", Some("ipv6")),
        other => anyhow::bail!("which metric is {other}?"),
    };
    let mut labels = vec![("k8s_namespace", place.namespace()), ("k8s_pod", place.name())];
    labels.extend(family.map(|family| ("family", family)));
    let expected = u64::try_from(place.counters()?.get(counter).unwrap_or(-1))?;
    ensure!(
        expected >= injected.dropped,
        "{counter} of {place}: {expected}, {injected:?}"
    );
    site.until(&format!("{metric}{labels:?} of {expected} in /federate"), || {
        let samples = site.federate(&format!("{metric}{{k8s_namespace=\"{}\"}}", place.namespace()))?;
        Ok(exactly(prom::sum(&samples, metric, &labels), expected))
    })?;
    site.until(
        &format!("{metric}{labels:?} of {expected} in the collector's /metrics"),
        || {
            Ok(exactly(
                prom::sum(&site.collector_metrics()?, metric, &labels),
                expected,
            ))
        },
    )
}
