//! Pages as other programs read them.

use anyhow::{Context as _, Result, ensure};
use sonde_e2e::http;
use sonde_e2e::prom;
use sonde_lab::Family;
use sonde_lab::faults::Fault;

use crate::shared::{Running, Shared};

/// A pod that drops a known number of packets, so that every page has something to show.
fn make_drops(running: &Running, namespace: &str) -> Result<String> {
    let site = &running.site;
    let fault = Fault::find("nft-drop-input").context("no such fault")?;
    let scene = fault.scene(&site.lab, namespace)?;
    site.await_pods(&scene.pods())?;
    let injected = scene.inject(Family::V4, 7)?;
    running.settle()?;
    let namespace = scene.server.namespace().to_owned();
    site.until("the drops in /federate", || {
        let samples = site.federate(&format!("{{k8s_namespace=\"{namespace}\"}}"))?;
        let labels = [("class", "suspect")];
        let found = prom::sum(&samples, "sonde_packetloss_drops_total", &labels);
        Ok(if found == Some(injected.dropped as f64) {
            Ok(())
        } else {
            Err(format!("{found:?}"))
        })
    })?;
    Ok(namespace)
}

pub(crate) fn promtool(shared: &Shared) -> Result<()> {
    let running = shared.running()?;
    let site = &running.site;
    let namespace = make_drops(&running, "promtool")?;
    for (address, path, selector) in [
        (site.http, "/metrics", None),
        (site.http, "/federate", Some("{__name__=~\"sonde_.+\"}")),
        (site.collector_http, "/metrics", None),
    ] {
        let query: Vec<_> = selector.map(|s| ("match[]", s)).into_iter().collect();
        let page = http::get(address, path, &query)?;
        ensure!(page.status == 200, "{path}: {page:?}");
        ensure!(
            page.content_type.starts_with("text/plain"),
            "{path}: {}",
            page.content_type
        );
        let samples = prom::parse(&page.body)?;
        ensure!(samples.len() > 5, "{path}: {} samples: {}", samples.len(), page.body);
        let own = address == site.http && path == "/metrics";
        let mine = samples.iter().any(|s| s.has(&[("k8s_namespace", &namespace)]));
        ensure!(own != mine, "{path}: series of pods: {mine}");
        let complaints = prom::promtool(&page.body)?;
        ensure!(complaints.is_empty(), "{address}{path}: {complaints}");
    }
    Ok(())
}

pub(crate) fn web_page(shared: &Shared) -> Result<()> {
    let running = shared.running()?;
    let page = http::get(running.site.http, "/", &[])?;
    ensure!(
        page.status == 200 && page.content_type.starts_with("text/html"),
        "{page:?}"
    );
    let script = page
        .body
        .split('"')
        .find(|part| part.ends_with(".js"))
        .with_context(|| format!("no script in {}", page.body))?
        .trim_start_matches('.');
    let path = if script.starts_with('/') {
        script.to_owned()
    } else {
        format!("/{script}")
    };
    let script = http::get(running.site.http, &path, &[])?;
    ensure!(
        script.status == 200 && script.content_type.contains("javascript"),
        "{path}: {}",
        script.content_type
    );
    ensure!(script.body.len() > 1000, "{path}: {} bytes", script.body.len());
    Ok(())
}
