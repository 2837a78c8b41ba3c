//! The name in a node's certificate.

use requeen_protocol::NodeId;
use x509_parser::prelude::{FromDer, X509Certificate, X509Name};

/// What a node's certificate says of it. The role that the certificate also names (its OU) is left
/// out on purpose: it stays when the node is demoted, until the certificate is renewed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PeerName {
    /// Node ID (CN).
    pub(crate) node: NodeId,
    /// Cluster ID (O).
    pub(crate) cluster: String,
}

/// Why a certificate is not one of a swarm's node.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PeerNameError {
    /// It can't be read.
    #[error("the certificate can't be parsed")]
    Parse(#[source] x509_parser::nom::Err<x509_parser::error::X509Error>),
    /// A part of the name is missing, empty or there twice.
    #[error("the certificate's subject `{subject}` has not exactly one {part}, so it is no swarm node's")]
    Part {
        /// The whole subject.
        subject: String,
        /// The part.
        part: &'static str,
    },
}

impl PeerName {
    /// The name in a leaf certificate, given as DER.
    pub(crate) fn of(der: &[u8]) -> Result<Self, PeerNameError> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(PeerNameError::Parse)?;
        let subject = certificate.subject();
        let node = only(subject, subject.iter_common_name(), "common name (node ID)")?;
        let cluster = only(subject, subject.iter_organization(), "organization (cluster ID)")?;
        Ok(Self { node: NodeId(node), cluster })
    }
}

fn only<'a>(
    subject: &X509Name<'_>,
    mut values: impl Iterator<Item = &'a x509_parser::x509::AttributeTypeAndValue<'a>>,
    part: &'static str,
) -> Result<String, PeerNameError> {
    match (values.next().and_then(|value| value.as_str().ok()), values.next()) {
        (Some(value), None) if !value.is_empty() => Ok(value.to_owned()),
        (Some(_) | None, _) => Err(PeerNameError::Part { subject: subject.to_string(), part }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::test_pki::Root;

    #[test]
    fn the_name_is_the_node_and_its_cluster() {
        let node = Root::new().node("node-1", "swarm-manager", "cluster-1");
        let name = PeerName::of(&node.certificate).unwrap();
        assert_eq!(name, PeerName { node: NodeId::from("node-1"), cluster: "cluster-1".to_owned() });
    }

    #[test]
    fn other_certificates_are_no_nodes() {
        assert!(matches!(PeerName::of(b"no certificate"), Err(PeerNameError::Parse(_))));
        let root = Root::new();
        for (cn, o) in [("", "cluster-1"), ("node-1", "")] {
            let odd = root.node(cn, "swarm-worker", o);
            assert!(matches!(PeerName::of(&odd.certificate), Err(PeerNameError::Part { .. })), "{cn:?} {o:?}");
        }
    }
}
