//! A disk that is full, and a directory that nothing can be created in or deleted from: real ones, on a mount of our own.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::*;

const OURS: &str = "SONDE_TEST_MOUNTS";

/// Runs this test again where its mounts are seen by nobody else. `false`: it has run.
fn in_own_mounts(test: &str) -> bool {
    if std::env::var_os(OURS).is_some() {
        return true;
    }
    let mut unshare = Command::new("unshare");
    if !nix::unistd::geteuid().is_root() {
        unshare.arg("--map-root-user");
    }
    let status = unshare
        .args(["--mount", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(OURS, "1")
        .status()
        .expect("unshare of util-linux");
    assert!(status.success(), "{status}");
    false
}

async fn on_tmpfs(size: &str) -> (tempfile::TempDir, Rig) {
    let dir = tempfile::tempdir().unwrap();
    let options = format!("size={size}");
    mount(
        Some("none"),
        dir.path(),
        Some("tmpfs"),
        MsFlags::empty(),
        Some(options.as_str()),
    )
    .unwrap();
    let rig = Rig::at(dir.path().join("spool"), []).await;
    (dir, rig)
}

/// Takes all the room there is.
fn fill(path: &Path) {
    let mut file = File::create(path).unwrap();
    while file.write_all(&[7; 4096]).is_ok() {}
}

/// Events that are told as lost.
fn told_as_lost(rig: &Rig) -> u64 {
    let store = rig.store.lock();
    let gaps = store.stored.iter().flat_map(|(_, body)| &body.gaps);
    gaps.filter(|gap| gap.cause == gap::SPOOL_FULL)
        .map(|gap| gap.count)
        .sum()
}

/// Noise, so that events are as long as they look.
fn noise(number: u16) -> String {
    let mut state = u64::from(number) + 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b'0' + (state % 75) as u8)
    };
    (0..4000).map(|_| next()).collect()
}

/// Each event is stored once or counted in a gap, on one connection.
async fn all_are_accounted_for(rig: &Rig, events: u16) {
    rig.until("each event stored or told", |rig| {
        rig.stored_ports().len() as u64 + told_as_lost(rig) == u64::from(events)
    })
    .await;
    rig.until("acked", |rig| rig.running().spool.is_drained()).await;
    let mut ports = rig.stored_ports();
    ports.dedup();
    assert_eq!(ports.len() as u64 + told_as_lost(rig), u64::from(events));
    assert!(ports.is_sorted() && ports.contains(&1) && ports.contains(&u32::from(events)));
    assert!(!rig.running().spool.stats().failing);
    assert_eq!(rig.store.lock().hellos.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_costs_what_comes_while_it_is_full_and_that_is_counted() {
    if !in_own_mounts("disk::a_full_disk_costs_what_comes_while_it_is_full_and_that_is_counted") {
        return;
    }
    let (dir, rig) = on_tmpfs("2m").await;
    for port in 1..=5 {
        rig.event_with(port, now_ns(), &noise(port)).await;
    }
    let filler = dir.path().join("filler");
    fill(&filler);
    for port in 6..=40 {
        rig.event_with(port, now_ns(), &noise(port)).await;
    }
    let stats = rig.running().spool.stats();
    assert!(stats.failing && stats.write_errors >= 30, "{stats:?}");
    let error = rig.running().spool.last_error();
    assert!(error.starts_with("No space left on device"), "{error}");
    std::fs::remove_file(filler).unwrap();
    rig.until("the loss told without anything new", |rig| told_as_lost(rig) >= 30)
        .await;
    for port in 41..=50 {
        rig.event_with(port, now_ns(), &noise(port)).await;
    }
    all_are_accounted_for(&rig, 50).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_turns_read_only_costs_what_needs_a_new_file() {
    if !in_own_mounts("disk::a_directory_that_turns_read_only_costs_what_needs_a_new_file") {
        return;
    }
    let (dir, rig) = on_tmpfs("8m").await;
    rig.event_with(1, now_ns(), &noise(1)).await;
    let none = None::<&str>;
    mount(Some(dir.path()), dir.path(), none, MsFlags::MS_BIND, none).unwrap();
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    mount(none, dir.path(), none, read_only, none).unwrap();
    // A segment is 64 KiB long.
    for port in 2..=40 {
        rig.event_with(port, now_ns(), &noise(port)).await;
    }
    let stats = rig.running().spool.stats();
    assert!(stats.failing && stats.write_errors > 0, "{stats:?}");
    let error = rig.running().spool.last_error();
    assert!(error.starts_with("Read-only file system"), "{error}");
    umount2(dir.path(), MntFlags::empty()).unwrap();
    for port in 41..=50 {
        rig.event_with(port, now_ns(), &noise(port)).await;
    }
    all_are_accounted_for(&rig, 50).await;
    assert!(told_as_lost(&rig) > 0);
}
