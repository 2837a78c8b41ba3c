//! As many open files as the kernel allows: in a large swarm each node's connection is one.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises this process's limit of open files to the highest that it may have, and gives that.
pub(crate) fn raise() -> nix::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_the_highest() {
        let hard = raise().unwrap();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (hard, hard));
    }
}
