//! Memory: an agent mostly waits, and what it needed for its work goes back to the node.
//!
//! The C library's allocator gives every thread a region of its own and keeps what was freed for later. For a process that
//! works for seconds and waits for months both are the wrong way round.

use std::ops::Range;
use std::sync::OnceLock;

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

/// Gives back what is free inside the heap, and the pages of the program that lie idle: what runs on is read again from the
/// file's cache.
pub(crate) fn give_back() {
    // SAFETY: releases pages that hold no allocation; no pointer is involved.
    unsafe { libc::malloc_trim(0) };
    static CODE: OnceLock<Option<Range<usize>>> = OnceLock::new();
    let maps = || std::fs::read_to_string("/proc/self/maps").ok();
    let Some(code) = CODE.get_or_init(|| code(&maps()?)) else { return };
    // SAFETY: the pages are the file's and can't be written to, so that they are the same when they are touched again.
    unsafe { libc::madvise(code.start as *mut libc::c_void, code.len(), libc::MADV_DONTNEED) };
}

/// Where the program's own machine code is mapped, and the constants before it: what comes from a file and was never
/// writable, in a process without libraries. What follows the code was written to when the program was loaded.
fn code(maps: &str) -> Option<Range<usize>> {
    let mut constants: Option<Range<usize>> = None;
    for line in maps.lines() {
        let mut fields = line.split_whitespace();
        let (Some(range), Some(permissions), Some(path)) = (fields.next(), fields.next(), fields.nth(3)) else {
            continue;
        };
        let (start, end) = range.split_once('-')?;
        let range = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
        match permissions {
            "r--p" if path.starts_with('/') => constants = Some(range),
            "r-xp" if path.starts_with('/') => {
                let before = constants.filter(|before| before.end == range.start);
                return Some(before.map_or(range.start, |before| before.start)..range.end);
            }
            _ => constants = None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_is_found_and_nothing_else() {
        let maps = "\
55d0c0000000-55d0c0200000 r--p 00000000 08:01 42                         /usr/local/bin/agent
55d0c0200000-55d0c0900000 r-xp 00200000 08:01 42                         /usr/local/bin/agent
55d0c0900000-55d0c0940000 r--p 00900000 08:01 42                         /usr/local/bin/agent
7ffc4a5f1000-7ffc4a5f3000 r-xp 00000000 00:00 0                          [vdso]
";
        assert_eq!(code(maps), Some(0x55d0_c000_0000..0x55d0_c090_0000));
        let alone = maps.lines().skip(1).collect::<Vec<_>>().join("\n");
        assert_eq!(code(&alone), Some(0x55d0_c020_0000..0x55d0_c090_0000));
        assert_eq!(code("7ffc4a5f1000-7ffc4a5f3000 r-xp 00000000 00:00 0 [vdso]\n"), None);
        // This process goes on with what it gave back.
        give_back();
        assert!(code(&std::fs::read_to_string("/proc/self/maps").unwrap()).is_some());
    }
}
