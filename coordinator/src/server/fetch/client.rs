//! The HTTP client of a fetch: whom it trusts, how it finds hosts, and how far it lets itself be led.

use std::net::SocketAddr;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hickory_resolver::TokioResolver;
use reqwest::dns::{Addrs, Name, Resolving};
use reqwest::redirect::Policy;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};

use super::error::{FetchError, RedirectError, RootError};
use super::{Limits, Network};
use crate::probe::request::Resolve as _;

/// How often in a row a host may send the client elsewhere.
const REDIRECTS: usize = 5;

/// A client that trusts public authorities and `roots`.
pub(super) fn build(limits: &Limits, roots: &[String], network: &Network) -> Result<reqwest::Client, FetchError> {
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls(roots)?)
        .http1_only()
        .user_agent(concat!("requeen/", env!("CARGO_PKG_VERSION")))
        .dns_resolver(Names)
        .redirect(Policy::custom(|attempt| {
            let to = attempt.url();
            if to.scheme() != "https" {
                let to = format!("{}://{}", to.scheme(), to.host_str().unwrap_or_default());
                attempt.error(RedirectError::Insecure { to })
            } else if attempt.previous().len() > REDIRECTS {
                attempt.error(RedirectError::TooMany { limit: REDIRECTS })
            } else {
                attempt.follow()
            }
        }))
        // It would carry the query, and with it a token, to whom the redirect leads.
        .referer(false)
        // A connection that broke off is of no use, and one that did not is not needed again.
        .pool_max_idle_per_host(0)
        .connect_timeout(limits.connect)
        .read_timeout(limits.stall);
    network(client).build().map_err(FetchError::Client)
}

fn tls(roots: &[String]) -> Result<ClientConfig, FetchError> {
    let mut trusted = RootCertStore::empty();
    trusted.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    for root in roots {
        let der = BASE64_STANDARD.decode(root).map_err(RootError::Encoding)?;
        trusted.add(CertificateDer::from(der)).map_err(RootError::Certificate)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(FetchError::Tls)?
        .with_root_certificates(trusted)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// The name servers of /etc/resolv.conf, as it is when a name is asked for: a static binary can't rely
/// on the C library's `getaddrinfo`.
pub(super) struct Names;

impl reqwest::dns::Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let addresses = TokioResolver::builder_tokio()?.build()?.resolve(name.as_str()).await?;
            // Without a port of its own an address gets that of the URL.
            let addresses: Addrs = Box::new(addresses.into_iter().map(|ip| SocketAddr::new(ip, 0)));
            Ok(addresses)
        })
    }
}
