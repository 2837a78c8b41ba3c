//! The little of ELF that a bundle needs: whether a file is one, and for which machine.

/// How many bytes of a file [`machine`] has to see.
pub(super) const HEADER_LEN: usize = 20;

/// Numbers of machines (`e_machine`), and their names as `uname -m` prints them.
const MACHINES: &[(u16, &str)] = &[
    (3, "i686"),
    (21, "ppc64le"),
    (22, "s390x"),
    (40, "armv7l"),
    (62, "x86_64"),
    (183, "aarch64"),
    (243, "riscv64"),
    (258, "loongarch64"),
];

/// The machine that the file beginning with `header` is built for; nothing if it is no ELF file.
pub(super) fn machine(header: &[u8]) -> Option<String> {
    let header = header.get(..HEADER_LEN)?;
    if !header.starts_with(b"\x7fELF") {
        return None;
    }
    let bytes = [header[18], header[19]];
    // e_ident[EI_DATA]: 2 is big endian.
    let number = if header[5] == 2 { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) };
    let known = MACHINES.iter().find(|(n, _)| *n == number);
    Some(known.map_or_else(|| format!("machine {number}"), |(_, name)| (*name).to_owned()))
}

/// The machine that this program is built for, as `uname -m` names it. Both of Requeen's programs
/// are native, so it is the host's.
pub(super) fn native() -> &'static str {
    match std::env::consts::ARCH {
        "x86" => "i686",
        "arm" => "armv7l",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_are_named() {
        let mut header = [0_u8; HEADER_LEN];
        assert_eq!(machine(&header), None);
        header[..4].copy_from_slice(b"\x7fELF");
        header[5] = 1;
        header[18] = 183;
        assert_eq!(machine(&header).as_deref(), Some("aarch64"));
        assert_eq!(machine(&header[..19]), None);
        header[5] = 2;
        header[18..].copy_from_slice(&[0, 22]);
        assert_eq!(machine(&header).as_deref(), Some("s390x"));
        header[18..].copy_from_slice(&[0x7f, 0]);
        assert_eq!(machine(&header).as_deref(), Some("machine 32512"));
    }

    #[test]
    fn this_program_is_native() {
        let own = std::fs::read("/proc/self/exe").unwrap();
        assert_eq!(machine(&own).as_deref(), Some(native()));
    }
}
