//! A Kubernetes API for tests: lists in pages and watches over HTTP on loopback, in the shapes that the API documents
//! ("Kubernetes API Concepts": resource versions, bookmarks, 410 Gone, chunked lists, Status), and what can go wrong.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use parking_lot::Mutex;
use serde_json::{Value, json};
use sonde_common::config;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

/// Cheap to clone; all clones are one cluster.
#[derive(Clone)]
pub(crate) struct Cluster {
    inner: Arc<Mutex<Inner>>,
    news: watch::Sender<u64>,
    dir: Arc<tempfile::TempDir>,
}

#[derive(Default)]
struct Inner {
    version: u64,
    /// By plural, then `namespace/name`.
    objects: BTreeMap<String, BTreeMap<String, Value>>,
    log: Vec<Entry>,
    /// Watches and rests of lists from before this are expired.
    oldest: u64,
    /// Whether an expired watch hears of it in its stream, not by its status.
    gone_in_stream: bool,
    trouble: Trouble,
    /// Watches that began before have to end.
    cuts: u64,
    /// The rest of a list is expired this many times.
    lists_to_break: u32,
    /// Requests as they came: plural and query.
    requests: Vec<(String, HashMap<String, String>)>,
}

#[derive(Clone)]
struct Entry {
    version: u64,
    plural: String,
    /// ADDED, MODIFIED, DELETED, BOOKMARK.
    kind: &'static str,
    object: Value,
}

/// How every request is answered.
#[derive(Clone, Copy, Default, PartialEq)]
pub(crate) enum Trouble {
    #[default]
    None,
    /// With a Status of this code.
    Status(u16),
    /// By something that is not the API.
    Garbage,
    /// Not at all.
    Hang,
}

fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
           "reason": reason, "code": code})
}

fn refusal(code: u16, reason: &str, message: &str) -> Response {
    let code_http = StatusCode::from_u16(code).unwrap();
    (code_http, Json(status(code, reason, message))).into_response()
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        let cluster = Self {
            inner: Arc::default(),
            news: watch::Sender::new(0),
            dir: Arc::new(tempfile::tempdir().unwrap()),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "c", "cluster": {"server": url}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
            "contexts": [{"name": "test", "context": {"cluster": "c", "user": "u"}}],
        });
        std::fs::write(cluster.dir.path().join("config"), kubeconfig.to_string()).unwrap();
        let app = Router::new().fallback(answer).with_state(cluster.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        cluster
    }

    /// Where another process finds how to reach it.
    pub(crate) fn kubeconfig(&self) -> std::path::PathBuf {
        self.dir.path().join("config")
    }

    pub(crate) fn config(&self) -> config::Kubernetes {
        config::Kubernetes {
            kubeconfig: self.kubeconfig(),
            ..config::Kubernetes::default()
        }
    }

    fn change(&self, act: impl FnOnce(&mut Inner)) {
        act(&mut self.inner.lock());
        self.news.send_modify(|n| *n += 1);
    }

    /// Makes an object, or changes it; gives it a new version.
    pub(crate) fn put(&self, plural: &str, mut object: Value) {
        self.change(|inner| {
            inner.version += 1;
            object["metadata"]["resourceVersion"] = inner.version.to_string().into();
            let all = inner.objects.entry(plural.into()).or_default();
            let kind = match all.insert(key(&object), object.clone()) {
                None => "ADDED",
                Some(_) => "MODIFIED",
            };
            inner.note(plural, kind, object);
        });
    }

    pub(crate) fn delete(&self, plural: &str, namespace: &str, name: &str) {
        self.change(|inner| {
            inner.version += 1;
            let all = inner.objects.get_mut(plural).unwrap();
            let mut object = all.remove(&format!("{namespace}/{name}")).expect("it is there");
            object["metadata"]["resourceVersion"] = inner.version.to_string().into();
            inner.note(plural, "DELETED", object);
        });
    }

    /// What was written, at the version that it has.
    pub(crate) fn version(&self) -> u64 {
        self.inner.lock().version
    }

    /// Tells all watches of a kind where they are.
    pub(crate) fn bookmark(&self, plural: &str) {
        self.change(|inner| {
            inner.version += 1;
            let object = json!({"kind": "Thing", "apiVersion": "v1",
                "metadata": {"resourceVersion": inner.version.to_string(), "creationTimestamp": null}});
            inner.note(plural, "BOOKMARK", object);
        });
    }

    /// Ends all watches, in the middle of a line.
    pub(crate) fn cut(&self) {
        self.change(|inner| inner.cuts += 1);
    }

    /// Forgets what happened so far: watches from before must make a new list.
    pub(crate) fn compact(&self, gone_in_stream: bool) {
        self.change(|inner| {
            inner.version += 1;
            inner.oldest = inner.version;
            inner.gone_in_stream = gone_in_stream;
            inner.log.clear();
        });
    }

    pub(crate) fn break_lists(&self, times: u32) {
        self.change(|inner| inner.lists_to_break = times);
    }

    pub(crate) fn trouble(&self, trouble: Trouble) {
        self.change(|inner| inner.trouble = trouble);
    }

    pub(crate) fn requests(&self, plural: &str) -> Vec<HashMap<String, String>> {
        let inner = self.inner.lock();
        let of_kind = inner.requests.iter().filter(|(p, _)| p == plural);
        of_kind.map(|(_, query)| query.clone()).collect()
    }
}

fn key(object: &Value) -> String {
    let meta = &object["metadata"];
    format!(
        "{}/{}",
        meta["namespace"].as_str().unwrap_or_default(),
        meta["name"].as_str().unwrap()
    )
}

impl Inner {
    fn note(&mut self, plural: &str, kind: &'static str, object: Value) {
        self.log.push(Entry {
            version: self.version,
            plural: plural.into(),
            kind,
            object,
        });
    }
}

async fn answer(State(cluster): State<Cluster>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let parts: Vec<&str> = path.split('/').collect();
    let plural = (*parts.last().unwrap()).to_owned();
    let namespace = parts
        .iter()
        .position(|p| *p == "namespaces")
        .map(|at| parts[at + 1].to_owned());
    let query: HashMap<String, String> = form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes())
        .into_owned()
        .collect();
    let expected = match plural.as_str() {
        "replicasets" | "controllerrevisions" => "/apis/apps/v1/",
        "jobs" => "/apis/batch/v1/",
        "endpointslices" => "/apis/discovery.k8s.io/v1/",
        "pods" | "nodes" | "services" => "/api/v1/",
        other => panic!("nobody should ask for {other}"),
    };
    assert!(path.starts_with(expected), "{path}");
    assert_eq!(request.headers()[header::AUTHORIZATION], "Bearer t");
    let accept = request
        .headers()
        .get(header::ACCEPT)
        .map_or("", |a| a.to_str().unwrap());
    let meta_only = accept.contains("as=PartialObjectMetadata");
    assert_eq!(
        meta_only,
        ["replicasets", "jobs"].contains(&plural.as_str()),
        "{path}: {accept}"
    );
    let trouble = {
        let mut inner = cluster.inner.lock();
        inner.requests.push((plural.clone(), query.clone()));
        inner.trouble
    };
    match trouble {
        Trouble::None => {}
        Trouble::Status(code) => return refusal(code, "ServiceUnavailable", "the API is not well"),
        Trouble::Garbage => return (StatusCode::OK, "<html>a proxy's page</html>").into_response(),
        Trouble::Hang => {
            tokio::time::sleep(Duration::from_secs(3600)).await;
        }
    }
    if query.get("watch").is_some_and(|w| w == "true" || w == "1") {
        watching(cluster, plural, namespace, meta_only, &query)
    } else {
        list(&cluster, &plural, namespace.as_deref(), meta_only, &query)
    }
}

fn shown(object: &Value, meta_only: bool) -> Value {
    if meta_only {
        json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
    } else {
        object.clone()
    }
}

fn in_namespace(object: &Value, namespace: Option<&str>) -> bool {
    namespace.is_none_or(|n| object["metadata"]["namespace"] == n)
}

/// The token of a rest: version of the first page, and how many were shown.
fn list(
    cluster: &Cluster,
    plural: &str,
    namespace: Option<&str>,
    meta_only: bool,
    query: &HashMap<String, String>,
) -> Response {
    let mut inner = cluster.inner.lock();
    let (version, from) = match query.get("continue") {
        None => (inner.version, 0),
        Some(token) => {
            let (version, from) = token.split_once(':').unwrap();
            (version.parse().unwrap(), from.parse().unwrap())
        }
    };
    if from > 0 && (version < inner.oldest || inner.lists_to_break > 0) {
        inner.lists_to_break = inner.lists_to_break.saturating_sub(1);
        return refusal(
            410,
            "Expired",
            "The provided continue parameter is too old to display a consistent list result.",
        );
    }
    let all: Vec<&Value> = inner
        .objects
        .get(plural)
        .into_iter()
        .flat_map(BTreeMap::values)
        .filter(|o| in_namespace(o, namespace))
        .collect();
    let limit: usize = query.get("limit").map_or(usize::MAX, |l| l.parse().unwrap());
    let page: Vec<Value> = all.iter().skip(from).take(limit).map(|o| shown(o, meta_only)).collect();
    let end = from + page.len();
    let mut meta = json!({"resourceVersion": version.to_string()});
    if end < all.len() {
        meta["continue"] = format!("{version}:{end}").into();
        meta["remainingItemCount"] = (all.len() - end).into();
    }
    // Go writes null for an empty slice.
    let items = if page.is_empty() { Value::Null } else { page.into() };
    Json(json!({"kind": "ThingList", "apiVersion": "v1", "metadata": meta, "items": items})).into_response()
}

fn watching(
    cluster: Cluster,
    plural: String,
    namespace: Option<String>,
    meta_only: bool,
    query: &HashMap<String, String>,
) -> Response {
    assert_eq!(query["allowWatchBookmarks"], "true");
    let mut seen: u64 = query["resourceVersion"].parse().unwrap();
    let (expired, in_stream, begun) = {
        let inner = cluster.inner.lock();
        (seen < inner.oldest, inner.gone_in_stream, inner.cuts)
    };
    let (sender, receiver) = mpsc::channel::<Result<Bytes, std::io::Error>>(4);
    if expired {
        let gone = status(410, "Expired", "too old resource version");
        if !in_stream {
            return refusal(410, "Expired", "too old resource version");
        }
        let line = json!({"type": "ERROR", "object": gone}).to_string() + "\n";
        sender.try_send(Ok(line.into())).unwrap();
        return Body::from_stream(ReceiverStream::new(receiver)).into_response();
    }
    let mut news = cluster.news.subscribe();
    tokio::spawn(async move {
        loop {
            news.mark_unchanged();
            let (entries, cut) = {
                let inner = cluster.inner.lock();
                let new: Vec<Entry> = inner
                    .log
                    .iter()
                    .filter(|e| e.version > seen && e.plural == plural)
                    .cloned()
                    .collect();
                (new, inner.cuts != begun)
            };
            for entry in entries {
                seen = entry.version;
                if entry.kind != "BOOKMARK" && !in_namespace(&entry.object, namespace.as_deref()) {
                    continue;
                }
                let object = if entry.kind == "BOOKMARK" {
                    entry.object
                } else {
                    shown(&entry.object, meta_only)
                };
                let line = json!({"type": entry.kind, "object": object}).to_string() + "\n";
                // In two pieces: a line may come in as many as the network likes.
                let (first, second) = line.split_at(line.len() / 2);
                for piece in [first, second] {
                    if sender.send(Ok(piece.to_owned().into())).await.is_err() {
                        return;
                    }
                    tokio::task::yield_now().await;
                }
            }
            if cut {
                let _ = sender
                    .send(Ok("{\"type\":\"MODIFIED\",\"object\":{\"meta".into()))
                    .await;
                let _ = sender.send(Err(std::io::Error::other("cut"))).await;
                return;
            }
            if news.changed().await.is_err() {
                return;
            }
        }
    });
    Body::from_stream(ReceiverStream::new(receiver)).into_response()
}

/// Objects as the API writes them, with much that nobody asked for.
pub(crate) mod objects {
    use serde_json::{Value, json};

    fn meta(namespace: &str, name: &str, created: &str) -> Value {
        json!({
            "name": name, "namespace": namespace, "uid": uid(namespace, name), "creationTimestamp": created,
            "generateName": "x-", "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{\"a\":1}"},
            "managedFields": [{"manager": "kubelet", "operation": "Update", "apiVersion": "v1",
                "time": created, "fieldsType": "FieldsV1", "fieldsV1": {"f:status": {"f:phase": {}}}}],
        })
    }

    pub(crate) fn uid(namespace: &str, name: &str) -> String {
        format!("uid-{namespace}-{name}")
    }

    pub(crate) fn owned(mut object: Value, kind: &str, name: &str) -> Value {
        let namespace = object["metadata"]["namespace"].as_str().unwrap().to_owned();
        object["metadata"]["ownerReferences"] = json!([
            {"apiVersion": "v1", "kind": "Other", "name": "other", "uid": "other"},
            {"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": uid(&namespace, name), "controller": true,
             "blockOwnerDeletion": true}]);
        object
    }

    /// Ready, on node n1.
    pub(crate) fn pod(namespace: &str, name: &str, ip: &str, created: &str) -> Value {
        let mut meta = meta(namespace, name, created);
        meta["labels"] = json!({"app": name, "pod-template-hash": "abc"});
        json!({
            "kind": "Pod", "apiVersion": "v1", "metadata": meta,
            "spec": {"nodeName": "n1", "containers": [{"name": "app", "image": "x", "env": [{"name": "A", "value": "B"}]}]},
            "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "hostIP": "192.168.0.1",
                "startTime": created,
                "conditions": [{"type": "Initialized", "status": "True", "lastProbeTime": null, "lastTransitionTime": created},
                               {"type": "Ready", "status": "True", "lastProbeTime": null, "lastTransitionTime": created}],
                "containerStatuses": [{"name": "app", "restartCount": 0, "ready": true, "lastState": {},
                    "state": {"running": {"startedAt": created}}}]},
        })
    }

    pub(crate) fn not_ready(mut pod: Value, at: &str) -> Value {
        for condition in pod["status"]["conditions"].as_array_mut().unwrap() {
            if condition["type"] == "Ready" {
                condition["status"] = "False".into();
                condition["reason"] = "ContainersNotReady".into();
                condition["message"] = "containers with unready status: [app]".into();
                condition["lastTransitionTime"] = at.into();
            }
        }
        pod
    }

    pub(crate) fn restarted(mut pod: Value, count: i64, at: &str) -> Value {
        let container = &mut pod["status"]["containerStatuses"][0];
        container["restartCount"] = count.into();
        container["lastState"] =
            json!({"terminated": {"exitCode": 137, "reason": "OOMKilled", "startedAt": at, "finishedAt": at}});
        pod
    }

    pub(crate) fn replica_set(namespace: &str, name: &str, deployment: &str, revision: u32, created: &str) -> Value {
        let mut meta = meta(namespace, name, created);
        meta["annotations"]["deployment.kubernetes.io/revision"] = revision.to_string().into();
        let object = json!({"kind": "ReplicaSet", "apiVersion": "apps/v1", "metadata": meta, "spec": {"replicas": 1}});
        owned(object, "Deployment", deployment)
    }

    pub(crate) fn job(namespace: &str, name: &str, created: &str) -> Value {
        json!({"kind": "Job", "apiVersion": "batch/v1", "metadata": meta(namespace, name, created), "spec": {}})
    }

    pub(crate) fn controller_revision(namespace: &str, name: &str, set: &str, revision: i64, created: &str) -> Value {
        let object = json!({"kind": "ControllerRevision", "apiVersion": "apps/v1",
            "metadata": meta(namespace, name, created), "revision": revision, "data": {"spec": {"template": {}}}});
        owned(object, "StatefulSet", set)
    }

    pub(crate) fn node(name: &str, ip: &str, boot_id: &str, created: &str) -> Value {
        let mut meta = meta("", name, created);
        meta.as_object_mut().unwrap().remove("namespace");
        meta["labels"] = json!({"topology.kubernetes.io/zone": "a", "kubernetes.io/hostname": name});
        json!({"kind": "Node", "apiVersion": "v1", "metadata": meta, "spec": {"podCIDR": "10.1.0.0/24"},
            "status": {
                "addresses": [{"type": "InternalIP", "address": ip}, {"type": "Hostname", "address": name}],
                "conditions": [{"type": "MemoryPressure", "status": "False", "lastTransitionTime": created},
                               {"type": "Ready", "status": "True", "reason": "KubeletReady",
                                "message": "kubelet is posting ready status", "lastTransitionTime": created}],
                "nodeInfo": {"bootID": boot_id, "kubeletVersion": "v1.33.1", "kernelVersion": "6.18"},
                "images": [{"names": ["a"], "sizeBytes": 1}]}})
    }

    pub(crate) fn service(namespace: &str, name: &str, ip: &str, created: &str) -> Value {
        json!({"kind": "Service", "apiVersion": "v1", "metadata": meta(namespace, name, created),
            "spec": {"type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"],
                "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": "web"},
                          {"name": "dns", "protocol": "UDP", "port": 53, "targetPort": 5353}],
                "selector": {"app": name}, "sessionAffinity": "None"},
            "status": {"loadBalancer": {}}})
    }

    /// Of (address, pod, ready).
    pub(crate) fn slice(namespace: &str, service: &str, endpoints: &[(&str, &str, bool)], created: &str) -> Value {
        let mut meta = meta(namespace, &format!("{service}-x1"), created);
        meta["labels"] = json!({"kubernetes.io/service-name": service});
        let endpoints: Vec<Value> = endpoints
            .iter()
            .map(|(ip, pod, ready)| {
                json!({"addresses": [ip], "conditions": {"ready": ready, "serving": ready, "terminating": false},
                    "nodeName": "n1", "targetRef": {"kind": "Pod", "namespace": namespace, "name": pod, "uid": uid(namespace, pod)}})
            })
            .collect();
        let endpoints = if endpoints.is_empty() {
            Value::Null
        } else {
            endpoints.into()
        };
        json!({"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "metadata": meta, "addressType": "IPv4",
            "endpoints": endpoints, "ports": null})
    }
}
