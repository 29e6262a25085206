//! What is done to a site: each kind so many times, in an order and with times that follow from a seed.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::disk;
use crate::relay::{LONGEST, Mode};
use crate::site::{Site, backends};
use crate::verify::{self, Verdict};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    KillNode,
    KillAggregator,
    KillPostmaster,
    KillBackend,
    ResetLink,
    HoldLink,
    /// The link is held and so much is made that the spool has to drop.
    OverflowSpool,
    FillSpoolDisk,
    FillDatabaseDisk,
}

impl Kind {
    pub const ALL: [Self; 9] = [
        Self::KillNode,
        Self::KillAggregator,
        Self::KillPostmaster,
        Self::KillBackend,
        Self::ResetLink,
        Self::HoldLink,
        Self::OverflowSpool,
        Self::FillSpoolDisk,
        Self::FillDatabaseDisk,
    ];

    fn needs_disks(self) -> bool {
        matches!(self, Self::FillSpoolDisk | Self::FillDatabaseDisk)
    }
}

#[derive(Clone, Debug)]
pub struct Plan {
    /// Of each kind.
    pub each: usize,
    pub seed: u64,
    /// Only these; empty: all.
    pub kinds: Vec<Kind>,
}

/// Does everything and compares. Prints as it goes.
pub fn run(plan: &Plan) -> anyhow::Result<Verdict> {
    let disks = nix::unistd::geteuid().is_root();
    if disks {
        disk::apart()?;
    } else {
        println!("SKIPPED: full disks: mounting small file systems needs root");
    }
    let mut rng = fastrand::Rng::with_seed(plan.seed);
    let kinds = Kind::ALL
        .into_iter()
        .filter(|kind| plan.kinds.is_empty() || plan.kinds.contains(kind));
    let mut todo: Vec<Kind> = kinds
        .filter(|kind| disks || !kind.needs_disks())
        .flat_map(|kind| std::iter::repeat_n(kind, plan.each))
        .collect();
    rng.shuffle(&mut todo);
    println!("seed {}: {} disturbances", plan.seed, todo.len());
    let begun = Instant::now();
    let mut site = Site::start(disks)?;
    let result = disturb(&mut site, &todo, &mut rng, begun).and_then(|()| {
        site.finish().context("draining")?;
        let verdict = verify::verify(&site)?;
        site.stop()?;
        Ok(verdict)
    });
    let mut verdict = match result {
        Ok(verdict) => verdict,
        Err(error) => {
            println!("journals and logs are in {}", site.keep().display());
            return Err(error.context(format!("seed {}", plan.seed)));
        }
    };
    verdict.wrong.append(&mut site.faults);
    println!("{verdict}");
    println!(
        "{} disturbances in {:.0} s; programs that could not start were started again {} times",
        todo.len(),
        begun.elapsed().as_secs_f64(),
        site.gave_up
    );
    if !verdict.wrong.is_empty() {
        println!("journals and logs are in {}", site.keep().display());
    }
    Ok(verdict)
}

fn disturb(site: &mut Site, todo: &[Kind], rng: &mut fastrand::Rng, begun: Instant) -> anyhow::Result<()> {
    flowing(site).context("at the start")?;
    for (number, kind) in todo.iter().enumerate() {
        let node = rng.usize(..site.nodes.len());
        println!(
            "{:7.1} s  {:3} {kind:?} (node {node})",
            begun.elapsed().as_secs_f64(),
            number + 1
        );
        one(site, *kind, node, rng).with_context(|| format!("disturbance {}: {kind:?}", number + 1))?;
        // Half of them come before everything has recovered from the one before.
        if rng.bool() {
            flowing(site).with_context(|| format!("after disturbance {}: {kind:?}", number + 1))?;
        }
        let pause = Duration::from_millis(rng.u64(0..300));
        site.sleep(pause)?;
    }
    flowing(site).context("at the end")
}

/// Until acks come to every node, after what happened now.
fn flowing(site: &mut Site) -> anyhow::Result<()> {
    let acked = |site: &Site, number: usize| site.nodes[number].status().map(|status| (status.run, status.acked));
    for number in 0..site.nodes.len() {
        let before = acked(site, number);
        // A process that was started again begins at 0, and hears where the aggregator is at once: twice more is new.
        let mut seen = before;
        let mut steps = 0;
        site.until("acks", |site| {
            let now = acked(site, number);
            if now.is_some() && now != seen {
                steps += 1;
                seen = now;
            }
            Ok(steps >= 3)
        })?;
    }
    Ok(())
}

fn one(site: &mut Site, kind: Kind, node: usize, rng: &mut fastrand::Rng) -> anyhow::Result<()> {
    match kind {
        Kind::KillNode => site.kill_node(node),
        Kind::KillAggregator => site.kill_aggregator(),
        Kind::KillPostmaster => kill_one(site, |site| site.cluster().pid()),
        Kind::KillBackend => {
            let chosen = rng.u64(..);
            kill_one(site, |site| {
                let all = backends(site.cluster().pid()?);
                all.get(chosen as usize % all.len().max(1)).copied()
            })
        }
        Kind::ResetLink => cut(site, node, Mode::Reset, rng),
        Kind::HoldLink => {
            cut(site, node, Mode::Hole, rng)?;
            // What was held gets through, or is lost with its connection.
            if rng.bool() {
                site.nodes[node].relay.set(Mode::Reset);
                site.sleep(Duration::from_millis(50))?;
                site.nodes[node].relay.set(Mode::Pass);
            }
            Ok(())
        }
        Kind::OverflowSpool => {
            // With a link that is reset nothing is on its way that could arrive all the same.
            let how = if rng.bool() { Mode::Hole } else { Mode::Reset };
            site.nodes[node].relay.set(how);
            site.nodes[node].say("burst");
            let overflown = until_lost(site, node);
            // For as long that what tells of the first losses has to go, too.
            let hold = Duration::from_millis(rng.u64(0..2500));
            site.sleep(hold)?;
            site.nodes[node].say("calm");
            site.nodes[node].relay.set(Mode::Pass);
            overflown
        }
        Kind::FillSpoolDisk => {
            fill(site, node)?;
            let lost = until_lost_full(site, node);
            let hold = Duration::from_millis(rng.u64(0..500));
            site.sleep(hold)?;
            site.nodes[node].disk.as_ref().context("no disk")?.free()?;
            lost
        }
        Kind::FillDatabaseDisk => {
            site.disk.as_ref().context("no disk")?.fill()?;
            let hold = Duration::from_millis(rng.u64(500..3000));
            site.sleep(hold)?;
            site.disk.as_ref().context("no disk")?.free()
        }
    }
}

fn kill_one(site: &mut Site, who: impl Fn(&Site) -> Option<u32>) -> anyhow::Result<()> {
    let mut pid = None;
    site.until("a process of PostgreSQL to kill", |site| {
        pid = who(site);
        Ok(pid.is_some())
    })?;
    // It may have ended in this moment.
    if let Some(pid) = pid {
        let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
    }
    Ok(())
}

fn cut(site: &mut Site, node: usize, how: Mode, rng: &mut fastrand::Rng) -> anyhow::Result<()> {
    site.nodes[node].relay.set(how);
    let time = Duration::from_millis(rng.u64(0..LONGEST.as_millis() as u64));
    site.sleep(time)?;
    site.nodes[node].relay.set(Mode::Pass);
    Ok(())
}

fn fill(site: &Site, node: usize) -> anyhow::Result<()> {
    site.nodes[node].disk.as_ref().context("no disk")?.fill()
}

/// Until the node counts more as lost than it did.
fn until_lost(site: &mut Site, node: usize) -> anyhow::Result<()> {
    let lost = |site: &Site| site.nodes[node].status().map(|status| (status.run, status.lost));
    let before = lost(site);
    site.until("the spool to drop", |site| {
        let now = lost(site);
        // Said to a process that was not there yet, it was not heard.
        site.nodes[node].say("burst");
        Ok(now.is_some_and(|(run, lost)| lost > before.filter(|(old, _)| *old == run).map_or(0, |(_, lost)| lost)))
    })
}

/// The same while its disk is full, whatever it frees there.
fn until_lost_full(site: &mut Site, node: usize) -> anyhow::Result<()> {
    let lost = |site: &Site| site.nodes[node].status().map(|status| (status.run, status.lost));
    let before = lost(site);
    let mut looks = 0;
    site.until("the spool to say that it cannot be written", |site| {
        fill(site, node)?;
        let now = lost(site);
        looks += 1;
        // A node that is started on a full disk cannot say anything.
        Ok(looks > 150 || now.is_some_and(|(run, lost)| before.is_some_and(|before| (run, lost) > before)))
    })
}
