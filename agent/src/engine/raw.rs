//! What the engine says, as it says it: types made for one of its versions drop what another one adds, and in a
//! bug report that may be what matters.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::Value;

use super::api::SOCKET;
use crate::host::HostRoot;

/// No answer is longer than this, bytes.
const LONGEST: u64 = 4 << 20;

/// The engine gave no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub enum RawError {
    /// Nothing came through its socket.
    #[error("the Docker Engine does not answer on {SOCKET}")]
    Talk(#[source] io::Error),
    /// It refused.
    #[error("the Docker Engine answers `{0}`")]
    Refused(String),
    /// It is no JSON.
    #[error("the Docker Engine's answer is no JSON")]
    Json(#[source] serde_json::Error),
}

/// Asks for `path`. Blocks, no longer than `limit` for each read.
///
/// HTTP/1.0: the answer comes in one piece and ends with the connection.
pub fn get(root: &HostRoot, path: &str, limit: Duration) -> Result<Value, RawError> {
    parse(&talk(root, &format!("GET {path} HTTP/1.0\r\nHost: docker\r\n\r\n"), "", limit)?)
}

/// Posts JSON to `path`, for an answer of which only the success counts. Blocks as [`get`] does. The body may be a secret:
/// it is not copied.
pub fn post(root: &HostRoot, path: &str, json: &str, limit: Duration) -> Result<(), RawError> {
    let length = json.len();
    let head = format!(
        "POST {path} HTTP/1.0\r\nHost: docker\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    );
    body(&talk(root, &head, json, limit)?).map(drop)
}

fn talk(root: &HostRoot, head: &str, body: &str, limit: Duration) -> Result<Vec<u8>, RawError> {
    let talk = || -> io::Result<Vec<u8>> {
        let mut stream = UnixStream::connect(root.join(SOCKET))?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        stream.write_all(head.as_bytes())?;
        stream.write_all(body.as_bytes())?;
        let mut answer = Vec::new();
        stream.take(LONGEST).read_to_end(&mut answer)?;
        Ok(answer)
    };
    talk().map_err(RawError::Talk)
}

fn parse(answer: &[u8]) -> Result<Value, RawError> {
    serde_json::from_slice(body(answer)?).map_err(RawError::Json)
}

/// The body of a successful answer.
fn body(answer: &[u8]) -> Result<&[u8], RawError> {
    const END_OF_HEAD: &[u8] = b"\r\n\r\n";
    let head = answer.windows(END_OF_HEAD.len()).position(|bytes| bytes == END_OF_HEAD);
    let Some(head) = head else {
        return Err(RawError::Talk(io::ErrorKind::UnexpectedEof.into()));
    };
    let (head, body) = (&answer[..head], &answer[head + END_OF_HEAD.len()..]);
    let head = String::from_utf8_lossy(head);
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        return Err(RawError::Refused(format!("{status}: {}", String::from_utf8_lossy(body).trim())));
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_success_is_an_answer() {
        let said = parse(b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{\"a\":1}\n").unwrap();
        assert_eq!(said, serde_json::json!({"a": 1}));
        assert!(matches!(parse(b"HTTP/1.0 200 OK\r\n\r\n{\"a\":"), Err(RawError::Json(_))));
        assert!(matches!(parse(b"HTTP/1.0 200 OK\r\n"), Err(RawError::Talk(_))));
        let refused = parse(b"HTTP/1.0 404 Not Found\r\n\r\n{\"message\":\"page not found\"}").unwrap_err();
        assert!(refused.to_string().contains("404") && refused.to_string().contains("page not found"), "{refused}");
    }
}
