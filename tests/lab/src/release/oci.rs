//! The pieces that images are made of: blobs named by their digest, and the manifests that list them.
//!
//! The forms are those of Docker's image manifest of version 2, schema 2, which every engine since 1.10 pulls, and of
//! OCI's image specification for what is no image.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::{Error, Result, cache};

/// A docker manifest.
pub(super) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// A docker image's configuration.
pub(super) const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// A docker image's layer, compressed.
pub(super) const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
/// An OCI manifest.
pub(super) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// The configuration of what needs none: `{}`.
pub(super) const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// A bill of materials as CycloneDX's JSON.
pub(super) const CYCLONEDX: &str = "application/vnd.cyclonedx+json";

/// A blob's name, form and size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Its media type.
    pub media_type: &'static str,
    /// Its size in bytes.
    pub size: u64,
    /// Its digest, `sha256:…`.
    pub digest: String,
    /// What else is said of it where it is listed.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<&'static str, String>,
}

impl Descriptor {
    /// The digest's digits.
    pub fn hex(&self) -> &str {
        self.digest.strip_prefix("sha256:").unwrap_or(&self.digest)
    }

    /// The same with an annotation more.
    pub(super) fn with(mut self, key: &'static str, value: &str) -> Self {
        self.annotations.insert(key, value.to_owned());
        self
    }
}

/// A manifest: what an image, or something about an image, consists of.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Manifest<'a> {
    /// Always 2.
    pub(super) schema_version: u8,
    pub(super) media_type: &'static str,
    /// What it is where it is no image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) artifact_type: Option<&'static str>,
    pub(super) config: &'a Descriptor,
    pub(super) layers: &'a [Descriptor],
    /// The image that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) subject: Option<&'a Descriptor>,
}

/// A folder of blobs, each in a file named by its digest.
#[derive(Clone, Debug)]
pub(super) struct Blobs {
    folder: PathBuf,
}

impl Blobs {
    /// The blobs of a layout, whose place below it OCI has fixed.
    pub(super) fn of_layout(layout: &Path) -> Result<Self> {
        let folder = layout.join("blobs/sha256");
        fs::create_dir_all(&folder).map_err(Error::file("create", &folder))?;
        Ok(Self { folder })
    }

    /// Adds bytes.
    pub(super) fn put(&self, media_type: &'static str, bytes: &[u8]) -> Result<Descriptor> {
        let hex = cache::digest_bytes(bytes);
        let path = self.folder.join(&hex);
        fs::write(&path, bytes).map_err(Error::file("write", &path))?;
        self.describe(media_type, &hex)
    }

    /// Adds a file by moving it here; it must be on the same file system.
    pub(super) fn take(&self, media_type: &'static str, file: &Path) -> Result<Descriptor> {
        let hex = cache::digest_file(file)?;
        fs::rename(file, self.folder.join(&hex)).map_err(Error::file("move", file))?;
        self.describe(media_type, &hex)
    }

    /// Where a blob is.
    pub(super) fn path(&self, blob: &Descriptor) -> PathBuf {
        self.folder.join(blob.hex())
    }

    fn describe(&self, media_type: &'static str, hex: &str) -> Result<Descriptor> {
        let path = self.folder.join(hex);
        let size = fs::metadata(&path).map_err(Error::file("read", &path))?.len();
        Ok(Descriptor { media_type, size, digest: format!("sha256:{hex}"), annotations: BTreeMap::new() })
    }
}

/// A value as JSON, without a byte that could be otherwise.
pub(super) fn json<T: Serialize>(what: &'static str, value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|source| Error::Json { what, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_is_named_by_its_digest() {
        let folder = tempfile::tempdir().expect("a folder");
        let blobs = Blobs::of_layout(folder.path()).expect("blobs");
        let put = blobs.put(OCI_EMPTY, b"{}").expect("put");
        // The digest that OCI's specification gives for it.
        assert_eq!(put.digest, "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a");
        assert_eq!(put.size, 2);
        let file = folder.path().join("file");
        fs::write(&file, "{}").expect("written");
        assert_eq!(blobs.take(OCI_EMPTY, &file).expect("taken"), put);
        assert!(!file.exists());
        assert_eq!(fs::read(blobs.path(&put)).expect("read"), b"{}");
        let listed = json("a descriptor", &put.with("a", "b")).expect("JSON");
        assert!(String::from_utf8_lossy(&listed).ends_with(r#""annotations":{"a":"b"}}"#));
    }
}
