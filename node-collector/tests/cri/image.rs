//! The one image of the tests: a static program that waits, made here, as an OCI layout in a tar file.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use sha2::{Digest as _, Sha256};

pub(crate) const NAME: &str = "localhost/pause:test";
/// What the program does when it gets SIGUSR1: so many writes of so many bytes, and sockets that stay open.
pub(crate) const WRITES: i64 = 37;
pub(crate) const WRITE_BYTES: i64 = 1000;
pub(crate) const SOCKETS: i64 = 5;

const SOURCE: &str = r#"
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile sig_atomic_t work;
static void end(int signal) { _exit(0); }
static void begin(int signal) { work = 1; }
static void reap(int signal) { while (waitpid(-1, 0, WNOHANG) > 0) {} }

int main(void) {
    static char bytes[WRITE_BYTES];
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, 0);
    signal(SIGTERM, end);
    signal(SIGINT, end);
    signal(SIGCHLD, reap);
    signal(SIGUSR1, begin);
    for (;;) {
        sigsuspend(&none);
        if (!work) continue;
        work = 0;
        int null = open("/dev/null", O_WRONLY);
        for (int i = 0; i < WRITES; i++) if (write(null, bytes, sizeof bytes) < 0) _exit(1);
        close(null);
        for (int i = 0; i < SOCKETS; i++) if (socket(AF_INET, SOCK_DGRAM, 0) < 0) _exit(1);
    }
}
"#;

/// Writes the image's tar file.
pub(crate) fn build(dir: &Path) -> Result<std::path::PathBuf> {
    let (source, program) = (dir.join("pause.c"), dir.join("pause"));
    std::fs::write(&source, SOURCE)?;
    let mut gcc = Command::new("gcc");
    gcc.args(["-static", "-Os", "-s", "-o"]).arg(&program).arg(&source);
    for (name, value) in [("WRITES", WRITES), ("WRITE_BYTES", WRITE_BYTES), ("SOCKETS", SOCKETS)] {
        gcc.arg(format!("-D{name}={value}"));
    }
    let output = sonde_lab::apart(move || gcc.output())?.context("gcc")?;
    ensure!(
        output.status.success(),
        "gcc: {}",
        String::from_utf8_lossy(&output.stderr)
    );

    let mut layer = Tar::default();
    layer.file("pause", &std::fs::read(program)?, 0o755);
    let layer = layer.finish();
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, "os": "linux",
        "config": {"Entrypoint": ["/pause"]},
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
    })
    .to_string();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", config.as_bytes()),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
    })
    .to_string();
    let mut first = descriptor("application/vnd.oci.image.manifest.v1+json", manifest.as_bytes());
    first["annotations"] = json!({"io.containerd.image.name": NAME});
    let index = json!({"schemaVersion": 2, "manifests": [first]}).to_string();

    let mut image = Tar::default();
    image.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644);
    image.file("index.json", index.as_bytes(), 0o644);
    for blob in [&layer[..], config.as_bytes(), manifest.as_bytes()] {
        image.file(&format!("blobs/{}", digest(blob).replace(':', "/")), blob, 0o644);
    }
    let path = dir.join("pause.tar");
    std::fs::write(&path, image.finish())?;
    Ok(path)
}

fn descriptor(media_type: &str, blob: &[u8]) -> serde_json::Value {
    json!({"mediaType": media_type, "digest": digest(blob), "size": blob.len()})
}

fn digest(blob: &[u8]) -> String {
    let hash = Sha256::digest(blob);
    let digits: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digits}")
}

/// A tar file (ustar) of plain files.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn file(&mut self, name: &str, content: &[u8], mode: u32) {
        let mut header = [0u8; 512];
        let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
        put(0, name);
        put(100, &format!("{mode:07o}"));
        put(108, "0000000");
        put(116, "0000000");
        put(124, &format!("{:011o}", content.len()));
        put(136, "00000000000");
        // The sum is made with blanks in its own place.
        put(148, "        ");
        put(156, "0");
        put(257, "ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&header);
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}
