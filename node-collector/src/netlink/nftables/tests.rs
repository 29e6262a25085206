use super::trace::{Culprit, Packets, Tuple};
use super::*;
use crate::netlink::dump::tests::{Play, Stage};
use crate::netlink::message::aligned;

const NFPROTO_INET: u8 = 1;

fn nest(attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut nest = with_attributes(&[], attributes);
    nest.resize(aligned(nest.len()), 0);
    nest
}

fn be(number: u32) -> [u8; 4] {
    number.to_be_bytes()
}

fn message(family: u8, attributes: &[(u16, &[u8])]) -> Vec<u8> {
    with_attributes(&[family, 0, 0, 0], attributes)
}

fn verdict(code: i32, chain: Option<&[u8]>) -> Vec<u8> {
    let code = code.to_be_bytes();
    let mut inside: Vec<(u16, &[u8])> = vec![(1, &code)];
    inside.extend(chain.map(|chain| (2, chain)));
    nest(&[(0x8000 | 2, &nest(&inside))])
}

fn expression(name: &str, attributes: &[(u16, &[u8])]) -> Vec<u8> {
    nest(&[(1, &c_string(name)), (0x8002, &nest(attributes))])
}

fn rule_message(handle: u64, expressions: &[Vec<u8>], userdata: &[u8]) -> Vec<u8> {
    let list: Vec<(u16, &[u8])> = expressions.iter().map(|e| (0x8001, e.as_slice())).collect();
    message(
        NFPROTO_INET,
        &[
            (1, b"t\0"),
            (2, b"c\0"),
            (3, &handle.to_be_bytes()),
            (0x8004, &nest(&list)),
            (7, userdata),
        ],
    )
}

fn chain_message(name: &[u8], hook: Option<&[u8]>, policy: Option<u32>) -> Vec<u8> {
    let policy = policy.map(be);
    let mut attributes: Vec<(u16, &[u8])> = vec![(1, b"t\0"), (3, name)];
    attributes.extend(hook.map(|hook| (0x8004, hook)));
    attributes.extend(policy.as_ref().map(|policy| (5, policy.as_slice())));
    message(NFPROTO_INET, &attributes)
}

fn input() -> Vec<u8> {
    nest(&[(1, &be(1)), (2, &(-5i32).to_be_bytes())])
}

const DONE: u16 = 3;

fn all(kind: u16, messages: Vec<Vec<u8>>) -> Vec<Play> {
    let mut out: Vec<_> = messages.into_iter().map(|m| (kind, 2, m)).collect();
    out.push((DONE, 2, vec![0; 4]));
    vec![Play::Messages(out)]
}

fn generation_is(number: u32) -> Vec<Play> {
    vec![Play::Messages(vec![(NEWGEN, 0, message(0, &[(1, &be(number))]))])]
}

fn read_from(chains: Vec<Vec<u8>>, rules: Vec<Vec<u8>>, elements: Vec<Vec<Vec<u8>>>) -> Result<Ruleset, DumpError> {
    let mut acts = vec![generation_is(7), all(NEWCHAIN, chains), all(NEWRULE, rules)];
    acts.extend(elements.into_iter().map(|map| all(NEWSETELEM, map)));
    acts.push(generation_is(7));
    read(&Stage::new(acts), &mut vec![0; 65_536])
}

fn drop_now() -> Vec<u8> {
    expression("immediate", &[(1, &be(0)), (0x8002, &verdict(0, None))])
}

#[test]
fn chains_and_what_their_rules_do_are_kept() {
    let l4proto = expression("meta", &[(1, &be(1)), (2, &be(16))]);
    let udp = expression("cmp", &[(1, &be(1)), (2, &be(0)), (0x8003, &nest(&[(1, &[17])]))]);
    let saddr = expression("payload", &[(1, &be(8)), (2, &be(1)), (3, &be(12)), (4, &be(4))]);
    let mask = expression(
        "bitwise",
        &[
            (1, &be(8)),
            (2, &be(8)),
            (3, &be(4)),
            (0x8004, &nest(&[(1, &[255, 255, 240, 0])])),
            (0x8005, &nest(&[(1, &[0; 4])])),
        ],
    );
    // Register 1 and the first quarter, 8, are the same.
    let net = expression(
        "cmp",
        &[(1, &be(1)), (2, &be(1)), (0x8003, &nest(&[(1, &[10, 0, 16, 0])]))],
    );
    let jump = expression("immediate", &[(1, &be(0)), (0x8002, &verdict(-3, Some(b"web\0")))]);
    let accept = expression("immediate", &[(1, &be(0)), (0x8002, &verdict(1, None))]);
    let target = expression("target", &[(1, b"REJECT\0"), (2, &be(0)), (3, &[0; 8])]);
    let counter = expression("counter", &[]);
    let xt = expression("match", &[(1, b"comment\0"), (2, &be(0)), (3, b"cali:p\0\0\0")]);
    let ruleset = read_from(
        vec![
            chain_message(b"c\0", Some(&input()), Some(0)),
            chain_message(b"web\0", None, None),
        ],
        vec![
            rule_message(
                4,
                &[l4proto.clone(), udp.clone(), counter.clone(), drop_now()],
                b"\x00\x03it\0",
            ),
            rule_message(5, &[saddr, mask, net, jump], &[]),
            rule_message(6, &[accept], &[]),
            rule_message(7, &[xt, target], &[]),
            // What is compared is not what was loaded before.
            rule_message(
                8,
                &[l4proto, expression("ct", &[(1, &be(1)), (2, &be(0))]), udp, drop_now()],
                &[],
            ),
        ],
        vec![],
    )
    .unwrap();
    assert_eq!(ruleset.generation, 7);
    let chain = &ruleset.chains[0];
    assert_eq!(
        chain.base,
        Some(Base {
            hook: 1,
            priority: -5,
            devices: vec![],
            drops: true
        })
    );
    assert_eq!(
        (ruleset.chain(chain, &"web".into()), ruleset.chain(chain, &"no".into())),
        (Some(1), None)
    );
    assert_eq!(ruleset.chains[1].base, None);
    let kept: Vec<_> = chain
        .rules
        .iter()
        .map(|rule| (rule.handle, rule.comment.as_deref(), rule.tests.len()))
        .collect();
    assert_eq!(
        kept,
        [(4, Some("it"), 1), (5, None, 1), (7, Some("cali:p"), 0), (8, None, 0)],
        "a rule that accepts is not kept"
    );
    assert_eq!(chain.rules[0].does, [Does::Drop]);
    assert_eq!(chain.rules[0].tests[0].field, Field::Layer4);
    assert_eq!(chain.rules[1].does, [Does::Go("web".into())]);
    let test = &chain.rules[1].tests[0];
    assert_eq!(
        (test.field, test.comparison),
        (Field::Network { offset: 12, len: 4 }, Comparison::Unequal)
    );
    assert!(
        !test.holds(&[10, 0, 31, 1]) && test.holds(&[10, 0, 32, 1]),
        "10.0.16.0/20 is left out"
    );
    assert_eq!(chain.rules[2].does, [Does::Reject]);
    assert!(!chain.changes);
}

#[test]
fn comparisons_go_byte_by_byte_from_the_first() {
    let test = |comparison| Test {
        field: Field::Transport { offset: 2, len: 2 },
        mask: Vec::new(),
        comparison,
        value: 300u16.to_be_bytes().to_vec(),
    };
    let holds = |comparison| [299u16, 300, 301].map(|port| test(comparison).holds(&port.to_be_bytes()));
    assert_eq!(holds(Comparison::Equal), [false, true, false]);
    assert_eq!(holds(Comparison::Unequal), [true, false, true]);
    assert_eq!(holds(Comparison::Less), [true, false, false]);
    assert_eq!(holds(Comparison::LessOrEqual), [true, true, false]);
    assert_eq!(holds(Comparison::Greater), [false, false, true]);
    assert_eq!(holds(Comparison::GreaterOrEqual), [false, true, true]);
}

#[test]
fn a_map_of_verdicts_is_asked_for_once_and_stands_for_what_its_elements_do() {
    let vmap = expression("lookup", &[(1, b"m\0"), (2, &be(1)), (3, &be(0))]);
    let set = expression("lookup", &[(1, b"s\0"), (2, &be(1))]);
    let element = |data: &[u8]| nest(&[(0x8001, &nest(&[(1, &[0, 53])])), (0x8002, data)]);
    let elements = [
        element(&verdict(0, None)),
        element(&verdict(-4, Some(b"web\0"))),
        element(&verdict(-4, Some(b"web\0"))),
        element(&verdict(1, None)),
    ];
    let list: Vec<(u16, &[u8])> = elements.iter().map(|e| (0x8001, e.as_slice())).collect();
    let map = message(NFPROTO_INET, &[(1, b"t\0"), (2, b"m\0"), (0x8003, &nest(&list))]);
    let ruleset = read_from(
        vec![
            chain_message(b"c\0", Some(&input()), Some(1)),
            chain_message(b"web\0", None, None),
        ],
        vec![
            rule_message(4, std::slice::from_ref(&vmap), &[]),
            rule_message(5, &[set, drop_now()], &[]),
            rule_message(6, &[vmap], &[]),
        ],
        vec![vec![map]],
    )
    .unwrap();
    let rules = &ruleset.chains[0].rules;
    assert_eq!(rules[0].does, [Does::Drop, Does::Go("web".into())]);
    assert_eq!((&rules[1].does, &rules[2].does), (&vec![Does::Drop], &rules[0].does));
    assert!(!ruleset.chains[0].base.as_ref().unwrap().drops);
}

#[test]
fn devices_of_a_chain_are_told_by_name_or_beginning() {
    let devices = nest(&[(1, b"eth0\0"), (1, b"eth1\0"), (2, b"veth\0")]);
    let hook = nest(&[(1, &be(0)), (2, &be(0)), (0x8004, &devices)]);
    let one = nest(&[
        (1, &be(0)),
        (2, &be(0)),
        (3, b"eth0\0"),
        (0x8004, &nest(&[(1, b"eth0\0")])),
    ]);
    let ruleset = read_from(
        vec![
            chain_message(b"c\0", Some(&hook), None),
            chain_message(b"d\0", Some(&one), None),
        ],
        vec![],
        vec![],
    )
    .unwrap();
    let devices = |at: usize| ruleset.chains[at].base.as_ref().unwrap().devices.clone();
    assert_eq!(devices(0), ["eth0", "eth1", "veth*"].map(Box::from));
    assert_eq!(devices(1), ["eth0"].map(Box::from));
}

#[test]
fn a_ruleset_that_changes_while_it_is_read_is_read_again_and_never_told_in_parts() {
    let once = |before: u32, after: u32, handle: u64| {
        vec![
            generation_is(before),
            all(NEWCHAIN, vec![chain_message(b"c\0", Some(&input()), Some(1))]),
            all(NEWRULE, vec![rule_message(handle, &[drop_now()], &[])]),
            generation_is(after),
        ]
    };
    let acts = [once(7, 8, 4), once(8, 8, 5)].concat();
    let ruleset = read(&Stage::new(acts), &mut vec![0; 65_536]).unwrap();
    assert_eq!((ruleset.generation, ruleset.chains[0].rules[0].handle), (8, 5));
    let acts = [once(1, 2, 4), once(2, 3, 4), once(3, 4, 4), once(4, 4, 4)].concat();
    assert!(matches!(
        read(&Stage::new(acts), &mut vec![0; 65_536]),
        Err(DumpError::Interrupted)
    ));
}

#[test]
fn what_lacks_something_is_an_error() {
    let good = || chain_message(b"c\0", Some(&input()), Some(1));
    let bad_chains = [
        message(1, &[(1, b"t\0")]),
        message(1, &[(3, b"c\0")]),
        chain_message(b"c\0", Some(&nest(&[(2, &be(0))])), None),
        vec![1, 0],
        [message(1, &[(1, b"t\0"), (3, b"c\0\0\0")]), vec![9, 0, 4, 0, 1]].concat(),
    ];
    for bad in bad_chains {
        assert!(matches!(
            read_from(vec![good(), bad], vec![], vec![]),
            Err(DumpError::Malformed(_))
        ));
    }
    let jump_nowhere = expression("immediate", &[(1, &be(0)), (0x8002, &verdict(-3, None))]);
    let no_code = expression(
        "immediate",
        &[(1, &be(0)), (0x8002, &nest(&[(0x8002, &nest(&[(2, b"x\0")]))]))],
    );
    let bad_rules = [
        message(1, &[(1, b"t\0"), (2, b"c\0"), (0x8004, &nest(&[]))]),
        message(1, &[(1, b"t\0"), (3, &[0; 8])]),
        rule_message(1, &[jump_nowhere], &[]),
        rule_message(1, &[no_code], &[]),
        rule_message(1, &[nest(&[(0x8002, &[])])], &[]),
        rule_message(1, &[vec![200, 0, 1, 0]], &[]),
    ];
    for bad in bad_rules {
        assert!(matches!(
            read_from(vec![good()], vec![bad], vec![]),
            Err(DumpError::Malformed(_))
        ));
    }
}

#[test]
fn any_bytes_do_no_harm() {
    let whole = rule_message(
        4,
        &[
            expression("meta", &[(1, &be(1)), (2, &be(16))]),
            expression("cmp", &[(1, &be(1)), (2, &be(0)), (0x8003, &nest(&[(1, &[17])]))]),
            drop_now(),
        ],
        b"\x00\x03it\0",
    );
    let mut state = 1u64;
    for _ in 0..3000 {
        let mut bytes = whole.clone();
        for byte in &mut bytes {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            if state >> 59 == 0 {
                *byte = (state >> 33) as u8;
            }
        }
        let cut = (state >> 40) as usize % (bytes.len() + 1);
        for bytes in [&bytes[..], &bytes[..cut]] {
            let _ = rule::parse(bytes);
            let _ = rule::comment(bytes);
            let _ = Packets::default().hear(&tuple(), bytes);
            let _ = Rules::new(Vec::new()).message(bytes);
            let _ = Chains::default().message(bytes);
            let _ = Elements::default().message(bytes);
        }
    }
}

#[test]
fn comments_are_found_among_what_user_space_keeps() {
    assert_eq!(rule::comment(b"\x02\x01x\x00\x03it\0").as_deref(), Some("it"));
    assert_eq!(rule::comment(b"\x00\x04a\nb\0").as_deref(), Some("a b"), "one line");
    assert_eq!(rule::comment(b"\x02\x01x"), None);
    assert_eq!(rule::comment(b"\x00\x09it\0"), None, "longer than there is");
    assert_eq!(rule::comment(b"\x00"), None);
}

fn tuple() -> Tuple {
    Tuple {
        protocol: 17,
        source: ("10.0.0.1".parse().unwrap(), 4660),
        destination: ("10.0.0.2".parse().unwrap(), 53),
    }
}

/// What a trace tells, heard by a trace of 10.0.0.1:4660 > 10.0.0.2:53.
#[test]
fn a_trace_tells_the_rule_of_packets_that_are_its_own() {
    let network = [69, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    let transport = [0x12, 0x34, 0, 53, 0, 8, 0, 0];
    let told = |packet: u32, kind: u32, more: &[(u16, &[u8])]| {
        let (packet, kind) = (be(packet), be(kind));
        let mut all: Vec<(u16, &[u8])> = vec![(1, b"t\0"), (2, b"c\0"), (4, &kind), (6, &packet)];
        all.extend(more);
        message(2, &all)
    };
    let drops = nest(&[(1, &be(0))]);
    let goes_on = nest(&[(1, &(-1i32).to_be_bytes())]);
    let handle = 9u64.to_be_bytes();
    let mut packets = Packets::default();
    let mut hear = |message: Vec<u8>| packets.hear(&tuple(), &message);
    assert_eq!(
        hear(told(1, 3, &[(3, &handle), (5, &drops)])),
        None,
        "of a packet that nobody knows"
    );
    let headers: [(u16, &[u8]); 2] = [(8, &network), (9, &transport)];
    assert_eq!(
        hear(told(1, 3, &[&headers[..], &[(3, &handle), (5, &goes_on)]].concat())),
        None
    );
    let culprit = |handle| {
        Some(Culprit {
            family: 2,
            table: "t".into(),
            chain: "c".into(),
            handle,
        })
    };
    assert_eq!(hear(told(1, 3, &[(3, &handle), (5, &drops)])), culprit(Some(9)));
    assert_eq!(hear(told(1, 1, &[(16, &be(0))])), culprit(None), "a policy");
    assert_eq!(hear(told(1, 1, &[(16, &be(1))])), None, "a policy that accepts");
    assert_eq!(hear(told(1, 2, &[(5, &drops)])), None, "a return");
    let mut other = network;
    other[19] = 3;
    let headers: [(u16, &[u8]); 2] = [(8, &other), (9, &transport)];
    assert_eq!(
        hear(told(1, 3, &[&headers[..], &[(3, &handle), (5, &drops)]].concat())),
        None,
        "of another connection"
    );
    assert_eq!(
        hear(told(1, 3, &[(3, &handle), (5, &drops)])),
        None,
        "its number was reused"
    );
}
