use super::*;

#[test]
fn without_its_module_ipvs_has_no_row_and_no_error() {
    let Some(lab) = Lab::for_test("ipvs") else {
        return;
    };
    let pod = lab.pod("ipvs", "a").unwrap();
    let round = Collector::of(&[&pod]).read();
    let there = std::path::Path::new("/proc/net/ip_vs_stats").exists();
    assert_eq!(round.rows("ipvs", "node"), usize::from(there));
    assert_eq!(round.rows("ipvs", "a"), usize::from(there));
    if there {
        assert_eq!(
            round.value("ipvs", "connections", "a", &[]),
            0,
            "nothing is balanced in a new namespace"
        );
    }
}
