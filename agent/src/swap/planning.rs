//! What a swap has to know before it begins: which files differ between two sets, and what is in their places. It is looked at
//! once, while no swap is under way, and goes into the journal.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use requeen_protocol::{Digest, EngineFile};
use serde::{Deserialize, Serialize};

use super::SwapError;
use crate::host::layout::Layout;
use crate::host::{HostRoot, files};
use crate::sets::{ENGINES_DIR, SetId, Store};

/// Bits that chmod takes.
const MODE_BITS: u32 = 0o7777;
/// Attributes that sign a file's content or metadata: wrong on another file.
const SIGNATURES: [&str; 2] = ["security.ima", "security.evm"];

/// What a file was before the swap touched it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Original {
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its permission bits.
    pub mode: u32,
    /// Its extended attributes, values in hexadecimal; among them the SELinux label.
    pub xattrs: BTreeMap<String, String>,
    /// Where it led, if it was a symbolic link.
    pub was_symlink_to: Option<String>,
}

/// One file to be replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwapFile {
    /// Which one.
    pub file: EngineFile,
    /// Where it is, as an absolute path of the host.
    pub target: String,
    /// What was there; nothing if the host had no such file.
    pub original: Option<Original>,
}

/// Everything needed to carry out a swap, to take it back, or to finish it after a crash. It goes into
/// the journal before the first link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwapPlan {
    /// The files that differ between the two sets; the others are not touched.
    pub files: Vec<SwapFile>,
    /// The set that runs.
    pub from: SetId,
    /// The set that will run.
    pub to: SetId,
}

/// Looks at what is at each target now. Refuses if that is not what `from` holds. Changes nothing.
///
/// Make it while no swap is under way: what a link stands for is known to the plan alone.
pub fn plan(root: &HostRoot, layout: &Layout, store: &Store, from: &SetId, to: &SetId) -> Result<SwapPlan, SwapError> {
    let old = store.manifest(from)?.files;
    let new = store.manifest(to)?.files;
    let mut swapped = Vec::new();
    for &file in EngineFile::ALL {
        let (old, new) = (old.get(&file), new.get(&file));
        if old.map(|entry| &entry.digest) == new.map(|entry| &entry.digest) {
            continue;
        }
        let target = layout.targets.get(&file).ok_or(SwapError::NoPlace(file))?;
        let look = |source| SwapError::Look { path: target.clone(), source };
        let found = digest_at(root, target).map_err(look)?;
        let expected = old.map(|entry| &entry.digest);
        if found.as_ref() != expected {
            let text = |digest: Option<&Digest>| digest.map_or_else(|| "no file".to_owned(), Digest::to_string);
            return Err(SwapError::Changed {
                path: target.clone(),
                expected: text(expected),
                found: text(found.as_ref()),
            });
        }
        swapped.push(SwapFile { file, target: target.clone(), original: original_at(root, target).map_err(look)? });
    }
    Ok(SwapPlan { files: swapped, from: from.clone(), to: to.clone() })
}

/// The digest of what a target leads to; nothing if it leads nowhere.
pub(super) fn digest_at(root: &HostRoot, target: &str) -> io::Result<Option<Digest>> {
    match root.resolve(target).and_then(|path| files::digest(&path)) {
        Ok((digest, _)) => Ok(Some(digest)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// What is at a target now.
pub(crate) fn original_at(root: &HostRoot, target: &str) -> io::Result<Option<Original>> {
    let at = root.resolve_parent(target)?;
    let meta = match fs::symlink_metadata(&at) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let was_symlink_to = if meta.is_symlink() {
        let to = fs::read_link(&at)?;
        if to.starts_with(ENGINES_DIR) {
            // Left by a swap whose journal is lost. What it stood for is not known any more.
            return Ok(None);
        }
        Some(to.to_string_lossy().into_owned())
    } else {
        None
    };
    let mut xattrs = BTreeMap::new();
    match xattr::list(&at) {
        Ok(names) => {
            for name in names {
                let name = name.to_string_lossy().into_owned();
                if let Some(value) = xattr::get(&at, &name)?
                    && !SIGNATURES.contains(&name.as_str())
                {
                    xattrs.insert(name, hex::encode(value));
                }
            }
        }
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
        Err(error) => return Err(error),
    }
    Ok(Some(Original { uid: meta.uid(), gid: meta.gid(), mode: meta.mode() & MODE_BITS, xattrs, was_symlink_to }))
}
