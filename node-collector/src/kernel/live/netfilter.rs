//! What netfilter dropped a packet for: rules of real rulesets, held against what `nft` itself lists.

use std::os::fd::OwnedFd;
use std::sync::mpsc;

use sonde_common::paths::HostPaths;
use sonde_lab::faults::Role;
use sonde_lab::{Pod as LabPod, sockets};

use super::*;
use crate::handles::Handles;
use crate::missing::Missing;
use crate::netfilter::Explainer;
use crate::pods::{Target, Targets};

mod conntrack;
mod traced;

const FROM_PORT: u16 = 40_000;
const TO_PORT: u16 = 40_009;

/// A kernel side, and behind it what the pipeline has.
struct Explained {
    live: Live,
    explainer: Explainer,
    explained: mpsc::Receiver<Vec<Event>>,
    missing: Arc<Missing>,
}

fn explain(config: &Config, pods: &[&LabPod]) -> Option<Explained> {
    let live = start(config, index_of(pods.iter().copied()), None)?;
    let targets = Targets::default();
    let of = |pod: &Arc<crate::pods::Pod>| {
        let lab = pods.iter().find(|lab| lab.inode() as u32 == pod.netns.inode).unwrap();
        Arc::new(Target {
            subject: Subject::Pod(Arc::clone(pod)),
            handles: Handles::failed(&HostPaths::default(), std::io::ErrorKind::Unsupported.into()),
            netns: Some(OwnedFd::from(std::fs::File::open(lab.path()).unwrap())),
        })
    };
    targets.store(live.index.live().iter().map(of).collect());
    let (sender, explained) = mpsc::channel();
    let missing = Arc::new(Missing::default());
    let deliver = move |events| {
        let _ = sender.send(events);
    };
    let index = Arc::clone(&live.index);
    let explainer = Explainer::start(config, index, Arc::new(targets), Arc::clone(&missing), deliver).unwrap();
    Some(Explained {
        live,
        explainer,
        explained,
        missing,
    })
}

impl Explained {
    /// The next events of netfilter, when there are so many.
    fn next(&mut self, count: usize) -> Vec<Event> {
        let mut all = Vec::new();
        until(&format!("{count} explained events"), || {
            let mut events = Vec::new();
            self.live.take(&mut events);
            self.explainer.take(&mut events);
            while let Ok(more) = self.explained.try_recv() {
                all.extend(more);
            }
            all.len() >= count
        });
        assert_eq!(all.len(), count, "{:#?}", all.iter().map(line).collect::<Vec<_>>());
        all
    }
}

fn attribute<'a>(event: &'a Event, name: &str) -> Option<&'a str> {
    let all = &event.observation.attributes;
    all.iter().find(|(known, _)| *known == name).map(|(_, value)| &**value)
}

/// One datagram from the client's known port to the server's. It may be refused: an output rule does that.
fn send(from: &LabPod, to: &LabPod, family: Family) {
    send_to_port(from, to, family, TO_PORT);
}

fn send_to_port(from: &LabPod, to: &LabPod, family: Family, port: u16) {
    let socket = sockets::udp(from, family, FROM_PORT).unwrap();
    let _ = socket.send_to(b"x", to.socket(family, port));
}

/// The handle of the rule with that comment, as `nft` has it.
fn handle(pod: &LabPod, comment: &str) -> u64 {
    let text = pod.command("nft", &["-j", "-a", "list", "ruleset"]).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let rules = json["nftables"].as_array().unwrap().iter();
    let mut found = rules.filter(|item| item["rule"]["comment"] == comment);
    let rule = found.next().unwrap_or_else(|| panic!("{comment} in {text}"));
    assert!(found.next().is_none(), "{comment} is there twice");
    rule["rule"]["handle"].as_u64().unwrap()
}

struct Case {
    place: Role,
    hook: &'static str,
    /// With other rules that cannot have dropped the packet.
    ruleset: &'static str,
    /// How the only candidate is to be told; `{}` is the handle of the rule with the comment `it`.
    told: &'static str,
}

const CASES: [Case; 12] = [
    Case {
        place: Role::Server,
        hook: "input",
        ruleset: "table inet t { chain c { type filter hook input priority 0; tcp dport 40009 drop; udp dport 40009 drop comment \"it\"; udp dport 1 drop\n }\n }",
        told: "inet/t c rule {} drop \"it\"",
    },
    Case {
        place: Role::Server,
        hook: "input",
        ruleset: "table inet t { chain c { type filter hook input priority 0; udp dport 40000-40010 reject comment \"it\"\n }\n
                  chain o { type filter hook output priority 0; udp sport 40009 drop\n }\n }",
        told: "inet/t c rule {} reject \"it\"",
    },
    Case {
        place: Role::Server,
        hook: "prerouting",
        ruleset: "table inet t { chain c { type filter hook prerouting priority -200; meta l4proto udp drop comment \"it\"; ip saddr 192.0.2.0/24 drop\n }\n }",
        told: "inet/t c rule {} drop \"it\"",
    },
    Case {
        place: Role::Client,
        hook: "output",
        ruleset: "table inet t { chain c { type filter hook output priority 0; udp sport 40000 drop comment \"it\"\n }\n }",
        told: "inet/t c rule {} drop \"it\"",
    },
    Case {
        place: Role::Client,
        hook: "postrouting",
        ruleset: "table inet t { chain c { type filter hook postrouting priority 0; udp dport 40009 drop comment \"it\"\n }\n }",
        told: "inet/t c rule {} drop \"it\"",
    },
    Case {
        place: Role::Router,
        hook: "forward",
        ruleset: "table inet t { chain c { type filter hook forward priority 0; udp dport 40009 drop comment \"it\"\n }\n
                  chain i { type filter hook input priority 0; udp dport 40009 drop\n }\n }",
        told: "inet/t c rule {} drop \"it\"",
    },
    Case {
        place: Role::Server,
        hook: "input",
        ruleset: "table inet t { chain c { type filter hook input priority 0; policy drop; tcp dport 40009 accept; icmpv6 type nd-neighbor-solicit accept; icmpv6 type nd-neighbor-advert accept\n }\n }",
        told: "inet/t c policy drop",
    },
    Case {
        place: Role::Server,
        hook: "input",
        ruleset: "table inet t { chain blocked { udp dport 40009 counter drop comment \"it\"\n }\n
                  chain tcps { udp dport 40009 drop\n }\n
                  chain middle { meta mark 0 jump blocked\n }\n
                  chain unused { drop\n }\n
                  chain c { type filter hook input priority 0; meta l4proto tcp jump tcps; meta l4proto udp goto middle\n }\n }",
        told: "inet/t c > middle > blocked rule {} drop \"it\"",
    },
    Case {
        place: Role::Server,
        hook: "input",
        ruleset: "table inet t { map m { type inet_service : verdict; elements = { 40009 : goto blocked, 1 : accept }\n }\n
                  chain blocked { drop comment \"it\"\n }\n
                  chain c { type filter hook input priority 0; udp dport vmap @m\n }\n }",
        told: "inet/t c > blocked rule {} drop \"it\"",
    },
    Case {
        place: Role::Server,
        hook: "input",
        ruleset: "table inet t { chain c { type filter hook input priority 0; meta l4proto udp udp dport vmap { 40009 : drop, 7 : accept } comment \"it\"\n }\n }",
        told: "inet/t c rule {} drop \"it\"",
    },
    Case {
        place: Role::Server,
        hook: "ingress",
        ruleset: "table netdev t { chain c { type filter hook ingress device eth0 priority 0; udp dport 40009 drop comment \"it\"\n }\n
                  chain l { type filter hook ingress device lo priority 0; drop\n }\n }",
        told: "netdev/t c rule {} drop \"it\"",
    },
    Case {
        place: Role::Client,
        hook: "egress",
        ruleset: "table netdev t { chain c { type filter hook egress device eth0 priority 0; udp dport 40009 drop comment \"it\"\n }\n }",
        told: "netdev/t c rule {} drop \"it\"",
    },
];

#[test]
fn the_rule_that_dropped_is_the_only_candidate_at_every_hook() {
    let Some(lab) = lab_alone("nft-hooks") else { return };
    for (number, case) in CASES.iter().enumerate() {
        let fault = match case.place {
            Role::Router => "nft-drop-forward",
            _ => "nft-drop-input",
        };
        let scene = Fault::find(fault)
            .unwrap()
            .scene(&lab, &format!("case{number}"))
            .unwrap();
        let Some(mut explained) = explain(&config(), &scene.pods()) else {
            return;
        };
        let place = scene.pod(case.place);
        place.nft(case.ruleset).unwrap();
        let told = match case.told.contains("{}") {
            true => case.told.replace("{}", &handle(place, "it").to_string()),
            false => case.told.to_owned(),
        };
        for family in Family::BOTH {
            for round in 0..2 {
                send(&scene.client, &scene.server, family);
                let events = explained.next(1);
                let (event, what) = (&events[0], format!("case {number} {family}: {}", line(&events[0])));
                assert_eq!(name(&event.subject), place.name(), "{what}");
                assert_eq!(event.observation.dport, Some(TO_PORT), "{what}");
                assert_eq!(attribute(event, "hook"), Some(case.hook), "{what}");
                let who = attribute(event, "netfilter").unwrap();
                assert!(
                    who == "nft" || !kernel_tells_nft() && who.starts_with("nft, "),
                    "{what}"
                );
                assert_eq!(attribute(event, "nft"), Some(&*told), "{what}");
                assert_eq!(attribute(event, "nft_candidates"), Some("1"), "{what}");
                let ruleset = attribute(event, "nft_ruleset").unwrap();
                match (family, round) {
                    (Family::V4, 0) => assert!(ruleset.ends_with("after the drop"), "{what}"),
                    _ => assert_eq!(ruleset, "unchanged since before the drop", "{what}"),
                }
            }
        }
        let read = explained
            .explainer
            .stats()
            .rulesets
            .load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(read, 1, "case {number}: one reading for all");
        assert!(explained.missing.list().is_empty(), "{:?}", explained.missing.list());
    }
}

#[test]
fn what_cannot_be_told_apart_is_all_told_and_a_change_is_seen() {
    let Some(lab) = lab_alone("nft-several") else { return };
    let scene = Fault::find("nft-drop-input").unwrap().scene(&lab, "several").unwrap();
    let Some(mut explained) = explain(&config(), &scene.pods()) else {
        return;
    };
    // Marks are not looked at, so either rule can have been it.
    let two = "table inet t { chain c { type filter hook input priority 0; meta mark 7 drop comment \"no\"; udp dport 40009 drop comment \"yes\"\n }\n }";
    scene.server.nft(two).unwrap();
    let names = |scene: &sonde_lab::faults::Scene, comments: &[&str]| {
        let of = |comment: &&str| format!("inet/t c rule {} drop \"{comment}\"", handle(&scene.server, comment));
        comments.iter().map(of).collect::<Vec<_>>().join("; ")
    };
    send(&scene.client, &scene.server, Family::V4);
    let events = explained.next(1);
    assert_eq!(attribute(&events[0], "nft"), Some(&*names(&scene, &["no", "yes"])));
    assert_eq!(attribute(&events[0], "nft_candidates"), Some("2"));

    let many: String = (0..9)
        .map(|n| format!("add rule inet t c meta mark {n} drop comment \"m{n}\"\n"))
        .collect();
    scene.server.nft(&many).unwrap();
    send(&scene.client, &scene.server, Family::V6);
    let events = explained.next(1);
    let shown = names(&scene, &["no", "yes", "m0", "m1", "m2"]);
    assert_eq!(attribute(&events[0], "nft"), Some(&*format!("{shown}; and 6 more")));
    assert_eq!(attribute(&events[0], "nft_candidates"), Some("11"));
    assert!(
        attribute(&events[0], "nft_ruleset")
            .unwrap()
            .ends_with("after the drop")
    );

    // A rule that changes packets: what later rules demand was not asked about the packet that was dropped.
    scene
        .server
        .nft("flush ruleset; table inet t { chain c { type filter hook input priority 0; udp dport 40009 udp dport set 5; udp dport 5 drop comment \"changed\"; udp dport 6 drop comment \"six\"\n }\n }")
        .unwrap();
    send(&scene.client, &scene.server, Family::V4);
    let events = explained.next(1);
    assert_eq!(events[0].observation.dport, Some(5), "as the rule changed it");
    assert_eq!(attribute(&events[0], "nft"), Some(&*names(&scene, &["changed", "six"])));
}

#[test]
fn a_storm_of_drops_costs_one_reading() {
    let Some(lab) = lab_alone("nft-storm") else { return };
    let scene = Fault::find("nft-drop-input").unwrap().scene(&lab, "storm").unwrap();
    let Some(mut explained) = explain(&config(), &scene.pods()) else {
        return;
    };
    let drop =
        "table inet t { chain c { type filter hook input priority 0; udp dport 40009 drop comment \"it\"\n }\n }";
    scene.server.nft(drop).unwrap();
    let socket = sockets::udp(&scene.client, Family::V4, FROM_PORT).unwrap();
    let told = format!("inet/t c rule {} drop \"it\"", handle(&scene.server, "it"));
    // The ring takes no more at once.
    for _ in 0..6 {
        sockets::send(&socket, scene.server.socket(Family::V4, TO_PORT), 500, 16);
        let events = explained.next(500);
        assert!(events.iter().all(|event| attribute(event, "nft") == Some(&*told)));
    }
    let stats = explained.explainer.stats();
    let read = |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!((read(&stats.rulesets), read(&stats.unexplained)), (1, 0));
}

#[test]
fn without_stacks_every_hook_on_the_way_counts() {
    let Some(lab) = lab_alone("nft-stackless") else { return };
    let scene = Fault::find("nft-drop-input").unwrap().scene(&lab, "stackless").unwrap();
    let mut config = config();
    config.probes.get_mut("packetloss").unwrap().stacks = false;
    let Some(mut explained) = explain(&config, &scene.pods()) else {
        return;
    };
    let drops =
        "table inet t { chain p { type filter hook prerouting priority 0; meta mark 1 drop comment \"early\"\n }\n
        chain i { type filter hook input priority 0; udp dport 40009 drop comment \"it\"\n }\n
        chain o { type filter hook output priority 0; meta l4proto udp drop comment \"other way\"\n }\n }";
    scene.server.nft(drops).unwrap();
    send(&scene.client, &scene.server, Family::V4);
    let events = explained.next(1);
    let (early, it) = (handle(&scene.server, "early"), handle(&scene.server, "it"));
    assert_eq!(attribute(&events[0], "hook"), None);
    assert_eq!(
        attribute(&events[0], "nft"),
        Some(&*format!(
            "inet/t p rule {early} drop \"early\"; inet/t i rule {it} drop \"it\""
        )),
        "{}",
        line(&events[0])
    );
}

#[test]
fn rules_of_iptables_are_told_as_a_cni_names_them() {
    let Some(lab) = lab_alone("nft-iptables") else { return };
    let scene = Fault::find("nft-drop-input").unwrap().scene(&lab, "iptables").unwrap();
    let Some(mut explained) = explain(&config(), &scene.pods()) else {
        return;
    };
    for (family, program) in [(Family::V4, "iptables-nft"), (Family::V6, "ip6tables-nft")] {
        let iptables = |arguments: &str| {
            let args: Vec<&str> = arguments.split_ascii_whitespace().collect();
            scene.server.command(program, &args).unwrap();
        };
        iptables("-N cali-tw-eth0");
        iptables("-A INPUT -p udp -j cali-tw-eth0 -m comment --comment cali:to");
        iptables("-A cali-tw-eth0 -p udp -m udp --dport 40009 -m comment --comment policy.default/deny-all -j DROP");
        iptables("-A cali-tw-eth0 -p tcp -m comment --comment policy.default/tcp -j DROP");
        send(&scene.client, &scene.server, family);
        let event = &explained.next(1)[0];
        let what = line(event);
        let table = if family == Family::V4 {
            "ip/filter"
        } else {
            "ip6/filter"
        };
        let told = attribute(event, "nft").unwrap_or_else(|| panic!("{what}"));
        assert!(
            told.starts_with(&format!("{table} INPUT > cali-tw-eth0 rule ")),
            "{what}"
        );
        assert!(told.ends_with("drop \"policy.default/deny-all\""), "{what}");
        assert_eq!(attribute(event, "nft_candidates"), Some("1"), "{what}");
        assert_eq!(attribute(event, "netfilter"), Some("nft"), "{what}");
    }
}

#[test]
fn a_rule_of_iptables_legacy_is_not_taken_for_one_of_nft() {
    let Some(lab) = lab_alone("nft-legacy") else { return };
    let scene = Fault::find("nft-drop-input").unwrap().scene(&lab, "legacy").unwrap();
    let Some(mut explained) = explain(&config(), &scene.pods()) else {
        return;
    };
    let legacy = "-A INPUT -p udp -m udp --dport 40009 -j DROP";
    let args: Vec<&str> = legacy.split_ascii_whitespace().collect();
    if let Err(error) = scene.server.command("iptables-legacy", &args) {
        println!("SKIPPED: this kernel has no iptables-legacy: {error}");
        return;
    }
    // One that did not do it.
    scene
        .server
        .nft("table inet t { chain c { type filter hook input priority 100; udp dport 40009 drop\n }\n }")
        .unwrap();
    send(&scene.client, &scene.server, Family::V4);
    let event = &explained.next(1)[0];
    let what = line(event);
    assert_eq!(attribute(event, "hook"), Some("input"), "{what}");
    if kernel_tells_nft() {
        assert_eq!(
            attribute(event, "netfilter"),
            Some("iptables-legacy, conntrack or other"),
            "{what}"
        );
        assert_eq!(attribute(event, "nft"), None, "{what}");
    } else {
        assert_eq!(
            attribute(event, "netfilter"),
            Some("nft, iptables-legacy, conntrack or other"),
            "{what}"
        );
    }
}

fn kernel_tells_nft() -> bool {
    is_since(std::path::Path::new("/proc"), 6, 7)
}
