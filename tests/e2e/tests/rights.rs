//! `sonde up` without root: it runs with what it may use and says what is missing.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use nix::unistd::User;
use sonde_e2e::http;
use sonde_e2e::process::{Process, binary};
use sonde_e2e::prom;
use sonde_e2e::site::{Site, free_ports};
use sonde_lab::Lab;

#[test]
fn without_root_the_node_is_measured_and_what_is_missing_is_said() -> Result<()> {
    // The lab only looks after the process; a user without rights could have none.
    let Some(lab) = Lab::for_test("without root") else {
        return Ok(());
    };
    let site = Site::new(&lab, "")?;
    // A pod that may not be entered stops nothing.
    let _pod = lab.pod("rights", "server")?;
    let nobody = User::from_name("nobody")?.context("no user nobody")?;
    let programs = site.path().join("bin");
    fs::create_dir(&programs)?;
    for program in ["sonde", "sonde-aggregator", "sonde-collector"] {
        // The checkout may be where only its owner can go.
        let copy = programs.join(program);
        fs::copy(binary(program)?, &copy)?;
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
    }
    fs::create_dir(site.data_dir())?;
    chown(site.data_dir(), Some(nobody.uid.as_raw()), Some(nobody.gid.as_raw()))?;

    let [http, grpc, collector_http] = free_ports()?;
    let mut up = Command::new(programs.join("sonde"));
    up.env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("SONDE_COLLECTOR_INTERVAL", "1s")
        .env("SONDE_PODS_NETNS_INCLUDE", lab.glob())
        .env("NODE_NAME", "bare")
        .arg("up")
        .arg("--data-dir")
        .arg(site.data_dir())
        .args(["--http", &http.to_string(), "--grpc", &grpc.to_string()])
        .args(["--collector-http", &collector_http.to_string()])
        .current_dir("/")
        .uid(nobody.uid.as_raw())
        .gid(nobody.gid.as_raw());
    let mut up = Process::start(&lab, "sonde up", up, &site.path().join("up.log"))?;
    site.await_ready(&mut up, http)?;
    site.await_ready(&mut up, collector_http)?;

    site.until("counters of the node in /federate", || {
        let response = http::get(http, "/federate", &[("match[]", "{__name__=~\"sonde_netdev_.+\"}")])?;
        let found = prom::parse(&response.body)?
            .iter()
            .any(|s| s.has(&[("k8s_node", "bare"), ("k8s_namespace", ""), ("k8s_pod", "")]));
        Ok(if found { Ok(()) } else { Err(response.body) })
    })?;
    site.until("what is missing, on standard error", || {
        let log = up.log();
        let said = log
            .lines()
            .any(|line| line.starts_with("sonde: not available: packetloss"));
        Ok(if said { Ok(()) } else { Err(log) })
    })?;
    let status = http::get(collector_http, "/status", &[])?;
    ensure!(status.status == 200 && status.body.contains("packetloss"), "{status:?}");
    let ended = up.terminate()?;
    ensure!(ended.success(), "{ended}: {}", up.log());
    Ok(())
}
