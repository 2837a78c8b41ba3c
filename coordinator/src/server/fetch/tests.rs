//! Fetching from hosts that are honest, broken, or strange.

use std::fmt::Write as _;
use std::io::Read as _;
use std::path::Path;

use axum::http::StatusCode;
use futures_util::StreamExt;
use reqwest::dns::Resolve as _;
use sha2::{Digest as _, Sha256};
use tokio::sync::Notify;

use super::web::{Play, Web, proxy};
use super::*;
use crate::api::{Failure, FailureKind};
use crate::bundle::to_digest;

const LIMITS: Limits = Limits {
    connect: Duration::from_secs(20),
    stall: Duration::from_secs(20),
    pauses: &[Duration::ZERO; 3],
    progress: 64 << 10,
    longest: 1 << 20,
};

/// A bundle of about 300 KB, which nothing makes shorter.
fn bundle() -> Vec<u8> {
    let mut dockerd = Vec::new();
    std::fs::File::open("/proc/self/exe").unwrap().take(300_000).read_to_end(&mut dockerd).unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_size(dockerd.len() as u64);
    header.set_mode(0o755);
    let gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
    let mut tar = tar::Builder::new(gz);
    tar.append_data(&mut header, "docker/dockerd", dockerd.as_slice()).unwrap();
    tar.into_inner().unwrap().finish().unwrap()
}

fn digest(content: &[u8]) -> Digest {
    to_digest(Sha256::new_with_prefix(content))
}

fn answer(status: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {status}\r\nconnection: close\r\n");
    for (name, value) in headers {
        write!(head, "{name}: {value}\r\n").unwrap();
    }
    [head.as_bytes(), b"\r\n", body].concat()
}

/// All of it.
fn whole(content: &[u8]) -> Vec<u8> {
    let length = content.len().to_string();
    answer("200 OK", &[("content-length", &length), ("etag", "\"v1\"")], content)
}

/// The part that was asked for, or all of it.
fn wanted(content: &[u8], head: &str) -> Vec<u8> {
    let Some(from) = range(head) else { return whole(content) };
    part(content, from)
}

fn part(content: &[u8], from: usize) -> Vec<u8> {
    let range = format!("bytes {from}-{}/{}", content.len() - 1, content.len());
    let rest = &content[from..];
    answer("206 Partial Content", &[("content-length", &rest.len().to_string()), ("content-range", &range)], rest)
}

/// The head of an answer, and so many bytes of its body.
fn cut(mut answer: Vec<u8>, bytes: usize) -> Vec<u8> {
    let head = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    answer.truncate(head + bytes);
    answer
}

/// The first byte that a request asks for, if not for all.
fn range(head: &str) -> Option<usize> {
    head.lines().find_map(|line| line.strip_prefix("range: bytes=")?.strip_suffix('-')?.parse().ok())
}

struct World {
    dir: tempfile::TempDir,
    fetcher: Fetcher,
}

fn world(limits: Limits) -> World {
    let dir = tempfile::tempdir().unwrap();
    // What the environment of the tests says of proxies does not count.
    let network: Network = Box::new(ClientBuilder::no_proxy);
    let fetcher = Fetcher { dir: dir.path().to_owned(), limits, network };
    World { dir, fetcher }
}

impl World {
    async fn fetch(&self, web: &Web, digest: &Digest) -> Result<StoredBundle, Failure> {
        self.ask(&args(web, digest)).await.0
    }

    async fn ask(&self, args: &FetchArgs) -> (Result<StoredBundle, Failure>, Fetching) {
        let (progress, seen) = watch::channel(Fetching::default());
        let result = self.fetcher.fetch(args, &progress).await.map_err(|error| error.failure());
        let seen = seen.borrow().clone();
        (result, seen)
    }

    /// The bundle's file and nothing else is there.
    fn has(&self, content: &[u8]) {
        assert_eq!(names(self.dir.path()), [format!("{}.tgz", digest(content).hex())]);
        assert!(std::fs::read(bundle_path(self.dir.path(), &digest(content))).unwrap() == content);
    }

    fn is_empty(&self) {
        assert_eq!(names(self.dir.path()), Vec::<String>::new());
    }
}

fn names(dir: &Path) -> Vec<String> {
    std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn args(web: &Web, digest: &Digest) -> FetchArgs {
    let url = format!("https://{}/a/docker.tgz?token=secret", web.address).parse().unwrap();
    FetchArgs { url, digest: digest.clone(), roots: vec![web.root.clone()] }
}

#[tokio::test]
async fn a_bundle_is_fetched_once() {
    let content = bundle();
    let given = content.clone();
    let web = Web::new(move |_, _| Play::Send(whole(&given))).await;
    let world = world(LIMITS);
    let (stored, seen) = world.ask(&args(&web, &digest(&content))).await;
    let stored = stored.unwrap();
    assert_eq!((&stored.bundle.digest, stored.bundle.size), (&digest(&content), content.len() as u64));
    let length = content.len() as u64;
    assert_eq!(seen, Fetching { done: length, total: Some(length), trouble: None });
    world.has(&content);
    let asked = web.asked();
    assert!(asked[0].starts_with("get /a/docker.tgz?token=secret http/1.1\r\n"), "{}", asked[0]);
    let agent = format!("user-agent: requeen/{}\r\n", env!("CARGO_PKG_VERSION"));
    assert!(asked[0].contains(&agent) && asked[0].contains("accept-encoding: identity\r\n"), "{}", asked[0]);

    assert_eq!(world.fetch(&web, &digest(&content)).await.unwrap(), stored);
    assert_eq!(web.asked().len(), 1, "it was there already");
}

#[tokio::test]
async fn a_stored_bundle_that_is_damaged_is_fetched_anew() {
    let content = bundle();
    let given = content.clone();
    let web = Web::new(move |_, _| Play::Send(whole(&given))).await;
    let world = world(LIMITS);
    std::fs::write(bundle_path(world.dir.path(), &digest(&content)), &content[..1000]).unwrap();
    world.fetch(&web, &digest(&content)).await.unwrap();
    world.has(&content);
}

#[tokio::test]
async fn a_download_that_breaks_goes_on_where_it_was() {
    let content = bundle();
    let given = content.clone();
    let web = Web::new(move |number, head| {
        let answer = wanted(&given, head);
        if number < 2 { Play::Break(cut(answer, 10_000)) } else { Play::Send(answer) }
    })
    .await;
    let world = world(LIMITS);
    world.fetch(&web, &digest(&content)).await.unwrap();
    world.has(&content);
    let asked = web.asked();
    assert_eq!(asked.iter().map(|head| range(head)).collect::<Vec<_>>(), [None, Some(10_000), Some(20_000)]);
    assert!(asked[1].contains("if-range: \"v1\"\r\n") && asked[2].contains("if-range: \"v1\"\r\n"), "{asked:?}");
}

#[tokio::test]
async fn a_host_that_knows_no_ranges_begins_anew() {
    let content = bundle();
    let given = content.clone();
    let web = Web::new(move |number, _| match number {
        0 => Play::Break(cut(whole(&given), 10_000)),
        _ => Play::Send(whole(&given)),
    })
    .await;
    let world = world(LIMITS);
    world.fetch(&web, &digest(&content)).await.unwrap();
    world.has(&content);
    assert_eq!(range(&web.asked()[1]), Some(10_000), "it was asked");
}

#[tokio::test]
async fn a_part_that_nobody_asked_for_is_not_taken() {
    let content = bundle();
    for odd in [part(&content, 5), answer("416 Range Not Satisfiable", &[("content-range", "bytes */5")], b"")] {
        let given = content.clone();
        let web = Web::new(move |number, head| match number {
            0 => Play::Break(cut(whole(&given), 10_000)),
            1 => Play::Send(odd.clone()),
            _ => Play::Send(wanted(&given, head)),
        })
        .await;
        let world = world(LIMITS);
        world.fetch(&web, &digest(&content)).await.unwrap();
        world.has(&content);
        assert_eq!(range(&web.asked()[2]), None, "from the beginning");
    }
}

#[tokio::test]
async fn parts_of_two_files_are_no_bundle() {
    let content = bundle();
    let given = content.clone();
    let web = Web::new(move |number, head| match number {
        0 => Play::Break(cut(whole(&vec![b'x'; given.len()]), 10_000)),
        _ => Play::Send(wanted(&given, head)),
    })
    .await;
    let world = world(LIMITS);
    world.fetch(&web, &digest(&content)).await.unwrap();
    world.has(&content);
    assert_eq!(web.asked().iter().map(|head| range(head)).collect::<Vec<_>>(), [None, Some(10_000), None]);
}

#[tokio::test]
async fn tries_that_help_are_not_counted() {
    let content = bundle();
    let given = content.clone();
    let web = Web::new(move |_, head| Play::Break(cut(wanted(&given, head), 65_536))).await;
    // The last of these answers is whole before it breaks off.
    let limits = Limits { pauses: &[Duration::ZERO], ..LIMITS };
    let world = world(limits);
    world.fetch(&web, &digest(&content)).await.unwrap();
    world.has(&content);
    assert_eq!(web.asked().len(), content.len().div_ceil(65_536));
}

#[tokio::test]
async fn tries_that_do_not_help_come_to_an_end() {
    let content = bundle();
    let given = content.clone();
    // No ranges, so that it never comes any further.
    let web = Web::new(move |_, _| Play::Break(cut(whole(&given), 10_000))).await;
    let world = world(LIMITS);
    let (result, seen) = world.ask(&args(&web, &digest(&content))).await;
    let failure = result.unwrap_err();
    assert_eq!(web.asked().len(), 1 + LIMITS.pauses.len());
    assert_eq!(failure.kind, FailureKind::Unreachable);
    let url = format!("https://{}/a/docker.tgz", web.address);
    assert!(failure.error.starts_with("gave up after 4 tries, with 10000 bytes fetched: "), "{}", failure.error);
    assert!(failure.error.contains(&url) && !failure.error.contains("secret"), "{}", failure.error);
    assert!(failure.hint.unwrap().contains("--bundle FILE"));
    assert_eq!((seen.done, seen.total), (10_000, Some(content.len() as u64)));
    world.is_empty();
}

#[tokio::test]
async fn another_file_is_refused_with_both_digests() {
    let page = b"<html>Please log in</html>";
    let web = Web::new(move |_, _| Play::Send(whole(page))).await;
    let world = world(LIMITS);
    let expected = digest(b"the bundle");
    let failure = world.fetch(&web, &expected).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Refused);
    let found = digest(page);
    assert!(failure.error.contains(expected.hex()) && failure.error.contains(found.hex()), "{}", failure.error);
    assert!(failure.hint.unwrap().contains("--digest"));
    assert_eq!(web.asked().len(), 1, "no second try");
    world.is_empty();

    let failure = world.fetch(&web, &found).await.unwrap_err();
    assert!(failure.error.contains("not gzip"), "the right digest makes no bundle of it: {}", failure.error);
    world.is_empty();
}

#[tokio::test]
async fn redirects_are_followed_over_https() {
    let content = bundle();
    let given = content.clone();
    let web = Web::new(move |number, _| {
        Play::Send(match number {
            0..5 => answer("302 Found", &[("location", "/elsewhere?signed=token")], b""),
            _ => whole(&given),
        })
    })
    .await;
    let world = world(LIMITS);
    world.fetch(&web, &digest(&content)).await.unwrap();
    world.has(&content);
    let asked = web.asked();
    assert_eq!(asked.len(), 6);
    assert!(asked[5].starts_with("get /elsewhere?signed=token "), "{}", asked[5]);
    assert!(asked.iter().all(|head| !head.contains("referer")), "it would carry the token: {asked:?}");
}

#[tokio::test]
async fn redirects_that_are_not_followed() {
    for (to, words) in [
        ("http://127.0.0.1:1/x?signed=secret", "it leads to http://127.0.0.1, and only https:// is followed"),
        ("ftp://127.0.0.1/x?signed=secret", "it leads to ftp://127.0.0.1, and only https:// is followed"),
        ("/again?signed=secret", "more than 5 redirects"),
        ("", "302 Found"),
    ] {
        let headers = [("location", to)];
        let headers = if to.is_empty() { Vec::new() } else { headers.to_vec() };
        let redirect = answer("302 Found", &headers, b"");
        let web = Web::new(move |_, _| Play::Send(redirect.clone())).await;
        let world = world(LIMITS);
        let failure = world.fetch(&web, &digest(b"")).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Refused, "{to}: {}", failure.error);
        assert!(failure.error.contains(words), "{to}: {}", failure.error);
        assert!(!failure.error.contains("secret"), "{to}: {}", failure.error);
        assert!(failure.hint.is_some(), "{to}");
        world.is_empty();
    }
}

#[tokio::test]
async fn an_unknown_authority_is_refused_with_the_remedy() {
    let content = bundle();
    let given = content.clone();
    let web = Web::new(move |_, _| Play::Send(whole(&given))).await;
    let other = Web::new(|_, _| Play::Send(Vec::new())).await;
    let world = world(LIMITS);
    // The other authority has the same name.
    for (roots, words) in [(vec![], "UnknownIssuer"), (vec![other.root.clone()], "BadSignature")] {
        let args = FetchArgs { roots, ..args(&web, &digest(&content)) };
        let failure = world.ask(&args).await.0.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Refused, "{}", failure.error);
        assert!(failure.error.contains(words), "{}", failure.error);
        assert!(failure.hint.unwrap().contains("--ca-file"));
    }
    assert_eq!(web.asked(), Vec::<String>::new());
    let args = FetchArgs { roots: vec![other.root.clone(), web.root.clone()], ..args(&web, &digest(&content)) };
    world.ask(&args).await.0.unwrap();
    world.has(&content);
}

#[tokio::test]
async fn certificates_that_are_none_are_refused() {
    let web = Web::new(|_, _| Play::Send(Vec::new())).await;
    let world = world(LIMITS);
    for root in ["?", "AAAA"] {
        let args = FetchArgs { roots: vec![root.into()], ..args(&web, &digest(b"")) };
        let failure = world.ask(&args).await.0.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Refused);
        assert!(failure.error.contains("--ca-file"), "{}", failure.error);
    }
    assert_eq!(web.asked(), Vec::<String>::new());
    world.is_empty();
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused() {
    let web = Web::new(|_, _| Play::Send(Vec::new())).await;
    let world = world(LIMITS);
    let url = format!("https://127.0.0.2:{}/x", web.address.port()).parse().unwrap();
    // Nobody listens on that address where the host takes one only; through a proxy it is the same host.
    let (address, _, _task) = proxy(web.address).await;
    let through = reqwest::Proxy::all(format!("http://{address}")).unwrap();
    let fetcher = Fetcher { network: Box::new(move |client| client.proxy(through.clone())), ..world.fetcher };
    let args = FetchArgs { url, ..args(&web, &digest(b"")) };
    let failure = fetcher.fetch(&args, &watch::Sender::default()).await.unwrap_err().failure();
    assert_eq!(failure.kind, FailureKind::Refused, "{}", failure.error);
    assert!(failure.hint.unwrap().contains("URL's host"), "{}", failure.error);
}

#[tokio::test]
async fn a_host_that_says_nothing_is_left() {
    let content = bundle();
    let given = content.clone();
    let web = Web::new(move |number, head| {
        let answer = wanted(&given, head);
        if number == 0 { Play::Stall(cut(answer, 10_000)) } else { Play::Send(answer) }
    })
    .await;
    let limits = Limits { stall: Duration::from_secs(1), ..LIMITS };
    let waiting = world(limits);
    waiting.fetch(&web, &digest(&content)).await.unwrap();
    waiting.has(&content);
    assert!(web.asked().len() > 1, "asked again");

    let silent = Web::new(|_, _| Play::Stall(Vec::new())).await;
    let failure = world(limits).fetch(&silent, &digest(b"")).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Unreachable);
    assert!(failure.error.contains("timed out"), "{}", failure.error);
    assert!(silent.asked().len() <= 1, "what never began is not tried again");
}

#[tokio::test]
async fn what_is_too_long_is_refused() {
    let long = vec![b'x'; (LIMITS.longest + 1).try_into().unwrap()];
    let announced = answer("200 OK", &[("content-length", "1048577")], b"");
    let unannounced = answer("200 OK", &[], &long);
    for (answer, seen) in [(announced, 0), (unannounced, LIMITS.longest)] {
        let web = Web::new(move |_, _| Play::Send(answer.clone())).await;
        let world = world(LIMITS);
        let (result, progress) = world.ask(&args(&web, &digest(&long))).await;
        let failure = result.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Refused);
        assert!(failure.error.contains("longer than"), "{}", failure.error);
        assert!(progress.done <= seen, "{progress:?}");
        world.is_empty();
    }
}

#[tokio::test]
async fn what_a_host_refuses() {
    for (status, kind) in [
        ("404 Not Found", FailureKind::Refused),
        ("403 Forbidden", FailureKind::Refused),
        ("206 Partial Content", FailureKind::Refused),
        ("503 Service Unavailable", FailureKind::Unreachable),
    ] {
        let refusal = answer(status, &[("content-length", "3")], b"no\n");
        let web = Web::new(move |_, _| Play::Send(refusal.clone())).await;
        let world = world(LIMITS);
        let failure = world.fetch(&web, &digest(b"no\n")).await.unwrap_err();
        assert_eq!(failure.kind, kind, "{}", failure.error);
        let expected = format!("can't fetch https://{}/a/docker.tgz: the host answers {status}", web.address);
        assert_eq!(failure.error, expected);
        assert!(failure.hint.is_some());
        assert_eq!(web.asked().len(), 1);
        world.is_empty();
    }
}

#[tokio::test]
async fn a_host_that_is_not_there() {
    let address = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let url = format!("https://{address}/docker.tgz?token=secret").parse().unwrap();
    let world = world(LIMITS);
    let failure = world.ask(&FetchArgs { url, digest: digest(b""), roots: vec![] }).await.0.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Unreachable);
    assert!(failure.error.contains("Connection refused") && !failure.error.contains("secret"), "{}", failure.error);
    assert!(failure.hint.unwrap().contains("HTTPS_PROXY"));
    world.is_empty();
}

#[tokio::test]
async fn a_proxy_is_told_the_hosts_name() {
    let content = bundle();
    let given = content.clone();
    let web = Web::new(move |_, _| Play::Send(whole(&given))).await;
    let (address, asked, _task) = proxy(web.address).await;
    let through = reqwest::Proxy::all(format!("http://{address}")).unwrap();
    let World { dir, fetcher } = world(LIMITS);
    let fetcher = Fetcher { network: Box::new(move |client| client.proxy(through.clone())), ..fetcher };
    let url = "https://bundles.test/docker.tgz?token=secret".parse().unwrap();
    let args = FetchArgs { url, ..args(&web, &digest(&content)) };
    fetcher.fetch(&args, &watch::Sender::default()).await.unwrap();
    World { dir, fetcher }.has(&content);
    let asked = asked.lock().unwrap().clone();
    assert!(asked.len() == 1 && asked[0].starts_with("connect bundles.test:443 http/1.1\r\n"), "{asked:?}");
    assert!(!asked[0].contains("secret"), "{asked:?}");
}

#[tokio::test]
async fn names_are_resolved_without_the_c_library() {
    let found: Vec<_> = client::Names.resolve("localhost".parse().unwrap()).await.unwrap().collect();
    assert!(!found.is_empty() && found.iter().all(|address| address.ip().is_loopback()), "{found:?}");
}

#[tokio::test]
async fn the_cli_hears_how_far_it_is_and_how_it_ended() {
    let content = bundle();
    let given = content.clone();
    let go = Arc::new(Notify::new());
    let word = Arc::clone(&go);
    let web = Web::new(move |number, head| match number {
        0 => Play::Break(cut(wanted(&given, head), 10_000)),
        _ => Play::Wait(Arc::clone(&word), wanted(&given, head)),
    })
    .await;
    let World { dir, fetcher } = world(LIMITS);
    let response = Arc::new(fetcher).answer(args(&web, &digest(&content)));
    assert_eq!(response.status(), StatusCode::OK);
    let mut body = response.into_body().into_data_stream();
    let mut seen = Fetching::default();
    while seen.trouble.is_none() {
        seen = serde_json::from_slice(&body.next().await.unwrap().unwrap()).unwrap();
    }
    assert_eq!((seen.done, seen.total), (10_000, Some(content.len() as u64)));
    go.notify_one();
    let mut last = Vec::new();
    while let Some(line) = body.next().await {
        last = line.unwrap().to_vec();
    }
    let Fetched::Stored(stored) = serde_json::from_slice(&last).unwrap() else { panic!("failed") };
    assert_eq!(stored.bundle.digest, digest(&content));
    assert_eq!(names(dir.path()).len(), 1);
}

#[tokio::test]
async fn it_ends_when_the_cli_goes_away() {
    let content = bundle();
    let given = content.clone();
    let web = Web::new(move |_, head| Play::Stall(cut(wanted(&given, head), 10_000))).await;
    let World { dir, fetcher } = world(LIMITS);
    let mut body = Arc::new(fetcher).answer(args(&web, &digest(&content))).into_body().into_data_stream();
    let mut seen = Fetching::default();
    while seen.done == 0 {
        seen = serde_json::from_slice(&body.next().await.unwrap().unwrap()).unwrap();
    }
    assert_eq!(names(dir.path()).len(), 1, "what has arrived");
    drop(body);
    assert_eq!(names(dir.path()), Vec::<String>::new());
}
