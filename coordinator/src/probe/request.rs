//! One request: resolve, choose an address, connect, ask, read the answer. Never a second try.

use std::fmt::Write as _;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, ResolverOpts};
use hickory_resolver::net::NetError;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::header::{CONNECTION, HOST};
use hyper::{Request, StatusCode, Uri, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// An answer longer than this is not the probe server's.
const MAX_BODY: usize = 64 * 1024;

/// Where requests go: an `http://` address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    host: String,
    port: u16,
    path: String,
}

/// The text is not an address that the probe can ask.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an address to probe: expected http://HOST[:PORT][/PATH]")]
pub struct InvalidTarget(String);

impl FromStr for Target {
    type Err = InvalidTarget;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidTarget(text.to_owned());
        let uri: Uri = text.parse().map_err(|_| invalid())?;
        let host = uri.host().filter(|host| !host.is_empty());
        match (uri.scheme_str(), host) {
            (Some("http"), Some(host)) => Ok(Self {
                host: host.to_owned(),
                port: uri.port_u16().unwrap_or(80),
                path: uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
            }),
            _ => Err(invalid()),
        }
    }
}

impl Target {
    /// The address, where the host is one already and not a name.
    fn literal(&self) -> Option<IpAddr> {
        let bare = self.host.trim_start_matches('[').trim_end_matches(']');
        bare.parse::<Ipv4Addr>().map(IpAddr::V4).or_else(|_| bare.parse::<Ipv6Addr>().map(IpAddr::V6)).ok()
    }
}

/// How long the parts of a request may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The connection alone.
    pub connect: Duration,
    /// Everything, the name's resolution included.
    pub total: Duration,
}

/// Gives every address of a name, as they are now.
pub trait Resolve {
    /// The addresses of `host`, asked for anew.
    fn resolve(&self, host: &str) -> impl Future<Output = Result<Vec<IpAddr>, NetError>>;
}

impl Resolve for TokioResolver {
    async fn resolve(&self, host: &str) -> Result<Vec<IpAddr>, NetError> {
        Ok(self.lookup_ip(host).await?.iter().collect())
    }
}

/// Makes a resolver's answers fresh ones: nothing is cached, and a query that is lost is a failure.
pub(super) fn uncached(options: &mut ResolverOpts, timeout: Duration) {
    options.cache_size = 0;
    options.positive_max_ttl = Some(Duration::ZERO);
    options.negative_max_ttl = Some(Duration::ZERO);
    options.attempts = 0;
    options.timeout = timeout;
    // Overlay networks are IPv4 by default; asking for both would send half of all queries to the
    // engine's upstream servers.
    options.ip_strategy = LookupIpStrategy::Ipv4thenIpv6;
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    #[error("resolving {host}")]
    Resolve {
        host: String,
        #[source]
        source: NetError,
    },
    #[error("{host} has no address")]
    NoAddress { host: String },
    #[error("connecting")]
    Connect(#[source] std::io::Error),
    #[error("connecting: no answer within {} ms", .0.as_millis())]
    ConnectTimeout(Duration),
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    #[error("asking")]
    Exchange(#[source] hyper::Error),
    #[error("making the request")]
    Build(#[source] hyper::http::Error),
    #[error("reading the answer")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("answered {0}")]
    Status(StatusCode),
}

/// An error and all its causes in one line.
pub(super) fn in_one_line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        // Writing to a string can't fail.
        let _ = write!(text, ": {next}");
        cause = next.source();
    }
    text
}

/// Sends one request. The address is given back in both cases, where there was one.
pub(super) async fn send<R: Resolve>(
    target: &Target,
    limits: Limits,
    resolver: &R,
    choose: &impl Fn(usize) -> usize,
) -> (Option<IpAddr>, Result<(), RequestError>) {
    let mut address = None;
    let attempt = async {
        let ip = resolve(target, resolver, choose).await?;
        address = Some(ip);
        let stream = connect(SocketAddr::new(ip, target.port), limits.connect).await?;
        exchange(target, stream).await
    };
    let result = match tokio::time::timeout(limits.total, attempt).await {
        Ok(result) => result,
        Err(_) => Err(RequestError::Timeout(limits.total)),
    };
    (address, result)
}

async fn resolve<R: Resolve>(
    target: &Target,
    resolver: &R,
    choose: &impl Fn(usize) -> usize,
) -> Result<IpAddr, RequestError> {
    if let Some(ip) = target.literal() {
        return Ok(ip);
    }
    let host = &target.host;
    let addresses = resolver.resolve(host).await;
    let addresses = addresses.map_err(|source| RequestError::Resolve { host: host.clone(), source })?;
    if addresses.is_empty() {
        return Err(RequestError::NoAddress { host: host.clone() });
    }
    Ok(addresses[choose(addresses.len()) % addresses.len()])
}

async fn connect(address: SocketAddr, limit: Duration) -> Result<TcpStream, RequestError> {
    match tokio::time::timeout(limit, TcpStream::connect(address)).await {
        Ok(result) => result.map_err(RequestError::Connect),
        Err(_) => Err(RequestError::ConnectTimeout(limit)),
    }
}

async fn exchange(target: &Target, stream: TcpStream) -> Result<(), RequestError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(RequestError::Exchange)?;
    let request = Request::get(target.path.as_str())
        .header(HOST, format!("{}:{}", target.host, target.port))
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(RequestError::Build)?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(RequestError::Exchange)?;
        let status = response.status();
        // The answer counts when it is there to its last byte.
        Limited::new(response.into_body(), MAX_BODY).collect().await.map_err(RequestError::Body)?;
        if status == StatusCode::OK { Ok(()) } else { Err(RequestError::Status(status)) }
    };
    // The connection's own result says nothing that the answer does not say; it only has to run.
    let drive = async {
        let _ = connection.await;
        std::future::pending::<std::convert::Infallible>().await
    };
    tokio::select! {
        result = answer => result,
        never = drive => match never {},
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_parsed() {
        let target: Target = "http://probe-server:8080/".parse().unwrap();
        assert_eq!(target, Target { host: "probe-server".into(), port: 8080, path: "/".into() });
        assert_eq!(target.literal(), None);
        let target: Target = "http://[::1]/health?x=1".parse().unwrap();
        assert_eq!((target.port, target.path.as_str()), (80, "/health?x=1"));
        assert_eq!(target.literal(), Some(IpAddr::V6(Ipv6Addr::LOCALHOST)));
        for bad in ["", "probe-server:8080", "https://probe-server/", "/path", "http://"] {
            assert_eq!(bad.parse::<Target>(), Err(InvalidTarget(bad.to_owned())), "{bad}");
        }
    }
}
