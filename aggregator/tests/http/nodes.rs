//! `GET /api/v1/nodes`.

use serde_json::json;
use sonde_common::time::now_ns;

use crate::support::{App, Batch};

#[tokio::test]
async fn a_node_is_shown_with_its_live_pods_and_its_connection() {
    let app = App::start().await;
    let now = now_ns();
    let mut batch = Batch::new();
    batch.pod("web", "10.0.0.1", now);
    batch.pod("api", "10.0.0.2", now);
    batch.pod_of("shop", "gone", "10.0.0.3", now - 5, now);
    let mut collector = app.collector("n2").await;
    collector.send(batch).await;
    app.collector("n1").await.disconnect();

    let answer = app.get("/api/v1/nodes").await.json();
    let nodes = answer["nodes"].as_array().unwrap();
    assert_eq!(nodes.len(), 2);
    let field = |name: &str| nodes.iter().map(|n| n[name].clone()).collect::<Vec<_>>();
    assert_eq!(field("node"), ["n1", "n2"]);
    assert_eq!(field("connected"), [json!(false), json!(true)]);
    assert_eq!(field("pods"), [0, 2]);
    assert_eq!(nodes[1]["version"], "1.2.3");
    assert_eq!(nodes[1]["kernel"], "6.18.0");
    assert_eq!(nodes[1]["boot_id"], "00000000-0000-0000-0000-000000000007");
    assert_eq!(nodes[1]["interval_s"], 5.0);
    for key in ["first_seen", "last_seen"] {
        assert!(nodes[1][key].as_str().unwrap().ends_with('Z'));
    }
}
