//! Objects as the API writes them, and what is told of them: no clock, no connection, no table.

use serde_json::{Value, json};

use super::api;
use super::changes;
use super::cluster::{Cluster, Heard};
use super::object::{Kind, Object, Read, Ready, State};
use super::scope::Scope;
use crate::store::cluster::{Loaded, Round, Span};

fn read<T: Read>(kind: Kind, value: Value) -> Object {
    serde_json::from_value::<T>(value)
        .expect("it is understood")
        .object(kind)
}

fn pod(name: &str, ip: &str, change: impl FnOnce(&mut Value)) -> Object {
    let mut value = json!({
        "metadata": {"name": name, "namespace": "shop", "uid": format!("u-{name}"), "resourceVersion": "1",
            "creationTimestamp": "2026-01-31T10:00:00Z", "labels": {"a": "b"}},
        "spec": {"nodeName": "n1"},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "startTime": "2026-01-31T10:00:02Z",
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-31T10:00:05Z"}]}});
    change(&mut value);
    read::<api::Pod>(Kind::Pod, value)
}

fn service(value: Value) -> Object {
    let meta = json!({"name": "s", "namespace": "shop", "uid": "u-s", "resourceVersion": "1"});
    read::<api::Service>(Kind::Service, json!({"metadata": meta, "spec": value}))
}

#[test]
fn what_go_leaves_out_or_writes_as_null_is_nothing() {
    let bare = json!({"metadata": {"name": "x", "uid": "u", "creationTimestamp": null, "labels": null,
        "ownerReferences": null, "annotations": null}, "spec": null, "status": null, "endpoints": null, "ports": null});
    let pod = read::<api::Pod>(Kind::Pod, bare.clone());
    assert_eq!(
        (pod.created, pod.state.ready, pod.facts.ips.len()),
        (None, Some(Ready::No), 0)
    );
    read::<api::Node>(Kind::Node, bare.clone());
    read::<api::Service>(Kind::Service, bare.clone());
    read::<api::MetaOnly>(Kind::Job, bare.clone());
    let slice = read::<api::EndpointSlice>(Kind::EndpointSlice, bare);
    assert_eq!((slice.name.as_str(), slice.endpoints.len()), ("", 0), "of no service");
}

#[test]
fn both_families_and_mapped_addresses_are_kept_and_words_are_not() {
    let dual = pod("a", "10.0.0.1", |v| {
        v["status"]["podIPs"] = json!([{"ip": "10.0.0.1"}, {"ip": "fd00::1"}])
    });
    assert_eq!(
        dual.facts.ips,
        [
            "10.0.0.1".parse::<std::net::IpAddr>().unwrap(),
            "fd00::1".parse().unwrap()
        ]
    );
    let headless = service(json!({"clusterIP": "None", "clusterIPs": ["None"]}));
    assert!(headless.facts.ips.is_empty());
    let named = service(json!({"type": "ExternalName", "externalName": "example.com", "clusterIP": ""}));
    assert_eq!(
        (named.facts.ips.len(), &named.facts.detail["type"]),
        (0, &json!("ExternalName"))
    );
    let odd = service(json!({"clusterIP": "::ffff:10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::2"]}));
    assert_eq!(odd.facts.ips.len(), 2, "{:?}", odd.facts.ips);
}

#[test]
fn a_pod_that_ended_or_shares_the_hosts_network_gives_its_address_up() {
    for phase in ["Succeeded", "Failed"] {
        assert!(
            pod("a", "10.0.0.1", |v| v["status"]["phase"] = phase.into())
                .facts
                .ips
                .is_empty(),
            "{phase}"
        );
    }
    assert!(
        pod("a", "10.0.0.1", |v| v["spec"]["hostNetwork"] = true.into())
            .facts
            .ips
            .is_empty()
    );
    assert_eq!(
        pod("a", "10.0.0.1", |v| v["spec"]["hostNetwork"] = Value::Null)
            .facts
            .ips
            .len(),
        1
    );
}

#[test]
fn a_slice_counts_an_address_as_ready_unless_it_says_otherwise() {
    let slice = read::<api::EndpointSlice>(
        Kind::EndpointSlice,
        json!({"metadata": {"name": "s-1", "namespace": "shop", "uid": "u", "labels": {"kubernetes.io/service-name": "s"}},
            "addressType": "IPv6", "endpoints": [
                {"addresses": ["fd00::2"], "conditions": {}},
                {"addresses": ["fd00::1"], "conditions": {"ready": false}, "targetRef": {"kind": "Pod", "name": "p"}},
                {"addresses": ["fd00::2"], "conditions": {"ready": false}},
                {"addresses": null}]}),
    );
    let seen: Vec<_> = slice
        .endpoints
        .iter()
        .map(|e| (e.ip.to_string(), e.pod.as_str(), e.ready))
        .collect();
    assert_eq!(
        seen,
        [("fd00::1".to_owned(), "p", false), ("fd00::2".to_owned(), "", true)]
    );
    let names = read::<api::EndpointSlice>(
        Kind::EndpointSlice,
        json!({"metadata": {"name": "s", "uid": "u"}, "addressType": "FQDN", "endpoints": [{"addresses": ["10.0.0.1"]}]}),
    );
    assert!(names.endpoints.is_empty());
}

#[test]
fn the_api_s_own_time_counts_where_it_can_be_so() {
    let late = Span {
        since: 100_000_000,
        at: 200_000_000,
    };
    assert_eq!(late.narrowed(Some(150_000_000)), Span::moment(150_000_000));
    assert_eq!(
        late.narrowed(Some(99_500_000)),
        Span::moment(99_500_000),
        "it has whole seconds"
    );
    for impossible in [None, Some(98_000_000), Some(200_000_001)] {
        assert_eq!(late.narrowed(impossible), late, "{impossible:?}");
    }
    assert_eq!(
        Span::moment(5).narrowed(Some(1)),
        Span::moment(5),
        "it was seen as it happened"
    );
}

#[test]
fn a_service_is_told_in_words_of_bounded_length() {
    let ports: Vec<Value> = (1..200).map(|n| json!({"port": n})).collect();
    let words = changes::service_words(&service(json!({"clusterIP": "10.96.0.1", "ports": ports})).facts);
    assert!(
        words.starts_with("ClusterIP 10.96.0.1, 1/TCP 2/TCP") && words.len() <= 300,
        "{words}"
    );
}

#[test]
fn the_digest_is_of_the_facts_and_not_of_the_state() {
    let one = pod("a", "10.0.0.1", |_| ());
    let ready = pod("a", "10.0.0.1", |v| v["status"]["conditions"] = json!([]));
    assert_eq!(one.facts.digest(), ready.facts.digest());
    for other in [
        pod("a", "10.0.0.2", |_| ()),
        pod("a", "10.0.0.1", |v| v["metadata"]["labels"]["a"] = "c".into()),
    ] {
        assert_ne!(one.facts.digest(), other.facts.digest());
    }
}

#[test]
fn a_state_of_a_later_version_is_read_as_far_as_it_is_known() {
    let state: State = serde_json::from_value(json!({"ready": "ready", "new": 1})).unwrap();
    assert_eq!(state.ready, Some(Ready::Yes));
    assert_eq!(serde_json::to_value(State::default()).unwrap(), json!({}));
}

const PODS: Scope = Scope {
    kind: Kind::Pod,
    namespace: None,
};

fn heard(at: i64) -> Heard {
    Heard {
        span: Span::moment(at),
        first: false,
    }
}

fn versioned(mut object: Object, version: &str) -> Object {
    object.version = version.into();
    object
}

#[test]
fn a_pod_is_one_row_until_it_has_had_an_address() {
    let mut round = Round::default();
    let mut cluster = Cluster::load(Loaded::default(), &[PODS], &mut round);
    let created = "2026-01-31T10:00:00Z"
        .parse::<jiff::Timestamp>()
        .unwrap()
        .as_microsecond();
    let pending = pod("a", "", |v| v["spec"] = json!({}));
    cluster.observe(&PODS, pending, heard(created + 10), &mut round);
    cluster.observe(
        &PODS,
        versioned(pod("a", "", |_| ()), "2"),
        heard(created + 1_000_000),
        &mut round,
    );
    cluster.observe(
        &PODS,
        versioned(pod("a", "10.0.0.1", |_| ()), "3"),
        heard(created + 4_000_000),
        &mut round,
    );
    assert_eq!(round.objects.len(), 1);
    let row = &round.objects[&1];
    assert_eq!((row.ips.len(), row.node.as_str(), row.valid_to), (1, "n1", None));
    assert_eq!(
        row.valid_from,
        created + 2_000_000,
        "its address is its own since the kubelet took it on"
    );
    // Another address is another row, and the end of the first.
    cluster.observe(
        &PODS,
        versioned(pod("a", "10.0.0.2", |_| ()), "4"),
        heard(created + 9_000_000),
        &mut round,
    );
    assert_eq!(round.objects[&1].valid_to, Some(created + 9_000_000));
    assert_eq!(round.objects[&2].valid_from, created + 9_000_000);
    // What was heard already says nothing.
    cluster.observe(
        &PODS,
        versioned(pod("a", "10.0.0.3", |_| ()), "4"),
        heard(created + 10_000_000),
        &mut round,
    );
    assert_eq!(round.objects.len(), 2);
    let kinds: Vec<_> = round.changes.iter().map(|c| c.kind).collect();
    assert_eq!(kinds, ["pod_created"]);
}

#[test]
fn a_list_that_is_not_whole_ends_nothing() {
    let mut round = Round::default();
    let mut cluster = Cluster::load(Loaded::default(), &[PODS], &mut round);
    let first = Heard {
        span: Span::moment(1_000_000),
        first: true,
    };
    assert_eq!(cluster.begin_list(&PODS), None, "for the first time");
    for name in ["a", "b"] {
        cluster.observe(&PODS, pod(name, "", |_| ()), first, &mut round);
    }
    cluster.end_list(&PODS, first.span, &mut round);
    assert_eq!(round.seen["pods"], 1_000_000);
    // A list breaks off after its first page; the next one is whole and lacks one.
    assert_eq!(cluster.begin_list(&PODS), Some(1_000_000));
    let span = Span {
        since: 1_000_000,
        at: 5_000_000,
    };
    let again = Heard { span, first: false };
    cluster.observe(&PODS, pod("a", "", |_| ()), again, &mut round);
    cluster.begin_list(&PODS);
    assert!(round.changes.is_empty());
    cluster.observe(&PODS, pod("b", "", |_| ()), again, &mut round);
    cluster.end_list(&PODS, span, &mut round);
    let told: Vec<_> = round
        .changes
        .iter()
        .map(|c| (c.kind, c.subject.pod.as_str(), c.span))
        .collect();
    assert_eq!(told, [("pod_deleted", "a", span)]);
    assert_eq!(cluster.count(&PODS), 1);
}
