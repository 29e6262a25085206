//! `GET /api/v1/probes`.

use serde_json::json;

use crate::support::App;

#[tokio::test]
async fn probes_are_described_in_their_own_words() {
    let app = App::start().await;
    assert_eq!(app.get("/api/v1/probes").await.json(), json!({"probes": []}));
    app.collector("n1").await;
    let help = |name: &str| format!("Help of {name}");
    let column = |name: &str, metric: &str, kind: &str, unit: &str| json!({"name": name, "metric": metric, "help": help(name), "kind": kind, "unit": unit});
    let mut wait = column("wait_seconds", "sonde_lat_wait_seconds", "histogram", "seconds");
    wait["bounds"] = json!([0.001, 0.1]);
    assert_eq!(
        app.get("/api/v1/probes").await.json(),
        json!({"probes": [
            {"name": "lat", "help": "Latencies", "labels": [], "columns": [wait], "event_types": []},
            {"name": "netdev", "help": "Devices", "labels": [{"name": "device", "help": "Device"}],
             "columns": [
                column("receive_bytes", "sonde_netdev_receive_bytes_total", "counter", "bytes"),
                column("carrier", "sonde_netdev_carrier", "gauge", ""),
                column("busy_seconds", "sonde_netdev_busy_seconds_total", "counter", "seconds")],
             "event_types": [{"name": "PACKETLOSS", "help": help("PACKETLOSS")},
                             {"name": "TCPRETRANS", "help": help("TCPRETRANS")}]}
        ]})
    );
}
