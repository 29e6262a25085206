//! The disk of PostgreSQL's log (WAL) is full: the server ends, and does not come up until there is room.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::statvfs;
use sonde_aggregator::embedded::user;

use crate::fixture::{PATIENCE, Program, directory};
use crate::spool::Spool;

/// A tmpfs. It is full when it is as small as what is in it: that takes no memory.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new() -> Self {
        let dir = directory();
        mount(
            Some("sonde-test"),
            dir.path(),
            Some("tmpfs"),
            MsFlags::empty(),
            Some("size=1g,mode=0755"),
        )
        .unwrap();
        Self(dir)
    }

    fn resize(&self, bytes: u64) -> nix::Result<()> {
        let options = format!("size={bytes}");
        mount(
            None::<&str>,
            self.0.path(),
            None::<&str>,
            MsFlags::MS_REMOUNT,
            Some(options.as_str()),
        )
    }

    fn fill(&self) {
        loop {
            let now = statvfs(self.0.path()).unwrap();
            match self.resize((now.blocks() - now.blocks_free()) * now.fragment_size()) {
                // More was written in between.
                Err(Errno::EINVAL) => {}
                result => return result.unwrap(),
            }
        }
    }

    fn make_room(&self) {
        self.resize(1 << 30).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}

/// Moves the server's log to another disk, as installations have it. It has one segment then, so there is none to use again:
/// what comes after it needs room.
fn move_wal(data_dir: &Path, binaries: &Path, disk: &Disk) {
    let data = data_dir.join("postgres/data");
    let (here, there) = (data.join("pg_wal"), disk.0.path().join("pg_wal"));
    let run = |command: &mut Command| {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{command:?}: {output:?}");
    };
    use std::os::unix::process::CommandExt as _;
    let owner = user::choose("").unwrap();
    let mut reset = Command::new(binaries.join("pg_resetwal"));
    run(reset.arg(&data).uid(owner.uid).gid(owner.gid));
    run(Command::new("cp").arg("-a").args([&here, &there]));
    std::fs::remove_dir_all(&here).unwrap();
    std::os::unix::fs::symlink(there, here).unwrap();
}

/// At last: those who lose their connections may be heard before the one that says why.
fn says_full(program: &Program) {
    let line = "sonde_aggregator_database_problem{problem=\"full\"} 1";
    let deadline = Instant::now() + PATIENCE;
    loop {
        let why = program.ready(503);
        let metrics = program.get("/metrics").1;
        if why.contains("No space left on device") && metrics.lines().any(|l| l == line) {
            return;
        }
        assert!(Instant::now() < deadline, "{why}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_full_disk_of_the_wal_is_named_and_waited_for_also_by_one_that_starts_then() {
    if !user::is_root() {
        println!("SKIPPED: only root mounts a small disk");
        return;
    }
    // After a crash the server syncs every file: in memory that takes no time.
    let home = Disk::new();
    let dir = &home.0;
    let disk = Disk::new();
    let program = Program::start(dir.path());
    let server = program.postmaster().unwrap();
    let server: PathBuf = std::fs::read_link(format!("/proc/{server}/exe")).unwrap();
    program.stop();
    move_wal(dir.path(), server.parent().unwrap(), &disk);

    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut spool = Spool::of(200);
    let program = Program::start(dir.path());
    let mut acked = spool.acked.subscribe();
    runtime.block_on(async {
        let outage = async {
            acked.wait_for(|acked| *acked > 0).await.unwrap();
            disk.fill();
            while program.get("/-/ready").0 == 200 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let load = async {
            loop {
                spool.stream(&program, None).await;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::select! {
            () = load => {}
            ended = tokio::time::timeout(PATIENCE, outage) => ended.expect("the disk becomes full"),
        }
    });
    says_full(&program);
    assert_eq!(program.get("/-/healthy").0, 200);
    program.kill();

    let program = Program::start(dir.path());
    says_full(&program);
    program.stop();
    let program = Program::start(dir.path());
    says_full(&program);
    disk.make_room();
    program.ready(200);
    runtime.block_on(spool.is_stored_once(&program));
    program.stop();
}
