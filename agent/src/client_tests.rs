//! Whom the agent takes for a coordinator, over real TLS: a manager that its engine names, and nobody else.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use requeen_protocol::{NodeState, Speaker};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, Stream};

use super::*;

const ORDER: &str = r#"{"order":"wait","why":"a manager of this swarm says so"}"#;

/// A swarm's root CA.
struct Root {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// Certificate and key, as PEM.
struct Identity {
    certificate: String,
    key: String,
}

fn params(cn: &str, role: &str) -> CertificateParams {
    let mut params = CertificateParams::new(vec![role.to_owned(), cn.to_owned()]).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "cluster");
    params.distinguished_name.push(DnType::OrganizationalUnitName, role);
    params.distinguished_name.push(DnType::CommonName, cn);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

impl Root {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    fn sign(&self, params: &CertificateParams) -> Identity {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Identity { certificate, key: key.serialize_pem() }
    }

    fn manager(&self, id: &str) -> Identity {
        self.sign(&params(id, "swarm-manager"))
    }
}

/// A server that answers every request with `answer`, until the test's process ends.
struct Server {
    asked: Arc<AtomicUsize>,
    /// The last request's head, in small letters.
    head: Arc<Mutex<String>>,
}

impl Server {
    fn start(listener: TcpListener, identity: &Identity, answer: String) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain = vec![CertificateDer::from_pem_slice(identity.certificate.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap();
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = Arc::new(config.with_no_client_auth().with_single_cert(chain, key).unwrap());
        let server = Self { asked: Arc::default(), head: Arc::default() };
        let (asked, heard) = (Arc::clone(&server.asked), Arc::clone(&server.head));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut tls = ServerConnection::new(Arc::clone(&config)).unwrap();
                let mut tls = Stream::new(&mut tls, &mut stream);
                let mut head = Vec::new();
                let mut byte = [0];
                // A client that does not like the certificate says so and goes.
                while !head.ends_with(b"\r\n\r\n") && matches!(tls.read(&mut byte), Ok(1)) {
                    head.extend_from_slice(&byte);
                }
                if head.is_empty() {
                    continue;
                }
                let head = String::from_utf8(head).unwrap().to_lowercase();
                // All of it is read: a connection that is closed before loses its answer.
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
                if tls.read_exact(&mut body).is_err() {
                    continue;
                }
                *heard.lock().unwrap() = head;
                asked.fetch_add(1, Ordering::SeqCst);
                // Whoever has what it wants may close first.
                let _ = tls.write_all(answer.as_bytes()).and_then(|()| tls.flush());
                tls.conn.send_close_notify();
                let _ = tls.flush();
            }
        });
        server
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn answer(status: &str, more: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nconnection: close\r\n{more}content-length: {length}\r\n\r\n{body}")
}

fn here(last: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 0, last).into()
}

/// Node `w1` of a swarm whose engine names these managers.
struct Node {
    dir: tempfile::TempDir,
    swarm: SwarmFacts,
}

impl Node {
    fn new(root: &Root, managers: &[(&str, IpAddr)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let certificates = dir.path().join("var/lib/docker/swarm/certificates");
        std::fs::create_dir_all(&certificates).unwrap();
        let own = root.sign(&params("w1", "swarm-worker"));
        let write = |name: &str, text: &str| std::fs::write(Path::join(&certificates, name), text).unwrap();
        write("swarm-node.crt", &own.certificate);
        write("swarm-node.key", &own.key);
        write("swarm-root-ca.crt", &root.pem);
        let manager = |(id, ip): &(&str, IpAddr)| Manager { id: (*id).into(), addr: SocketAddr::new(*ip, 2377) };
        let swarm = SwarmFacts {
            node: "w1".into(),
            local_state: "active".to_owned(),
            error: None,
            managers: managers.iter().map(manager).collect(),
            data_root: "/var/lib/docker".to_owned(),
        };
        Self { dir, swarm }
    }

    fn client(&self, port: u16) -> Client {
        Client::new(&HostRoot::new(self.dir.path()), port, &Keys::default())
    }

    async fn report(&self, client: &Client) -> Result<Order, String> {
        let report = Report {
            node: "w1".into(),
            agent_version: "1".to_owned(),
            speaker: Speaker::Task,
            boot_id: "b".to_owned(),
            engine: None,
            installed: None,
            state: NodeState::Idle,
            seen: None,
            memo: None,
            unreached: Vec::new(),
            troubles: Vec::new(),
        };
        let mut why = String::new();
        for manager in &self.swarm.managers {
            match client.report(&self.swarm, manager, &report, requeen_protocol::NO_COLLECTION).await {
                Ok(answer) => return Ok(answer.order),
                Err(error) => why.push_str(&chain(&error)),
            }
        }
        Err(why)
    }
}

fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind((here(1), 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

#[tokio::test]
async fn the_unlock_key_beside_an_order_is_learned_and_one_that_is_none_is_left() {
    let key = crate::unlock::testing::UNLOCK;
    for (header, known) in [(key, vec![UnlockKey::parse(key).unwrap()]), ("SWMKEY-0-nonsense", Vec::new())] {
        let root = Root::new();
        let node = Node::new(&root, &[("m1", here(1))]);
        let (listener, port) = listener();
        let more = format!("{UNLOCK_HEADER}: {header}\r\n");
        Server::start(listener, &root.manager("m1"), answer("200 OK", &more, ORDER));
        let keys = Keys::default();
        let client = Client::new(&HostRoot::new(node.dir.path()), port, &keys);
        assert!(matches!(node.report(&client).await, Ok(Order::Wait { .. })));
        assert_eq!(keys.all(), known);
        assert!(!format!("{client:?}").contains("SWMKEY"));
    }
}

#[tokio::test]
async fn only_a_manager_that_the_engine_names_is_told_anything() {
    type Made = fn(&Root) -> Identity;
    let servers: [(&str, Made, Result<(), &str>); 8] = [
        ("the manager itself", |root| root.manager("m1"), Ok(())),
        // Whose certificate stays what it was until it is renewed.
        ("a demoted manager at the manager's address", |root| root.manager("m2"), Err("not valid for name")),
        (
            "a worker at the manager's address",
            |root| root.sign(&params("w2", "swarm-worker")),
            Err("not valid for name"),
        ),
        ("the manager of another swarm", |_| Root::new().manager("m1"), Err("invalid peer certificate")),
        (
            "one that has signed its certificate itself",
            |_| {
                let key = KeyPair::generate().unwrap();
                let certificate = params("m1", "swarm-manager").self_signed(&key).unwrap().pem();
                Identity { certificate, key: key.serialize_pem() }
            },
            Err("invalid peer certificate"),
        ),
        (
            "one whose certificate is out of date",
            |root| {
                let mut params = params("m1", "swarm-manager");
                (params.not_before, params.not_after) = (date_time_ymd(1990, 1, 1), date_time_ymd(1991, 1, 1));
                root.sign(&params)
            },
            Err("certificate expired"),
        ),
        (
            "one that names the manager as its subject alone",
            |root| {
                let mut params = params("m1", "swarm-manager");
                params.subject_alt_names.clear();
                root.sign(&params)
            },
            Err("not valid for name"),
        ),
        (
            "one whose certificate is for clients",
            |root| {
                let mut params = params("m1", "swarm-manager");
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
                root.sign(&params)
            },
            Err("certificate"),
        ),
    ];
    for (who, made, expected) in servers {
        let root = Root::new();
        let (listener, port) = listener();
        let server = Server::start(listener, &made(&root), answer("200 OK", "", ORDER));
        let node = Node::new(&root, &[("m1", here(1))]);
        let got = node.report(&node.client(port)).await;
        match expected {
            Ok(()) => {
                assert!(matches!(got, Ok(Order::Wait { .. })), "{who}: {got:?}");
                let head = server.head.lock().unwrap().clone();
                assert!(head.contains(&format!("{PROTOCOL_HEADER}: {PROTOCOL_VERSION}")), "{head}");
            }
            Err(words) => {
                let error = got.expect_err(who);
                assert!(error.contains(words) && error.contains("m1 at 127.0.0.1"), "{who}: {error}");
            }
        }
        assert_eq!(server.asked(), usize::from(expected.is_ok()), "{who}");
    }
}

#[tokio::test]
async fn a_manager_that_is_named_no_more_is_not_asked_again() {
    let root = Root::new();
    let (listener, port) = listener();
    let server = Server::start(listener, &root.manager("m1"), answer("200 OK", "", ORDER));
    let other = TcpListener::bind((here(2), port)).unwrap();
    let successor = Server::start(other, &root.manager("m2"), answer("200 OK", "", ORDER));
    let mut node = Node::new(&root, &[("m1", here(1)), ("m2", here(2))]);
    let client = node.client(port);
    node.report(&client).await.unwrap();
    node.report(&client).await.unwrap();
    assert_eq!((server.asked(), successor.asked()), (2, 0), "who has answered is asked again");
    node.swarm.managers.remove(0);
    node.report(&client).await.unwrap();
    assert_eq!((server.asked(), successor.asked()), (2, 1));
}

#[tokio::test]
async fn what_is_no_order_is_told_and_not_followed() {
    let elsewhere = "location: https://127.0.0.1:1/v1/report\r\n";
    let refusal = r#"{"error":"the coordinator speaks version 2","hint":"`requeen deploy`"}"#;
    for (given, words) in [
        (answer("426 Upgrade Required", "", refusal), &["426", "speaks version 2", "requeen deploy"][..]),
        (
            answer("403 Forbidden", "", r#"{"error":"node w1 is not in the swarm any more"}"#),
            &["403", "not in the swarm"],
        ),
        (answer("307 Temporary Redirect", elsewhere, ""), &["307"]),
        (answer("200 OK", "", r#"{"order":"dance"}"#), &["dance"]),
        (answer("200 OK", "", "<html>"), &["decod"]),
        ("HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{".to_owned(), &["m1 at"]),
        ("SSH-2.0-OpenSSH_9.2\r\n".to_owned(), &["m1 at"]),
    ] {
        let root = Root::new();
        let (listener, port) = listener();
        let server = Server::start(listener, &root.manager("m1"), given.clone());
        let node = Node::new(&root, &[("m1", here(1))]);
        let error = node.report(&node.client(port)).await.expect_err(&given);
        for word in words {
            assert!(error.contains(word), "{word:?} is missing: {error}");
        }
        assert_eq!(server.asked(), 1, "{given}");
    }
}

#[tokio::test]
async fn a_manager_that_says_nothing_does_not_hide_the_next() {
    let root = Root::new();
    let (listener, port) = listener();
    // Its queue takes the connection; nobody ever does.
    let _silent = TcpListener::bind((here(2), port)).unwrap();
    let server = Server::start(listener, &root.manager("m1"), answer("200 OK", "", ORDER));
    let node = Node::new(&root, &[("m2", here(2)), ("m1", here(1))]);
    let answered = tokio::time::timeout(10 * CONNECT_LIMIT, node.report(&node.client(port))).await;
    assert!(matches!(answered, Ok(Ok(Order::Wait { .. }))), "{answered:?}");
    assert_eq!(server.asked(), 1);
}
