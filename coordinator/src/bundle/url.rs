//! The address of a bundle that is fetched from elsewhere.

use std::fmt;
use std::str::FromStr;

use reqwest::Url;
use serde::{Deserialize, Serialize};

/// Why a text is no URL.
type ParseError = <Url as FromStr>::Err;

/// Where a bundle is: `https`, and nothing secret in it but perhaps its query, where signed URLs carry
/// their token. So the query goes to that host alone: shown and logged is what comes before it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BundleUrl(Url);

/// The text is no address to fetch a bundle from. Never quotes it: there may be secrets in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// It can't be read as a URL.
    #[error("the bundle's URL is malformed")]
    Malformed(#[source] ParseError),
    /// It is for another protocol.
    #[error("a bundle is fetched over https:// only, not over {scheme}://")]
    Scheme {
        /// Which one.
        scheme: String,
    },
    /// There is a user name or a password in it.
    #[error("the bundle's URL for {host} has a user name or a password in it")]
    Credentials {
        /// The host.
        host: String,
    },
}

impl UrlError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            UrlError::Malformed(_) => "it has the form https://HOST/PATH".into(),
            UrlError::Scheme { scheme } if scheme == "http" => {
                "use https://: over http:// anybody on the way sees what is installed here and any token in the URL, and \
                 can break the download at will, which the digest only tells when it is over"
                    .into()
            }
            UrlError::Scheme { .. } => "download it yourself and give the file: `--bundle FILE`".into(),
            UrlError::Credentials { .. } => {
                "a command line is no place for secrets, others on this machine can read it: download it yourself and \
                 give the file: `--bundle FILE`"
                    .into()
            }
        }
    }
}

impl BundleUrl {
    /// Whether the text is meant as a URL, right or wrong, and not as a file's path.
    pub fn is_meant(text: &str) -> bool {
        let scheme = text.split_once("://").map_or("", |(scheme, _)| scheme);
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
    }

    /// The whole, its query included.
    pub fn secret(&self) -> &Url {
        &self.0
    }
}

impl FromStr for BundleUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut url: Url = text.parse().map_err(UrlError::Malformed)?;
        if url.scheme() != "https" {
            return Err(UrlError::Scheme { scheme: url.scheme().to_owned() });
        }
        // The parser takes `https:host` and `https:///host` for `https://host`, as browsers do.
        if text.split_once("://").is_none_or(|(_, rest)| rest.starts_with(['/', '\\'])) {
            return Err(UrlError::Malformed(ParseError::EmptyHost));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(UrlError::Credentials { host: url.host_str().unwrap_or_default().to_owned() });
        }
        url.set_fragment(None);
        Ok(Self(url))
    }
}

impl TryFrom<String> for BundleUrl {
    type Error = UrlError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<BundleUrl> for String {
    fn from(url: BundleUrl) -> Self {
        url.0.into()
    }
}

impl fmt::Display for BundleUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.0.as_str();
        f.write_str(shown.split_once('?').map_or(shown, |(shown, _)| shown))
    }
}

impl fmt::Debug for BundleUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BundleUrl({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_is_sent_and_not_shown() {
        let url: BundleUrl = "https://Example.org:8443/a/docker.tgz?token=secret#part".parse().unwrap();
        assert_eq!(url.secret().as_str(), "https://example.org:8443/a/docker.tgz?token=secret");
        assert_eq!(url.to_string(), "https://example.org:8443/a/docker.tgz");
        assert!(!format!("{url:?}").contains("secret"));
        let sent = serde_json::to_string(&url).unwrap();
        assert_eq!(serde_json::from_str::<BundleUrl>(&sent).unwrap(), url);
    }

    #[test]
    fn what_is_no_address_of_a_bundle() {
        for (text, words) in [
            ("http://example.org/docker.tgz", "http://"),
            ("ftp://example.org/docker.tgz", "ftp://"),
            ("file:///tmp/docker.tgz", "file://"),
            ("https://", "malformed"),
            ("https:///docker.tgz", "malformed"),
            ("https:example.org/docker.tgz", "malformed"),
            ("https://example.org:port/docker.tgz", "malformed"),
            ("https://exa mple.org/docker.tgz", "malformed"),
            ("https://user:geheim@example.org/docker.tgz", "for example.org has a user name or a password"),
            ("https://geheim@example.org/docker.tgz", "for example.org has a user name or a password"),
        ] {
            let error = text.parse::<BundleUrl>().expect_err(text);
            assert!(error.to_string().contains(words), "{text}: {error}");
            assert!(!format!("{error:?} {}", error.hint()).contains("geheim"), "{text}: {error:?}");
            assert!(serde_json::from_value::<BundleUrl>(text.into()).is_err(), "{text}");
        }
    }

    #[test]
    fn paths_are_not_meant_as_urls() {
        for text in ["https://example.org", "HTTP://x", "s3+x://y", "file:///x"] {
            assert!(BundleUrl::is_meant(text), "{text}");
        }
        for text in ["docker.tgz", "/a/b.tgz", "./https://x", "-", "C:\\x", "https:/x", "://x", ""] {
            assert!(!BundleUrl::is_meant(text), "{text}");
        }
    }
}
