//! What `--bundle` names: stdin, a file of the operator's, or a URL that the server fetches; and what goes
//! with a URL. All of it is looked at before anybody is asked anything.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{Error as PemError, PemObject};

use super::args::Bundle;
use crate::api::FetchArgs;
use crate::bundle::{BundleUrl, UrlError};

/// Where the bundle comes from.
#[derive(Debug)]
pub(crate) enum Source {
    /// `-`.
    Stdin,
    /// A file's path.
    File,
    /// A URL, as the server wants it.
    Url(FetchArgs),
}

/// The flags of a bundle don't fit together, or not what they name.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    /// Not an address to fetch a bundle from.
    #[error(transparent)]
    Url(#[from] UrlError),
    /// A URL alone.
    #[error("a bundle that is fetched from {url} needs `--digest`")]
    NoDigest { url: BundleUrl },
    /// Certificates without a URL.
    #[error("`--ca-file` is for bundles at https:// URLs, and `--bundle` is none")]
    CaFileWithoutUrl,
    /// The certificates can't be read.
    #[error("can't read the certificates in {path}")]
    ReadCaFile { path: PathBuf, source: io::Error },
    /// The file is no PEM.
    #[error("{path} holds no certificates in PEM")]
    Pem { path: PathBuf, source: PemError },
    /// What the PEM holds is no certificate.
    #[error("{path} holds a certificate that can't be used")]
    Certificate { path: PathBuf, source: rustls::Error },
}

impl SourceError {
    /// What to do about it.
    pub(crate) fn hint(&self) -> String {
        match self {
            SourceError::Url(error) => error.hint(),
            SourceError::NoDigest { .. } => {
                "give the one that was published with it: `--digest sha256:…`; the host is not believed without".into()
            }
            SourceError::CaFileWithoutUrl => "leave it out".into(),
            SourceError::ReadCaFile { .. } => "give the path of a file that this user may read".into(),
            SourceError::Pem { .. } | SourceError::Certificate { .. } => {
                "`--ca-file` takes the authority's certificate: text that begins with -----BEGIN CERTIFICATE-----"
                    .into()
            }
        }
    }
}

impl Source {
    /// Tells by the words of `--bundle`; for a URL the other flags are checked and read too.
    pub(crate) fn of(args: &Bundle) -> Result<Self, SourceError> {
        if let Some(text) = args.file.to_str().filter(|text| BundleUrl::is_meant(text)) {
            let url: BundleUrl = text.parse()?;
            let Some(digest) = args.digest.clone() else { return Err(SourceError::NoDigest { url }) };
            let roots = args.ca_file.as_deref().map(roots).transpose()?.unwrap_or_default();
            return Ok(Source::Url(FetchArgs { url, digest, roots }));
        }
        if args.ca_file.is_some() {
            return Err(SourceError::CaFileWithoutUrl);
        }
        Ok(if args.file == Path::new("-") { Source::Stdin } else { Source::File })
    }
}

/// The certificates in a file, and nothing else that it may hold: a private key stays here.
fn roots(path: &Path) -> Result<Vec<String>, SourceError> {
    let text = fs::read(path).map_err(|source| SourceError::ReadCaFile { path: path.to_owned(), source })?;
    let no_pem = |source| SourceError::Pem { path: path.to_owned(), source };
    let mut trial = RootCertStore::empty();
    let mut roots = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(&text) {
        let certificate = certificate.map_err(no_pem)?;
        roots.push(BASE64_STANDARD.encode(&certificate));
        trial.add(certificate).map_err(|source| SourceError::Certificate { path: path.to_owned(), source })?;
    }
    if roots.is_empty() { Err(no_pem(PemError::NoItemsFound)) } else { Ok(roots) }
}
