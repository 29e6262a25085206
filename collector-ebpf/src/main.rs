//! Sonde's kernel programs. They capture and count; what it means is for user space.
//!
//! One file per probe, and in each one program per rung of the ladder (`kernel::plan` in the collector picks one).
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod access;
mod connect;
mod connection;
mod dns;
mod flow;
mod kernellatency;
mod latency;
mod limit;
mod net_softirq;
mod netiftxlat;
mod node;
mod packet;
mod packetloss;
mod per_packet;
mod place;
mod ring;
mod socketlatency;
mod tcpreset;
mod tcpretrans;
mod virtcmdlatency;

/// Helpers that read kernel memory and stacks are for GPL-compatible programs only.
#[used]
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
pub static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
