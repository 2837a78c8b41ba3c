//! Images, all made here: the nodes' own, the one that builds the product, and the product's.
//!
//! Every tag carries a digest of what the image was made from, so an image that exists is the right one.

mod builder;
mod node;
mod product;
mod toolchain;

pub use builder::builder;
pub use node::node_image;
pub use product::{Build, PACKAGES, PRODUCT, product, product_from_machine, product_under, repository};
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
    let output =
        command::collect(Command::new("docker").args(["image", "inspect", "--format", "{{.Id}}", tag]), Input::Empty)?;
    Ok(output.success())
}

/// Removes the images that the lab made, except those in use.
pub fn clean() -> Result<Vec<String>> {
    let filter = format!("label={LABEL}");
    let listed = command::docker(&["image", "ls", "--filter", &filter, "--format", "{{.Repository}}:{{.Tag}}"])?;
    let mut removed = Vec::new();
    for tag in listed.stdout.lines().filter(|tag| !tag.contains("<none>")) {
        if command::collect(Command::new("docker").args(["image", "rm", tag]), Input::Empty)?.success() {
            removed.push(tag.to_owned());
        }
    }
    Ok(removed)
}
