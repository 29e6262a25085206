use super::*;

#[test]
fn without_a_device_rdma_has_no_row_and_no_error() {
    let Some(lab) = Lab::for_test("rdma") else {
        return;
    };
    let pod = lab.pod("rdma", "a").unwrap();
    let round = Collector::of(&[&pod]).read();
    assert_eq!(round.rows("rdma", "a"), 0, "devices are the node's");
    let there = std::fs::read_dir("/sys/class/infiniband").is_ok_and(|mut devices| devices.next().is_some());
    assert_eq!(round.rows("rdma", "node") > 0, there);
}
