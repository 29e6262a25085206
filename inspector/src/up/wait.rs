//! When a part answers, and what it says that it cannot do.

use std::net::SocketAddr;
use std::time::Duration;

use crate::client::{Client, Query};
use crate::output::cell;

/// Asks `/-/ready` until it says yes; says now and then what it waits for.
pub(super) async fn until_ready(program: &str, address: SocketAddr) {
    let client = Client::new(&format!("http://{address}"));
    for round in 1_u32.. {
        let answer = client.get_raw("/-/ready", &Query::default()).await;
        if matches!(&answer, Ok((status, _)) if status.is_success()) {
            return;
        }
        if round.is_multiple_of(50) {
            let why = match answer {
                Ok((_, body)) => String::from_utf8_lossy(&body).trim().to_owned(),
                Err(_) => format!("no answer on {address}"),
            };
            eprintln!("sonde: waiting for {program}: {why}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Prints what the collector cannot do, with its reasons.
pub(super) async fn say_what_is_off(collector: SocketAddr) {
    let client = Client::new(&format!("http://{collector}"));
    let Ok(status) = client.get("/status", &Query::default()).await else {
        return;
    };
    for (what, why) in status["missing"].as_object().into_iter().flatten() {
        eprintln!("sonde: not available: {what}: {}", cell(why));
    }
}
