//! On a terminal there are colours and progress, elsewhere neither; colours only where they are wanted.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use nix::pty::{OpenptyResult, Winsize, openpty};

use super::{PROGRAM, Script, Server, started, story};

/// What a person would get to see, escapes included, and the exit code.
fn on_terminal(server: &Server, args: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let size = Winsize { ws_row: 40, ws_col: 160, ws_xpixel: 0, ws_ypixel: 0 };
    let OpenptyResult { master, slave } = openpty(&size, None).unwrap();
    let end = |slave: &OwnedFd| Stdio::from(slave.try_clone().unwrap());
    let mut command = Command::new(PROGRAM);
    command.args(args).env_clear().env("REQUEEN_SOCKET", server.socket()).env("TERM", "xterm");
    command.envs(environment.iter().copied()).stdin(end(&slave)).stdout(end(&slave)).stderr(end(&slave));
    let mut child = command.spawn().unwrap();
    // The last ends on this side: the terminal closes with the program.
    drop((command, slave));
    let mut seen = Vec::new();
    let mut master = File::from(master);
    let mut buffer = [0; 4096];
    // A terminal that was closed reads as an error.
    while let Ok(read @ 1..) = master.read(&mut buffer) {
        seen.extend_from_slice(&buffer[..read]);
    }
    (child.wait().unwrap().code(), String::from_utf8_lossy(&seen).into_owned())
}

/// Whether text has a colour or a weight: `ESC [ … m`.
fn coloured(text: &str) -> bool {
    text.split("\u{1b}[").skip(1).any(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != ';');
        end.is_some_and(|end| rest[end..].starts_with('m'))
    })
}

fn server() -> Server {
    Server::new(Script { answer: started(), statuses: story(), asked: vec![] })
}

#[test]
fn colours_are_for_terminals_that_want_them() {
    let status = ["status"];
    let plain = ["--no-color", "status"];
    for (args, environment, expected) in [
        (&status[..], &[][..], true),
        (&status, &[("NO_COLOR", "")], true),
        (&status, &[("NO_COLOR", "1")], false),
        (&status, &[("TERM", "dumb")], false),
        (&plain, &[], false),
        (&["status", "--no-color"], &[], false),
        (&["--help"], &[], true),
        (&["--help"], &[("NO_COLOR", "1")], false),
        (&["--no-color", "--help"], &[], false),
        (&["frobnicate"], &[], true),
        (&["--no-color", "frobnicate"], &[], false),
        (&["grant", "", "--no-color"], &[], false),
    ] {
        let (_, seen) = on_terminal(&server(), args, environment);
        assert!(!seen.is_empty());
        assert_eq!(coloured(&seen), expected, "{args:?} {environment:?}: {}", seen.escape_debug());
    }
    assert!(!coloured(&server().says(&["status"])));
    assert!(!server().says(&["frobnicate"]).contains('\u{1b}'));
}

#[test]
fn errors_of_the_server_are_coloured_alike() {
    let server = server();
    std::fs::remove_file(server.socket()).unwrap();
    let (code, seen) = on_terminal(&server, &["pause"], &[]);
    assert!(code == Some(3) && coloured(&seen), "{}", seen.escape_debug());
    let (code, seen) = on_terminal(&server, &["pause", "--no-color"], &[]);
    assert!(code == Some(3) && !seen.contains('\u{1b}'), "{}", seen.escape_debug());
}

#[test]
fn progress_is_for_terminals() {
    // The line above the nodes is redrawn while it follows; it is in no lasting line.
    let (headline, lasting) = ("driven from m1", "2 of 2 nodes changed to 26.1.5 in 9.0s (rollout r1)");
    for more in [&[][..], &["--no-color"]] {
        let server = server();
        let bundle = server.bundle();
        let args = [&["upgrade", "--bundle", bundle.to_str().unwrap()][..], more].concat();
        let (code, seen) = on_terminal(&server, &args, &[]);
        assert_eq!(code, Some(0), "{}", seen.escape_debug());
        assert!(seen.contains(headline) && seen.contains(lasting), "{}", seen.escape_debug());
        assert_eq!(coloured(&seen), more.is_empty(), "{}", seen.escape_debug());
    }
    let server = server();
    let bundle = server.bundle();
    let said = server.says(&["upgrade", "--bundle", bundle.to_str().unwrap()]);
    assert!(said.contains(lasting) && !said.contains(headline) && !said.contains('\u{1b}'), "{said}");
    let (code, seen) = on_terminal(&server, &["upgrade", "--json", "--bundle", bundle.to_str().unwrap()], &[]);
    assert!(code == Some(0) && !seen.contains('\u{1b}'), "{}", seen.escape_debug());
    assert!(seen.lines().all(|line| line.trim_end().starts_with('{')), "{}", seen.escape_debug());
}
