//! Starts and ends in order.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};

use crate::fixture::{PATIENCE, Program, command, directory, gone};

#[test]
fn it_runs_without_rights_serves_and_ends_with_its_database() {
    let dir = directory();
    let program = Program::start(dir.path());
    let postmaster = program.postmaster().unwrap();
    for pid in [program.pid(), postmaster] {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| {
            status
                .lines()
                .find_map(|l| l.strip_prefix(name))
                .unwrap()
                .trim()
                .to_owned()
        };
        assert!(!field("Uid:").split_whitespace().any(|uid| uid == "0"), "{status}");
        for rights in ["CapEff:", "CapPrm:", "CapInh:"] {
            assert_eq!(field(rights), "0000000000000000", "{status}");
        }
    }
    assert_eq!(program.get("/-/ready").0, 200);
    let (_, metrics) = program.get("/metrics");
    assert!(metrics.contains("\nsonde_aggregator_database_up 1\n"), "{metrics}");
    // The database has no door but its socket.
    let listening = fs::read_to_string(format!("/proc/{postmaster}/net/unix")).unwrap();
    assert!(listening.contains("postgres/run/.s.PGSQL.5432"));
    program.stop();
    gone(postmaster);
    assert!(
        !dir.path().join("postgres/data/postmaster.pid").exists(),
        "it was shut down, not killed"
    );
}

/// What cannot be told to anybody ends nobody: here the one who starts the database again has something to tell.
#[test]
fn it_goes_on_where_nobody_reads_its_log() {
    let dir = directory();
    let program = Program::start_unread(dir.path());
    // The first line that nobody takes closes the pipe.
    for _ in 0..2 {
        let postmaster = program.postmaster().unwrap();
        kill(postmaster, Signal::SIGKILL).unwrap();
        gone(postmaster);
        let deadline = Instant::now() + PATIENCE;
        while program.postmaster().is_none_or(|pid| pid == postmaster) {
            assert!(Instant::now() < deadline, "the database is not started again");
            std::thread::sleep(Duration::from_millis(20));
        }
        program.ready(200);
    }
    program.stop();
}

#[test]
fn what_was_stored_is_there_after_a_restart() {
    let dir = directory();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let program = Program::start(dir.path());
    let insert = sqlx::query("insert into sonde_store.nodes (name) values ('kept')");
    runtime
        .block_on(async { insert.execute(&program.database()).await })
        .unwrap();
    program.stop();
    let program = Program::start(dir.path());
    let name = sqlx::query_scalar::<_, String>("select node from sonde.nodes");
    assert_eq!(
        runtime
            .block_on(async { name.fetch_one(&program.database()).await })
            .unwrap(),
        "kept"
    );
    program.stop();
}

#[test]
fn a_deep_data_directory_gets_its_socket_elsewhere() {
    let dir = directory();
    let deep = dir.path().join("a-directory-with-a-long-name/".repeat(5));
    let program = Program::start(&deep);
    assert_eq!(program.get("/-/ready").0, 200);
    assert!(!deep.join("postgres/run").exists());
    program.stop();
}

#[test]
fn ctrl_c_reaches_the_whole_group_and_still_ends_in_order() {
    use std::os::unix::process::CommandExt as _;
    let dir = directory();
    let mut program = Program::spawn(dir.path(), command(dir.path(), &["serve"]).process_group(0));
    killpg(program.pid(), Signal::SIGINT).unwrap();
    assert!(program.wait().success());
    assert!(!dir.path().join("postgres/data/postmaster.pid").exists());
}

#[test]
fn migrate_makes_the_tables_and_ends() {
    let dir = directory();
    let output = command(dir.path(), &["migrate"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!dir.path().join("postgres/data/postmaster.pid").exists());
}

#[test]
fn an_interrupted_initdb_is_done_again() {
    let dir = directory();
    let half = dir.path().join("postgres/data.new");
    fs::create_dir_all(&half).unwrap();
    fs::write(half.join("PG_VERSION"), "15\n").unwrap();
    let program = Program::start(dir.path());
    assert!(!half.exists());
    program.stop();
}

#[test]
fn a_pid_file_whose_number_now_belongs_to_another_process_is_no_obstacle() {
    let dir = directory();
    Program::start(dir.path()).stop();
    let file = dir.path().join("postgres/data/postmaster.pid");
    // This very process, as after a restart of a container, where numbers are small and come again.
    fs::write(&file, format!("{}\n/somewhere\n", std::process::id())).unwrap();
    let program = Program::start(dir.path());
    program.stop();
}

#[test]
fn the_interface_is_described_without_a_database() {
    let dir = directory();
    let output = command(dir.path(), &["openapi"]).output().unwrap();
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(document["paths"]["/api/v1/events"].is_object());
}
