//! Into a registry: the image and its bill of materials, as the very bytes that were made.
//!
//! skopeo does it: it knows logins (`skopeo login`, `docker login`), proxies and retries, and is told to fail rather than
//! to change a byte.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::oci::{Blobs, CYCLONEDX, Descriptor, Manifest, OCI_EMPTY, OCI_MANIFEST, json};
use super::{Image, Made, NAME};
use crate::command::{self, Input};
use crate::{Error, Result, tools};

/// The annotation that gives a blob its name as a file.
const TITLE: &str = "org.opencontainers.image.title";

/// The variable that names the hosts to be reached without a proxy.
const NO_PROXY: &str = "NO_PROXY";

/// Where an image goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The registry, as `HOST` or `HOST:PORT`.
    pub registry: String,
    /// The image's name there.
    pub name: String,
    /// The registry's own root certificate as PEM, if it is none that everybody knows.
    pub ca: Option<String>,
}

impl Destination {
    /// The reference of an image there, by its digest.
    pub fn reference(&self, digest: &str) -> String {
        format!("{}/{}@{digest}", self.registry, self.name)
    }

    /// The registry, if it is named by its address.
    fn address(&self) -> Option<IpAddr> {
        let host = self.registry.rsplit_once(':').map_or(self.registry.as_str(), |(host, _)| host);
        host.trim_matches(['[', ']']).parse().ok()
    }
}

/// The tag of an image's bill of materials: where cosign looks for it. Registries that list what is said about an image
/// find it there too, by its subject.
pub fn sbom_tag(image: &Image) -> String {
    format!("sha256-{}.sbom", image.manifest().hex())
}

/// Pushes the image, tagged with its version and as `latest`, and its bill; returns the image's reference by digest.
pub fn push(made: &Made, to: &Destination) -> Result<String> {
    tools::install_for_release()?;
    let work = tempfile::tempdir().map_err(Error::file("create a folder in", std::env::temp_dir()))?;
    let image = Folder::new(work.path().join("image"))?;
    image.fill(&made.image.manifest_path(), &made.image.parts())?;
    for tag in [&made.release.version, "latest"] {
        copy(&image, to, tag, work.path())?;
    }
    let blobs = Blobs::of_layout(work.path())?;
    let (manifest, parts) = attachment(&blobs, made)?;
    let sbom = Folder::new(work.path().join("sbom"))?;
    let parts: Vec<(&str, PathBuf)> = parts.iter().map(|part| (part.hex(), blobs.path(part))).collect();
    sbom.fill(&blobs.path(&manifest), &parts)?;
    copy(&sbom, to, &sbom_tag(&made.image), work.path())?;
    Ok(to.reference(made.image.digest()))
}

/// The bill as something that a registry can keep: a manifest whose subject is the image, and its parts.
fn attachment(blobs: &Blobs, made: &Made) -> Result<(Descriptor, [Descriptor; 2])> {
    let title = format!("{NAME}-{}.cdx.json", made.release.version);
    let bill = blobs.put(CYCLONEDX, &made.sbom)?;
    let empty = blobs.put(OCI_EMPTY, b"{}")?;
    let manifest = Manifest {
        schema_version: 2,
        media_type: OCI_MANIFEST,
        artifact_type: Some(CYCLONEDX),
        config: &empty,
        layers: &[bill.clone().with(TITLE, &title)],
        subject: Some(made.image.manifest()),
    };
    let manifest = blobs.put(OCI_MANIFEST, &json("the bill's manifest", &manifest)?)?;
    Ok((manifest, [empty, bill]))
}

/// A folder in the form that skopeo calls `dir`: of all its forms the one that takes any manifest as it is.
struct Folder(PathBuf);

impl Folder {
    fn new(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path).map_err(Error::file("create", &path))?;
        Ok(Self(path))
    }

    /// Lays links to the files into it: the manifest, and each blob by its digest's digits.
    fn fill(&self, manifest: &Path, blobs: &[(&str, PathBuf)]) -> Result<()> {
        let version = self.0.join("version");
        fs::write(&version, "Directory Transport Version: 1.1\n").map_err(Error::file("write", &version))?;
        let link = |name: &str, to: &Path| {
            let to = fs::canonicalize(to).map_err(Error::file("find", to))?;
            let place = self.0.join(name);
            std::os::unix::fs::symlink(to, &place).map_err(Error::file("create", &place))
        };
        link("manifest.json", manifest)?;
        blobs.iter().try_for_each(|(name, path)| link(name, path))
    }
}

fn copy(folder: &Folder, to: &Destination, tag: &str, work: &Path) -> Result<()> {
    let mut skopeo = Command::new("skopeo");
    // What may be copied is decided here, not by the machine's policy for what it runs.
    skopeo.args(["--insecure-policy", "copy", "--quiet", "--preserve-digests", "--retry-times", "3"]);
    if let Some(ca) = &to.ca {
        let certificates = work.join("certificates");
        fs::create_dir_all(&certificates).map_err(Error::file("create", &certificates))?;
        let file = certificates.join("ca.crt");
        fs::write(&file, ca).map_err(Error::file("write", &file))?;
        skopeo.arg("--dest-cert-dir").arg(certificates);
    }
    if let Some(address) = to.address() {
        // What is named by its address is near: a proxy may not know the way.
        let others = std::env::var(NO_PROXY).or_else(|_| std::env::var(NO_PROXY.to_lowercase())).unwrap_or_default();
        skopeo.env(NO_PROXY, format!("{others},{address}"));
    }
    skopeo.arg(format!("dir:{}", folder.0.display()));
    skopeo.arg(format!("docker://{}/{}:{tag}", to.registry, to.name));
    command::collect(&mut skopeo, Input::Empty)?.ok().map(drop)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::release::binaries::tests::written;
    use crate::release::image::tests::release;

    fn destination(registry: &str) -> Destination {
        Destination { registry: registry.to_owned(), name: NAME.to_owned(), ca: None }
    }

    #[test]
    fn a_registry_may_be_named_by_its_address() {
        assert_eq!(destination("10.201.3.11:5000").address(), Some(IpAddr::from([10, 201, 3, 11])));
        assert!(destination("[fd00::1]:5000").address().is_some());
        for named in ["registry.example:5000", "registry.example", "m1"] {
            assert_eq!(destination(named).address(), None, "{named}");
        }
        assert_eq!(destination("r:5000").reference("sha256:00"), "r:5000/requeen@sha256:00");
    }

    #[test]
    fn the_bill_says_what_it_is_about() {
        let folder = tempfile::tempdir().expect("a folder");
        let layout = folder.path().join("image");
        let binaries = written(folder.path(), [62, 62]).expect("binaries");
        let image = Image::assemble(&binaries, &release(), &layout).expect("an image");
        let made = Made { release: release(), image, sbom: b"{}\n".to_vec(), artifacts: folder.path().join("none") };
        let blobs = Blobs::of_layout(folder.path()).expect("blobs");
        let (manifest, parts) = attachment(&blobs, &made).expect("an attachment");
        let text = fs::read(blobs.path(&manifest)).expect("read");
        let value: Value = serde_json::from_slice(&text).expect("JSON");
        assert_eq!(value["subject"]["digest"], made.image.digest());
        assert_eq!(value["artifactType"], CYCLONEDX);
        assert_eq!(value["layers"][0]["annotations"][TITLE], "requeen-1.2.3.cdx.json");
        assert_eq!(fs::read(blobs.path(&parts[1])).expect("read"), made.sbom);
        let place = Folder::new(folder.path().join("dir")).expect("a folder");
        let listed: Vec<(&str, PathBuf)> = parts.iter().map(|part| (part.hex(), blobs.path(part))).collect();
        place.fill(&blobs.path(&manifest), &listed).expect("filled");
        assert_eq!(fs::read(place.0.join("manifest.json")).expect("read"), text);
        for part in &parts {
            assert_eq!(value["config"]["digest"] == part.digest, part.media_type == OCI_EMPTY);
            assert_eq!(fs::metadata(place.0.join(part.hex())).expect("a blob").len(), part.size);
        }
        assert_eq!(sbom_tag(&made.image), made.image.digest().replace(':', "-") + ".sbom");
    }
}
