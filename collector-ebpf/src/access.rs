//! Reading kernel memory: the fields of `sonde_ebpf_common::fields`, tracepoint arguments, and exact counters.

use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::mem::MaybeUninit;
use core::ptr::addr_of;

use aya_ebpf::helpers::generated;
use sonde_ebpf_common::fields::{Field, NO_ARGUMENT};

/// How a program may read what a kernel pointer points at.
pub trait Access {
    /// Whether the verifier knows pointers by type, so that programs do not know their addresses.
    const IS_TYPED: bool;

    /// # Safety
    /// `T` is plain data, for which every bit pattern is a value.
    unsafe fn load<T: Copy>(address: *const u8) -> T;

    /// The same socket, so that what only TCP sockets have can be read of it. NULL: it is none.
    fn tcp_sock(sk: *const u8) -> *const u8;

    /// The pointer as a number to calculate with and to find it again by; not its address.
    fn number(pointer: *const u8) -> u64;
}

/// What a typed pointer is counted from.
static ANCHOR: Setting<u64> = Setting::new(0);

/// A load that the verifier types by BTF: for pointers that are arguments of a `tp_btf` program or come from such
/// ones. A bad pointer reads as 0.
pub struct Typed;

/// A helper call: for every program and every pointer. A bad pointer reads as 0.
pub struct Probed;

impl Access for Typed {
    const IS_TYPED: bool = true;

    #[inline(always)]
    unsafe fn load<T: Copy>(address: *const u8) -> T {
        unsafe { address.cast::<T>().read_volatile() }
    }

    #[inline(always)]
    fn tcp_sock(sk: *const u8) -> *const u8 {
        unsafe { generated::bpf_skc_to_tcp_sock(sk.cast_mut().cast()).cast_const().cast() }
    }

    /// The verifier permits no calculation with such a pointer, except the distance of two.
    #[inline(always)]
    fn number(pointer: *const u8) -> u64 {
        let mut number = pointer as u64;
        unsafe {
            core::arch::asm!(
                "{number} -= {anchor}",
                number = inout(reg) number,
                anchor = in(reg) &raw const ANCHOR,
                options(pure, nomem, nostack),
            );
        }
        number
    }
}

impl Access for Probed {
    const IS_TYPED: bool = false;

    #[inline(always)]
    unsafe fn load<T: Copy>(address: *const u8) -> T {
        let mut value = MaybeUninit::<T>::uninit();
        unsafe {
            // The helper fills the value in any case, with zeroes when it fails.
            generated::bpf_probe_read_kernel(value.as_mut_ptr().cast(), size_of::<T>() as u32, address.cast());
            value.assume_init()
        }
    }

    #[inline(always)]
    fn tcp_sock(sk: *const u8) -> *const u8 {
        sk
    }

    #[inline(always)]
    fn number(pointer: *const u8) -> u64 {
        pointer as u64
    }
}

/// A kernel field of type `T`, its place written by user space before loading.
#[repr(transparent)]
pub struct KernelField<T>(Field, PhantomData<fn() -> T>);

impl<T: Copy> KernelField<T> {
    pub const fn absent() -> Self {
        Self(Field::ABSENT, PhantomData)
    }

    #[inline(always)]
    fn offset(&self) -> u32 {
        unsafe { addr_of!(self.0.offset).read_volatile() }
    }

    /// `None` where this kernel has no such member.
    #[inline(always)]
    pub fn read<A: Access>(&self, base: *const u8) -> Option<T> {
        let offset = self.offset();
        if offset == u32::MAX {
            return None;
        }
        Some(unsafe { A::load(base.wrapping_add(offset as usize)) })
    }

    /// Where the member is, for what is not read as a value (arrays).
    #[inline(always)]
    pub fn address(&self, base: *const u8) -> Option<*const u8> {
        let offset = self.offset();
        if offset == u32::MAX {
            return None;
        }
        Some(base.wrapping_add(offset as usize))
    }
}

impl KernelField<u64> {
    /// A member that is a pointer; NULL where there is none.
    #[inline(always)]
    pub fn pointer<A: Access>(&self, base: *const u8) -> *const u8 {
        let offset = self.offset();
        if offset == u32::MAX {
            return core::ptr::null();
        }
        unsafe { A::load(base.wrapping_add(offset as usize)) }
    }
}

impl KernelField<u8> {
    /// A member that is a bit field within a byte on this kernel, or a whole byte.
    #[inline(always)]
    pub fn bits<A: Access>(&self, base: *const u8) -> Option<u8> {
        let byte = self.read::<A>(base)?;
        let (shift, width) = unsafe {
            (
                addr_of!(self.0.shift).read_volatile(),
                addr_of!(self.0.width).read_volatile(),
            )
        };
        if width == 0 {
            return Some(byte);
        }
        Some((byte >> (shift & 7)) & ((1u32 << (width & 7)) - 1) as u8)
    }
}

macro_rules! statics {
    ($($name:ident: $type:ty = $structure:literal [$($path:literal),+];)*) => {
        $(#[used]
        #[unsafe(no_mangle)]
        pub static $name: KernelField<$type> = KernelField::absent();)*
    };
}
sonde_ebpf_common::for_each_field!(statics);

macro_rules! argument_statics {
    ($($name:ident: $tracepoint:literal $argument:literal $type:literal;)*) => {
        $(#[used]
        #[unsafe(no_mangle)]
        pub static $name: Setting<u32> = Setting::new(NO_ARGUMENT);)*
    };
}
sonde_ebpf_common::for_each_argument!(argument_statics);

/// A number that user space sets before loading.
///
/// A `static` of it is `#[used]`: else LLVM takes it for any other constant of its initial value too, such as the zero in
/// `map.insert(&key, &0)`, which then changes with the setting.
#[repr(transparent)]
pub struct Setting<T>(T);

impl<T: Copy> Setting<T> {
    pub const fn new(value: T) -> Self {
        Self(value)
    }

    #[inline(always)]
    pub fn get(&self) -> T {
        unsafe { addr_of!(self.0).read_volatile() }
    }
}

/// A setting that user space may change while programs run: what makes an event, and how much of it. It is the only thing
/// in section `.data.NAME`, and so in the map of that name; a program reads it with a load, as it does a [`Setting`].
#[repr(transparent)]
pub struct Live<T>(UnsafeCell<T>);

// Programs read it, on all CPUs; the kernel writes whole words.
unsafe impl<T: Sync> Sync for Live<T> {}

impl<T: Copy> Live<T> {
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    #[inline(always)]
    pub fn get(&self) -> T {
        unsafe { self.0.get().read_volatile() }
    }
}

/// The tracepoint argument with that number. `None` where this kernel's tracepoint has none: a load beyond the last
/// argument is refused.
///
/// The verifier takes loads from a context at constant offsets only, so each number has a load of its own, in
/// assembly, which the optimizer cannot merge into one with a computed offset.
#[inline(always)]
pub fn argument(context: *const u64, number: &Setting<u32>) -> Option<u64> {
    macro_rules! load {
        ($offset:literal) => {{
            let value: u64;
            unsafe {
                core::arch::asm!(
                    concat!("{value} = *(u64 *)({context} + ", $offset, ")"),
                    value = out(reg) value,
                    context = in(reg) context,
                    options(pure, readonly, nostack),
                );
            }
            Some(value)
        }};
    }
    match number.get() {
        0 => load!("0"),
        1 => load!("8"),
        2 => load!("16"),
        3 => load!("24"),
        4 => load!("32"),
        5 => load!("40"),
        _ => None,
    }
}

/// 1: a kernel whose verifier may delete NULL checks of arguments that can be NULL.
#[used]
#[unsafe(no_mangle)]
static DOUBT_NULL_CHECKS: Setting<u32> = Setting::new(1);

/// A pointer argument that may be NULL.
///
/// From 6.2 until it was marked nullable, the verifier believed such an argument never to be NULL and deleted checks
/// of it: so the slot is read once more as a plain number, whose check stays.
#[inline(always)]
pub fn nullable_argument(context: *const u64, number: &Setting<u32>) -> Option<*const u8> {
    let pointer = argument(context, number)?;
    if DOUBT_NULL_CHECKS.get() == 0 {
        return if pointer == 0 { None } else { Some(pointer as *const u8) };
    }
    let slot = context.wrapping_add(number.get() as usize).cast();
    let plain: u64 = unsafe { Probed::load(slot) };
    if plain == 0 || pointer == 0 {
        return None;
    }
    Some(pointer as *const u8)
}

/// An argument as a plain number: the verifier does not calculate with pointers, and may take them never to be NULL.
/// 0 where this kernel's tracepoint has none.
#[inline(always)]
pub fn plain_argument(context: *const u64, number: &Setting<u32>) -> u64 {
    if number.get() == NO_ARGUMENT {
        return 0;
    }
    unsafe { Probed::load(context.wrapping_add(number.get() as usize).cast()) }
}

/// Where `struct pt_regs` of this machine has the first arguments of a function.
#[used]
#[unsafe(no_mangle)]
static ARGUMENT_REGISTERS: Setting<[u16; 4]> = Setting::new([0; 4]);

/// An argument of a function at a kprobe.
#[inline(always)]
pub fn register_argument(registers: *const u64, number: &Setting<u32>) -> u64 {
    let offsets = ARGUMENT_REGISTERS.get();
    let offset = match number.get() {
        0 => offsets[0],
        1 => offsets[1],
        2 => offsets[2],
        3 => offsets[3],
        _ => return 0,
    };
    unsafe { Probed::load(registers.cast::<u8>().wrapping_add(offset as usize)) }
}

/// Zeroes so many words, one by one: an array of zeroes is made by a loop over its bytes, which costs more than most programs.
///
/// # Safety
/// `to` lies on a word, and so many may be written there.
#[inline(always)]
pub unsafe fn clear<const WORDS: usize>(to: *mut u64) {
    let mut at = 0;
    while at < WORDS {
        unsafe { to.add(at).write_volatile(0) };
        at += 1;
    }
}

/// `*counter += add`, whole even when this CPU is interrupted in between: kernels before 5.12 have no other guard.
/// In assembly as Rust's atomics for this target fetch the old value, which 5.10 refuses.
#[inline(always)]
pub fn add(counter: *mut u64, add: u64) {
    unsafe {
        core::arch::asm!(
            "lock *(u64 *)({counter} + 0) += {add}",
            counter = in(reg) counter,
            add = in(reg) add,
            options(nostack),
        );
    }
}

/// The same for a counter of this CPU that nobody else adds to: by no other program, and not by this one when it interrupts
/// itself. Typed programs run only on kernels that skip a program where it runs already, so a plain addition will do, which costs
/// a sixth.
#[inline(always)]
pub fn add_own<A: Access>(counter: *mut u64, by: u64) {
    if A::IS_TYPED {
        unsafe { counter.write_volatile(counter.read_volatile().wrapping_add(by)) };
    } else {
        add(counter, by);
    }
}
