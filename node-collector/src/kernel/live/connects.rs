//! Attempts to connect, of every end.

use std::net::{SocketAddr, TcpListener, TcpStream};

use sonde_lab::{Pod, sockets};

use super::*;

const PORT: u16 = 7_321;
const LIMIT: Duration = Duration::from_secs(20);

struct Scene {
    client: Pod,
    server: Pod,
    live: Live,
}

fn scene(lab: &Lab, name: &str, rung: Rung) -> Option<Scene> {
    let name = format!("{name}-{}", rung.name().replace('_', ""));
    let [client, server] = ["client", "server"].map(|role| lab.pod(&name, role).unwrap());
    lab.link(&client, &server).unwrap();
    let live = start(&config_of("connect"), index_of([&client, &server]), Some(rung))?;
    Some(Scene { client, server, live })
}

impl Scene {
    /// Attempts of the client by family and result, and how long they took in all.
    fn attempts(&mut self, family: &str, result: &str) -> (i64, i64) {
        let rows = self.live.rows("connect");
        assert!(rows.keys().all(|key| key.starts_with("client ")), "{rows:?}");
        let Some(row) = rows.get(&format!("client {family} {result}")) else {
            return (0, 0);
        };
        let (sum_ns, slots) = row["latency_seconds"].split_last().unwrap();
        assert_eq!(slots.iter().sum::<i64>(), row["attempts"][0]);
        (row["attempts"][0], *sum_ns)
    }

    fn connect(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        sockets::tcp_connect(&self.client, 0, to, LIMIT).unwrap()
    }
}

fn label(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    }
}

#[test]
fn connections_are_counted_by_family_and_result_and_agree_with_the_kernels_own_counters() {
    let Some(lab) = lab_alone("kernel-connect") else {
        return;
    };
    for rung in BOTH {
        let Some(mut scene) = scene(&lab, "count", rung) else {
            return;
        };
        for family in Family::BOTH {
            let before = scene.client.counters().unwrap();
            let listener = sockets::tcp_listen(&scene.server, family, PORT, 64).unwrap();
            let began = Instant::now();
            for _ in 0..20 {
                scene.connect(scene.server.socket(family, PORT)).unwrap();
            }
            let took = began.elapsed().as_nanos() as i64;
            for _ in 0..7 {
                let error = scene.connect(scene.server.socket(family, PORT + 1)).unwrap_err();
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
            }
            drop(listener);
            let (count, sum_ns) = scene.attempts(label(family), "established");
            assert_eq!(count, 20, "{family}");
            assert!(sum_ns > 0 && sum_ns < took, "{sum_ns} {took}");
            assert_eq!(scene.attempts(label(family), "refused").0, 7, "{family}");
            let after = scene.client.counters().unwrap();
            assert_eq!(after.since(&before, "Tcp.ActiveOpens").unwrap(), 27);
            assert_eq!(after.since(&before, "Tcp.AttemptFails").unwrap(), 7);
        }
    }
}

#[test]
fn a_dual_stack_socket_that_speaks_ipv4_is_counted_as_ipv4() {
    let Some(lab) = lab_alone("kernel-connect-dual") else {
        return;
    };
    let Some(mut scene) = scene(&lab, "dual", Rung::TpBtf) else {
        return;
    };
    let listener = scene.server.run(|| TcpListener::bind(("::", PORT))).unwrap().unwrap();
    let std::net::IpAddr::V4(address) = scene.server.address(Family::V4) else {
        panic!("no IPv4 address")
    };
    let mapped = SocketAddr::from((address.to_ipv6_mapped(), PORT));
    let stream = scene.client.run(|| TcpStream::connect(mapped)).unwrap().unwrap();
    drop((stream, listener));
    assert_eq!(scene.attempts("ipv4", "established").0, 1);
    assert_eq!(scene.attempts("ipv6", "established").0, 0);
}

#[test]
fn an_attempt_without_an_answer_says_why_it_ended() {
    let Some(lab) = lab_alone("kernel-connect-fail") else {
        return;
    };
    for rung in BOTH {
        let Some(mut scene) = scene(&lab, "fail", rung) else {
            return;
        };
        for family in Family::BOTH {
            let kind = if family == Family::V4 {
                "icmp type host-unreachable"
            } else {
                "icmpv6 type addr-unreachable"
            };
            scene
                .server
                .nft(&format!(
                    "table inet lab {{ chain c {{ type filter hook input priority 0; tcp dport 1 drop; tcp dport 2 reject with {kind}; }}\n }}"
                ))
                .unwrap();
            let label = label(family);
            // The second SYN is the last one: 3 s in all, or 2 where the first ones come at even distance.
            scene.client.sysctl("net.ipv4.tcp_syn_retries", "1").unwrap();
            let began = Instant::now();
            let error = scene.connect(scene.server.socket(family, 1)).unwrap_err();
            let took = began.elapsed().as_nanos() as i64;
            assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
            let (timeouts, sum_ns) = scene.attempts(label, "timeout");
            assert_eq!(timeouts, 1, "{family}");
            assert!(sum_ns > 1_000_000_000 && sum_ns < took, "{sum_ns} {took}");
            // A socket that is not waited for is told of the first such message, and is given up then.
            let to = scene.server.socket(family, 2);
            scene.client.run(|| TcpStream::connect(to)).unwrap().unwrap_err();
            assert_eq!(scene.attempts(label, "unreachable").0, 1, "{family}");
            // Given up by its own side: it must not be over by itself before that, however long this thread waits.
            scene.client.sysctl("net.ipv4.tcp_syn_retries", "100").unwrap();
            let given_up = sockets::tcp_start_connect(&scene.client, 0, scene.server.socket(family, 1)).unwrap();
            assert_eq!(scene.attempts(label, "aborted").0, 0, "{family}");
            drop(given_up);
            assert_eq!(scene.attempts(label, "aborted").0, 1, "{family}");
            scene.server.nft("delete table inet lab").unwrap();
        }
    }
}
