//! Why a bundle could not be fetched, and what to do about it.

use std::error::Error;
use std::io;

use requeen_protocol::Digest;
use reqwest::StatusCode;
use rustls::CertificateError;

use crate::api::{Failure, FailureKind};
use crate::server::store::StoreError;
use crate::server::words::chain;

/// What most errors of the network have in common.
const REACH: &str = "the server fetches it: this manager has to reach that host, directly or through the proxy that the \
                     server's container has in HTTPS_PROXY; or download it yourself and give the file: `--bundle FILE`";

/// Why a bundle was not fetched. URLs are as [`crate::bundle::BundleUrl`] shows them.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    /// No answer, or not all of it.
    #[error("can't fetch {url}")]
    Request {
        /// What was asked for.
        url: String,
        /// Why. Without its URL, which has the query in it.
        source: reqwest::Error,
    },
    /// The host has no such bundle, or does not give it.
    #[error("can't fetch {url}: the host answers {status}")]
    Status {
        /// What was asked for.
        url: String,
        /// What it answers.
        status: StatusCode,
    },
    /// The host was asked for the rest and gives something else.
    #[error("can't go on fetching {url}: the host does not give the part that was asked for")]
    Part {
        /// What was asked for.
        url: String,
    },
    /// The parts of several answers are not one bundle.
    #[error("the parts of {url} don't make the bundle that was asked for")]
    Parts {
        /// What was asked for.
        url: String,
    },
    /// It broke off too often.
    #[error("gave up after {tries} tries, with {bytes} bytes fetched")]
    GaveUp {
        /// How often it was tried.
        tries: usize,
        /// How much there was at last.
        bytes: u64,
        /// What the last try met.
        source: Box<FetchError>,
    },
    /// It is another file than the operator named.
    #[error("what {url} gives has the digest {found}, expected {expected}")]
    Digest {
        /// What was asked for.
        url: String,
        /// What it had to be.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
    /// A certificate of the operator's can't be trusted.
    #[error("a certificate of --ca-file can't be used")]
    Root(#[from] RootError),
    /// TLS can't be set up.
    #[error("can't set up TLS")]
    Tls(#[source] rustls::Error),
    /// The HTTP client can't be made.
    #[error("can't make an HTTP client")]
    Client(#[source] reqwest::Error),
    /// It can't be stored, or is no bundle.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a redirect is not followed.
#[derive(Debug, thiserror::Error)]
pub(super) enum RedirectError {
    /// It leads away from HTTPS.
    #[error("it leads to {to}, and only https:// is followed")]
    Insecure {
        /// Scheme and host.
        to: String,
    },
    /// It leads on and on.
    #[error("more than {limit} redirects")]
    TooMany {
        /// How many are followed.
        limit: usize,
    },
}

/// Why a certificate can't be trusted.
#[derive(Debug, thiserror::Error)]
pub(super) enum RootError {
    /// It did not arrive as it should.
    #[error("it is not base64")]
    Encoding(#[source] base64::DecodeError),
    /// It is none.
    #[error("it is not a certificate")]
    Certificate(#[source] rustls::Error),
}

impl FetchError {
    /// Whether another try may well succeed.
    pub(super) fn passes(&self) -> bool {
        match self {
            FetchError::Request { source, .. } => !source.is_redirect() && certificate(source).is_none(),
            FetchError::Status { status, .. } => {
                status.is_server_error()
                    || *status == StatusCode::REQUEST_TIMEOUT
                    || *status == StatusCode::TOO_MANY_REQUESTS
            }
            FetchError::Part { .. } | FetchError::Parts { .. } | FetchError::GaveUp { .. } => true,
            FetchError::Digest { .. }
            | FetchError::Root(_)
            | FetchError::Tls(_)
            | FetchError::Client(_)
            | FetchError::Store(_) => false,
        }
    }

    /// As the CLI gets it. Whatever it is: nothing has changed.
    pub(super) fn failure(&self) -> Failure {
        if let FetchError::Store(error) = self {
            return error.failure();
        }
        let kind = if self.passes() { FailureKind::Unreachable } else { FailureKind::Refused };
        Failure { kind, error: chain(self), hint: self.hint().map(str::to_owned) }
    }

    fn hint(&self) -> Option<&'static str> {
        match self {
            FetchError::Request { source, .. } => Some(match certificate(source) {
                // A signature is bad where another authority has the same name.
                Some(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
                    "no public authority has signed the certificate of that host, or of a proxy on the way. If it was an \
                     authority of your own, give its certificate: `--ca-file FILE`"
                }
                Some(_) => "compare the URL's host with the certificate, and this manager's clock with the time",
                None if source.is_redirect() => "give the URL at which the file itself is",
                None => REACH,
            }),
            FetchError::Status { status, .. } if status.is_server_error() => Some("try again later"),
            FetchError::Status { .. } => {
                Some("compare the URL, and whether what it has after `?` is still valid, with where you have it from")
            }
            FetchError::Part { .. } | FetchError::Parts { .. } => {
                Some("download it yourself and give the file: `--bundle FILE`")
            }
            FetchError::GaveUp { source, .. } => source.hint(),
            FetchError::Digest { .. } => Some(
                "give the URL of the file itself, not of a page, for which the digest was published, or correct --digest",
            ),
            FetchError::Root(_) => Some("give certificates in PEM, as authorities publish them"),
            FetchError::Tls(_) | FetchError::Client(_) | FetchError::Store(_) => None,
        }
    }
}

/// What is wrong with the certificate that was shown, if that is what ended the connection.
fn certificate<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a CertificateError> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(rustls::Error::InvalidCertificate(why)) = error.downcast_ref() {
            return Some(why);
        }
        next = match error.downcast_ref::<io::Error>() {
            // What it wraps is not its source: that is the wrapped one's.
            Some(wrapper) => wrapper.get_ref().map(|wrapped| wrapped as &(dyn Error + 'static)),
            None => error.source(),
        };
    }
    None
}
