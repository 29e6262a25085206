//! The program as it is run: exit codes, signals, kill -9, missing rights.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

const PATIENCE: Duration = Duration::from_secs(20);

fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sonde-collector"));
    command
        .args(args)
        .env_clear()
        .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin");
    command
}

/// Settings of a collector that works alone and knows no pods.
fn alone(dir: &Path, http: SocketAddr) -> [(&'static str, String); 7] {
    [
        ("SONDE_COLLECTOR_HTTP", http.to_string()),
        ("SONDE_COLLECTOR_AGGREGATOR", "http://127.0.0.1:9".into()),
        ("SONDE_COLLECTOR_DATA_DIR", dir.display().to_string()),
        ("SONDE_COLLECTOR_INTERVAL", "200ms".into()),
        ("SONDE_PODS_NETNS_INCLUDE", "no-such-name".into()),
        ("SONDE_KERNEL_EBPF", "off".into()),
        ("SONDE_NODE_NAME", "test-node".into()),
    ]
}

/// The system chooses the port; the log says which.
const ANY_PORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

struct Running {
    child: Child,
    http: SocketAddr,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Running {
    fn start(command: &mut Command, dir: &Path) -> Self {
        Self::start_with(command, dir, ("SONDE_LOG_LEVEL", "info".into()))
    }

    /// With one setting more, or another.
    fn start_with(command: &mut Command, dir: &Path, setting: (&'static str, String)) -> Self {
        let mut child = command
            .envs(alone(dir, ANY_PORT))
            .envs([setting])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let reader = std::thread::spawn({
            let log = Arc::clone(&log);
            move || {
                lines
                    .map_while(Result::ok)
                    .for_each(|line| *log.lock() += &(line + "\n"))
            }
        });
        let mut running = Self {
            child,
            http: ANY_PORT,
            log,
            reader: Some(reader),
        };
        let deadline = Instant::now() + PATIENCE;
        while running.get("/-/ready").is_none_or(|(status, _)| status != 200) {
            if let Some(address) = running.log.lock().split("collector serves http=").nth(1) {
                running.http = address.lines().next().unwrap().parse().unwrap();
            }
            let ended = running.child.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "{ended:?}: {}",
                running.log.lock()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        running
    }

    fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(self.http).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let status = line.split(' ').nth(1)?.parse().ok()?;
        let mut rest = String::new();
        reader.read_to_string(&mut rest).ok()?;
        Some((status, rest.split_once("\r\n\r\n")?.1.to_owned()))
    }

    fn status(&self) -> serde_json::Value {
        serde_json::from_str(&self.get("/status").unwrap().1).unwrap()
    }

    fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// The whole log, once it has ended.
    fn stderr(&mut self) -> String {
        self.reader.take().unwrap().join().unwrap();
        self.log.lock().clone()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The only line of an error that ends the program.
fn error_line(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    let errors: Vec<&str> = text.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{text}");
    assert_eq!(text.lines().last(), errors.last().copied(), "{text}");
    errors[0].to_owned()
}

#[test]
fn a_bad_configuration_ends_with_2_and_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("sonde.yaml");
    let file_name = file.to_str().unwrap();
    for (text, parts) in [
        (
            "collector: {intervall: 1s}\n",
            &["sonde.yaml", "intervall", "line 1", "interval"][..],
        ),
        ("collector: {interval: 15}\n", &["15", "15s"]),
        ("probes: {tpc: {}}\n", &["probes", "`tpc`", "tcpext"]),
        (
            "pods: {netns: {include: [\"a[\"]}}\n",
            &["pods.netns.include", "`a[`", "glob"],
        ),
        (
            "sinks: {file: {path: e.log}}\n",
            &["sinks.file.path", "`e.log`", "begins with `/`"],
        ),
        (
            "sinks: {stderr: {format: xml}}\n",
            &["sinks.stderr.format", "xml", "text", "line 1"],
        ),
        (
            "sinks: {loki: {url: loki}}\n",
            &["sinks.loki.url", "`loki`", "http://HOST"],
        ),
        (
            "sinks: {loki: {url: \"https://x\", bearer_token_env: NO_SUCH}}\n",
            &["sinks.loki.bearer_token_env", "`NO_SUCH`", "environment"],
        ),
        (
            "sinks: {loki: {labels: {p: \"${pod}\"}}}\n",
            &["sinks.loki.labels", "`p: ${pod}`", "${namespace}"],
        ),
    ] {
        std::fs::write(&file, text).unwrap();
        for command in ["check-config", "run"] {
            let output = program(&[command, "--config", file_name]).output().unwrap();
            assert_eq!(output.status.code(), Some(2), "{text}");
            let line = error_line(&output);
            assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 1, "{text}");
            for part in parts {
                assert!(line.contains(part), "{line:?} lacks {part:?}");
            }
        }
    }
    std::fs::write(&file, "node: {name: n}\n").unwrap();
    let output = program(&["--config", file_name, "check-config"]).output().unwrap();
    assert!(output.status.success());
    let config: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(config["node"]["name"], "n");
    assert_eq!(program(&["fly"]).output().unwrap().status.code(), Some(2));
}

#[test]
fn a_port_in_use_ends_with_1_and_names_key_and_address() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let output = program(&["run"]).envs(alone(dir.path(), address)).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        error_line(&output),
        format!("error: collector.http: `{address}`: Address already in use (os error 98)")
    );
}

#[test]
fn a_data_directory_in_use_or_of_another_version_ends_with_1() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(&mut program(&["run"]), dir.path());
    let output = program(&["run"]).envs(alone(dir.path(), ANY_PORT)).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let holder = format!("in use by another collector (process {})", running.child.id());
    let line = error_line(&output);
    assert!(
        line.starts_with("error: collector.data_dir: `") && line.ends_with(&holder),
        "{line}"
    );
    drop(running);

    std::fs::write(dir.path().join("spool/meta"), "version 9\n").unwrap();
    let output = program(&["run"]).envs(alone(dir.path(), ANY_PORT)).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(error_line(&output).contains("version 9"), "{}", error_line(&output));
}

#[test]
fn a_kill_is_survived_and_told_and_sigterm_ends_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(&mut program(&["run"]), dir.path());
    let first = running.status();
    assert_eq!(first["gaps"]["newest"], serde_json::json!([]));
    let deadline = Instant::now() + PATIENCE;
    while running.status()["spool"]["next_sequence"].as_u64() < Some(4) {
        assert!(Instant::now() < deadline, "no rows");
        std::thread::sleep(Duration::from_millis(20));
    }
    let before = running.status();
    drop(running); // kill -9

    let mut running = Running::start(&mut program(&["run"]), dir.path());
    let after = running.status();
    assert_eq!(after["spool"]["epoch"], first["spool"]["epoch"]);
    assert!(after["spool"]["next_sequence"].as_u64() >= before["spool"]["next_sequence"].as_u64());
    assert!(
        after["spool"]["frames"].as_u64() > before["spool"]["frames"].as_u64(),
        "nothing acked, nothing lost"
    );
    let gap = &after["gaps"]["newest"][0];
    assert_eq!(
        (gap["cause"].as_str(), gap["detail"].as_str()),
        (Some("collector_down"), Some("after a crash or kill"))
    );

    running.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(running.child.wait().unwrap().code(), Some(0));
    assert!(running.stderr().contains("what is not stored yet stays in the spool"));
    let running = Running::start(&mut program(&["run"]), dir.path());
    assert_eq!(running.status()["gaps"]["newest"][0]["detail"], "after an orderly end");
    running.signal(nix::sys::signal::Signal::SIGINT);
}

#[test]
fn pages_answer_and_promtool_accepts_the_metrics() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(&mut program(&["run"]), dir.path());
    assert_eq!(running.get("/-/healthy").unwrap(), (200, "ok\n".into()));
    assert_eq!(running.get("/nothing").unwrap().0, 404);
    assert!(running.get("/").unwrap().1.contains("/metrics"));
    let (status, metrics) = running.get("/metrics").unwrap();
    assert_eq!(status, 200);
    for series in [
        "sonde_netdev_receive_bytes_total{k8s_node=\"test-node\",k8s_namespace=\"\",k8s_pod=\"\",device=\"lo\"} ",
        "sonde_softnet_time_squeeze_total{k8s_node=\"test-node\"",
        "sonde_collector_build_info{version=\"",
        "sonde_collector_connected 0",
        "sonde_collector_probe_errors_total{probe=\"tcp\",kind=\"vanished\"} 0",
    ] {
        assert!(metrics.contains(series), "{series}");
    }
    let promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut promtool) = promtool else {
        println!("SKIPPED: promtool is not installed");
        return;
    };
    promtool.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn without_rights_the_own_namespace_is_read_and_the_rest_is_said() {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED: not root, so rights cannot be given up");
        return;
    }
    let Some(lab) = sonde_lab::Lab::for_test("collector-rights") else {
        return;
    };
    let pod = lab.pod("rights", "pod").unwrap();
    let dir = tempfile::tempdir().unwrap();
    chown(dir.path(), Some(65534), Some(65534)).unwrap();
    // The program may lie where only root gets to.
    let copy = dir.path().join("sonde-collector");
    std::fs::copy(env!("CARGO_BIN_EXE_sonde-collector"), &copy).unwrap();
    let mut command = Command::new("setpriv");
    command
        .args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--inh-caps=-all",
            "--bounding-set=-all",
        ])
        .arg(&copy)
        .arg("run")
        .env_clear()
        .env("PATH", "/usr/bin:/bin");
    let running = Running::start_with(&mut command, dir.path(), ("SONDE_PODS_NETNS_INCLUDE", lab.glob()));
    let status = running.status();
    let missing = status["missing"].as_object().unwrap();
    assert!(
        missing.keys().any(|what| what == "entering network namespaces"),
        "{missing:?}"
    );
    assert_eq!(status["pods"], 1);
    let tcp = status["probes"]
        .as_array()
        .unwrap()
        .iter()
        .find(|p| p["name"] == "tcp")
        .unwrap();
    assert_eq!(
        (tcp["state"].as_str(), tcp["rows"].as_u64()),
        (Some("failing"), Some(1))
    );
    assert!(tcp["errors"]["enter"].as_u64() > Some(0));
    let probes = status["probes"].as_array().unwrap();
    let io = probes.iter().find(|p| p["name"] == "io").unwrap();
    assert_eq!((io["state"].as_str(), io["rows"].as_u64()), (Some("failing"), Some(0)));
    let metrics = running.get("/metrics").unwrap().1;
    assert!(
        metrics.contains("sonde_tcp_received_segments_total{k8s_node=\"test-node\",k8s_namespace=\"\",k8s_pod=\"\"}")
    );
    assert!(!metrics.contains(&format!("k8s_pod=\"{}\"", pod.name())));
}

#[test]
fn probes_are_listed_and_the_doctor_speaks() {
    let output = program(&["probes", "-o", "json"]).output().unwrap();
    let probes: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let names: Vec<&str> = probes
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|p| p["name"].as_str())
        .collect();
    for name in ["netdev", "ip", "tcp", "tcpext", "udp", "softnet", "sock", "packetloss"] {
        assert!(names.contains(&name), "{name}");
    }
    let text = String::from_utf8(program(&["probes"]).output().unwrap().stdout).unwrap();
    assert!(text.contains("sonde_tcpext_listen_overflows_total") && text.contains("event PACKETLOSS"));
    let doctor = program(&["doctor", "-o", "json"]).output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&doctor.stdout).unwrap();
    // Those of the kernel side are told of by signal, `PROBE.SIGNAL`.
    let signals = report["signals"].as_array().unwrap().iter();
    let of_kernel: BTreeSet<&str> = signals
        .filter_map(|signal| signal["name"].as_str()?.split('.').next())
        .collect();
    assert!(of_kernel.contains("tcpreset"), "{of_kernel:?}");
    assert_eq!(
        report["probes"].as_array().unwrap().len() + of_kernel.len(),
        names.len()
    );
    let spoken_of: Vec<&str> = report["probes"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|probe| probe["name"].as_str())
        .collect();
    // The kernel's probes are spoken of by their signals.
    assert!(spoken_of.iter().all(|name| names.contains(name)), "{spoken_of:?}");
    for name in ["netdev", "sock", "io", "fd"] {
        assert!(spoken_of.contains(&name), "{name}");
    }
    let doctor = program(&["doctor"]).output().unwrap();
    assert!(doctor.status.success());
    let text = String::from_utf8(doctor.stdout).unwrap();
    assert!(text.contains("netdev") && text.contains("network namespaces"), "{text}");
    assert!(text.contains("\ncontainer runtime    "), "{text}");
}

#[test]
fn a_full_disk_is_said_and_survived() {
    let dir = tempfile::tempdir().unwrap();
    // On a disk of its own that nobody else sees.
    let mut command = Command::new("unshare");
    if !nix::unistd::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    let script = format!(
        "mount -t tmpfs -o size=1m none '{}' && exec '{}' run",
        dir.path().display(),
        env!("CARGO_BIN_EXE_sonde-collector")
    );
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
    command.env_clear().env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin");
    let mut running = Running::start(&mut command, dir.path());
    let spool = |running: &Running| running.status()["spool"].clone();
    let until = |what: &str, running: &Running, condition: &dyn Fn(&serde_json::Value) -> bool| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = spool(running);
            if condition(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "{what}: {status}");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    let metric = |running: &Running, name: &str| -> f64 {
        let page = running.get("/metrics").unwrap().1;
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name}")).parse().unwrap()
    };
    assert_eq!(spool(&running)["state"], "running");
    let filler = format!("/proc/{}/root{}/filler", running.child.id(), dir.path().display());
    let mut file = std::fs::File::create(&filler).unwrap();
    while file.write_all(&[7; 4096]).is_ok() {}
    let failing = until("full", &running, &|spool| spool["state"] == "failing");
    assert!(failing["write_errors"].as_u64() > Some(0), "{failing}");
    assert!(
        failing["last_error"].as_str().unwrap().starts_with("No space left"),
        "{failing}"
    );
    assert_eq!(metric(&running, "sonde_collector_spool_failing"), 1.0);
    let missing = "sonde_collector_gap_missing_total{cause=\"spool_full\"}";
    assert!(metric(&running, missing) > 0.0);
    drop(file);
    std::fs::remove_file(filler).unwrap();
    let next = failing["next_sequence"].as_u64();
    until("written again", &running, &|spool| {
        spool["state"] == "running" && spool["next_sequence"].as_u64() > next
    });
    assert_eq!(metric(&running, "sonde_collector_spool_failing"), 0.0);
    let gaps = running.status()["gaps"]["newest"].to_string();
    assert!(gaps.contains("rows: spool cannot be written: No space left"), "{gaps}");
    running.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(running.child.wait().unwrap().success());
    assert!(running.stderr().contains("spool can be written again"));
}
