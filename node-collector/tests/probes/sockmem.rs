use super::*;

#[test]
fn limits_and_pressure_stand_once_for_the_node() {
    let Some(lab) = Lab::for_test("sockmem") else {
        return;
    };
    let pod = lab.pod("sockmem", "a").unwrap();
    let round = Collector::of(&[&pod]).read();
    assert_eq!((round.rows("sockmem", "node"), round.rows("sockmem", "a")), (1, 0));
    let sysctl = |key: &str| -> Vec<i64> {
        let text = std::fs::read_to_string(format!("/proc/sys/net/ipv4/{key}")).unwrap();
        text.split_ascii_whitespace().map(|n| n.parse().unwrap()).collect()
    };
    let output = std::process::Command::new("getconf").arg("PAGE_SIZE").output().unwrap();
    let page: i64 = String::from_utf8_lossy(&output.stdout).trim().parse().unwrap();
    let value = |column: &str| round.value("sockmem", column, "node", &[]);
    let tcp = ["tcp_low_bytes", "tcp_pressure_bytes", "tcp_limit_bytes"].map(value);
    assert_eq!(
        tcp.to_vec(),
        sysctl("tcp_mem").iter().map(|n| n * page).collect::<Vec<_>>()
    );
    assert_eq!(value("udp_limit_bytes"), sysctl("udp_mem")[2] * page);
    assert_eq!(value("tcp_orphans_limit"), sysctl("tcp_max_orphans")[0]);
    assert!([0, 1].contains(&value("tcp_under_pressure")));
}
