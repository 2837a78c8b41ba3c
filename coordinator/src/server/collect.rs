//! A node's part of a collection, received into a file that has no name: whatever happens to this server, nothing
//! of it stays.

use std::fs;
use std::io::{self, Seek};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Extension, Path as UrlPath, State};
use axum::http::{HeaderMap, StatusCode, header};
use futures_util::StreamExt;
use requeen_protocol::{COLLECT_SECS, CollectionId};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::agents::{Agents, Answer, Peer};
use super::store::RECEIVING;
use crate::diag::collection::{Arriving, Part, Unwanted};
use crate::effect::{OnHost, perform};
use crate::identity::swarm::Swarm;

/// Nobody waits longer for a part than this.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(COLLECT_SECS);

/// Why a part did not arrive.
#[derive(Debug, thiserror::Error)]
enum PartError {
    #[error("it is larger than {0} bytes")]
    TooLarge(u64),
    #[error("it broke off: {0}")]
    Receive(axum::Error),
    #[error("it can't be kept on this manager: {0}")]
    Keep(io::Error),
}

/// Takes the part of the node whose certificate the connection has. Reports are taken while the managers have no
/// leader, and so is this.
pub(super) async fn part<S: Swarm>(
    State(agents): State<Arc<Agents<S>>>,
    Extension(peer): Extension<Peer>,
    UrlPath(id): UrlPath<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, Answer> {
    let arriving = agents.hub.collections.receive(&CollectionId(id), &peer.name.node).map_err(unwanted)?;
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let received = match length {
        Some(length) if length > agents.max_collected => Err(PartError::TooLarge(agents.max_collected)),
        Some(_) | None => timeout(RECEIVE_TIMEOUT, receive(&agents.bundles, body, agents.max_collected))
            .await
            .map_err(|_| Answer::new(StatusCode::REQUEST_TIMEOUT, "the part took too long to arrive"))?,
    };
    match received {
        Ok(part) => {
            arriving.arrived(part).map_err(unwanted)?;
            Ok(StatusCode::OK)
        }
        Err(error) => Err(refuse(arriving, &error)),
    }
}

fn unwanted(unwanted: Unwanted) -> Answer {
    let status = match unwanted {
        Unwanted::Closed => StatusCode::NOT_FOUND,
        Unwanted::NotAsked => StatusCode::FORBIDDEN,
        Unwanted::Here => StatusCode::CONFLICT,
    };
    Answer::new(status, unwanted.to_string())
}

fn refuse(arriving: Arriving, error: &PartError) -> Answer {
    let what = format!("the node's part was refused: {error}");
    let status = match error {
        PartError::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
        // It may be sent again.
        PartError::Receive(_) => return Answer::new(StatusCode::BAD_REQUEST, what),
        PartError::Keep(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    arriving.refused(&what);
    Answer::new(status, what)
}

async fn receive(dir: &Path, body: Body, most: u64) -> Result<Part, PartError> {
    let file = nameless(dir).await.map_err(PartError::Keep)?;
    let mut to = tokio::fs::File::from_std(file);
    let mut stream = body.into_data_stream();
    let mut bytes = 0_u64;
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(PartError::Receive)?;
        bytes += chunk.len() as u64;
        if bytes > most {
            return Err(PartError::TooLarge(most));
        }
        to.write_all(&chunk).await.map_err(PartError::Keep)?;
    }
    to.flush().await.map_err(PartError::Keep)?;
    let mut file = to.into_std().await;
    file.rewind().map_err(PartError::Keep)?;
    Ok(Part { file, bytes })
}

/// A file without a name. One that a killed server made and had not yet unnamed is removed with the bundles that
/// it had not received to the end. What is written to it changes nothing that outlives this server.
async fn nameless(dir: &Path) -> io::Result<fs::File> {
    let number = getrandom::u64().map_err(io::Error::other)?;
    let path = dir.join(format!("{RECEIVING}{number:016x}"));
    perform(OnHost::CreateFile { path: &path }).await?;
    let file = fs::File::options().read(true).write(true).open(&path)?;
    perform(OnHost::RemoveFile { path: &path }).await?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::stream;

    use super::*;

    fn body(chunks: &[Result<&'static [u8], ()>]) -> Body {
        let chunks: Vec<io::Result<Bytes>> = chunks
            .iter()
            .map(|chunk| chunk.map(Bytes::from_static).map_err(|()| io::ErrorKind::ConnectionReset.into()))
            .collect();
        Body::from_stream(stream::iter(chunks))
    }

    #[tokio::test]
    async fn what_is_received_has_no_name_and_a_limit() {
        let dir = tempfile::tempdir().unwrap();
        let mut part = receive(dir.path(), body(&[Ok(b"one "), Ok(b"two")]), 7).await.unwrap();
        assert_eq!((io::read_to_string(&mut part.file).unwrap(), part.bytes), ("one two".to_owned(), 7));
        let long = receive(dir.path(), body(&[Ok(b"one "), Ok(b"two"), Ok(b"!")]), 7).await.unwrap_err();
        assert!(matches!(long, PartError::TooLarge(7)), "{long}");
        let broken = receive(dir.path(), body(&[Ok(b"one"), Err(())]), 7).await.unwrap_err();
        assert!(matches!(broken, PartError::Receive(_)), "{broken}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let nowhere = receive(&dir.path().join("not/there"), body(&[]), 7).await.unwrap_err();
        assert!(matches!(nowhere, PartError::Keep(_)), "{nowhere}");
    }
}
