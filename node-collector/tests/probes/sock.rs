use super::*;

#[test]
fn sockets_of_each_kind_are_counted_in_their_namespace() {
    let Some((_lab, client, server)) = pair("sock") else {
        return;
    };
    let mut collector = Collector::of(&[&client, &server]);
    let value = |round: &Round, column: &str, pod: &str| round.value("sock", column, pod, &[]);
    let before = collector.read();
    assert_eq!(
        (
            value(&before, "udp_in_use", "server"),
            value(&before, "udp6_in_use", "server")
        ),
        (0, 0)
    );
    let _v4: Vec<_> = (0..3)
        .map(|i| sockets::udp(&server, Family::V4, 4_000 + i).unwrap())
        .collect();
    let _v6: Vec<_> = (0..2)
        .map(|i| sockets::udp(&server, Family::V6, 4_000 + i).unwrap())
        .collect();
    let _listeners: Vec<_> = (0..4)
        .map(|i| sockets::tcp_listen(&server, Family::V6, 80 + i, 5).unwrap())
        .collect();
    let after = collector.read();
    for (column, count) in [
        ("udp_in_use", 3),
        ("udp6_in_use", 2),
        ("tcp_in_use", 0),
        ("tcp6_in_use", 4),
        ("tcp_time_wait", 0),
    ] {
        assert_eq!(value(&after, column, "server"), count, "{column}");
        assert_eq!(value(&after, column, "client"), 0, "{column}");
    }
    // Netlink sockets of what set the namespace up, and ours, are in it too.
    assert!(value(&after, "used", "server") >= 9);
    for pod in ["client", "server"] {
        assert_eq!(after.get("sock", "tcp_memory_bytes", pod, &[]), None, "the node's");
    }
}
