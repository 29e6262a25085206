use super::*;
use crate::netlink::nftables::{Comparison, Test};

fn rule(handle: u64, tests: Vec<Test>, does: Vec<Does>) -> Rule {
    Rule {
        handle,
        comment: None,
        tests,
        does,
    }
}

fn chain(family: u8, name: &str, base: Option<(u32, i32, bool)>, rules: Vec<Rule>) -> Chain {
    Chain {
        family,
        table: "t".into(),
        name: name.into(),
        base: base.map(|(hook, priority, drops)| Base {
            hook,
            priority,
            devices: Vec::new(),
            drops,
        }),
        rules,
        changes: false,
    }
}

fn to_port(port: u16) -> Test {
    Test {
        field: Field::Transport { offset: 2, len: 2 },
        mask: Vec::new(),
        comparison: Comparison::Equal,
        value: port.to_be_bytes().to_vec(),
    }
}

fn seen(change: impl Fn(&mut Observation)) -> Observation {
    let mut seen = Observation {
        protocol: Some("UDP".into()),
        saddr: Some("10.0.0.1".parse().unwrap()),
        daddr: Some("10.0.0.2".parse().unwrap()),
        sport: Some(4000),
        dport: Some(53),
        interface: Some("eth0".into()),
        direction: Direction::Ingress,
        attributes: vec![("hook", "input".into())],
        ..Observation::default()
    };
    change(&mut seen);
    seen
}

fn find(chains: Vec<Chain>, seen: &Observation) -> Vec<String> {
    let found = Candidates::find(&Ruleset::of(chains), &Packet::of(seen));
    found.shown.iter().map(|shown| shown.to_string()).collect()
}

const INPUT: Option<(u32, i32, bool)> = Some((1, 0, false));

#[test]
fn only_chains_of_the_hook_the_family_and_the_device_count() {
    let drops = || vec![rule(1, vec![], vec![Does::Drop])];
    let on = |device: &str| {
        let mut chain = chain(family::NETDEV, device, Some((0, 0, false)), drops());
        chain.base.as_mut().unwrap().devices = vec![device.into()];
        chain
    };
    let chains = || {
        vec![
            chain(family::INET, "inet", INPUT, drops()),
            chain(family::IPV4, "v4", INPUT, drops()),
            chain(family::IPV6, "v6", INPUT, drops()),
            chain(family::BRIDGE, "bridge", INPUT, drops()),
            chain(family::INET, "forward", Some((2, 0, false)), drops()),
            chain(family::INET, "early", Some((5, 0, false)), drops()),
            on("eth0"),
            on("eth1"),
            on("eth*"),
        ]
    };
    let hook = |name: &'static str| move |seen: &mut Observation| seen.attributes = vec![("hook", name.into())];
    assert_eq!(
        find(chains(), &seen(|_| ())),
        ["inet/t inet rule 1 drop", "ip/t v4 rule 1 drop"]
    );
    let v6 = |seen: &mut Observation| {
        (seen.saddr, seen.daddr) = (Some("fd00::1".parse().unwrap()), Some("fd00::2".parse().unwrap()));
    };
    assert_eq!(
        find(chains(), &seen(v6)),
        ["inet/t inet rule 1 drop", "ip6/t v6 rule 1 drop"]
    );
    assert_eq!(
        find(chains(), &seen(hook("ingress"))),
        [
            "inet/t early rule 1 drop",
            "netdev/t eth0 rule 1 drop",
            "netdev/t eth* rule 1 drop"
        ]
    );
    assert_eq!(find(chains(), &seen(hook("output"))), [""; 0]);
    let unknown = |direction| {
        move |seen: &mut Observation| {
            seen.attributes.clear();
            seen.direction = direction;
        }
    };
    let found = find(chains(), &seen(unknown(Direction::Forward)));
    assert_eq!(found, ["bridge/t bridge rule 1 drop", "inet/t forward rule 1 drop"]);
    let all = Candidates::find(&Ruleset::of(chains()), &Packet::of(&seen(unknown(Direction::Unknown))));
    assert_eq!(
        (all.count, all.shown.len()),
        (7, SHOWN),
        "all but IPv6 and the other device"
    );
}

#[test]
fn rules_that_cannot_match_are_left_out_and_those_that_may_are_not() {
    let cannot = rule(1, vec![to_port(80)], vec![Does::Drop]);
    let can = rule(2, vec![to_port(53)], vec![Does::Reject]);
    let chains = || vec![chain(family::INET, "c", INPUT, vec![cannot.clone(), can.clone()])];
    assert_eq!(find(chains(), &seen(|_| ())), ["inet/t c rule 2 reject"]);
    let fragment = seen(|seen| (seen.sport, seen.dport) = (None, None));
    assert_eq!(
        find(chains(), &fragment).len(),
        2,
        "a packet without ports may match both"
    );
    let mut changed = chains();
    changed[0].changes = true;
    assert_eq!(
        find(changed, &seen(|_| ())).len(),
        2,
        "ports may have been others before"
    );
    let field = |field, value: &[u8]| {
        let test = Test {
            field,
            mask: Vec::new(),
            comparison: Comparison::Equal,
            value: value.to_vec(),
        };
        let rules = vec![rule(1, vec![test], vec![Does::Drop])];
        find(vec![chain(family::INET, "c", INPUT, rules)], &seen(|_| ())).len()
    };
    let network = |offset, len| Field::Network { offset, len };
    assert_eq!((field(Field::Family, &[2]), field(Field::Family, &[10])), (1, 0));
    assert_eq!((field(Field::Layer4, &[17]), field(Field::Layer4, &[6])), (1, 0));
    assert_eq!((field(network(9, 1), &[17]), field(network(9, 1), &[6])), (1, 0));
    assert_eq!(
        (field(network(12, 2), &[10, 0]), field(network(12, 2), &[10, 1])),
        (1, 0)
    );
    assert_eq!(
        (
            field(network(16, 4), &[10, 0, 0, 2]),
            field(network(16, 4), &[10, 0, 0, 1])
        ),
        (1, 0)
    );
    assert_eq!(field(network(8, 1), &[64]), 1, "what is not known may match");
    assert_eq!(field(network(usize::MAX, 4), &[0; 4]), 1);
    assert_eq!(field(network(18, 4), &[0; 4]), 1);
}

#[test]
fn jumps_are_followed_with_what_they_demand_and_rules_are_told_once() {
    let go = |handle, tests, to: &str| rule(handle, tests, vec![Does::Go(to.into())]);
    let drop = |handle| rule(handle, vec![], vec![Does::Drop]);
    let chains = vec![
        chain(
            family::INET,
            "late",
            Some((1, 10, true)),
            vec![go(1, vec![], "shared"), drop(2)],
        ),
        chain(
            family::INET,
            "first",
            Some((1, -10, false)),
            vec![
                go(3, vec![to_port(80)], "web"),
                go(4, vec![], "middle"),
                go(5, vec![], "loop"),
                go(6, vec![], "gone"),
            ],
        ),
        chain(family::INET, "web", None, vec![drop(7)]),
        chain(family::INET, "middle", None, vec![go(8, vec![to_port(53)], "shared")]),
        chain(family::INET, "shared", None, vec![drop(9)]),
        chain(
            family::INET,
            "loop",
            None,
            vec![go(10, vec![], "loop"), go(11, vec![], "shared")],
        ),
        chain(family::IPV4, "shared", None, vec![drop(12)]),
    ];
    assert_eq!(
        find(chains.clone(), &seen(|_| ())),
        [
            "inet/t first > middle > shared rule 9 drop",
            "inet/t late rule 2 drop",
            "inet/t late policy drop"
        ]
    );
    let mut long = vec![chain(family::INET, "c0", INPUT, vec![go(1, vec![], "c1")])];
    long.extend((1..7).map(|n| {
        chain(
            family::INET,
            &format!("c{n}"),
            None,
            vec![go(1, vec![], &format!("c{}", n + 1))],
        )
    }));
    long.push(chain(family::INET, "c7", None, vec![drop(1)]));
    assert_eq!(find(long, &seen(|_| ())), ["inet/t c0 > ... > c6 > c7 rule 1 drop"]);
    let ruleset = Ruleset::of(chains);
    let culprit = |chain: &str, handle| Culprit {
        family: family::INET,
        table: "t".into(),
        chain: chain.into(),
        handle,
    };
    let name = |culprit| super::name(&ruleset, &Packet::of(&seen(|_| ())), &culprit);
    assert_eq!(
        name(culprit("shared", Some(9))).as_deref(),
        Some("inet/t first > middle > shared rule 9 drop")
    );
    assert_eq!(name(culprit("late", None)).as_deref(), Some("inet/t late policy drop"));
    assert_eq!(name(culprit("web", Some(7))), None, "it cannot have been that one");
    assert_eq!(name(culprit("shared", Some(90))), None);
}
