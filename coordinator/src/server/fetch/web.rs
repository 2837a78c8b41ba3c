//! Hosts and a proxy on the loopback interface, for tests. What they do is a script's to say, byte by byte.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

use crate::identity::test_pki::Root;

/// What a host does with a request.
pub(super) enum Play {
    /// Sends this and closes, as one does.
    Send(Vec<u8>),
    /// Sends this and is gone without a word.
    Break(Vec<u8>),
    /// Sends this and waits for ever.
    Stall(Vec<u8>),
    /// Waits for a word before it sends this.
    Wait(Arc<Notify>, Vec<u8>),
}

/// A host, and what it was asked.
pub(super) struct Web {
    pub(super) address: SocketAddr,
    /// The authority that signed its certificate, as `FetchArgs` wants it.
    pub(super) root: String,
    asked: Arc<Mutex<Vec<String>>>,
    _task: AbortOnDropHandle<()>,
}

impl Web {
    /// A host that is 127.0.0.1 and `bundles.test`. The script gets the number of the request, from 0 on,
    /// and its head in lower case.
    pub(super) async fn new(mut script: impl FnMut(usize, &str) -> Play + Send + 'static) -> Self {
        let root = Root::new();
        let identity = root.web(&["127.0.0.1", "bundles.test"]);
        let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![CertificateDer::from(identity.certificate)], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let heads = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                // Who does not trust the certificate leaves here.
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let Some(head) = head(&mut stream).await else { continue };
                let number = {
                    let mut heads = heads.lock().unwrap();
                    heads.push(head.clone());
                    heads.len() - 1
                };
                // The client may leave at any time.
                match script(number, &head) {
                    Play::Send(bytes) => {
                        let _ = stream.write_all(&bytes).await;
                        let _ = stream.shutdown().await;
                    }
                    Play::Break(bytes) => {
                        let _ = stream.write_all(&bytes).await;
                        let _ = stream.flush().await;
                        drop(stream.into_inner());
                    }
                    Play::Stall(bytes) => {
                        let _ = stream.write_all(&bytes).await;
                        let _ = stream.flush().await;
                        let _ = stream.read(&mut [0]).await;
                    }
                    Play::Wait(word, bytes) => {
                        word.notified().await;
                        let _ = stream.write_all(&bytes).await;
                        let _ = stream.shutdown().await;
                    }
                }
            }
        });
        let root = CertificateDer::from_pem_slice(root.pem.as_bytes()).unwrap();
        Self { address, root: BASE64_STANDARD.encode(root), asked, _task: AbortOnDropHandle::new(task) }
    }

    /// The heads of the requests so far, in lower case.
    pub(super) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

/// A proxy that leads every name to `web`, and what it was asked.
pub(super) async fn proxy(web: SocketAddr) -> (SocketAddr, Arc<Mutex<Vec<String>>>, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let heads = Arc::clone(&asked);
    let task = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let Some(head) = head(&mut stream).await else { continue };
            heads.lock().unwrap().push(head);
            let mut there = TcpStream::connect(web).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            let _ = copy_bidirectional(&mut stream, &mut there).await;
        }
    });
    (address, asked, AbortOnDropHandle::new(task))
}

/// A request up to its empty line.
async fn head(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8(head).unwrap().to_lowercase())
}
