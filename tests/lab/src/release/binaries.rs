//! The product's binaries, taken out of the image that the Dockerfile built, and fit to be in one FROM scratch.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::command::{self, docker};
use crate::images::{BINARIES, PUBLISH};
use crate::{Error, LABEL, Result, cache};

/// Where the image has them.
pub(crate) const PLACE: &str = "usr/local/bin";

/// What the binaries run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// 64-bit Intel and AMD.
    Amd64,
    /// 64-bit ARM.
    Arm64,
}

impl Architecture {
    /// As images name it, after Go.
    pub const fn in_images(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// As Rust names the target.
    pub const fn target(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-gnu",
            Self::Arm64 => "aarch64-unknown-linux-gnu",
        }
    }
}

/// A folder with the binaries.
#[derive(Clone, Debug)]
pub struct Binaries {
    folder: PathBuf,
    architecture: Architecture,
}

impl Binaries {
    /// Copies the binaries of an image of the machine's engine into a folder, and checks them.
    pub fn of_image(image: &str, folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).map_err(Error::file("create", folder))?;
        let label = format!("{LABEL}={PUBLISH}");
        // Never started; the engine only wants to know what would be.
        let created = docker(&["create", "--label", &label, "--network", "none", image, BINARIES[0]])?;
        let container = Container(created.trimmed().to_owned());
        for binary in BINARIES {
            let from = format!("{}:/{PLACE}/{binary}", container.0);
            let to = folder.join(binary);
            docker(&["cp".as_ref(), from.as_ref(), to.as_os_str()])?;
            // A link may lead to one that comes later, whose mode counts.
            if !to.is_symlink() {
                fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).map_err(Error::file("change", &to))?;
            }
        }
        Self::at(folder)
    }

    /// Checks the binaries of a folder: static, and all for one architecture.
    ///
    /// # Errors
    /// [`Error::Unfit`] names the one that is not.
    pub fn at(folder: &Path) -> Result<Self> {
        let mut architecture = None;
        for binary in BINARIES {
            let file = folder.join(binary);
            let bytes = fs::read(&file).map_err(Error::file("read", &file))?;
            let found = check(&bytes).map_err(|reason| Error::Unfit { file: file.clone(), reason })?;
            if *architecture.get_or_insert(found) != found {
                let reason = format!("it is for {}, unlike the others", found.in_images());
                return Err(Error::Unfit { file, reason });
            }
        }
        let architecture = architecture
            .ok_or_else(|| Error::Unfit { file: folder.to_owned(), reason: "it has no binaries".to_owned() })?;
        Ok(Self { folder: folder.to_owned(), architecture })
    }

    /// Insists that they tell this version.
    pub fn check_version(&self, version: &str) -> Result<()> {
        let said = self.run(&["--version"])?;
        if said.split_whitespace().last() == Some(version) {
            return Ok(());
        }
        let reason = format!("it says {:?}, and the workspace's version is {version}", said.trim());
        Err(Error::Unfit { file: self.coordinator(), reason })
    }

    /// Runs the coordinator's binary and returns what it wrote to standard output.
    pub(crate) fn run(&self, args: &[&str]) -> Result<String> {
        Ok(command::run(&self.coordinator().display().to_string(), args)?.stdout)
    }

    /// What they run on.
    pub const fn architecture(&self) -> Architecture {
        self.architecture
    }

    /// Each one's name and file.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&'static str, PathBuf)> {
        BINARIES.into_iter().map(|binary| (binary, self.folder.join(binary)))
    }

    /// Each one's name and SHA-256, in hexadecimal.
    pub fn digests(&self) -> Result<Vec<(&'static str, String)>> {
        self.files().map(|(name, file)| Ok((name, cache::digest_file(&file)?))).collect()
    }

    fn coordinator(&self) -> PathBuf {
        self.folder.join("coordinator")
    }
}

/// A container that is removed with this value.
struct Container(String);

impl Drop for Container {
    fn drop(&mut self) {
        if let Err(error) = docker(&["rm", "--force", &self.0]) {
            tracing::warn!(container = self.0, %error, "cannot remove a container");
        }
    }
}

/// What a binary runs on, or why it would not run in an image that has nothing else.
fn check(bytes: &[u8]) -> Result<Architecture, String> {
    let header = Header::read(bytes).ok_or("it is no 64-bit little-endian ELF file")?;
    if header.interpreted {
        return Err("it is not linked statically".to_owned());
    }
    match header.machine {
        62 => Ok(Architecture::Amd64),
        183 => Ok(Architecture::Arm64),
        other => Err(format!("it is for the machine {other} of ELF's list")),
    }
}

/// The part of an ELF file that says who can run it (elf(5)).
struct Header {
    machine: u16,
    /// Whether a dynamic linker has to start it.
    interpreted: bool,
}

impl Header {
    /// The type of the program header that names a dynamic linker.
    const PT_INTERP: u32 = 3;

    fn read(bytes: &[u8]) -> Option<Self> {
        // Magic number, 64 bits, little-endian.
        bytes.starts_with(b"\x7fELF\x02\x01").then_some(())?;
        let machine = u16::from_le_bytes(field(bytes, 18)?);
        let table = usize::try_from(u64::from_le_bytes(field(bytes, 32)?)).ok()?;
        let size = usize::from(u16::from_le_bytes(field(bytes, 54)?));
        let count = usize::from(u16::from_le_bytes(field(bytes, 56)?));
        let mut interpreted = false;
        for number in 0..count {
            let at = table.checked_add(number.checked_mul(size)?)?;
            interpreted |= u32::from_le_bytes(field(bytes, at)?) == Self::PT_INTERP;
        }
        Some(Self { machine, interpreted })
    }
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A static program of that machine which does nothing, and can't be run.
    pub(crate) fn program(machine: u16, headers: &[u32]) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        bytes[32..40].copy_from_slice(&64_u64.to_le_bytes());
        bytes[54..56].copy_from_slice(&4_u16.to_le_bytes());
        bytes[56..58].copy_from_slice(&u16::try_from(headers.len()).expect("few").to_le_bytes());
        for header in headers {
            bytes.extend(header.to_le_bytes());
        }
        bytes
    }

    /// Binaries of that machine, in that folder.
    pub(crate) fn written(folder: &Path, machines: [u16; 2]) -> Result<Binaries> {
        for (binary, machine) in BINARIES.into_iter().zip(machines) {
            fs::write(folder.join(binary), program(machine, &[1, 2])).expect("written");
        }
        Binaries::at(folder)
    }

    #[test]
    fn only_static_programs_are_fit() {
        assert_eq!(check(&program(62, &[1, 6])), Ok(Architecture::Amd64));
        assert_eq!(check(&program(183, &[])), Ok(Architecture::Arm64));
        let why = |bytes: &[u8]| check(bytes).expect_err("unfit");
        assert!(why(&program(62, &[6, 3])).contains("statically"));
        assert!(why(&program(22, &[])).contains("machine 22"));
        assert!(why(b"#!/bin/sh\n").contains("ELF"));
        assert!(why(&program(62, &[1])[..65]).contains("ELF"));
    }

    #[test]
    fn both_are_for_one_architecture() {
        let folder = tempfile::tempdir().expect("a folder");
        let binaries = written(folder.path(), [62, 62]).expect("fit");
        assert_eq!(binaries.architecture(), Architecture::Amd64);
        let error = written(folder.path(), [62, 183]).expect_err("two architectures").to_string();
        assert!(error.contains("coordinator") && error.contains("arm64"), "{error}");
    }

    #[test]
    fn this_very_program_has_headers_that_can_be_read() {
        let own = fs::read("/proc/self/exe").expect("read");
        assert!(Header::read(&own).is_some());
    }
}
