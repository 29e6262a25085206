//! The collector's program with its kernel side, beside a container runtime.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use sonde_lab::wait;

use super::PATIENCE;
use super::node::{Node, Wanted, drop_datagrams};

struct Program {
    child: Child,
    log: PathBuf,
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("---- collector ----\n{}", self.log());
        }
    }
}

fn start(node: &Node, dir: &Path) -> Program {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sonde-collector"));
    command.arg("run").env_clear().env("PATH", "/usr/bin:/bin").envs([
        ("SONDE_COLLECTOR_HTTP", "127.0.0.1:0".to_owned()),
        ("SONDE_COLLECTOR_AGGREGATOR", "http://127.0.0.1:9".into()),
        ("SONDE_COLLECTOR_DATA_DIR", dir.display().to_string()),
        ("SONDE_COLLECTOR_INTERVAL", "500ms".into()),
        ("SONDE_PODS_NETNS_INCLUDE", "no-such-name".into()),
        ("SONDE_PODS_CRI_ENDPOINT", format!("unix://{}", node.socket().display())),
        ("SONDE_PODS_INCLUDE_HOST", "false".into()),
        ("SONDE_EVENTS_UNKNOWN_NETNS", "drop".into()),
        ("SONDE_NODE_NAME", "node-1".into()),
    ]);
    let log = dir.join("collector.log");
    let child = sonde_lab::apart({
        let log = log.clone();
        move || command.stderr(File::create(log)?).spawn()
    })
    .unwrap()
    .unwrap();
    node.lab.adopt(child.id()).unwrap();
    Program { child, log }
}

impl Program {
    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn get(&self, path: &str) -> Option<String> {
        let log = self.log();
        let address = log.split("collector serves http=").nth(1)?.lines().next()?;
        let mut stream = TcpStream::connect(address).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text.split_once("\r\n\r\n")?.1.to_owned())
    }

    fn wait_for(&self, path: &str, what: &str, is: impl Fn(&str) -> bool) -> String {
        let mut last = String::new();
        wait::until_true(what, PATIENCE, || {
            last = self.get(path).unwrap_or_default();
            Ok(is(&last))
        })
        .unwrap_or_else(|error| panic!("{error}\n{last}"));
        last
    }
}

pub(crate) fn drops_name_their_pod(node: &mut Node) {
    let dir = tempfile::tempdir().unwrap();
    let pod = Wanted::new("shop", "cart-0");
    let before = node.run(&pod).unwrap();
    let program = start(node, dir.path());
    let status = program.wait_for("/status", "ready", |text| text.contains("\"ready\":true"));
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let of_drops = |(what, _): &(&String, &serde_json::Value)| what.starts_with("packetloss.");
    if let Some((_, why)) = status["missing"]
        .as_object()
        .and_then(|missing| missing.iter().find(of_drops))
    {
        println!("SKIPPED: the kernel side does not run here: {why}");
        return;
    }
    assert_eq!(status["pods"], 1);

    let drops = |text: &str, pod: &str| -> Option<u64> {
        let of_pod = |line: &&str| {
            line.starts_with("sonde_packetloss_drops_total{k8s_node=\"node-1\",k8s_namespace=\"shop\"")
                && line.contains(&format!("k8s_pod=\"{pod}\""))
                && line.contains("reason=\"NO_SOCKET\"")
        };
        text.lines().find(of_pod)?.rsplit_once(' ')?.1.parse().ok()
    };
    drop_datagrams(&before.netns, 11).unwrap();
    program.wait_for("/metrics", "11 drops of cart-0", |text| {
        drops(text, "cart-0") == Some(11)
    });

    // One that is made while the program runs, and gone before anybody looks again.
    let late = node.run(&Wanted::new("shop", "late-0")).unwrap();
    drop_datagrams(&late.netns, 5).unwrap();
    program.wait_for("/metrics", "5 drops of late-0", |text| drops(text, "late-0") == Some(5));
    node.stop(&late.id).unwrap();
    let is_over = |text: &str| {
        let status: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
        let events = status["events"].as_array().into_iter().flatten();
        let known: u64 = events.filter_map(|event| event["outcomes"]["known"].as_u64()).sum();
        known == 16 && status["pods"] == 1
    };
    program.wait_for("/status", "16 events of known pods, and the end of late-0", is_over);
    let text = program.get("/metrics").unwrap();
    assert_eq!((drops(&text, "cart-0"), drops(&text, "late-0")), (Some(11), None));
}
