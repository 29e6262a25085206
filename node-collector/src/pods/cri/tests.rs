//! The task against a runtime that does what a test tells it to, over a real socket.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::Stream;
use parking_lot::Mutex;
use sonde_common::paths::HostPaths;
use tokio::net::UnixListener;
use tokio::sync::broadcast;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::{BroadcastStream, UnixListenerStream};
use tonic::{Code, Request, Response, Status};

use super::sandbox::tests::status;
use super::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use super::{Board, CriSource, Settings, v1};
use crate::missing::Missing;
use crate::pods::{Pod, PodIndex};

const PATIENCE: Duration = Duration::from_secs(20);
const WHAT: &str = "pods of the container runtime";

/// What the runtime has and how it behaves.
struct State {
    name: &'static str,
    sandboxes: BTreeMap<String, v1::PodSandboxStatusResponse>,
    not_ready: Vec<String>,
    /// Statuses that fail.
    fails: BTreeMap<String, Code>,
    hangs: bool,
    has_no_interface: bool,
    /// `None`: cannot tell of changes.
    events: Option<broadcast::Sender<v1::ContainerEventResponse>>,
    lists: u32,
    statuses: Vec<String>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            name: "cri-o",
            sandboxes: BTreeMap::new(),
            not_ready: Vec::new(),
            fails: BTreeMap::new(),
            hangs: false,
            has_no_interface: false,
            events: None,
            lists: 0,
            statuses: Vec::new(),
        }
    }
}

#[derive(Clone)]
struct Fake(Arc<Mutex<State>>);

type Events = Pin<Box<dyn Stream<Item = Result<v1::ContainerEventResponse, Status>> + Send>>;

#[tonic::async_trait]
impl RuntimeService for Fake {
    async fn version(&self, _: Request<v1::VersionRequest>) -> Result<Response<v1::VersionResponse>, Status> {
        if self.0.lock().has_no_interface {
            return Err(Status::unimplemented("unknown service runtime.v1.RuntimeService"));
        }
        Ok(Response::new(v1::VersionResponse {
            version: "0.1.0".into(),
            runtime_name: self.0.lock().name.into(),
            runtime_version: "1.6.20".into(),
            runtime_api_version: "v1".into(),
        }))
    }

    async fn list_pod_sandbox(
        &self,
        _: Request<v1::ListPodSandboxRequest>,
    ) -> Result<Response<v1::ListPodSandboxResponse>, Status> {
        let (items, hangs) = {
            let mut state = self.0.lock();
            state.lists += 1;
            let item = |id: &String| v1::PodSandbox {
                id: id.clone(),
                state: i32::from(state.not_ready.contains(id)),
                ..v1::PodSandbox::default()
            };
            (state.sandboxes.keys().map(item).collect(), state.hangs)
        };
        if hangs {
            std::future::pending::<()>().await;
        }
        Ok(Response::new(v1::ListPodSandboxResponse { items }))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<v1::PodSandboxStatusRequest>,
    ) -> Result<Response<v1::PodSandboxStatusResponse>, Status> {
        let request = request.into_inner();
        assert!(request.verbose);
        let mut state = self.0.lock();
        state.statuses.push(request.pod_sandbox_id.clone());
        if let Some(code) = state.fails.get(&request.pod_sandbox_id) {
            return Err(Status::new(*code, "told to fail"));
        }
        let found = state.sandboxes.get(&request.pod_sandbox_id).cloned();
        found.map(Response::new).ok_or_else(|| Status::not_found("gone"))
    }

    type GetContainerEventsStream = Events;

    async fn get_container_events(&self, _: Request<v1::GetEventsRequest>) -> Result<Response<Events>, Status> {
        let Some(events) = self.0.lock().events.as_ref().map(broadcast::Sender::subscribe) else {
            return Err(Status::unimplemented("method GetContainerEvents not implemented"));
        };
        let events = BroadcastStream::new(events).map(|event| event.map_err(|e| Status::internal(e.to_string())));
        Ok(Response::new(Box::pin(events)))
    }
}

/// The task, and the runtime it asks.
struct Scene {
    dir: tempfile::TempDir,
    fake: Fake,
    server: Option<tokio::runtime::Runtime>,
    board: Arc<Board>,
    index: Arc<PodIndex>,
    missing: Arc<Missing>,
    source: Option<CriSource>,
}

impl Scene {
    async fn new(interval: Duration, prepare: impl FnOnce(&mut State)) -> Self {
        let mut state = State::default();
        prepare(&mut state);
        let mut scene = Self {
            dir: tempfile::tempdir().unwrap(),
            fake: Fake(Arc::new(Mutex::new(state))),
            server: None,
            board: Arc::default(),
            index: Arc::default(),
            missing: Arc::default(),
            source: None,
        };
        scene.serve();
        let settings = Settings {
            endpoint: scene.socket().display().to_string(),
            interval,
            call: Duration::from_millis(500),
            paths: HostPaths::below(&scene.dir.path().join("host")),
            only_source: true,
        };
        let (board, index, missing) = (
            Arc::clone(&scene.board),
            Arc::clone(&scene.index),
            Arc::clone(&scene.missing),
        );
        let mut source = CriSource::start(settings, board, index, missing);
        source.first_look().await;
        scene.source = Some(source);
        scene
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("runtime.sock")
    }

    fn serve(&mut self) {
        self.server = Some(serve(self.socket(), self.fake.clone()));
    }

    /// With all its connections.
    fn kill(&mut self) {
        self.server.take().unwrap().shutdown_background();
        std::fs::remove_file(self.socket()).unwrap();
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.fake.0.lock())
    }

    fn ids(&self) -> Vec<String> {
        self.board
            .sandboxes()
            .iter()
            .map(|sandbox| sandbox.id.clone())
            .collect()
    }

    /// As the thread does that enters namespaces.
    fn enter(&self, id: &str) {
        self.index.add(Arc::new(Pod {
            sandbox: id.into(),
            ..Pod::default()
        }));
    }

    async fn until(&self, what: &str, is: impl Fn() -> bool) -> Duration {
        let begun = Instant::now();
        while !is() {
            assert!(
                begun.elapsed() < PATIENCE,
                "{what}: {:?}, {:?}",
                self.board,
                self.missing.list()
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        begun.elapsed()
    }
}

/// In tasks of its own, which end with it.
fn serve(path: PathBuf, fake: Fake) -> tokio::runtime::Runtime {
    let tasks = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let (bound, is_bound) = std::sync::mpsc::channel();
    tasks.spawn(async move {
        let listener = UnixListener::bind(path).unwrap();
        bound.send(()).unwrap();
        tonic::transport::Server::builder()
            .serve_with_incoming(RuntimeServiceServer::new(fake), UnixListenerStream::new(listener))
            .await
            .unwrap();
    });
    is_bound.recv().unwrap();
    tasks
}

impl Drop for Scene {
    fn drop(&mut self) {
        // A runtime may not be waited for in a task.
        if let Some(server) = self.server.take() {
            server.shutdown_background();
        }
    }
}

fn sandbox(id: &str) -> (String, v1::PodSandboxStatusResponse) {
    let info = r#"{"pid":7,"runtimeSpec":{"linux":{"namespaces":[{"type":"network","path":"/run/netns/x"}]}}}"#;
    let response = v1::PodSandboxStatusResponse {
        status: Some(status(id, &format!("pod-{id}"))),
        info: [("info".to_owned(), info.to_owned())].into(),
    };
    (id.to_owned(), response)
}

fn event() -> v1::ContainerEventResponse {
    v1::ContainerEventResponse {
        container_id: "x".into(),
        ..v1::ContainerEventResponse::default()
    }
}

const NEVER: Duration = Duration::from_secs(3600);
const OFTEN: Duration = Duration::from_millis(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_is_a_reason_to_ask_at_once() {
    let (events, _) = broadcast::channel(16);
    let scene = Scene::new(NEVER, |state| {
        state.sandboxes.extend([sandbox("a")]);
        state.events = Some(events.clone());
    })
    .await;
    assert_eq!(scene.ids(), ["a"], "what is there is known when the source has started");
    scene
        .until("events are asked for", || events.receiver_count() == 1)
        .await;
    for (step, id) in ["b", "c", "d"].into_iter().enumerate() {
        scene.change(|state| state.sandboxes.extend([sandbox(id)]));
        events.send(event()).unwrap();
        scene.until(id, || scene.ids().len() == step + 2).await;
    }
    // The stream ends: nothing is told any more, and asking goes on.
    let lists = scene.change(|state| {
        state.events = None;
        state.lists
    });
    drop(events);
    scene
        .until("asked again", || scene.change(|state| state.lists) > lists)
        .await;
    assert_eq!(scene.missing.list(), BTreeMap::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runtime_without_events_is_asked_each_interval() {
    let scene = Scene::new(OFTEN, |state| state.sandboxes.extend([sandbox("a")])).await;
    scene.enter("a");
    scene.change(|state| state.sandboxes.extend([sandbox("b")]));
    scene.until("b", || scene.ids() == ["a", "b"]).await;
    scene.enter("b");
    scene.change(|state| drop(state.sandboxes.remove("a")));
    scene.until("end of a", || scene.ids() == ["b"]).await;
    let lists = scene.change(|state| state.lists);
    scene
        .until("more lists", || scene.change(|state| state.lists) > lists + 5)
        .await;
    assert_eq!(
        scene.change(|state| state.statuses.clone()),
        ["a", "b"],
        "one status for each"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn news_of_a_namespace_is_a_reason_to_ask_until_it_has_an_owner() {
    let scene = Scene::new(NEVER, |_| {}).await;
    scene.board.set_unclaimed(true);
    scene.board.nudge();
    // It is in the list only a while after its namespace is there.
    tokio::time::sleep(Duration::from_millis(300)).await;
    scene.change(|state| state.sandboxes.extend([sandbox("a")]));
    let took = scene.until("a", || scene.ids() == ["a"]).await;
    assert!(took < Duration::from_secs(2), "{took:?}");
    scene.board.set_unclaimed(false);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let lists = scene.change(|state| state.lists);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(scene.change(|state| state.lists), lists, "not asked without a reason");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hanging_runtime_is_said_and_its_pods_stay() {
    let scene = Scene::new(OFTEN, |state| state.sandboxes.extend([sandbox("a")])).await;
    scene.change(|state| state.hangs = true);
    scene.until("said", || scene.missing.list().contains_key(WHAT)).await;
    let why = scene.missing.list()[WHAT].clone();
    assert!(
        why.ends_with("runtime.sock: ListPodSandbox: no answer within 0.5 s"),
        "{why}"
    );
    assert_eq!(scene.ids(), ["a"]);
    scene.change(|state| {
        state.hangs = false;
        state.sandboxes.extend([sandbox("b")]);
    });
    scene
        .until("back", || scene.ids() == ["a", "b"] && scene.missing.list().is_empty())
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runtime_that_hangs_from_the_first_call_on_does_not_hold_the_start_up() {
    let begun = Instant::now();
    let scene = Scene::new(OFTEN, |state| state.hangs = true).await;
    assert!(begun.elapsed() < Duration::from_secs(4) && scene.missing.list().contains_key(WHAT));
    assert!(scene.board.is_active(), "its namespaces are its own all the same");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changed_while_the_runtime_was_away_is_put_right() {
    let mut scene = Scene::new(OFTEN, |state| state.sandboxes.extend([sandbox("a"), sandbox("b")])).await;
    scene.kill();
    scene.until("said", || scene.missing.list().contains_key(WHAT)).await;
    scene.change(|state| {
        state.sandboxes.remove("a");
        state.not_ready.push("b".into());
        state.sandboxes.extend([sandbox("c")]);
    });
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(scene.ids(), ["a", "b"]);
    scene.serve();
    scene.until("back", || scene.ids() == ["b", "c"]).await;
    let ready: Vec<bool> = scene.board.sandboxes().iter().map(|sandbox| sandbox.ready).collect();
    assert_eq!(ready, [false, true]);
    scene.until("unsaid", || scene.missing.list().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_that_cannot_be_told_of_costs_no_other() {
    let scene = Scene::new(OFTEN, |state| {
        state
            .sandboxes
            .extend([sandbox("a"), sandbox("b"), sandbox("c"), sandbox("d")]);
        state.fails.insert("b".into(), Code::Internal);
        // Removed between the list and the question.
        state.fails.insert("c".into(), Code::NotFound);
        state.sandboxes.get_mut("d").unwrap().status.as_mut().unwrap().metadata = None;
    })
    .await;
    scene.enter("a");
    assert_eq!(scene.ids(), ["a"]);
    let list = scene.missing.list();
    let said: Vec<&&str> = list.keys().collect();
    assert_eq!(said, [&"single sandboxes of the container runtime"]);
    let lists = scene.change(|state| state.lists);
    scene
        .until("more lists", || scene.change(|state| state.lists) > lists + 5)
        .await;
    let asked = |id: &str| scene.change(|state| state.statuses.iter().filter(|asked| *asked == id).count());
    assert_eq!(
        (asked("a"), asked("b"), asked("d")),
        (1, 1, 1),
        "asked again later, not with each list"
    );
    scene.change(|state| state.fails.clear());
    scene.until("b and c", || scene.ids() == ["a", "b", "c"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_runtime_is_said() {
    let mut scene = Scene::new(OFTEN, |_| {}).await;
    scene.kill();
    let listener = UnixListener::bind(scene.socket()).unwrap();
    let talker = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"220 hello\r\n").await;
        }
    });
    scene.until("said", || scene.missing.list().contains_key(WHAT)).await;
    assert!(!scene.source.as_ref().unwrap().has_failed());
    talker.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runtime_that_tells_no_process_is_helped_by_the_control_group() {
    const UID: &str = "6b1f2c3d-0000-4bd0-8e44-000000000000";
    let scene = Scene::new(OFTEN, |_| {}).await;
    let id = "0123456789abcdef0123456789abcdef";
    let group = scene
        .dir
        .path()
        .join(format!("host/sys/fs/cgroup/kubepods/burstable/pod{UID}/{id}"));
    std::fs::create_dir_all(&group).unwrap();
    std::fs::write(scene.dir.path().join("host/sys/fs/cgroup/cgroup.controllers"), "").unwrap();
    std::fs::write(group.join("cgroup.procs"), "4321\n").unwrap();
    let (id, mut response) = sandbox(id);
    response.info.clear();
    scene.change(|state| state.sandboxes.insert(id, response));
    scene.until("found", || scene.ids().len() == 1).await;
    let found = Arc::clone(&scene.board.sandboxes()[0]);
    assert_eq!(found.pid, 4321);
    assert_eq!(found.cgroup.as_deref(), Some(&*format!("/kubepods/burstable/pod{UID}")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_only_the_runtime_sees_is_asked_of_the_process() {
    const UID: &str = "6b1f2c3d-0000-4bd0-8e44-000000000000";
    let scene = Scene::new(OFTEN, |_| {}).await;
    let host = scene.dir.path().join("host");
    let seen_here = format!("docker/node/kubelet/kubepods/pod{UID}");
    std::fs::create_dir_all(host.join("sys/fs/cgroup").join(&seen_here)).unwrap();
    std::fs::write(host.join("sys/fs/cgroup/cgroup.controllers"), "").unwrap();
    std::fs::create_dir_all(host.join("proc/7")).unwrap();
    std::fs::write(host.join("proc/7/cgroup"), format!("0::/{seen_here}/a\n")).unwrap();
    let told = |id: &str, pid: u32| {
        let (id, mut response) = sandbox(id);
        let info =
            format!(r#"{{"pid":{pid},"runtimeSpec":{{"linux":{{"cgroupsPath":"/kubelet/kubepods/pod{UID}/a"}}}}}}"#);
        response.info.insert("info".into(), info);
        (id, response)
    };
    scene.change(|state| state.sandboxes.extend([told("a", 7), told("b", 8)]));
    scene.until("both", || scene.ids().len() == 2).await;
    let groups: Vec<Option<String>> = scene
        .board
        .sandboxes()
        .iter()
        .map(|found| found.cgroup.clone())
        .collect();
    // A group that is not there is none: the pod's processes are looked for by its namespace.
    assert_eq!(groups, [Some(format!("/{seen_here}")), None]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dockers_containerd_does_not_stand_in_the_way_of_cri_dockerd() {
    let dir = tempfile::tempdir().unwrap();
    let paths = HostPaths::below(dir.path());
    std::fs::create_dir_all(paths.run.join("containerd")).unwrap();
    let fake = |state| Fake(Arc::new(Mutex::new(state)));
    let none = fake(State {
        has_no_interface: true,
        ..State::default()
    });
    let first = serve(paths.run.join("containerd/containerd.sock"), none);
    let (board, missing) = (Arc::<Board>::default(), Arc::<Missing>::default());
    let settings = Settings {
        endpoint: String::new(),
        interval: OFTEN,
        call: PATIENCE,
        paths: paths.clone(),
        only_source: false,
    };
    let source = || {
        CriSource::start(
            settings.clone(),
            Arc::clone(&board),
            Arc::default(),
            Arc::clone(&missing),
        )
    };
    source().first_look().await;
    assert!(!board.is_active(), "nothing there that makes pods");
    assert!(missing.list()[WHAT].contains("unknown service"), "{:?}", missing.list());

    let some = fake(State {
        sandboxes: [sandbox("a")].into(),
        ..State::default()
    });
    let second = serve(paths.run.join("cri-dockerd.sock"), some);
    let mut running = source();
    running.first_look().await;
    assert_eq!(board.sandboxes().len(), 1);
    assert!(board.is_active() && missing.list().is_empty(), "{:?}", missing.list());
    let told = super::tell(&settings).await;
    assert!(
        told.ends_with("cri-dockerd.sock: cri-o 1.6.20 with 1 sandboxes"),
        "{told}"
    );
    first.shutdown_background();
    second.shutdown_background();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_strangers_does_not_keep_the_runtime_busy() {
    let scene = Scene::new(NEVER, |_| {}).await;
    let before = scene.change(|state| state.lists);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(1) {
        scene.board.wonder();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let lists = scene.change(|state| state.lists) - before;
    assert!((1..=4).contains(&lists), "{lists} lists in a second");
}

#[tokio::test]
async fn a_host_without_a_runtime_is_as_before() {
    let dir = tempfile::tempdir().unwrap();
    let (board, missing) = (Arc::<Board>::default(), Arc::<Missing>::default());
    let start = |only_source| {
        let settings = Settings {
            endpoint: String::new(),
            interval: OFTEN,
            call: PATIENCE,
            paths: HostPaths::below(Path::new(dir.path())),
            only_source,
        };
        CriSource::start(settings, Arc::clone(&board), Arc::default(), Arc::clone(&missing))
    };
    start(false).first_look().await;
    assert!(!board.is_active() && missing.list().is_empty());
    // With no other source of pods it is worth a word.
    start(true).first_look().await;
    assert!(
        missing.list()[WHAT].contains("/run/containerd/containerd.sock"),
        "{:?}",
        missing.list()
    );
}
