//! Small programs made of instructions, for tests that need one of their own beside the collector's.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use aya_obj::generated::{bpf_cmd, bpf_map_type, bpf_prog_type};

use super::super::sys::{BPF_TCX_INGRESS, attach_to_device, bpf_mut, bpf_new};

/// Registers, as far as they are used here: results, arguments, and the frame.
pub(super) const R0: u8 = 0;
pub(super) const R1: u8 = 1;
pub(super) const R2: u8 = 2;
pub(super) const R3: u8 = 3;
pub(super) const R4: u8 = 4;
pub(super) const R10: u8 = 10;

/// One instruction: what it does, where from and to, by how much to jump or where to look, and a number.
#[derive(Clone, Copy)]
pub(super) struct Instruction(u8, u8, u8, i16, i32);

pub(super) const fn set(to: u8, number: i32) -> Instruction {
    Instruction(0xb7, to, 0, 0, number)
}

pub(super) const fn copy(to: u8, from: u8) -> Instruction {
    Instruction(0xbf, to, from, 0, 0)
}

pub(super) const fn add(to: u8, number: i32) -> Instruction {
    Instruction(0x07, to, 0, 0, number)
}

pub(super) const fn store32(base: u8, at: i16, from: u8) -> Instruction {
    Instruction(0x63, base, from, at, 0)
}

pub(super) const fn store32_number(base: u8, at: i16, number: i32) -> Instruction {
    Instruction(0x62, base, 0, at, number)
}

pub(super) const fn store64(base: u8, at: i16, number: i32) -> Instruction {
    Instruction(0x7a, base, 0, at, number)
}

/// `lock *(u64 *)(base) += from`
pub(super) const fn add_to(base: u8, from: u8) -> Instruction {
    Instruction(0xdb, base, from, 0, 0)
}

pub(super) const fn call(helper: i32) -> Instruction {
    Instruction(0x85, 0, 0, 0, helper)
}

pub(super) const fn skip_unless_zero(of: u8, instructions: i16) -> Instruction {
    Instruction(0x55, of, 0, instructions, 0)
}

pub(super) const fn skip_if_zero(of: u8, instructions: i16) -> Instruction {
    Instruction(0x15, of, 0, instructions, 0)
}

pub(super) const EXIT: Instruction = Instruction(0x95, 0, 0, 0, 0);

/// A map's address, which takes two instructions.
pub(super) fn map(to: u8, map: &OwnedFd) -> [Instruction; 2] {
    const MAP_BY_DESCRIPTOR: u8 = 1;
    [
        Instruction(0x18, to, MAP_BY_DESCRIPTOR, 0, map.as_raw_fd()),
        Instruction(0, 0, 0, 0, 0),
    ]
}

pub(super) mod helper {
    pub(crate) const LOOK_UP: i32 = 1;
    pub(crate) const UPDATE: i32 = 2;
    pub(crate) const CURRENT_PID: i32 = 14;
}

/// A hash of u32 to u64.
pub(super) fn hash(entries: u32) -> io::Result<OwnedFd> {
    let attr = [bpf_map_type::BPF_MAP_TYPE_HASH as u32, 4, 8, entries, 0];
    bpf_new(bpf_cmd::BPF_MAP_CREATE, &attr)
}

#[repr(C)]
struct Load {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
}

pub(super) fn load(kind: bpf_prog_type, program: &[Instruction]) -> io::Result<OwnedFd> {
    let code: Vec<u64> = program.iter().map(|instruction| instruction.word()).collect();
    let license = CString::new("GPL")?;
    let mut log = vec![0u8; 1 << 16];
    let attr = Load {
        kind: kind as u32,
        instructions: code.len() as u32,
        code: code.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: 1,
        log_size: log.len() as u32,
        log: log.as_mut_ptr() as u64,
    };
    bpf_new(bpf_cmd::BPF_PROG_LOAD, &attr).map_err(|error| {
        io::Error::other(format!(
            "{error}: {}",
            String::from_utf8_lossy(&log).trim_end_matches('\0')
        ))
    })
}

/// Detached when dropped.
pub(super) fn attach(tracepoint: &str, program: &OwnedFd) -> io::Result<OwnedFd> {
    let name = CString::new(tracepoint)?;
    let attr = [name.as_ptr() as u64, program.as_raw_fd() as u64];
    bpf_new(bpf_cmd::BPF_RAW_TRACEPOINT_OPEN, &attr)
}

impl Instruction {
    const fn word(self) -> u64 {
        let Self(code, to, from, offset, number) = self;
        let [o0, o1] = offset.to_ne_bytes();
        let [n0, n1, n2, n3] = number.to_ne_bytes();
        u64::from_ne_bytes([code, to | from << 4, o0, o1, n0, n1, n2, n3])
    }
}

/// Behind all others on what a device of the calling thread's network namespace receives.
pub(super) fn attach_last(program: &OwnedFd, ifindex: u32) -> io::Result<OwnedFd> {
    attach_to_device(program.as_fd(), ifindex, 0)
}

#[repr(C)]
struct Query {
    ifindex: u32,
    at: u32,
    flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    pad: u32,
    program_flags: u64,
    links: u64,
    link_flags: u64,
    revision: u64,
}

/// Ids of the programs that look at what a device receives, in their order.
pub(super) fn attached(ifindex: u32) -> io::Result<Vec<u32>> {
    let mut ids = [0u32; 16];
    let mut query = Query {
        ifindex,
        at: BPF_TCX_INGRESS,
        flags: 0,
        attach_flags: 0,
        programs: ids.as_mut_ptr() as u64,
        count: ids.len() as u32,
        pad: 0,
        program_flags: 0,
        links: 0,
        link_flags: 0,
        revision: 0,
    };
    bpf_mut(bpf_cmd::BPF_PROG_QUERY, &mut query)?;
    Ok(ids[..query.count as usize].to_vec())
}
