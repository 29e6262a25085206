//! The largest piece of memory that a thread asked for: a length that was believed shows there.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Made the `#[global_allocator]` of a program, it lets [`crate::one`] see what a target asks for.
pub struct Meter;

thread_local! {
    static MOST: Cell<usize> = const { Cell::new(0) };
}

pub(crate) fn begin() {
    MOST.set(0);
}

pub(crate) fn most() -> usize {
    MOST.get()
}

fn note(bytes: usize) {
    // A thread that ends has no such cell any more.
    let _ = MOST.try_with(|most| most.set(most.get().max(bytes)));
}

// SAFETY: everything is handed on to the system's allocator as it came; counting allocates nothing.
unsafe impl GlobalAlloc for Meter {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: as the caller promised.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        // SAFETY: as the caller promised.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(at, layout) }
    }
}
