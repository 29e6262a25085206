use super::*;

#[test]
fn packets_and_bytes_of_a_device_are_exactly_what_was_sent() {
    let Some((_lab, client, server)) = pair("netdev") else {
        return;
    };
    let mut collector = Collector::of(&[&client, &server]);
    for family in FAMILIES {
        let sink = sockets::udp(&server, family, 4_000).unwrap();
        let sender = sockets::udp(&client, family, 4_001).unwrap();
        let before = collector.read();
        assert_eq!(
            sockets::send(&sender, server.socket(family, 4_000), 50, 100).accepted,
            50
        );
        let mut arrived = 0;
        wait::until_true("all to arrive", PATIENCE, || {
            arrived += sockets::drain(&sink)?;
            Ok(arrived == 50)
        })
        .unwrap();
        let after = collector.read();
        // Ethernet, IP, UDP and data.
        let length = 14 + if family == Family::V4 { 20 } else { 40 } + 8 + 100;
        for (column, pod, expected) in [
            ("transmit_packets", "client", 50),
            ("transmit_bytes", "client", 50 * length),
            ("receive_packets", "server", 50),
            ("receive_bytes", "server", 50 * length),
            ("transmit_packets", "server", 0),
            ("receive_packets", "client", 0),
            ("receive_drops", "server", 0),
        ] {
            assert_eq!(
                moved(&before, &after, "netdev", column, pod, &["eth0"]),
                expected,
                "{column} of {pod}, {family}"
            );
        }
        let text = server.command("ip", &["-s", "-j", "link", "show", "eth0"]).unwrap();
        let theirs: serde_json::Value = serde_json::from_str(&text).unwrap();
        let theirs = &theirs[0]["stats64"];
        for (ours, side, key) in [
            ("receive_bytes", "rx", "bytes"),
            ("receive_packets", "rx", "packets"),
            ("receive_drops", "rx", "dropped"),
            ("receive_multicast", "rx", "multicast"),
            ("transmit_bytes", "tx", "bytes"),
            ("transmit_packets", "tx", "packets"),
            ("transmit_carrier_errors", "tx", "carrier_errors"),
        ] {
            let value = after.value("netdev", ours, "server", &["eth0"]);
            assert_eq!(value, theirs[side][key].as_i64().unwrap(), "{ours}: {theirs}");
        }
    }
}
