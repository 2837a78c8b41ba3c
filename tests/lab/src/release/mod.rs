//! The release: what users get, made of the product's image so that one commit always gives the same bytes.
//!
//! A builder stamps its image with the time of the build, so two builds have two digests. [`make`] takes the
//! [`Binaries`] out of the image that the Dockerfile built and assembles an [`Image`] around them itself: the digest is
//! known before anything is pushed, and whoever builds the commit can compare it. Beside it come the bill of materials,
//! completions, man pages and a file of checksums. [`push`](push()) puts the image and its bill into a registry.
//!
//! What may not live here: a clock. The only time in a release is its commit's.

mod binaries;
mod files;
mod image;
mod lock;
mod oci;
mod push;
mod sbom;
mod tree;

pub use crate::commit::Release;
pub use binaries::{Architecture, Binaries};
pub use image::Image;
pub use oci::Descriptor;
pub use push::{Destination, push, sbom_tag};

use std::fs;
use std::path::{Path, PathBuf};

use crate::images::{Build, PRODUCT, repository, toolchain};
use crate::{Error, Result};

/// The product's name: of its image, its files and its bill.
pub(crate) const NAME: &str = "requeen";

/// The folder of the image, as an OCI layout.
const IMAGE: &str = "release-image";

/// The folder of the files.
const ARTIFACTS: &str = "release-artifacts";

/// A release that was made.
#[derive(Debug)]
pub struct Made {
    /// What it was made of.
    pub release: Release,
    /// The image.
    pub image: Image,
    /// The bill of materials, CycloneDX as JSON.
    pub sbom: Vec<u8>,
    /// The folder of the files that go beside the image.
    pub artifacts: PathBuf,
}

impl Made {
    /// The image as one file that `docker load` takes.
    pub fn archive(&self) -> PathBuf {
        self.artifacts.join(files::archive_name(&self.release.version))
    }
}

/// Makes a release of [`PRODUCT`], which `build` has made, in two folders below `target`; what was there is removed.
pub fn make(build: &Build, release: &Release, target: &Path) -> Result<Made> {
    let (folder, artifacts) = (target.join(IMAGE), target.join(ARTIFACTS));
    for old in [&folder, &artifacts] {
        if old.exists() {
            fs::remove_dir_all(old).map_err(Error::file("remove", old))?;
        }
        fs::create_dir_all(old).map_err(Error::file("create", old))?;
    }
    let work = tempfile::tempdir_in(target).map_err(Error::file("create a folder in", target))?;
    let binaries = Binaries::of_image(PRODUCT, work.path())?;
    binaries.check_version(&release.version)?;
    let image = Image::assemble(&binaries, release, &folder)?;
    let sbom = sbom::write(&repository(), &binaries, &toolchain(build)?, release)?;
    files::write(&artifacts, &folder, &binaries, &image, &sbom, release)?;
    Ok(Made { release: release.clone(), image, sbom, artifacts })
}
