//! Whose a drop is.

use super::*;

#[test]
fn counts_of_a_pod_that_ended_do_not_go_to_the_next_owner_of_its_inode() {
    let Some(lab) = lab_alone("kernel-reuse") else {
        return;
    };
    let drop_one = |pod: &sonde_lab::Pod| {
        pod.run(send_to_nobody).unwrap();
    };
    let Some(mut live) = start(&config(), PodIndex::default(), None) else {
        return;
    };
    let netns = |live: &Live| live.index.live().iter().map(|pod| pod.netns).collect::<Vec<_>>();
    let key = |name: &str| (name.to_owned(), "NO_SOCKET".to_owned(), "suspect".to_owned());
    let mut inodes = Vec::new();
    for round in 0..4 {
        let name = format!("pod{round}");
        let pod = lab.pod("reuse", &name).unwrap();
        inodes.push(pod.inode());
        let found = add(&live.index, &pod);
        live.kernel.netns_changed(&netns(&live));
        let own = key(&name);
        (0..=round).for_each(|_| drop_one(&pod));
        until("the drops to be counted", || {
            live.drops().get(&own) == Some(&(round + 1))
        });
        drop_one(&pod);
        pod.delete().unwrap();
        live.index.end(&found, now_ns());
        live.kernel.netns_changed(&netns(&live));
        let last = live.drops();
        assert_eq!(
            last.get(&own),
            Some(&(round + 2)),
            "what came after the last round is in one more"
        );
        assert_eq!(last.len(), 1, "{last:?}");
        assert!(live.drops().is_empty(), "and then it is over");
    }
    inodes.dedup();
    println!("inodes used: {inodes:?}");
}

#[test]
fn a_drop_on_the_hosts_side_is_told_of_the_pod_behind_it_and_counted_where_it_was() {
    let Some(lab) = lab_alone("kernel-host") else {
        return;
    };
    let node = lab.node("n1").unwrap();
    let (a, b) = (node.pod("host", "a").unwrap(), node.pod("host", "b").unwrap());
    let index = PodIndex::new(netns_of(node.host()));
    let host_device = |pod| {
        let text = node
            .host()
            .ip(&format!("-o link show {}", node.host_device(pod)))
            .unwrap();
        text.split(':').next().unwrap().trim().parse::<u32>().unwrap()
    };
    for pod in [&a, &b] {
        let found = add(&index, pod);
        let facts = Facts {
            addresses: vec![pod.address(Family::V4)],
            host_ifindexes: vec![host_device(pod)],
        };
        index.set_facts(Some(&found), facts, 0);
    }
    let mut config = config();
    config.pods.include_host = true;
    let Some(mut live) = start(&config, index, None) else {
        return;
    };
    let drops = "table inet t { chain c { type filter hook forward priority 0; udp dport 9 drop\n }\n }";
    node.host().nft(drops).unwrap();
    node.host()
        .nft("table netdev t { chain c { type filter hook ingress device veth2 priority 0; udp dport 10 drop\n }\n }")
        .unwrap();
    let to = b.socket(Family::V4, 10);
    a.run(|| {
        std::net::UdpSocket::bind("0.0.0.0:5000")
            .unwrap()
            .send_to(b"x", to)
            .unwrap()
    })
    .unwrap();
    let events = live.wait_for(1, |_| true);
    let seen = &events[0];
    assert_eq!(
        (name(&seen.subject), seen.peer.as_ref().map(name)),
        ("a".into(), Some("b".into())),
        "{seen:#?}"
    );
    assert_eq!(
        seen.observation.netns,
        Some(netns_of(node.host())),
        "the place is the host's"
    );
    assert_eq!(seen.observation.direction, Direction::Ingress);
    let counted = live.drops();
    assert_eq!(
        counted.get(&("node".into(), "NETFILTER_DROP".into(), "suspect".into())),
        Some(&1),
        "{counted:?}"
    );
}

#[test]
fn namespaces_that_are_not_listed_are_none_of_our_business() {
    let Some(lab) = lab_alone("kernel-others") else {
        return;
    };
    let scene = Fault::find("udp-closed-port").unwrap().scene(&lab, "mine").unwrap();
    let theirs = Fault::find("udp-closed-port").unwrap().scene(&lab, "theirs").unwrap();
    let Some(mut live) = start(&config(), index_of(scene.pods()), None) else {
        return;
    };
    theirs.inject(Family::V4, 2000).unwrap();
    scene.inject(Family::V4, 2).unwrap();
    let mut events = live.settle(&scene.client);
    // Packets that do not tell where they are may be anybody's, and others run on this machine too.
    events.retain(|event| event.observation.netns.is_some());
    assert_eq!(events.len(), 2, "{events:#?}");
    // Pods that have just begun also free what asks for neighbours and routers.
    let suspects = |live: &mut Live| {
        let mut drops = live.drops();
        drops.retain(|(_, _, class), _| class == "suspect");
        drops
    };
    let drops = suspects(&mut live);
    assert_eq!(drops.values().sum::<i64>(), 3, "two, and the mark: {drops:?}");
    // What others do comes and goes; were theirs counted, it would be so each time.
    until("drops of others to be left out", || {
        let before = live.report().unknown;
        theirs.inject(Family::V4, 2000).unwrap();
        live.drops();
        live.report().unknown - before < 1000
    });

    // The other way round: everybody's, but rows for pods only.
    let mut all = config();
    all.events.unknown_netns = UnknownNetns::Keep;
    let Some(mut live) = start(&all, index_of(scene.pods()), None) else {
        return;
    };
    theirs.inject(Family::V4, 5).unwrap();
    let server = netns_of(&theirs.server);
    let events = live.wait_for(5, |event| event.observation.netns == Some(server));
    assert!(
        events
            .iter()
            .filter(|e| e.observation.netns == Some(server))
            .all(|e| e.subject == Subject::Unknown)
    );
    let drops = suspects(&mut live);
    assert!(drops.is_empty(), "{drops:?}");
    assert!(live.report().unknown >= 5);
}
