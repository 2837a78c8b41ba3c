//! What the tests of the command line share.
#![allow(dead_code, reason = "each test binary takes what it needs")]

use std::ffi::OsStr;
use std::io::Write;
use std::process::{Command, Output, Stdio};

/// The program under test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_coordinator");

/// Runs the program without a terminal and without an environment; exit code and both outputs as text.
pub(crate) fn requeen<S: AsRef<OsStr>>(args: &[S]) -> String {
    described(&Command::new(PROGRAM).args(args).env_clear().stdin(Stdio::null()).output().unwrap())
}

/// Exit code and both outputs as text.
pub(crate) fn described(output: &Output) -> String {
    format!(
        "exit: {}\n--- stdout\n{}--- stderr\n{}",
        output.status.code().map_or("signal".into(), |code| code.to_string()),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// A gzipped tarball of these files.
pub(crate) fn tarball(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o755);
        tar.append_data(&mut header, path, *content).unwrap();
    }
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(&tar.into_inner().unwrap()).unwrap();
    gz.finish().unwrap()
}
