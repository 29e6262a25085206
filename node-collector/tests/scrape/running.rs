//! A collector that runs alone, reads once, and is asked over HTTP.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) struct Running {
    child: Child,
    pub(crate) http: SocketAddr,
    _dir: tempfile::TempDir,
}

pub(crate) struct Answer {
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Running {
    pub(crate) fn command(args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sonde-collector"));
        command
            .args(args)
            .env_clear()
            .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin");
        command
    }

    /// Ready: the first round is done, and the next one is a long time off.
    pub(crate) fn start(settings: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Self::command(&["run"])
            .envs([
                ("SONDE_COLLECTOR_HTTP", "127.0.0.1:0"),
                ("SONDE_COLLECTOR_AGGREGATOR", ""),
                ("SONDE_COLLECTOR_INTERVAL", "10m"),
                ("SONDE_PODS_NETNS_INCLUDE", "no-such-name"),
                ("SONDE_KERNEL_EBPF", "off"),
                ("SONDE_NODE_NAME", "test-node"),
                ("SONDE_LOG_LEVEL", "info"),
            ])
            .env("SONDE_COLLECTOR_DATA_DIR", dir.path())
            .envs(settings.iter().copied())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut seen = String::new();
        let http = loop {
            let line = log
                .next()
                .unwrap_or_else(|| panic!("the collector ended: {seen}"))
                .unwrap();
            if let Some((_, address)) = line.split_once("collector serves http=") {
                break address.trim().parse().unwrap();
            }
            seen += &(line + "\n");
        };
        // Whoever does not read the log stops its writer.
        std::thread::spawn(move || log.map_while(Result::ok).for_each(drop));
        let running = Self { child, http, _dir: dir };
        let deadline = Instant::now() + Duration::from_secs(20);
        while !running.ask("/-/ready", &[]).body.starts_with(b"ready") {
            assert!(Instant::now() < deadline, "no first round");
            std::thread::sleep(Duration::from_millis(10));
        }
        running
    }

    pub(crate) fn get(&self, headers: &[(&str, &str)]) -> Answer {
        self.ask("/metrics", headers)
    }

    fn ask(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        let mut stream = TcpStream::connect(self.http).unwrap();
        let more: String = headers
            .iter()
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect();
        write!(stream, "GET {path} HTTP/1.0\r\nHost: x\r\n{more}\r\n").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let end = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
        let head = String::from_utf8(answer[..end].to_vec()).unwrap();
        let headers = head.lines().skip(1).filter_map(|line| line.split_once(": "));
        Answer {
            headers: headers.map(|(k, v)| (k.to_lowercase(), v.to_owned())).collect(),
            body: answer[end + 4..].to_vec(),
        }
    }
}

impl Answer {
    /// Empty where there is none.
    pub(crate) fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found.map_or("", |(_, value)| value)
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
