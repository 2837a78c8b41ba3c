//! Images, all made here: the nodes' own, the one that builds the product, and the product's.
//!
//! Every tag carries a digest of what the image was made from, so an image that exists is the right one.

mod builder;
mod machine;
mod node;
mod product;
mod toolchain;

pub use builder::builder;
pub(crate) use machine::{LOGGED_DISK, LOGGED_INIT};
pub use machine::{MOUNT_OPTIONS, machine_disk};
pub use node::{node_image, node_image_with};
pub use product::{
    Build, PACKAGES, PRODUCT, WITH_FAIL_POINTS, product, product_from_machine, product_under, product_with_fail_points,
    repository,
};
pub use toolchain::{Toolchain, toolchain};

pub(crate) use product::{BINARIES, without_own_package};

use std::process::Command;

use crate::Result;
use crate::command::{self, Input};

/// Marks every image that the lab makes; its value is the image's purpose.
pub const LABEL: &str = "io.requeen.lab.image";

/// The lab's name on containers that a release needs for a moment: those of a killed run are removed with the labs.
pub(crate) const PUBLISH: &str = "publish";

/// Whether the machine's engine has the image.
pub(crate) fn exists(tag: &str) -> Result<bool> {
    Ok(id(tag)?.is_some())
}

/// The image that has this tag on the machine's engine.
pub(crate) fn id(tag: &str) -> Result<Option<String>> {
    let output =
        command::collect(Command::new("docker").args(["image", "inspect", "--format", "{{.Id}}", tag]), Input::Empty)?;
    Ok(output.success().then(|| output.trimmed().to_owned()))
}

/// Removes the images that the lab made, except those in use.
pub fn clean() -> Result<Vec<String>> {
    let filter = format!("label={LABEL}");
    let labelled = ["image", "ls", "--filter", &filter];
    let list = |more: &[&str]| command::docker(&[&labelled, more].concat());
    // Those without a name are stages of the product's Dockerfile, which have their builder's label: with them gone nothing
    // is left that is made of the builder.
    let stages = list(&["--filter", "dangling=true", "--quiet", "--no-trunc"])?.stdout;
    let tags = list(&["--format", "{{.Repository}}:{{.Tag}}"])?.stdout;
    let tags = tags.lines().filter(|tag| !tag.contains("<none>"));
    let mut removed = Vec::new();
    for image in stages.lines().chain(tags).chain([PRODUCT]) {
        if remove(image)? {
            removed.push(image.to_owned());
        }
    }
    removed.extend(machine::clean()?);
    Ok(removed)
}

/// Removes an image, unless it is in use or is not there; whether it did.
pub(crate) fn remove(image: &str) -> Result<bool> {
    Ok(command::collect(Command::new("docker").args(["image", "rm", image]), Input::Empty)?.success())
}
