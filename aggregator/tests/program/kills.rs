//! SIGKILL at any moment: nothing that was acknowledged is lost, nothing is there twice.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};

use crate::fixture::{PATIENCE, Program, directory, gone};
use crate::spool::Spool;

#[test]
fn a_killed_aggregator_takes_its_database_with_it_and_starts_again_at_once() {
    let dir = directory();
    let program = Program::start(dir.path());
    let first = program.postmaster().unwrap();
    program.kill();
    // Not waited for: the new one has to see to its predecessor itself.
    let program = Program::start(dir.path());
    assert_ne!(program.postmaster(), Some(first));
    gone(first);
    program.stop();
}

#[test]
fn a_killed_database_is_started_again() {
    let dir = directory();
    let program = Program::start(dir.path());
    let first = program.postmaster().unwrap();
    kill(first, Signal::SIGKILL).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let database = program.database();
        let back = async {
            while sqlx::query("select from sonde.events")
                .execute(&database)
                .await
                .is_err()
                || program.postmaster() == Some(first)
            {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, back).await.expect("it comes back");
    });
    program.stop();
}

#[test]
fn both_killed_at_once_come_back() {
    let dir = directory();
    let program = Program::start(dir.path());
    let first = program.postmaster().unwrap();
    kill(first, Signal::SIGKILL).unwrap();
    program.kill();
    let program = Program::start(dir.path());
    assert_eq!(program.get("/-/ready").0, 200);
    program.stop();
}

#[test]
fn kill_9_under_load_leaves_every_event_exactly_once() {
    let dir = directory();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut spool = Spool::of(5);
    for round in 0..5_u64 {
        let program = Program::start(dir.path());
        let mut acked = spool.acked.subscribe();
        runtime.block_on(async {
            let (pid, postmaster) = (program.pid(), program.postmaster().unwrap());
            let goal = *acked.borrow() + 20 * (round + 1);
            let killer = async {
                // In the middle of things: batches are in every place between the wire and the disk.
                acked.wait_for(|acked| *acked >= goal).await.unwrap();
                // Sometimes the database goes first, and the aggregator while it is away.
                if round % 2 == 1 {
                    kill(postmaster, Signal::SIGKILL).unwrap();
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                kill(pid, Signal::SIGKILL).unwrap();
            };
            let both = async { tokio::join!(spool.stream(&program, None), killer) };
            tokio::time::timeout(PATIENCE, both).await.expect("a round ends");
        });
        program.reap();
    }
    let program = Program::start(dir.path());
    runtime.block_on(spool.is_stored_once(&program));
    program.stop();
}
