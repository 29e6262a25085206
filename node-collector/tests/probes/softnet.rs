use super::*;

/// The sum of a column over the CPUs.
fn sum(column: usize) -> i64 {
    let text = std::fs::read_to_string("/proc/net/softnet_stat").unwrap();
    let of = |line: &str| i64::from_str_radix(line.split(' ').nth(column).unwrap(), 16).unwrap();
    text.lines().map(of).sum()
}

#[test]
fn the_work_of_all_cpus_stands_once_for_the_node() {
    let Some((_lab, client, server)) = pair("softnet") else {
        return;
    };
    let mut collector = Collector::of(&[&client, &server]);
    let before = collector.read();
    let sender = sockets::udp(&client, Family::V4, 0).unwrap();
    assert_eq!(
        sockets::send(&sender, server.socket(Family::V4, 4_000), 100, 10).accepted,
        100
    );
    let low = [sum(0), sum(1), sum(2)];
    let after = collector.read();
    let high = [sum(0), sum(1), sum(2)];
    assert_eq!((after.rows("softnet", "node"), after.rows("softnet", "server")), (1, 0));
    // All of this machine goes through it, so that it can only be bounded. Each packet passes a queue on its way.
    for (i, column) in ["processed", "dropped", "time_squeeze"].into_iter().enumerate() {
        let value = after.value("softnet", column, "node", &[]);
        assert!(
            (low[i]..=high[i]).contains(&value),
            "{column}: {low:?} {value} {high:?}"
        );
    }
    assert!(moved(&before, &after, "softnet", "processed", "node", &[]) >= 100);
    assert!(after.value("softnet", "backlog_packets", "node", &[]) >= 0);
}
