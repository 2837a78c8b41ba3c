//! Ctrl-C at any moment. What the server then undoes is in its own tests.

use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{PROGRAM, Phase, Script, Server, described, started, status, story, tarball};

/// Far more than anything here takes.
const LIMIT: Duration = Duration::from_secs(30);

fn start(socket: &Path, args: &[&str], stdin: Stdio) -> Child {
    // What is started in the background of a shell without job control ignores Ctrl-C, and so would all that it starts.
    let mut command = Command::new("/usr/bin/env");
    command.args(["--default-signal=INT", PROGRAM]).args(args).env_clear().env("REQUEEN_SOCKET", socket).stdin(stdin);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn press_ctrl_c(child: &Child) {
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGINT).unwrap();
}

fn until(what: &str, reached: impl Fn() -> bool) {
    let end = Instant::now() + LIMIT;
    while !reached() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A rollout that does not end.
fn open() -> Server {
    let open = status(Phase::Running, 4200, story()[1].nodes.clone());
    Server::new(Script { answer: started(), statuses: vec![open], asked: vec![] })
}

#[test]
fn who_follows_a_rollout_detaches() {
    let server = open();
    let bundle = server.bundle();
    for args in [&["upgrade", "--bundle", bundle.to_str().unwrap()][..], &["rollback"]] {
        let mut child = start(&server.socket(), args, Stdio::null());
        let mut words = BufReader::new(child.stderr.take().unwrap());
        // At the very word that says so.
        let mut line = String::new();
        while !line.contains("Ctrl-C detaches") {
            line.clear();
            assert!(words.read_line(&mut line).unwrap() > 0, "it never said that Ctrl-C detaches");
        }
        press_ctrl_c(&child);
        let output = child.wait_with_output().unwrap();
        let mut rest = String::new();
        words.read_to_string(&mut rest).unwrap();
        let hint = "hint: the rollout goes on; `requeen status --watch` follows it again\n";
        assert_eq!((output.status.code(), rest.as_str()), (Some(0), hint), "{args:?}");
    }
}

#[test]
fn who_watches_has_seen_enough() {
    let server = open();
    let mut child = start(&server.socket(), &["status", "--watch"], Stdio::null());
    let mut data = BufReader::new(child.stdout.take().unwrap());
    data.read_line(&mut String::new()).unwrap();
    press_ctrl_c(&child);
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}

/// The program's connection, unless it ends without one.
fn connection(listener: &UnixListener, child: &mut Child) -> UnixStream {
    listener.set_nonblocking(true).unwrap();
    let end = Instant::now() + LIMIT;
    loop {
        match listener.accept() {
            Ok((stream, _)) => return stream,
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        assert!(child.try_wait().unwrap().is_none(), "it ended without a connection");
        assert!(Instant::now() < end, "no connection came");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn an_upload_ends() {
    // A server that takes the connection and reads nothing: the upload stops where the socket is full.
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut content = std::fs::read("/proc/self/exe").unwrap()[..4096].to_vec();
    // Nothing that could be made smaller.
    let mut word = 1_u64;
    let noise = std::iter::repeat_with(|| {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        word.to_be_bytes()[0]
    });
    content.extend(noise.take(8 << 20));
    let path = dir.path().join("docker.tgz");
    std::fs::write(&path, tarball(&[("docker/dockerd", &content)])).unwrap();
    for bundle in [path.to_str().unwrap(), "-"] {
        let stdin = Stdio::from(std::fs::File::open(&path).unwrap());
        let mut child = start(&socket, &["upgrade", "--bundle", bundle], stdin);
        let mut connection = connection(&listener, &mut child);
        let mut begin = [0; 12];
        connection.read_exact(&mut begin).unwrap();
        assert_eq!(&begin, b"PUT /bundle?");
        press_ctrl_c(&child);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.signal(), Some(2), "{}", described(&output));
        assert!(output.stdout.is_empty(), "{}", described(&output));
        // What the server sees: the end, before the promised length.
        connection.read_to_end(&mut Vec::new()).unwrap();
    }
}

#[test]
fn a_preparation_ends() {
    for args in [&["plan"][..], &["upgrade"]] {
        // It never answers what it is asked.
        let server = Server::new(Script { statuses: story(), ..Script::default() });
        let bundle = server.bundle();
        let child = start(&server.socket(), &[args, &["--bundle", bundle.to_str().unwrap()]].concat(), Stdio::null());
        until("the question", || server.asked().len() == 2);
        press_ctrl_c(&child);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.signal(), Some(2), "{}", described(&output));
        assert!(output.stdout.is_empty(), "{}", described(&output));
    }
}
