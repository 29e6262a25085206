//! What happens at a tracepoint while tasks run for which the kernel runs no programs.
//!
//! No kernel of the kernel's own makers does that, but those of sandboxes may: there a packet that a softirq sends while the
//! sandbox's own agent happens to be the running task comes by a tracepoint, ftrace tells of it, and no program at all is
//! run, nor is a missed run counted. No program can count such a packet, so a test that compares with the kernel's numbers
//! asks here how many there were. Elsewhere the answer is 0.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use aya_obj::generated::bpf_prog_type::BPF_PROG_TYPE_RAW_TRACEPOINT;

use super::super::sys::RawMap;
use super::assembled::{self as bpf, EXIT, R0, R1, R2, R3, R4, R10, helper};

const TRACEFS: &str = "/sys/kernel/tracing";

/// Two who look at one tracepoint: ftrace, and a program that only notes which tasks it runs for.
pub(super) struct Hidden {
    instance: PathBuf,
    noted: RawMap<u32, u64>,
    _program: OwnedFd,
}

impl Hidden {
    /// From now on, at `group/tracepoint`, of events that pass ftrace's `filter`. `None`: there is no ftrace here, and
    /// nobody to tell.
    pub(super) fn at(tracepoint: &str, filter: &str) -> Option<Self> {
        if !PathBuf::from(TRACEFS).join("instances").is_dir() {
            return None;
        }
        let (_, name) = tracepoint.split_once('/').unwrap();
        let map = bpf::hash(65_536).unwrap();
        let program = bpf::attach(name, &note_tasks(&map).unwrap()).unwrap();
        static INSTANCES: AtomicU32 = AtomicU32::new(0);
        let number = INSTANCES.fetch_add(1, Ordering::Relaxed);
        let instance = PathBuf::from(TRACEFS).join(format!("instances/sonde-{}-{number}", std::process::id()));
        fs::create_dir(&instance).unwrap();
        let seen = Self {
            instance,
            noted: RawMap::new(map.as_fd(), 1).unwrap(),
            _program: program,
        };
        let write = |file: &str, text: &str| fs::write(seen.instance.join(file), text).unwrap();
        write("buffer_size_kb", "4096");
        write(&format!("events/{tracepoint}/filter"), filter);
        write(&format!("events/{tracepoint}/enable"), "1");
        Some(seen)
    }

    /// How many events so far.
    pub(super) fn count(&self) -> u64 {
        let text = fs::read_to_string(self.instance.join("trace")).unwrap();
        let mut by_task: HashMap<u32, u64> = HashMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            *by_task.entry(task(line)).or_default() += 1;
        }
        let hidden = by_task
            .iter()
            .filter(|(task, _)| self.noted.get(task).unwrap().is_none());
        hidden.map(|(_, events)| events).sum()
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.instance);
    }
}

/// Of a line such as `  name of-it-12  [001] b.s1. 12.345: net_dev_xmit: ...`.
fn task(line: &str) -> u32 {
    let (task, _) = line.split_once(" [").unwrap_or_else(|| panic!("no CPU: {line}"));
    let number = task
        .trim_end()
        .rsplit('-')
        .next()
        .and_then(|number| number.parse().ok());
    number.unwrap_or_else(|| panic!("no task: {line}"))
}

/// `map[current->pid] += 1`
fn note_tasks(map: &OwnedFd) -> io::Result<OwnedFd> {
    let [map0, map1] = bpf::map(R1, map);
    let key = [bpf::copy(R2, R10), bpf::add(R2, -4)];
    let look = [
        bpf::call(helper::CURRENT_PID),
        bpf::store32(R10, -4, R0),
        map0,
        map1,
        key[0],
        key[1],
    ];
    let found = [bpf::set(R1, 1), bpf::add_to(R0, R1), bpf::set(R0, 0), EXIT];
    let [map0, map1] = bpf::map(R1, map);
    let make = [
        bpf::store64(R10, -16, 1),
        map0,
        map1,
        key[0],
        key[1],
        bpf::copy(R3, R10),
        bpf::add(R3, -16),
        bpf::set(R4, 0),
        bpf::call(helper::UPDATE),
        bpf::set(R0, 0),
        EXIT,
    ];
    let mut program = look.to_vec();
    program.push(bpf::call(helper::LOOK_UP));
    // What makes a new entry comes first: then the jump is over it.
    program.push(bpf::skip_unless_zero(R0, make.len() as i16));
    program.extend(make);
    program.extend(found);
    bpf::load(BPF_PROG_TYPE_RAW_TRACEPOINT, &program)
}

#[test]
fn a_line_of_a_trace_tells_the_task() {
    assert_eq!(task("    <idle>-0       [000] ..s1. 1.2: net_dev_xmit: dev=eth0"), 0);
    assert_eq!(
        task(" a-b c-27305   [001] b..2. 1.2: bpf_trace_printk: x-9 [1]"),
        27_305
    );
}
