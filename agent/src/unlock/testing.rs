//! An engine of an autolocked swarm for tests, on a unix socket: `/version`, `/info`, and the calls about its key.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Value, json};

use crate::host::HostRoot;

/// What opens [`SEALED`], and what does not.
pub(crate) const UNLOCK: &str = "SWMKEY-1-QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVr//v38+/o";
pub(crate) const OTHER: &str = "SWMKEY-1-AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";

/// A node's key as a manager's engine keeps it; made with OpenSSL, for tests alone.
pub(crate) const SEALED: &str = "\
-----BEGIN ENCRYPTED PRIVATE KEY-----
kek-version: 17
raft-dek: EgRAAAAAkJ2
  folded=

MIHeMEkGCSqGSIb3DQEFDTA8MBsGCSqGSIb3DQEFDDAOBAhV0VbIPyYm/wICCAAw
HQYJYIZIAWUDBAEqBBAaCVwssZALgOnbrJ3s146DBIGQSB18GVUV+5MhGK/2fgde
hDuEMuB6OoMAguZ1VgMOzHFjSjgVvilfoRgJDCLUOYPh3cu+qWDlJcuCDi37FfKR
C7BFXZewmIY/K4Xhxg6/G47PN2BfHB7141EmWwdL/IwYc5OWKXauDWyMk8XhCEHH
jRdDB4MBul2jYko8ZDGcZxoIkbsGZlN1W/CTk/3Et6PT
-----END ENCRYPTED PRIVATE KEY-----
";

/// Writes the certificate files of an engine whose data directory is `/data`.
pub(crate) fn write_identity(root: &Path, key: &str) {
    let at = root.join("data/swarm/certificates");
    std::fs::create_dir_all(&at).unwrap();
    let pair = rcgen::KeyPair::generate().unwrap();
    let cert = rcgen::CertificateParams::new(vec!["node".to_owned()]).unwrap().self_signed(&pair).unwrap();
    std::fs::write(at.join("swarm-node.crt"), cert.pem()).unwrap();
    std::fs::write(at.join("swarm-root-ca.crt"), cert.pem()).unwrap();
    std::fs::write(at.join("swarm-node.key"), key).unwrap();
}

struct State {
    local: String,
    key: String,
    asked_for_key: u32,
    /// The keys that were posted.
    posted: Vec<String>,
    /// So many of the next posts fail without a word on the key.
    failing: u32,
}

/// See the module.
pub(crate) struct Engine {
    dir: tempfile::TempDir,
    state: Arc<Mutex<State>>,
}

impl Engine {
    /// An engine in this swarm state, with this key.
    pub(crate) fn start(local: &str, key: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("run")).unwrap();
        let listener = UnixListener::bind(dir.path().join("run/docker.sock")).unwrap();
        let state =
            State { local: local.to_owned(), key: key.to_owned(), asked_for_key: 0, posted: Vec::new(), failing: 0 };
        let state = Arc::new(Mutex::new(state));
        let shared = Arc::clone(&state);
        // It ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, shared) = (stream.unwrap(), Arc::clone(&shared));
                std::thread::spawn(move || answer(&stream, &shared));
            }
        });
        Self { dir, state }
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn root(&self) -> HostRoot {
        HostRoot::new(self.dir.path())
    }

    pub(crate) fn set(&self, local: &str) {
        self.state().local = local.to_owned();
    }

    pub(crate) fn fail(&self, posts: u32) {
        self.state().failing = posts;
    }

    pub(crate) fn asked_for_key(&self) -> u32 {
        self.state().asked_for_key
    }

    pub(crate) fn posted(&self) -> Vec<String> {
        self.state().posted.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

fn answer(stream: &UnixStream, state: &Mutex<State>) {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    if reader.read_line(&mut line).unwrap_or(0) == 0 {
        return;
    }
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).unwrap();
        if header.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = header.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let path = line.split(' ').nth(1).unwrap_or_default();
    let path = path.strip_prefix("/v1.41").unwrap_or(path);
    let (status, answer) = state.lock().unwrap().answer(path, &body);
    let answer = answer.to_string();
    let head = format!("HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n", answer.len());
    let mut stream = stream;
    stream.write_all(format!("{head}Connection: close\r\n\r\n{answer}").as_bytes()).unwrap();
}

impl State {
    fn answer(&mut self, path: &str, body: &[u8]) -> (u16, Value) {
        let message = |text: &str| json!({ "message": text });
        match path {
            "/version" => (200, json!({"ApiVersion": "1.41", "Version": "20.10.24"})),
            "/info" => (200, json!({"Swarm": {"NodeID": "n", "LocalNodeState": self.local}})),
            "/swarm/unlockkey" => {
                self.asked_for_key += 1;
                if self.local == "active" {
                    (200, json!({"UnlockKey": self.key}))
                } else {
                    (503, message("Swarm is encrypted and needs to be unlocked before it can be used."))
                }
            }
            "/swarm/unlock" => {
                let posted: Value = serde_json::from_slice(body).unwrap();
                let key = posted["UnlockKey"].as_str().unwrap().to_owned();
                self.posted.push(key.clone());
                if self.failing > 0 {
                    self.failing -= 1;
                    (500, message("swarm component could not be started"))
                } else if self.local != "locked" {
                    (409, message("swarm is not locked"))
                } else if key == self.key {
                    self.local = "active".to_owned();
                    (200, json!({}))
                } else {
                    (401, message("swarm could not be unlocked: invalid key provided"))
                }
            }
            other => (404, message(other)),
        }
    }
}
