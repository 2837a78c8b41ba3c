//! Memory: an agent mostly waits, and what it needed for its work goes back to the node.
//!
//! The C library's allocator gives every thread a region of its own and keeps what was freed for later. For a process that
//! works for seconds and waits for months both are the wrong way round.

use nix::libc;

/// What is freed at the top of the heap goes back from this size on, and what is larger is mapped by itself, bytes.
const KEEP: libc::c_int = 128 * 1024;

/// Makes the allocator frugal. Before the first thread is started.
pub fn be_frugal() {
    for (parameter, value) in [(libc::M_ARENA_MAX, 1), (libc::M_TRIM_THRESHOLD, KEEP), (libc::M_MMAP_THRESHOLD, KEEP)] {
        // SAFETY: sets a number of the allocator's; no pointer is involved. A value it refuses changes nothing.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Gives back what is free inside the heap.
pub(crate) fn give_back() {
    // SAFETY: releases pages that hold no allocation; no pointer is involved.
    unsafe { libc::malloc_trim(0) };
}
