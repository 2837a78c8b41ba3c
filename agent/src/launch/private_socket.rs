//! The second way: the same unit, asked for over systemd's private socket, where no bus is between.
//!
//! zbus makes the calls, but does not carry them: on this socket systemd signs as `org.freedesktop.systemd1`, which is
//! no sender's name on a bus, so zbus takes each answer for a broken message and hangs up, and a refusal would have no
//! words. What D-Bus needs between two peers is little: a greeting, and messages whose lengths are in their headers.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use zbus::Message;
use zbus::message::Flags;

use super::unit::{self, MANAGER, OBJECT, RESET, START, UNIT};
use crate::host::HostRoot;

/// The socket, as a path of the host.
const SOCKET: &str = "/run/systemd/private";
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// The part of a message's header that is always there, bytes.
const HEADER: usize = 16;
/// Kinds of messages, in the second byte of the header.
const RETURN: u8 = 2;
const ERROR: u8 = 3;
/// An answer is some hundred bytes long; what claims to be longer than this is no D-Bus.
const MAX_MESSAGE: usize = 1 << 20;

/// The unit was not started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    /// Nothing listens.
    #[error("{SOCKET} can't be reached")]
    Connect(#[source] io::Error),
    /// The calls can't be put into messages.
    #[error("the call for {UNIT} can't be composed")]
    Compose(#[source] zbus::Error),
    /// The conversation broke off. The unit may have been started all the same.
    #[error("{SOCKET} does not speak D-Bus to the end")]
    Talk(#[source] io::Error),
    /// systemd took its time. The unit may be started later.
    #[error("{SOCKET} did not answer within {} s", CALL_LIMIT.as_secs())]
    Silent,
    /// systemd refused.
    #[error("systemd refused to start {UNIT}: {0}")]
    Refused(String),
}

/// Asks for the unit.
pub(crate) async fn start(root: &HostRoot, argv: &[String]) -> Result<(), SocketError> {
    tokio::time::timeout(CALL_LIMIT, ask(root, argv)).await.unwrap_or(Err(SocketError::Silent))
}

async fn ask(root: &HostRoot, argv: &[String]) -> Result<(), SocketError> {
    // Only the second one is answered, so the first answer is its own.
    let reset = message(RESET, Flags::NO_REPLY_EXPECTED, &unit::reset()).map_err(SocketError::Compose)?;
    let start = message(START, Flags::empty(), &unit::start(argv)).map_err(SocketError::Compose)?;
    let socket = UnixStream::connect(root.join(SOCKET)).await.map_err(SocketError::Connect)?;
    let mut socket = BufReader::new(socket);
    let answer = async {
        if let Err(refusal) = greet(&mut socket).await? {
            return Ok(Err(refusal));
        }
        socket.write_all(&[reset.data().bytes(), start.data().bytes()].concat()).await?;
        read_answer(&mut socket).await
    };
    answer.await.map_err(SocketError::Talk)?.map_err(SocketError::Refused)
}

fn message<B>(method: &str, flags: Flags, body: &B) -> zbus::Result<Message>
where
    B: serde::Serialize + zbus::wire::DynamicType,
{
    Message::method_call(OBJECT, method).interface(MANAGER).with_flags(flags).build(body)
}

/// Says who this is, which the kernel confirms to systemd, and begins. What systemd has against it is inside.
async fn greet(socket: &mut BufReader<UnixStream>) -> io::Result<Result<(), String>> {
    let user = hex::encode(nix::unistd::geteuid().to_string());
    socket.write_all(format!("\0AUTH EXTERNAL {user}\r\n").as_bytes()).await?;
    let mut line = String::new();
    socket.read_line(&mut line).await?;
    if !line.starts_with("OK ") {
        return Ok(Err(format!("user {user} was greeted with {:?}", line.trim_end())));
    }
    socket.write_all(b"BEGIN\r\n").await?;
    Ok(Ok(()))
}

/// Reads until the answer to the one call that wants one; signals come on this socket unasked. A refusal's words are
/// inside.
async fn read_answer(socket: &mut BufReader<UnixStream>) -> io::Result<Result<(), String>> {
    loop {
        let mut header = [0; HEADER];
        socket.read_exact(&mut header).await?;
        let (fields, body) = lengths(header);
        if fields.max(body) > MAX_MESSAGE {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut rest = vec![0; fields + body];
        socket.read_exact(&mut rest).await?;
        match header[1] {
            RETURN => return Ok(Ok(())),
            ERROR => return Ok(Err(words(&rest[fields..]))),
            _ => {}
        }
    }
}

/// How long a message's fields are, padding included, and its body. systemd writes in this machine's byte order.
fn lengths(header: [u8; HEADER]) -> (usize, usize) {
    let [_, _, _, _, b0, b1, b2, b3, _, _, _, _, f0, f1, f2, f3] = header;
    let number = |bytes| usize::try_from(u32::from_ne_bytes(bytes)).unwrap_or(usize::MAX);
    // The body begins at a multiple of eight, and so do the fields.
    let fields = number([f0, f1, f2, f3]);
    (fields.checked_next_multiple_of(8).unwrap_or(usize::MAX), number([b0, b1, b2, b3]))
}

/// An error's body: one string, that is its length, its bytes and a zero.
fn words(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body.get(4..).unwrap_or_default());
    text.trim_end_matches('\0').to_owned()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::thread::JoinHandle;

    use super::*;

    const SIGNAL: u8 = 4;

    /// A message as systemd would write it: the fields are of no interest, and are not a multiple of eight.
    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let fields = b"\x07\x01s\0\x18\0\0\0org.freedesktop.systemd1\0";
        let mut bytes = vec![b'l', kind, 0, 1];
        bytes.extend(u32::try_from(body.len()).unwrap().to_ne_bytes());
        bytes.extend(7_u32.to_ne_bytes());
        bytes.extend(u32::try_from(fields.len()).unwrap().to_ne_bytes());
        bytes.extend(fields);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes.extend(body);
        bytes
    }

    fn read_message(stream: &mut UnixStream) -> Vec<u8> {
        let mut header = [0; HEADER];
        stream.read_exact(&mut header).unwrap();
        let (fields, body) = lengths(header);
        let mut bytes = header.to_vec();
        bytes.resize(HEADER + fields + body, 0);
        stream.read_exact(&mut bytes[HEADER..]).unwrap();
        bytes
    }

    fn has(bytes: &[u8], text: &str) -> bool {
        bytes.windows(text.len()).any(|window| window == text.as_bytes())
    }

    /// A systemd that greets with `greeting` and answers the calls with `answer`; gives the calls.
    fn systemd(root: &HostRoot, greeting: &'static str, answer: Vec<u8>) -> JoinHandle<Vec<Vec<u8>>> {
        let socket = root.join(SOCKET);
        std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
        let listener = UnixListener::bind(socket).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let hello = format!("\0AUTH EXTERNAL {}\r\n", hex::encode(nix::unistd::geteuid().to_string()));
            let mut said = vec![0; hello.len()];
            stream.read_exact(&mut said).unwrap();
            assert_eq!(String::from_utf8(said).unwrap(), hello);
            stream.write_all(greeting.as_bytes()).unwrap();
            if !greeting.starts_with("OK ") {
                return Vec::new();
            }
            let mut begin = [0; 7];
            stream.read_exact(&mut begin).unwrap();
            assert_eq!(&begin, b"BEGIN\r\n");
            let calls = vec![read_message(&mut stream), read_message(&mut stream)];
            stream.write_all(&answer).unwrap();
            calls
        })
    }

    async fn try_with(greeting: &'static str, answer: Vec<u8>) -> (Result<(), SocketError>, Vec<Vec<u8>>) {
        let dir = tempfile::tempdir().unwrap();
        let root = HostRoot::new(dir.path());
        let systemd = systemd(&root, greeting, answer);
        let argv = ["/var/lib/requeen/bin/agent-1".to_owned(), "executor".to_owned()];
        (start(&root, &argv).await, systemd.join().unwrap())
    }

    #[tokio::test]
    async fn the_unit_is_asked_for_and_signals_are_no_answer() {
        let answer = [message(SIGNAL, b"\x04\0\0\0news\0"), message(RETURN, b"\x02\0\0\0/x\0")].concat();
        let (result, calls) = try_with("OK 0123456789abcdef0123456789abcdef\r\n", answer).await;
        result.unwrap();
        assert!(has(&calls[0], RESET) && has(&calls[0], UNIT));
        assert_eq!(calls[0][2], 1, "no reply is expected to the first");
        assert_eq!(calls[1][2], 0, "but to the second");
        for text in [START, UNIT, "/var/lib/requeen/bin/agent-1", "executor", "DefaultDependencies"] {
            assert!(has(&calls[1], text), "{text}");
        }
        assert!(!has(&calls[1], "Hello"));
    }

    #[tokio::test]
    async fn a_refusal_has_its_words() {
        let answer = message(ERROR, b"\x0d\0\0\0Access denied\0");
        let (result, _) = try_with("OK 0123456789abcdef0123456789abcdef\r\n", answer).await;
        assert_eq!(result.unwrap_err().to_string(), "systemd refused to start requeen-executor.service: Access denied");
        let (result, _) = try_with("REJECTED\r\n", Vec::new()).await;
        assert!(result.unwrap_err().to_string().contains("REJECTED"));
    }

    #[tokio::test]
    async fn what_breaks_off_is_told() {
        let (result, _) = try_with("OK 0123456789abcdef0123456789abcdef\r\n", b"l\x02\0".to_vec()).await;
        assert!(matches!(result, Err(SocketError::Talk(_))), "{result:?}");
        let mut endless = message(RETURN, b"");
        endless[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
        let (result, _) = try_with("OK 0123456789abcdef0123456789abcdef\r\n", endless).await;
        assert!(matches!(result, Err(SocketError::Talk(_))), "{result:?}");
        let dir = tempfile::tempdir().unwrap();
        let result = start(&HostRoot::new(dir.path()), &[]).await;
        assert!(matches!(result, Err(SocketError::Connect(_))), "{result:?}");
    }
}
