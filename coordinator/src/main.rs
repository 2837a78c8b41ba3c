//! The coordinator's program: server and command line in one static binary.
//!
//! With the feature `with-agent` it is the agent's too: the image has one file under both names, since most of what the two are
//! made of is the same.

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(feature = "with-agent")]
    if called_agent() {
        return agent::cli::main();
    }
    // For as long as the process lives; reads the variable `FAILPOINTS`.
    #[cfg(feature = "failpoints")]
    let _armed = fail::FailScenario::setup();
    coordinator::cli::run(std::env::args_os())
}

/// Whether this process was started as the agent: by that name, or by the one under which the agent puts itself on a host.
#[cfg(feature = "with-agent")]
fn called_agent() -> bool {
    let called = std::env::args_os().next().map(std::path::PathBuf::from);
    let name = called.as_deref().and_then(std::path::Path::file_name).and_then(std::ffi::OsStr::to_str);
    name.is_some_and(|name| name.starts_with("agent"))
}
