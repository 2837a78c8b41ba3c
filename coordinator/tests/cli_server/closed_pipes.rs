//! A reader that has left: nobody panics, nobody complains, and how things ended is still told.

use std::fs::OpenOptions;
use std::process::{Command, Output, Stdio};

use coordinator::api::PlanView;
use coordinator::plan::reasons::Refusal;

use super::{PROGRAM, Phase, Script, Server, described, started, status, story};

/// Runs the program with a stdout that nobody reads.
fn unread(server: &Server, args: &[&str]) -> Output {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(PROGRAM);
    command.args(args).env_clear().env("REQUEEN_SOCKET", server.socket()).stdin(Stdio::null());
    command.stdout(writer).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap()
}

#[test]
fn nobody_complains() {
    let server = Server::new(Script { answer: started(), statuses: story(), asked: vec![] });
    for args in [
        &["--help"][..],
        &["upgrade", "--help"],
        &["--version"],
        &["completions", "bash"],
        &["status"],
        &["status", "--json"],
        &["status", "--watch"],
        &["status", "--watch", "--json"],
    ] {
        let output = unread(&server, args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", described(&output));
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{args:?}");
    }
}

#[test]
fn a_rollout_that_nobody_reads_of_goes_on() {
    let open = status(Phase::Running, 4200, story()[1].nodes.clone());
    let server = Server::new(Script { answer: started(), statuses: vec![open], asked: vec![] });
    let output = unread(&server, &["upgrade", "--bundle", server.bundle().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", described(&output));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.ends_with("hint: the rollout goes on; `requeen status --watch` follows it again\n"), "{said}");
}

#[test]
fn a_refusal_stays_one() {
    let refusal = Refusal { node: None, what: "quorum would be lost".into(), hint: "add managers".into() };
    let plan = PlanView {
        to: "26.1.5".into(),
        policy: "rolling".into(),
        nodes: vec![],
        left_out: vec![],
        refusals: vec![refusal],
        nothing_to_do: false,
    };
    let answer = Some(Ok(serde_json::to_value(plan).unwrap()));
    let server = Server::new(Script { answer, ..Script::default() });
    let bundle = server.bundle();
    for more in [&[][..], &["--json"]] {
        let output = unread(&server, &[&["plan", "--bundle", bundle.to_str().unwrap()][..], more].concat());
        assert_eq!(output.status.code(), Some(2), "{}", described(&output));
        assert!(!String::from_utf8_lossy(&output.stderr).contains("error"), "{}", described(&output));
    }
}

#[test]
fn a_full_disk_is_an_error() {
    let server = Server::new(Script { statuses: story(), ..Script::default() });
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = Command::new(PROGRAM);
    command.args(["status", "--json"]).env_clear().env("REQUEEN_SOCKET", server.socket()).stdin(Stdio::null());
    let output = command.stdout(full).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", described(&output));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("error: can't write to stdout\n  because: No space left on device"), "{said}");
}
