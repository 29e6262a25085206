//! Each fault on the real kernel, proven by counters alone.

use sonde_lab::faults::{self, Fault, Signal};
use sonde_lab::{Family, Lab};

fn prove(name: &str) {
    let fault = Fault::find(name).unwrap();
    let Some(lab) = Lab::for_test(name) else { return };
    let scene = fault.scene(&lab, "fault").unwrap();
    for family in Family::BOTH {
        let count = 12;
        let injected = scene.inject(family, count).unwrap();
        assert_eq!(injected.sent, count, "{injected:?}");
        assert_eq!(Family::of(&injected.flow.from), family);
        match name {
            // The first datagrams fit, the others are lost.
            "udp-buffer-overflow" | "tbf-queue-drop" => {
                assert!((6..count).contains(&injected.dropped), "{injected:?}");
            }
            // A SYN sent again counts again.
            "listen-queue-overflow" => assert!(injected.dropped >= count, "{injected:?}"),
            _ => assert_eq!(injected.dropped, count, "{injected:?}"),
        }
        let place = match fault.signal {
            Signal::Event(drop) => drop.place,
            Signal::Counter { place, .. } => place,
        };
        assert_eq!(injected.place.netns(), scene.pod(place).netns());
    }
}

macro_rules! prove_each {
    ($($test:ident: $name:literal,)*) => {
        $(#[test] fn $test() { prove($name) })*

        #[test]
        fn every_fault_has_a_proof() {
            let proven = [$($name),*];
            for fault in faults::ALL {
                assert!(proven.contains(&fault.name), "{} has no test here", fault.name);
            }
            assert_eq!(proven.len(), faults::ALL.len());
        }
    };
}

prove_each! {
    a_rule_drops_at_the_receiver: "nft-drop-input",
    a_rule_drops_at_the_sender: "nft-drop-output",
    a_rule_drops_on_the_way: "nft-drop-forward",
    a_closed_tcp_port_refuses: "tcp-closed-port",
    a_closed_udp_port_swallows: "udp-closed-port",
    a_full_receive_buffer_drops: "udp-buffer-overflow",
    a_full_accept_queue_drops: "listen-queue-overflow",
    a_router_without_a_route_drops: "no-route-forward",
    a_sender_without_a_route_refuses: "no-route-local",
    a_router_drops_what_expired: "ttl-expired",
    a_full_token_bucket_drops: "tbf-queue-drop",
}
