//! Getting a bundle to the server: looked at here first, so that a bad file costs no upload.

use std::fs::{self, File};
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use futures_util::StreamExt;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use indicatif::{ProgressBar, ProgressStyle};
use tokio_util::io::ReaderStream;

use super::Context;
use super::args::Bundle;
use super::client::Body;
use super::error::CliError;
use super::fetch::fetch;
use super::source::Source;
use crate::api::StoredBundle;
use crate::bundle::{self, BundleError};

/// How much is sent at once, bytes.
const CHUNK: usize = 256 << 10;

/// Makes the server hold the bundle, and tells what it holds.
pub(crate) async fn upload(context: &Context, args: &Bundle) -> Result<StoredBundle, CliError> {
    let stored = match Source::of(args)? {
        Source::Stdin => from_stdin(context).await?,
        Source::File => from_file(context, args).await?,
        Source::Url(question) => fetch(context, question).await?,
    };
    // What came through stdin could not be looked at before; nothing has used it yet.
    if let Some(expected) = args.digest.as_ref().filter(|expected| **expected != stored.bundle.digest) {
        let (expected, found) = (expected.clone(), stored.bundle.digest);
        return Err(BundleError::Digest { expected, found }.into());
    }
    if !stored.ignored.is_empty() && !context.json {
        context
            .printer
            .note(format_args!("left out of the bundle, as no file of an engine: {}", stored.ignored.join(", ")));
    }
    Ok(stored)
}

async fn from_file(context: &Context, args: &Bundle) -> Result<StoredBundle, CliError> {
    let unreadable = |source| CliError::OpenBundle { path: args.file.clone(), source };
    regular(&args.file)?;
    let local = {
        let (path, expected) = (args.file.clone(), args.digest.clone());
        let spinner = spinner(context, "checking the bundle");
        let looked = tokio::task::spawn_blocking(move || bundle::inspect(&path, expected.as_ref())).await;
        spinner.finish_and_clear();
        looked.expect("looking at a bundle does not panic")?
    };
    let file = File::open(&args.file).map_err(unreadable)?;
    let name = args.file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let style = ProgressStyle::with_template("{spinner} sending {msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}")
        .expect("the template is right");
    let bar = ProgressBar::new(local.bundle.size).with_style(style).with_message(name.clone());
    // The length that was looked at, even if the file grows meanwhile: the digest tells.
    send(context, &name, Some(local.bundle.size), file, bar).await
}

/// Refuses what can't be read twice, or would never end: it is looked at here before it is sent.
fn regular(path: &Path) -> Result<(), CliError> {
    let unreadable = |source| CliError::OpenBundle { path: path.to_owned(), source };
    let found = fs::metadata(path).map_err(unreadable)?.file_type();
    let kind = if found.is_file() {
        return Ok(());
    } else if found.is_dir() {
        "a folder"
    } else if found.is_fifo() {
        "a pipe"
    } else {
        "a device or a socket"
    };
    Err(CliError::NotAFile { path: path.to_owned(), kind })
}

async fn from_stdin(context: &Context) -> Result<StoredBundle, CliError> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        return Err(CliError::StdinTerminal);
    }
    let unreadable = |source| CliError::OpenBundle { path: "(stdin)".into(), source };
    let file = File::from(stdin.as_fd().try_clone_to_owned().map_err(unreadable)?);
    let bar = ProgressBar::new_spinner().with_style(
        ProgressStyle::with_template("{spinner} sending {bytes} {bytes_per_sec}").expect("the template is right"),
    );
    send(context, "stdin", None, file, bar).await
}

async fn send(
    context: &Context,
    name: &str,
    length: Option<u64>,
    file: File,
    bar: ProgressBar,
) -> Result<StoredBundle, CliError> {
    if context.json {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    let reader = tokio::io::AsyncReadExt::take(tokio::fs::File::from_std(file), length.unwrap_or(u64::MAX));
    let sent = bar.clone();
    let frames = ReaderStream::with_capacity(reader, CHUNK).map(move |chunk| {
        chunk.map(|bytes| {
            sent.inc(bytes.len() as u64);
            Frame::data(bytes)
        })
    });
    let body: Body = BodyExt::boxed_unsync(StreamBody::new(frames));
    let stored = context.client.put(&format!("/bundle?name={}", escape(name)), length, body).await;
    bar.finish_and_clear();
    stored
}

fn spinner(context: &Context, words: &'static str) -> ProgressBar {
    if context.json {
        return ProgressBar::hidden();
    }
    let spinner = ProgressBar::new_spinner().with_message(words);
    spinner.enable_steady_tick(std::time::Duration::from_millis(120));
    spinner
}

/// A name as part of a query or a path.
pub(crate) fn escape(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'~');
    name.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_a_query() {
        assert_eq!(escape("docker-28.5.2.tgz"), "docker-28.5.2.tgz");
        assert_eq!(escape("a b&c=ü"), "a%20b%26c%3D%C3%BC");
    }
}
