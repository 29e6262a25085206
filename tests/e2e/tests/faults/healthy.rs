//! Traffic of a healthy network gives no event, although the kernel frees packets of it.

use anyhow::{Context as _, Result, ensure};
use sonde_e2e::prom;
use sonde_lab::{Counters, Pod, healthy};

use crate::shared::Shared;

pub(crate) fn check(shared: &Shared) -> Result<()> {
    let running = shared.running()?;
    let site = &running.site;
    let (client, server) = (site.lab.pod("healthy", "client")?, site.lab.pod("healthy", "server")?);
    site.await_pods(&[&client, &server])?;
    // After they are known: what the kernel frees while a link comes up is healthy too.
    site.lab.link(&client, &server)?;
    let before = [client.counters()?, server.counters()?];
    healthy::healthy(&client, &server)?;
    running.settle()?;
    let mut events = site.events(&[("namespace", client.namespace())])?;
    // TCP sends again on a healthy network too: for a tail that it takes for lost when the other side is slow to answer, and for
    // segments that overtook others when their sender moved to another CPU. Then it counts them itself.
    let sent_again = counted(&[&client, &server], &before)?;
    let mut told = 0;
    for event in events.extract_if(.., |event| event["type"] == "TCPRETRANS") {
        let segments = event["attributes"]["segments"].as_str().map_or(Ok(1), str::parse);
        told += segments.with_context(|| event.to_string())?;
    }
    ensure!(
        told <= sent_again,
        "{told} segments sent again, the kernel counted {sent_again}"
    );
    ensure!(events.is_empty(), "{} events: {events:#?}", events.len());

    let metric = "sonde_packetloss_drops_total";
    let of_class = |class: &str| -> Result<f64> {
        let labels = [("k8s_namespace", client.namespace()), ("class", class)];
        Ok(prom::sum(&site.collector_metrics()?, metric, &labels).unwrap_or(0.0))
    };
    // The test is worth something only if packets were freed.
    site.until("frees of healthy traffic in the collector's /metrics", || {
        let (protocol, benign) = (of_class("protocol")?, of_class("benign")?);
        Ok(match protocol + benign >= 20.0 {
            true => Ok(()),
            false => Err(format!("protocol {protocol}, benign {benign}")),
        })
    })?;
    ensure!(of_class("suspect")? == 0.0, "{:#?}", {
        let samples = site.collector_metrics()?;
        let mine = |s: &prom::Sample| {
            s.name == metric && s.has(&[("k8s_namespace", client.namespace()), ("class", "suspect")])
        };
        samples.into_iter().filter(mine).collect::<Vec<_>>()
    });
    Ok(())
}

/// Segments that were sent again since, as the kernel counted them.
fn counted(pods: &[&Pod], before: &[Counters]) -> Result<u64> {
    let mut all = 0;
    for (pod, before) in pods.iter().zip(before) {
        all += pod.counters()?.since(before, "Tcp.RetransSegs")?;
    }
    Ok(all)
}
