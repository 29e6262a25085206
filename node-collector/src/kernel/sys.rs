//! bpf(2) calls that the loader's library does not have: reading a whole map in batches, per-CPU values by raw layout,
//! and counters of programs.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use aya_obj::generated::{bpf_cmd, bpf_link_info, bpf_map_info, bpf_map_type, bpf_prog_info};
use zerocopy::{FromBytes, Immutable, IntoBytes};

pub(super) const BPF_ANY: u64 = 0;
pub(super) const BPF_NOEXIST: u64 = 1;
pub(super) const BPF_EXIST: u64 = 2;

/// A map of fixed key and value types. Values of per-CPU maps are read as one value for each possible CPU.
pub(super) struct RawMap<K, V> {
    fd: OwnedFd,
    /// Values that one look-up gives: possible CPUs for per-CPU maps, else 1.
    copies: usize,
    types: std::marker::PhantomData<fn() -> (K, V)>,
}

impl<K, V> RawMap<K, V>
where
    K: FromBytes + IntoBytes + Immutable + Copy,
    V: FromBytes + IntoBytes + Immutable + Copy,
{
    /// `copies`: possible CPUs for a per-CPU map, else 1. The kernel pads each per-CPU value to 8 bytes.
    pub(super) fn new(fd: BorrowedFd<'_>, copies: usize) -> io::Result<Self> {
        assert!(
            copies == 1 || size_of::<V>().is_multiple_of(8),
            "values of per-CPU maps must be whole words"
        );
        Ok(Self {
            fd: fd.try_clone_to_owned()?,
            copies,
            types: std::marker::PhantomData,
        })
    }

    /// All copies of a value; `None`: no such key.
    pub(super) fn get(&self, key: &K) -> io::Result<Option<Vec<V>>> {
        let mut values = vec![V::new_zeroed(); self.copies];
        let element = self.element(key, values.as_mut_ptr() as u64, 0);
        found(bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &element)).map(|found| found.then_some(values))
    }

    /// Writes the same value into all copies.
    pub(super) fn set(&self, key: &K, value: &V, flags: u64) -> io::Result<()> {
        let values = vec![*value; self.copies];
        bpf(
            bpf_cmd::BPF_MAP_UPDATE_ELEM,
            &self.element(key, values.as_ptr() as u64, flags),
        )
    }

    /// Whether there was such a key.
    pub(super) fn delete(&self, key: &K) -> io::Result<bool> {
        found(bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, &self.element(key, 0, 0)))
    }

    fn element(&self, key: &K, value: u64, flags: u64) -> Element {
        Element {
            map: self.fd.as_raw_fd() as u32,
            pad: 0,
            key: std::ptr::from_ref(key) as u64,
            value,
            flags,
        }
    }

    /// Calls `visit` with every key of a hash and all copies of its value, some hundred at a system call. A key that
    /// comes or goes meanwhile may be missed, none comes twice.
    pub(super) fn for_each(&self, buffer: &mut BatchBuffer<K, V>, mut visit: impl FnMut(&K, &[V])) -> io::Result<()> {
        let mut cursor = 0u32;
        let mut next = 0u32;
        let mut first = true;
        loop {
            buffer.keys.resize(buffer.entries, K::new_zeroed());
            buffer.values.resize(buffer.entries * self.copies, V::new_zeroed());
            let mut batch = Batch {
                in_batch: if first { 0 } else { &raw const cursor as u64 },
                out_batch: &raw mut next as u64,
                keys: buffer.keys.as_mut_ptr() as u64,
                values: buffer.values.as_mut_ptr() as u64,
                count: buffer.entries as u32,
                map: self.fd.as_raw_fd() as u32,
                elem_flags: 0,
                flags: 0,
            };
            let result = bpf_mut(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut batch);
            let count = batch.count as usize;
            let last = match result {
                Ok(()) => false,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
                // One hash bucket holds more than there is room for.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && buffer.entries < MOST_ENTRIES => {
                    buffer.entries *= 2;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let values = buffer.values.chunks_exact(self.copies);
            for (key, values) in buffer.keys.iter().zip(values).take(count) {
                visit(key, values);
            }
            if last {
                return Ok(());
            }
            cursor = next;
            first = false;
        }
    }
}

const MOST_ENTRIES: usize = 1 << 16;

/// Room for a batch, kept from round to round.
pub(super) struct BatchBuffer<K, V> {
    keys: Vec<K>,
    values: Vec<V>,
    entries: usize,
}

impl<K, V> Default for BatchBuffer<K, V> {
    fn default() -> Self {
        Self {
            keys: Vec::new(),
            values: Vec::new(),
            entries: 256,
        }
    }
}

/// What the kernel counts of a program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ProgramCounters {
    /// Runs that were skipped as the program was running on that CPU already. 0 below 5.12, which does not skip.
    pub misses: u64,
    /// 0 unless kernel.bpf_stats_enabled.
    pub run_time_ns: u64,
    pub runs: u64,
}

pub(super) fn program_counters(program: BorrowedFd<'_>) -> io::Result<ProgramCounters> {
    // SAFETY: all zero is a valid value: numbers and addresses as numbers.
    let mut info: bpf_prog_info = unsafe { std::mem::zeroed() };
    let request = Info {
        fd: program.as_raw_fd() as u32,
        len: size_of::<bpf_prog_info>() as u32,
        info: &raw mut info as u64,
    };
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &request)?;
    Ok(ProgramCounters {
        misses: info.recursion_misses,
        run_time_ns: info.run_time_ns,
        runs: info.run_cnt,
    })
}

/// Attaches a program before all others to what comes into a device of the calling thread's network namespace, until the
/// link is closed or the device goes.
pub(super) fn attach_first(program: BorrowedFd<'_>, ifindex: u32) -> io::Result<OwnedFd> {
    const BPF_F_BEFORE: u32 = 1 << 3;
    attach_to_device(program, ifindex, BPF_F_BEFORE)
}

pub(super) const BPF_TCX_INGRESS: u32 = 46;

/// Without `flags`, behind all others.
pub(super) fn attach_to_device(program: BorrowedFd<'_>, ifindex: u32, flags: u32) -> io::Result<OwnedFd> {
    let link = Link {
        program: program.as_raw_fd() as u32,
        ifindex,
        at: BPF_TCX_INGRESS,
        flags,
        relative: 0,
        pad: 0,
        revision: 0,
    };
    bpf_new(bpf_cmd::BPF_LINK_CREATE, &link)
}

/// The device that such a link is on, by its index; 0: it is gone.
pub(super) fn device_of(link: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: all zero is a valid value: numbers and addresses as numbers.
    let mut info: bpf_link_info = unsafe { std::mem::zeroed() };
    let request = Info {
        fd: link.as_raw_fd() as u32,
        len: size_of::<bpf_link_info>() as u32,
        info: &raw mut info as u64,
    };
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &request)?;
    // SAFETY: the kernel has written it, as the link's kind is that.
    Ok(unsafe { info.__bindgen_anon_1.tcx.ifindex })
}

/// An object that goes with the descriptor, and its number: as long as the kernel has something of that number, whoever made
/// it runs. Numbers are not given again until all others were.
pub(super) fn sign_of_life() -> io::Result<(OwnedFd, u32)> {
    let map = Array {
        kind: bpf_map_type::BPF_MAP_TYPE_ARRAY as u32,
        key_size: 4,
        value_size: 4,
        entries: 1,
        flags: 0,
    };
    let map = bpf_new(bpf_cmd::BPF_MAP_CREATE, &map)?;
    // SAFETY: all zero is a valid value: numbers and addresses as numbers.
    let mut info: bpf_map_info = unsafe { std::mem::zeroed() };
    let request = Info {
        fd: map.as_raw_fd() as u32,
        len: size_of::<bpf_map_info>() as u32,
        info: &raw mut info as u64,
    };
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &request)?;
    Ok((map, info.id))
}

/// Whether whoever made the sign of life of that number runs.
pub(super) fn lives(sign: u32) -> io::Result<bool> {
    let number = Number {
        id: sign,
        next: 0,
        flags: 0,
    };
    found(bpf_new(bpf_cmd::BPF_MAP_GET_FD_BY_ID, &number).map(drop))
}

/// The members of `union bpf_attr` (linux/bpf.h) that are used here. Addresses are numbers there too.
#[repr(C)]
struct Element {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    elem_flags: u64,
    flags: u64,
}

#[repr(C)]
struct Link {
    program: u32,
    ifindex: u32,
    at: u32,
    flags: u32,
    relative: u32,
    pad: u32,
    revision: u64,
}

#[repr(C)]
struct Array {
    kind: u32,
    key_size: u32,
    value_size: u32,
    entries: u32,
    flags: u32,
}

#[repr(C)]
struct Number {
    id: u32,
    next: u32,
    flags: u32,
}

#[repr(C)]
struct Info {
    fd: u32,
    len: u32,
    info: u64,
}

/// ENOENT as an answer.
fn found(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

fn bpf<T>(command: bpf_cmd, attr: &T) -> io::Result<()> {
    // SAFETY: `attr` is a member of union bpf_attr, which these commands only read; the addresses in it were set by the
    // callers above from live buffers of the sizes that the map or the kernel's struct has.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command as libc::c_long, attr, size_of::<T>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// For commands that give a descriptor.
pub(super) fn bpf_new<T>(command: bpf_cmd, attr: &T) -> io::Result<OwnedFd> {
    // SAFETY: as in `bpf`.
    let made = unsafe { libc::syscall(libc::SYS_bpf, command as libc::c_long, attr, size_of::<T>()) };
    if made < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(made as i32) })
}

/// For commands that write into the attributes too.
pub(super) fn bpf_mut<T>(command: bpf_cmd, attr: &mut T) -> io::Result<()> {
    // SAFETY: as in `bpf`; the kernel writes no further than the size given.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command as libc::c_long, attr, size_of::<T>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
