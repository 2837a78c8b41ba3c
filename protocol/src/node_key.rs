//! A node's private key as its engine keeps it on disk: PEM with headers of swarmkit's own, and encrypted where the node
//! is a manager of an autolocked swarm.
//!
//! Engines since 18.06 write PKCS#8: PBES2 with PBKDF2 (HMAC-SHA-1) and AES-256 in CBC mode. Those before encrypt as RFC 1423
//! has it: AES-256 in CBC mode, its key made by MD5. The passphrase is what the unlock key's base64 stands for
//! (swarmkit, `ca/keyutils` and `ca/pkcs8`).

use aes::Aes256;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockModeDecrypt, KeyIvInit};
use md5::{Digest, Md5};
use pkcs8::{EncryptedPrivateKeyInfoRef, PrivateKeyInfoRef};
use zeroize::Zeroizing;

use crate::unlock::UnlockKey;

/// A private key in the clear, as DER.
pub enum NodeKey {
    /// PKCS#8.
    Pkcs8(Zeroizing<Vec<u8>>),
    /// SEC 1, as engines before 18.06 have it.
    Sec1(Zeroizing<Vec<u8>>),
}

/// An encrypted key stays closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeKeyError {
    /// Another unlock key is needed.
    #[error("no unlock key that is known opens it")]
    WrongKey,
    /// No engine writes it like that.
    #[error("its form is not known: {0}")]
    Form(&'static str),
}

/// Whether a key, as PEM, is encrypted in either form.
pub fn is_encrypted(pem: &str) -> bool {
    pem.lines().any(|line| {
        line.starts_with("-----BEGIN ENCRYPTED ")
            || line.strip_prefix("Proc-Type:").is_some_and(|value| value.contains("ENCRYPTED"))
    })
}

/// Opens an encrypted key.
pub fn open(pem: &str, key: &UnlockKey) -> Result<NodeKey, NodeKeyError> {
    let block = Block::parse(pem)?;
    match block.label {
        "ENCRYPTED PRIVATE KEY" => pkcs8(&block.body, key),
        "EC PRIVATE KEY" => rfc1423(&block, key),
        _ => Err(NodeKeyError::Form("its label")),
    }
}

/// The one block of a PEM file.
struct Block<'a> {
    label: &'a str,
    headers: Vec<(&'a str, &'a str)>,
    body: Vec<u8>,
}

impl<'a> Block<'a> {
    fn parse(pem: &'a str) -> Result<Self, NodeKeyError> {
        let mut lines = pem.lines().map(str::trim_end).skip_while(|line| !line.starts_with("-----BEGIN "));
        let label = lines.next().and_then(|line| line.strip_prefix("-----BEGIN ")?.strip_suffix("-----"));
        let label = label.ok_or(NodeKeyError::Form("no PEM"))?;
        let (mut headers, mut base64) = (Vec::new(), String::new());
        for line in lines.take_while(|line| !line.starts_with("-----END ")) {
            // Base64 has no colon; a folded header goes on after a space.
            if let Some((name, value)) = line.split_once(':') {
                headers.push((name, value.trim_start()));
            } else if !line.starts_with([' ', '\t']) {
                base64.push_str(line);
            }
        }
        let body = STANDARD.decode(base64).map_err(|_| NodeKeyError::Form("no base64"))?;
        Ok(Self { label, headers, body })
    }
}

fn pkcs8(der: &[u8], key: &UnlockKey) -> Result<NodeKey, NodeKeyError> {
    let sealed = EncryptedPrivateKeyInfoRef::try_from(der).map_err(|_| NodeKeyError::Form("no encrypted PKCS#8"))?;
    if sealed.encryption_algorithm.pbes2().is_none() {
        return Err(NodeKeyError::Form("not PBES2"));
    }
    // With a wrong passphrase its padding is wrong, or what comes out is no key.
    let plain = sealed.decrypt(key.bytes()).map_err(|_| NodeKeyError::WrongKey)?;
    PrivateKeyInfoRef::try_from(plain.as_bytes()).map_err(|_| NodeKeyError::WrongKey)?;
    Ok(NodeKey::Pkcs8(Zeroizing::new(plain.as_bytes().to_vec())))
}

fn rfc1423(block: &Block<'_>, key: &UnlockKey) -> Result<NodeKey, NodeKeyError> {
    let info = block.headers.iter().find_map(|(name, value)| (*name == "DEK-Info").then_some(*value));
    let iv = info.and_then(|info| info.strip_prefix("AES-256-CBC,")).ok_or(NodeKeyError::Form("not AES-256-CBC"))?;
    let mut vector = [0; 16];
    hex::decode_to_slice(iv.trim(), &mut vector).map_err(|_| NodeKeyError::Form("its initialization vector"))?;
    let derived = derive(key.bytes(), &vector[..8]);
    let cipher = cbc::Decryptor::<Aes256>::new((&*derived).into(), &vector.into());
    let plain = cipher.decrypt_padded_vec::<Pkcs7>(&block.body).map_err(|_| NodeKeyError::WrongKey)?;
    let plain = Zeroizing::new(plain);
    if is_sec1(&plain) { Ok(NodeKey::Sec1(plain)) } else { Err(NodeKeyError::WrongKey) }
}

/// OpenSSL's way from a passphrase to a key (`EVP_BytesToKey` with MD5, once).
fn derive(passphrase: &[u8], salt: &[u8]) -> Zeroizing<[u8; 32]> {
    let mut derived = Zeroizing::new([0; 32]);
    let mut digest = Md5::new();
    for part in derived.chunks_exact_mut(16) {
        digest.update(passphrase);
        digest.update(salt);
        part.copy_from_slice(&digest.finalize_reset());
        digest.update(&*part);
    }
    derived
}

/// Whether these bytes are one DER sequence that begins with version 1, as a key of SEC 1 does.
fn is_sec1(der: &[u8]) -> bool {
    let body = match der {
        [0x30, length @ 0..=0x7f, body @ ..] if body.len() == usize::from(*length) => body,
        [0x30, 0x81, length, body @ ..] if body.len() == usize::from(*length) => body,
        _ => return false,
    };
    body.starts_with(&[0x02, 0x01, 0x01, 0x04])
}

#[cfg(test)]
#[path = "node_key_tests.rs"]
mod tests;
