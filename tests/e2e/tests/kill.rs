//! What is left after SIGKILL, under a flood of drops.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context as _, Result, ensure};
use sonde_e2e::http;
use sonde_e2e::prom;
use sonde_e2e::site::Site;
use sonde_lab::{Family, Lab, Pod, sockets};

/// Two pods; the server drops every datagram that it gets.
struct Flood {
    client: Pod,
    server: Pod,
}

impl Flood {
    fn new(lab: &Lab) -> Result<Self> {
        let (client, server) = (lab.pod("flood", "client")?, lab.pod("flood", "server")?);
        lab.link(&client, &server)?;
        server.nft(
            "table inet lab { counter dropped { }\n\
             chain drops { type filter hook input priority 0; policy accept; meta l4proto udp counter name dropped drop; }\n}",
        )?;
        Ok(Self { client, server })
    }

    /// Runs `during` while datagrams flow, each with ports of its own: an event that comes twice cannot hide. Gives how
    /// many were sent.
    fn run<T>(&self, family: Family, during: impl FnOnce(&AtomicU64) -> Result<T>) -> Result<(u64, T)> {
        let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
        let to = |port| self.server.socket(family, port);
        let result = std::thread::scope(|scope| {
            let sender = scope.spawn(|| -> Result<()> {
                for from in 10_000..60_000 {
                    let socket = sockets::udp(&self.client, family, from)?;
                    for port in 1..=1000 {
                        // A thousand at a time with a breath between: a flood for the spool, not for the ring.
                        sent.fetch_add(sockets::send(&socket, to(port), 1, 16).accepted, Ordering::Relaxed);
                        if port % 20 == 0 {
                            std::thread::sleep(std::time::Duration::from_millis(4));
                        }
                        if stop.load(Ordering::Relaxed) {
                            return Ok(());
                        }
                    }
                }
                Ok(())
            });
            let result = during(&sent);
            stop.store(true, Ordering::Relaxed);
            sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            result
        })?;
        Ok((sent.into_inner(), result))
    }

    fn await_sent(&self, site: &Site, sent: &AtomicU64, more: u64) -> Result<()> {
        let goal = sent.load(Ordering::Relaxed) + more;
        site.until("the flood to flow", || {
            let now = sent.load(Ordering::Relaxed);
            Ok(if now >= goal {
                Ok(())
            } else {
                Err(format!("{now} of {goal}"))
            })
        })
    }
}

/// Events that went into the spool, says the collector.
fn spooled(site: &Site) -> Result<f64> {
    let samples = site.collector_metrics()?;
    let of = |outcome| prom::sum(&samples, "sonde_collector_events_total", &[("outcome", outcome)]);
    Ok(of("known").context("no such counter")? + of("unknown").context("no such counter")?)
}

/// All that are in the table, those of the namespace, and how many of these differ: at one time.
fn stored(site: &Site, namespace: &str) -> Result<(u64, u64, u64)> {
    let mine = format!("filter (where namespace = '{namespace}')");
    let rows = site.sql(&format!(
        "select count(*), count(*) {mine}, count(distinct (saddr, sport, dport)) {mine} from sonde.events"
    ))?;
    let numbers = rows.first().context("no row")?.split('|').map(str::parse);
    let numbers = numbers.collect::<Result<Vec<u64>, _>>()?;
    let [all, of, distinct] = numbers[..] else {
        anyhow::bail!("{rows:?}");
    };
    Ok((all, of, distinct))
}

#[test]
fn after_a_kill_of_the_aggregator_the_table_holds_exactly_the_events_the_spool_took() -> Result<()> {
    let Some(lab) = Lab::for_test("kill aggregator") else {
        return Ok(());
    };
    let site = Site::new(&lab, "rate: 1000000, burst: 1000000")?;
    let mut aggregator = site.aggregator()?;
    let _collector = site.collector()?;
    let flood = Flood::new(&lab)?;
    site.await_pods(&[&flood.client, &flood.server])?;
    let namespace = flood.server.namespace();

    let (sent, _aggregator) = flood.run(Family::V4, |sent| {
        flood.await_sent(&site, sent, 3000)?;
        site.until("first events in the table", || {
            let (_, count, _) = stored(&site, namespace)?;
            Ok(if count > 100 { Ok(()) } else { Err(count.to_string()) })
        })?;
        aggregator.kill()?;
        flood.await_sent(&site, sent, 3000)?;
        let again = site.aggregator()?;
        flood.await_sent(&site, sent, 1000)?;
        Ok(again)
    })?;
    let dropped = flood.server.nft_counter("dropped")?.packets;
    ensure!(dropped == sent, "{dropped} of {sent} dropped");

    // The kernel's side: every drop is counted, and became an event or is named as one that did not.
    let labels = [("k8s_namespace", namespace), ("class", "suspect")];
    site.until(&format!("{dropped} drops counted"), || {
        let found = prom::sum(&site.collector_metrics()?, "sonde_packetloss_drops_total", &labels);
        Ok(if found == Some(dropped as f64) {
            Ok(())
        } else {
            Err(format!("{found:?}"))
        })
    })?;
    // What made no event is told as a gap, which comes with the round after.
    let (events, distinct) = site.until("what the spool took to be in the table, and every drop an event or in a gap", || {
        let taken = spooled(&site)?;
        let (all, events, distinct) = stored(&site, namespace)?;
        let lost = site.sql_number(
            "select coalesce(sum(count), 0)::bigint from sonde.gaps where cause in ('rate_limited', 'ring_full')",
        )?;
        Ok(if all as f64 == taken && events > 0 && events + lost == dropped {
            Ok((events, distinct))
        } else {
            Err(format!(
                "{all} in the table of {taken} that the spool took; {events} events and {lost} in gaps of {dropped} drops"
            ))
        })
    })?;
    ensure!(
        events == distinct,
        "{} events are in the table twice",
        events - distinct
    );
    Ok(())
}

#[test]
fn after_a_kill_of_the_collector_nothing_is_twice_and_the_gap_is_told() -> Result<()> {
    let Some(lab) = Lab::for_test("kill collector") else {
        return Ok(());
    };
    let site = Site::new(&lab, "rate: 1000000, burst: 1000000")?;
    let _aggregator = site.aggregator()?;
    let mut collector = site.collector()?;
    let flood = Flood::new(&lab)?;
    site.await_pods(&[&flood.client, &flood.server])?;
    let namespace = flood.server.namespace();

    let (_, mut again) = flood.run(Family::V6, |sent| {
        flood.await_sent(&site, sent, 2000)?;
        collector.kill()?;
        flood.await_sent(&site, sent, 1000)?;
        let again = site.collector()?;
        flood.await_sent(&site, sent, 1000)?;
        Ok(again)
    })?;
    site.until("the gap in /api/v1/gaps", || {
        let answer = http::json(site.http, "/api/v1/gaps", &[("node", &site.node)])?;
        let gaps = answer["gaps"].as_array().context("no `gaps`")?;
        let told = gaps
            .iter()
            .any(|gap| gap["cause"] == "collector_down" && gap["node"] == *site.node);
        Ok(if told { Ok(()) } else { Err(answer.to_string()) })
    })?;
    // An orderly end hands over everything.
    ensure!(again.terminate()?.success(), "{}", again.log());
    let (_, count, distinct) = stored(&site, namespace)?;
    ensure!(count == distinct, "{} events are in the table twice", count - distinct);
    // The socket from before and the one from after: both runs of the collector reported.
    ensure!(count >= 1000, "{count} events");
    Ok(())
}
