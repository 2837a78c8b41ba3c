//! A file as an HTTP answer, whole or in part: agents resume downloads with `Range`.

use std::io::SeekFrom;
use std::path::Path;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use requeen_protocol::Digest;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

/// How much is read from the file at once, bytes.
const CHUNK: usize = 256 << 10;

/// A part of a file: the first byte and how many.
#[derive(Debug, PartialEq, Eq)]
struct Part {
    start: u64,
    len: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    All,
    Part(Part),
    Impossible,
}

/// The file at `path`, whose content has the digest `digest`, streamed.
pub(crate) async fn file(path: &Path, digest: &Digest, headers: &HeaderMap) -> std::io::Result<Response> {
    let mut file = File::open(path).await?;
    let size = file.metadata().await?.len();
    let etag = format!("\"{digest}\"");
    // The address names the content, so another `If-Range` can only come from a mistake.
    let same = headers.get(header::IF_RANGE).is_none_or(|value| value.as_bytes() == etag.as_bytes());
    let range = headers.get(header::RANGE).filter(|_| same).and_then(|value| value.to_str().ok());
    let (status, part) = match wanted(range, size) {
        Wanted::All => (StatusCode::OK, Part { start: 0, len: size }),
        Wanted::Part(part) => (StatusCode::PARTIAL_CONTENT, part),
        Wanted::Impossible => {
            let range = [(header::CONTENT_RANGE, format!("bytes */{size}"))];
            return Ok((StatusCode::RANGE_NOT_SATISFIABLE, range).into_response());
        }
    };
    file.seek(SeekFrom::Start(part.start)).await?;
    let stream = ReaderStream::with_capacity(file.take(part.len), CHUNK);
    let mut response = (status, Body::from_stream(stream)).into_response();
    let answer = response.headers_mut();
    answer.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/gzip"));
    answer.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    answer.insert(header::CONTENT_LENGTH, HeaderValue::from(part.len));
    if let Ok(etag) = HeaderValue::from_str(&etag) {
        answer.insert(header::ETAG, etag);
    }
    if status == StatusCode::PARTIAL_CONTENT {
        let Part { start, len } = part;
        let range = format!("bytes {start}-{}/{size}", start + len - 1);
        if let Ok(range) = HeaderValue::from_str(&range) {
            answer.insert(header::CONTENT_RANGE, range);
        }
    }
    Ok(response)
}

/// What a `Range` header asks of a file of `size` bytes (RFC 9110, section 14). One part only: several,
/// and what can't be parsed, are answered with the whole file, as the RFC allows.
fn wanted(range: Option<&str>, size: u64) -> Wanted {
    let Some((first, last)) = range.and_then(|text| text.strip_prefix("bytes=")).and_then(|text| text.split_once('-'))
    else {
        return Wanted::All;
    };
    match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
        (Ok(start), _) if start >= size => Wanted::Impossible,
        (Ok(start), Ok(end)) if end >= start => Wanted::Part(Part { start, len: end.min(size - 1) - start + 1 }),
        (Ok(start), Err(_)) if last.trim().is_empty() => Wanted::Part(Part { start, len: size - start }),
        (Err(_), Ok(suffix)) if first.trim().is_empty() => match suffix.min(size) {
            0 => Wanted::Impossible,
            len => Wanted::Part(Part { start: size - len, len }),
        },
        (Ok(_) | Err(_), Ok(_) | Err(_)) => Wanted::All,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let part = |start, len| Wanted::Part(Part { start, len });
        for (range, expected) in [
            (None, Wanted::All),
            (Some("bytes=0-"), part(0, 10)),
            (Some("bytes=4-"), part(4, 6)),
            (Some("bytes=4-4"), part(4, 1)),
            (Some("bytes=4-99"), part(4, 6)),
            (Some("bytes=-3"), part(7, 3)),
            (Some("bytes=-99"), part(0, 10)),
            (Some("bytes=10-"), Wanted::Impossible),
            (Some("bytes=-0"), Wanted::Impossible),
            (Some("bytes=5-4"), Wanted::All),
            (Some("bytes=1-2,4-5"), Wanted::All),
            (Some("lines=1-2"), Wanted::All),
            (Some("bytes=x-y"), Wanted::All),
        ] {
            assert_eq!(wanted(range, 10), expected, "{range:?}");
        }
        assert_eq!(wanted(Some("bytes=0-"), 0), Wanted::Impossible);
    }
}
