//! What goes to a server, byte by byte, and what its answers do.

use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use sonde_push::loki::{self, Lines, Loki};
use sonde_push::testing::{Answer, Server};
use sonde_push::{Auth, Http, Outcome, Pace, Pusher, Reason, Secret, Target as _, Timed};

#[derive(Clone, Debug)]
struct Said(u64, &'static str, &'static str);

impl Timed for Said {
    fn time_ns(&self) -> u64 {
        self.0
    }
}

struct Plain;

impl Lines for Plain {
    type Item = Said;

    fn labels(&self, item: &Said) -> String {
        loki::labels([("job", "test"), ("kind", item.1)])
    }

    fn line(&self, item: &Said) -> String {
        item.2.to_owned()
    }
}

fn http(url: &str, ca: Option<&Path>, auth: Auth) -> Http {
    Http::new(url, loki::PATH, ca, auth).unwrap()
}

fn batch() -> Arc<[Said]> {
    let second = 1_000_000_000;
    [
        Said(5 * second + 7, "b", "two"),
        Said(2 * second, "b", "one"),
        Said(3 * second, "a", "other"),
    ]
    .into()
}

const PACE: Pace = Pace {
    queue: 100,
    batch: 10,
    linger: Duration::from_millis(10),
    timeout: Some(Duration::from_millis(500)),
    first_wait: Duration::from_millis(20),
    longest_wait: Duration::from_millis(50),
    retry_for: None,
};

async fn until(what: &str, condition: impl Fn() -> bool) {
    let waited = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waited)
        .await
        .unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test]
async fn a_request_is_what_loki_takes() {
    let server = Server::start([], None).await.unwrap();
    let http = http(&format!("http://{}", server.address), None, Auth::None)
        .header("x-scope-orgid", "team-a")
        .unwrap();
    assert_eq!(Loki::new(http, Plain).send(&batch(), 0).await, Outcome::Sent);
    let received = &server.received()[0];
    assert_eq!(received.request, "POST /loki/api/v1/push");
    assert_eq!(received.header("content-type"), "application/x-protobuf");
    assert_eq!(received.header("x-scope-orgid"), "team-a");
    assert_eq!(received.header("authorization"), "");
    let push = received.loki().unwrap();
    let streams: Vec<_> = push
        .streams
        .iter()
        .map(|stream| {
            let entries = stream.entries.iter().map(|entry| {
                let at = entry.timestamp.unwrap();
                (at.seconds, at.nanos, entry.line.as_str())
            });
            (stream.labels.as_str(), entries.collect::<Vec<_>>())
        })
        .collect();
    assert_eq!(
        streams,
        [
            (r#"{job="test", kind="a"}"#, vec![(3, 0, "other")]),
            (r#"{job="test", kind="b"}"#, vec![(2, 0, "one"), (5, 7, "two")]),
        ]
    );
    assert!(server.broken().is_empty());
}

#[tokio::test]
async fn secrets_come_from_a_file_as_it_is_now() {
    let server = Server::start([], None).await.unwrap();
    let url = format!("http://{}/own/push", server.address);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("secret");
    let password = Secret::File(file.clone());
    let user = "sonde".to_owned();
    let mut basic = Loki::new(http(&url, None, Auth::Basic { user, password }), Plain);
    let Outcome::Retry { why, .. } = basic.send(&batch(), 0).await else {
        panic!("a file that is not there yet may come");
    };
    assert!(why.contains("no credentials") && why.contains("secret"), "{why}");
    for password in ["one", "two\n"] {
        std::fs::write(&file, password).unwrap();
        assert_eq!(basic.send(&batch(), 0).await, Outcome::Sent);
    }
    let mut bearer = Loki::new(http(&url, None, Auth::Bearer(Secret::File(file))), Plain);
    assert_eq!(bearer.send(&batch(), 0).await, Outcome::Sent);
    let sent: Vec<_> = server
        .received()
        .iter()
        .map(|received| (received.request.clone(), received.header("authorization").to_owned()))
        .collect();
    let line = "POST /own/push".to_owned();
    assert_eq!(
        sent,
        [
            (line.clone(), "Basic c29uZGU6b25l".to_owned()),
            (line.clone(), "Basic c29uZGU6dHdv".to_owned()),
            (line, "Bearer two".to_owned()),
        ]
    );
}

#[tokio::test]
async fn every_answer_has_its_consequence() {
    let server = Server::start(
        [
            Answer::Http("400 Bad Request\r\n", "entry too far behind\n"),
            Answer::Http("429 Too Many Requests\r\nRetry-After: 7\r\n", "slow down"),
            Answer::Http("500 Internal Server Error\r\n", ""),
            Answer::Http("503 Service Unavailable\r\nRetry-After: 1\r\n", "x"),
            Answer::Http("401 Unauthorized\r\n", "no org id"),
            Answer::Http("301 Moved Permanently\r\nLocation: /x\r\n", ""),
            Answer::Http("200 OK\r\n", "fine"),
        ],
        None,
    )
    .await
    .unwrap();
    let mut loki = Loki::new(http(&format!("http://{}", server.address), None, Auth::None), Plain);
    let retry = |why: &str, after: Option<u64>| Outcome::Retry {
        done: 0,
        why: why.into(),
        after: after.map(Duration::from_secs),
    };
    let refused = |why: &str| Outcome::Refused { why: why.into() };
    for expected in [
        refused("400 Bad Request: entry too far behind"),
        retry("429 Too Many Requests: slow down", Some(7)),
        retry("500 Internal Server Error", None),
        retry("503 Service Unavailable: x", Some(1)),
        refused("401 Unauthorized: no org id"),
        refused("301 Moved Permanently"),
        Outcome::Sent,
    ] {
        assert_eq!(loki.send(&batch(), 0).await, expected);
    }
}

#[tokio::test]
async fn trouble_passes_and_what_was_refused_is_counted_with_the_servers_word() {
    let server = Server::start(
        [
            Answer::Http("429 Too Many Requests\r\nRetry-After: 1\r\n", "rate"),
            Answer::Hang,
            Answer::Http("500 Internal Server Error\r\n", ""),
            Answer::Http("204 No Content\r\n", ""),
            Answer::Http("400 Bad Request\r\n", "stream limit"),
        ],
        None,
    )
    .await
    .unwrap();
    let http = http(&format!("http://{}", server.address), None, Auth::None);
    let pusher = Pusher::start("loki", Loki::new(http, Plain), PACE);
    let begun = std::time::Instant::now();
    pusher.push([Said(1, "a", "first")]);
    until("the first line", || pusher.stats().state().sent == 1).await;
    assert!(begun.elapsed() >= Duration::from_secs(1), "no sooner than it asked");
    assert_eq!(pusher.stats().state().retries, 3);
    pusher.push([Said(9, "a", "second")]);
    until("the refusal", || {
        pusher.stats().state().dropped[Reason::Refused as usize] == 1
    })
    .await;
    let losses = pusher.stats().take_losses();
    assert_eq!((losses.len(), losses[0].count, losses[0].from_ns), (1, 1, 9));
    assert_eq!(losses[0].detail, "400 Bad Request: stream limit");
    pusher.push([Said(10, "a", "third")]);
    until("the third line", || pusher.stats().state().sent == 2).await;
    assert_eq!(server.lines(), ["first", "first", "first", "first", "second", "third"]);
}

#[tokio::test]
async fn where_nobody_listens_nothing_blocks_and_nothing_is_lost_uncounted() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let http = http(&format!("http://{address}"), None, Auth::None);
    let pusher = Pusher::start("loki", Loki::new(http, Plain), PACE);
    for at in 0..1000 {
        pusher.push([Said(at, "a", "x")]);
    }
    until("a retry", || pusher.stats().state().retries > 1).await;
    let state = pusher.stats().state();
    assert!(state.failing && state.last_error.contains("refused"), "{state:?}");
    let stats = Arc::clone(pusher.stats());
    pusher.end(Duration::from_millis(100)).await;
    let state = stats.state();
    assert_eq!((state.sent, state.dropped.iter().sum::<u64>()), (0, 1000));
}

/// A certificate of its own authority for 127.0.0.1, and the authority's as PEM.
fn certificate() -> (ServerConfig, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&key).unwrap();
    let issuer = Issuer::new(params, key);
    let own = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["127.0.0.1".into()])
        .unwrap()
        .signed_by(&own, &issuer)
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![leaf.der().clone()],
            PrivateKeyDer::try_from(own.serialize_der()).unwrap(),
        )
        .unwrap();
    (config, ca.pem())
}

#[tokio::test]
async fn a_server_is_checked_by_the_given_authority() {
    let (config, ca) = certificate();
    let server = Server::start([], Some(config)).await.unwrap();
    let url = format!("https://{}", server.address);
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let (right, wrong) = (write("ca.pem", &ca), write("other.pem", &certificate().1));
    let outcome = Loki::new(http(&url, Some(&right), Auth::None), Plain)
        .send(&batch(), 0)
        .await;
    assert_eq!(outcome, Outcome::Sent);
    let Outcome::Retry { why, .. } = Loki::new(http(&url, Some(&wrong), Auth::None), Plain)
        .send(&batch(), 0)
        .await
    else {
        panic!("a server that nobody vouches for was taken");
    };
    assert!(why.contains("certificate"), "{why}");
    assert_eq!(server.received().len(), 1, "nothing was sent to it");
}
