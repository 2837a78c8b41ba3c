//! What an engine that an init script runs leaves in files, where others have a journal: their newest lines.

use super::pack::Pack;
use crate::boot::scripts::RECOVERY_LOG;
use crate::engine::sysv::last_lines;
use crate::host::HostRoot;
use crate::host::layout::Layout;
use crate::launch::LOG;

/// So many lines of each, within what is looked at of a file's end.
const LINES: u32 = 500;

/// Adds the ends of the engine's log, the executor's and the recovery's.
pub(super) fn logs(root: &HostRoot, layout: &Layout, pack: &mut Pack) {
    if !layout.manager.runs_scripts() {
        return;
    }
    let engine = layout.log_file.as_deref().map(|path| ("log/docker.log", path));
    let others = [("log/executor.log", LOG), ("log/recovery.log", RECOVERY_LOG)];
    for (name, path) in engine.into_iter().chain(others) {
        match last_lines(root, path, LINES) {
            Some(lines) => pack.text(name, &(lines.join("\n") + "\n")),
            None => pack.missing(name, format_args!("{path} can't be read")),
        }
    }
}
