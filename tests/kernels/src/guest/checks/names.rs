//! Names asked for, of a server that answers as it is told to.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use sonde_lab::{Family, sockets};

use super::{Check, same};
use crate::guest::scene::{LIMIT, Mark, Scene};

pub(super) const CHECK: Check = Check {
    signals: &["dns.count"],
    run: |scene| vec![("dns.count", check(scene))],
};

/// The lower half of a query's number is the code of its answer.
fn query(code: u8, number: u8) -> Vec<u8> {
    let mut message = vec![number, code, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    message.extend_from_slice(b"\x04test\x07example\0\0\x01\0\x01");
    message
}

fn answer(socket: &UdpSocket, stop: &AtomicBool) -> std::io::Result<()> {
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    let mut buffer = [0; 512];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            buffer[2] |= 0x80;
            buffer[3] |= buffer[1] & 0xf;
            socket.send_to(&buffer[..length], from)?;
        }
    }
    Ok(())
}

fn check(scene: &Scene) -> Result<String> {
    // Code, times, metric.
    const ANSWERS: [(u8, u64, &str); 4] = [
        (0, 4, "noerror"),
        (2, 3, "servfail"),
        (3, 2, "nxdomain"),
        (5, 1, "refused"),
    ];
    let before = scene.mark()?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asked = (|| {
            for family in Family::BOTH {
                let server = sockets::udp(&scene.server, family, 53)?;
                let stop = &stop;
                scope.spawn(move || answer(&server, stop));
                let client = sockets::udp(&scene.client, family, 0)?;
                client.set_read_timeout(Some(LIMIT))?;
                for (code, times, _) in ANSWERS {
                    for number in 0..times {
                        client.send_to(&query(code, number as u8), scene.server.socket(family, 53))?;
                        client.recv_from(&mut [0; 512])?;
                    }
                }
            }
            Ok::<_, anyhow::Error>(())
        })();
        stop.store(true, Ordering::Relaxed);
        asked
    })?;
    let after = scene.mark()?;
    let grown = |name: &str| {
        let of = |mark: &Mark| mark.of(&scene.client, &format!("sonde_dns_{name}"), &[]);
        of(&after) - of(&before)
    };
    for (_, times, name) in ANSWERS {
        same(name, grown(&format!("{name}_total")), 2 * times)?;
    }
    let all = 2 * ANSWERS.iter().map(|(_, times, _)| times).sum::<u64>();
    same("queries", grown("queries_total"), all)?;
    same("latencies", grown("latency_seconds_count"), all)?;
    for name in ["retries_total", "timeouts_total", "other_total", "truncated_total"] {
        same(name, grown(name), 0)?;
    }
    Ok(format!("{all} queries by the code of their answer"))
}
