//! A packet that ends before what its class follows from: the bytes behind its end are not its own.

use super::*;

/// Of its kind alone: a report to a multicast group, which is protocol when it is dropped by a queue.
const MLD_REPORT: u8 = 143;
const ICMPV6: u8 = 58;
const EACH: i64 = 5;

#[test]
fn what_lies_behind_a_cut_packet_says_nothing_of_it() {
    let Some(lab) = lab_alone("cut-packets") else {
        return;
    };
    for rung in BOTH {
        let name = format!("cut-{}", rung.name().replace('_', ""));
        let (client, server) = (lab.pod(&name, "client").unwrap(), lab.pod(&name, "server").unwrap());
        let router = lab.router(&name, "router").unwrap();
        lab.link(&client, &router).unwrap();
        lab.link(&server, &router).unwrap();
        let to = server.address(Family::V6);
        let Some(mut live) = start(&config(), index_of([&router]), Some(rung)) else {
            return;
        };
        let wire = Wire::open(&client, &router);
        // Nobody is asked for the address, and the queue takes no packet at all.
        router
            .ip(&format!(
                "-6 neigh replace {to} lladdr 02:00:00:00:00:01 nud permanent dev eth1"
            ))
            .unwrap();
        router.tc("qdisc add dev eth1 root bfifo limit 1").unwrap();
        let ends = [client.address(Family::V6), to].map(|address| match address {
            IpAddr::V6(address) => address,
            IpAddr::V4(_) => unreachable!("asked for IPv6"),
        });
        // Whole: the message. Cut: its header alone, and the rest of the frame is padding, which the router takes off and
        // leaves in the buffer.
        let whole = ipv6(ends, ICMPV6, &[MLD_REPORT; 8]);
        let cut = [ipv6(ends, ICMPV6, &[]), vec![MLD_REPORT; 8]].concat();
        let mut before = live.drops();
        for (packet, class) in [(&whole, "protocol"), (&cut, "suspect")] {
            for _ in 0..EACH {
                wire.send(&ether(&[], 0x86dd, packet));
            }
            let key = ("router".to_owned(), "QDISC_DROP".to_owned(), class.to_owned());
            let mut grown = 0;
            let mut now = HashMap::new();
            until(&format!("{EACH} drops of class {class}"), || {
                now = live.drops();
                grown = now.get(&key).unwrap_or(&0) - before.get(&key).unwrap_or(&0);
                grown >= EACH
            });
            assert_eq!(grown, EACH, "{now:?}");
            before = now;
        }
    }
}
