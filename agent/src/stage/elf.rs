//! Which machine a program is for, as far as its ELF header says.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Length of an ELF header up to `e_machine`.
const HEAD: usize = 20;

/// The machine that an ELF file is for; nothing if it is no ELF file.
pub(super) fn machine(path: &Path) -> io::Result<Option<u16>> {
    let mut head = Vec::new();
    File::open(path)?.take(HEAD as u64).read_to_end(&mut head)?;
    Ok(parse(&head))
}

/// `e_machine` (elf(5)): after the 16 bytes of `e_ident` and `e_type`, in the byte order that
/// `e_ident[EI_DATA]` names.
fn parse(head: &[u8]) -> Option<u16> {
    if head.len() < HEAD || !head.starts_with(b"\x7fELF") {
        return None;
    }
    let bytes = [head[18], head[19]];
    match head[5] {
        1 => Some(u16::from_le_bytes(bytes)),
        2 => Some(u16::from_be_bytes(bytes)),
        _ => None,
    }
}

/// Machines that engines are built for: what `uname -m` says, and `e_machine`.
const MACHINES: [(&str, u16); 9] = [
    ("x86_64", 62),
    ("aarch64", 183),
    ("armv7l", 40),
    ("armv6l", 40),
    ("i686", 3),
    ("ppc64le", 21),
    ("s390x", 22),
    ("riscv64", 243),
    ("loongarch64", 258),
];

/// The machine that `uname -m` calls `arch`.
pub(super) fn of_arch(arch: &str) -> Option<u16> {
    MACHINES.iter().find_map(|&(name, machine)| (name == arch).then_some(machine))
}

/// What people call a machine.
pub(super) fn name(machine: u16) -> String {
    MACHINES
        .iter()
        .find(|(_, known)| *known == machine)
        .map_or_else(|| format!("machine {machine}"), |(name, _)| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_are_read_in_both_byte_orders() {
        let head = |data: u8, low: u8, high: u8| {
            let mut head = vec![0x7f, b'E', b'L', b'F', 2, data];
            head.resize(HEAD - 2, 0);
            head.extend([low, high]);
            head
        };
        assert_eq!(parse(&head(1, 183, 0)), of_arch("aarch64"));
        assert_eq!(parse(&head(2, 0, 22)), of_arch("s390x"));
        assert_eq!(parse(&head(3, 0, 22)), None);
        assert_eq!(parse(&head(1, 62, 0)[..19]), None);
        assert_eq!(parse(b"#!/bin/sh -e\n# not a program"), None);
        let own = machine(&std::env::current_exe().unwrap()).unwrap();
        assert_eq!(own, of_arch(std::env::consts::ARCH));
    }
}
