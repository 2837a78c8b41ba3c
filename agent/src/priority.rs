//! Priority: what an agent does before its lease gives way to everything else on the node.

use nix::libc;

/// `IOPRIO_WHO_PROCESS`, and class idle in `IOPRIO_PRIO_VALUE` (linux/ioprio.h).
const WHO_PROCESS: libc::c_int = 1;
const IDLE: libc::c_int = 3 << 13;

/// Takes processor and disk only when nobody else wants them. For this thread and those that it will start; a kernel that
/// refuses changes nothing.
pub fn give_way() {
    // SAFETY: both set a number of this thread's; no pointer is involved.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, 19);
        libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, IDLE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_gives_way() {
        let nice = std::thread::spawn(|| {
            give_way();
            // SAFETY: reads a number; no pointer is involved.
            unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
        });
        assert_eq!(nice.join().unwrap(), 19);
    }
}
