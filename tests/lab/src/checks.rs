//! Everything that is checked besides tests: form, lints, documentation, and what the dependencies may be.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use crate::command;
use crate::images::repository;
use crate::{Error, Result, cache};

/// The version of cargo-deny that reads `deny.toml`.
const CARGO_DENY: &str = "0.20.2";

/// Makes every check in turn; the first that fails is the error. `say` is told what comes next, one line per check.
pub fn run(say: impl Fn(&str)) -> Result<()> {
    type Make = fn() -> Result<Command>;
    let checks: [(&str, Make); 4] = [
        ("cargo fmt --all --check", || Ok(cargo(&["fmt", "--all", "--check"]))),
        ("cargo clippy, warnings denied", || {
            Ok(cargo(&["clippy", "--locked", "--quiet", "--workspace", "--all-targets", "--", "--deny", "warnings"]))
        }),
        ("cargo doc, warnings denied", || {
            // Nobody but this project uses its crates, so what is private is documented too.
            let mut doc =
                cargo(&["doc", "--locked", "--quiet", "--workspace", "--no-deps", "--document-private-items"]);
            doc.env("RUSTDOCFLAGS", "--deny warnings");
            Ok(doc)
        }),
        ("cargo deny: licences, bans, sources", || {
            let mut deny = Command::new(cargo_deny()?);
            // Advisories come by git from a host that is no registry: see CONTRIBUTING.md.
            deny.args(["--log-level", "error", "check", "licenses", "bans", "sources"]).current_dir(repository());
            Ok(deny)
        }),
    ];
    for (name, check) in checks {
        say(name);
        let began = Instant::now();
        command::inherit_ok(&mut check()?)?;
        say(&format!("{name}: passed, {:.0} s", began.elapsed().as_secs_f64()));
    }
    Ok(())
}

/// Cargo in the workspace.
pub fn cargo(args: &[&str]) -> Command {
    let mut cargo = Command::new("cargo");
    cargo.args(args).current_dir(repository());
    cargo
}

/// The program, compiled once and kept in the cache.
fn cargo_deny() -> Result<PathBuf> {
    let folder = cache::folder("tools")?.join(format!("cargo-deny-{CARGO_DENY}"));
    let program = folder.join("bin/cargo-deny");
    let _lock = cache::lock("cargo-deny")?;
    if program.is_file() {
        return Ok(program);
    }
    tracing::info!(version = CARGO_DENY, "compile cargo-deny, once; this takes minutes");
    let mut install = Command::new("cargo");
    install.args(["install", "--locked", "--quiet", "--debug", "--version", CARGO_DENY, "--root"]).arg(&folder);
    // Away from the workspace, whose settings are for static binaries. Its target folder ends with the command.
    let work = tempfile::tempdir_in(cache::folder("tools")?).map_err(Error::file("create a folder in", "the cache"))?;
    install.arg("cargo-deny").current_dir(work.path()).env("CARGO_TARGET_DIR", work.path());
    install.env("CARGO_PROFILE_DEV_DEBUG", "0").stdout(std::io::stderr());
    command::inherit_ok(&mut install)?;
    Ok(program)
}
