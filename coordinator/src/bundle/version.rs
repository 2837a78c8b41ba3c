//! The version of a dockerd, read from its bytes: it may be built for a libc that isn't here, so it
//! can't be run.
//!
//! Its build sets it by a flag of Go's linker, `-X "github.com/docker/docker/dockerversion.Version=28.5.2"`,
//! and that leaves up to three traces. Verified on Debian's 20.10.5, 20.10.24, 26.1.5 and 28.5.2, each of
//! which has others of them:
//!
//! 1. Go records the flags in the binary (`go version -m` shows them), but not with `-trimpath`.
//! 2. The symbol `….dockerversion.Version.str` points to the text, where symbols are left.
//! 3. The linker ends such a text with a zero byte, unlike Go's own strings: where one text between zero
//!    bytes of the read-only data looks like a release, it is this one.
//!
//! The first is looked for while a bundle is read anyway; the others need the whole file.

use std::collections::BTreeSet;

/// What precedes the version among the linker flags. The package's own path has changed with
/// releases, its last part has not.
const FLAG: &[u8] = b"dockerversion.Version=";

/// The symbol that holds the version's text; again without the beginning of the package's path.
const SYMBOL: &[u8] = b"dockerversion.Version.str";

/// The longest version that is believed.
const MAX_LEN: usize = 64;

/// The releases that a text without a name is believed to be: the first one of this numbering was 17.03,
/// and the numbers of other things are mostly lower.
const MAJORS: std::ops::Range<u32> = 17..100;

/// Looks for [`FLAG`] in a stream of chunks.
#[derive(Default)]
pub(super) struct Scanner {
    /// The end of the last chunk: the flag may lie across two.
    tail: Vec<u8>,
    found: Option<String>,
}

impl Scanner {
    /// The next chunk.
    pub(super) fn feed(&mut self, chunk: &[u8]) {
        if self.found.is_some() {
            return;
        }
        // Only the seam is copied: the tail and as much of the chunk as could complete a hit in it.
        let keep = FLAG.len() + MAX_LEN;
        self.tail.extend_from_slice(&chunk[..chunk.len().min(keep)]);
        self.found = find(&self.tail).or_else(|| find(chunk));
        if chunk.len() > keep {
            self.tail.clear();
            self.tail.extend_from_slice(&chunk[chunk.len() - keep..]);
        } else {
            let excess = self.tail.len().saturating_sub(keep);
            self.tail.drain(..excess);
        }
    }

    /// The version, if one was seen.
    pub(super) fn finish(self) -> Option<String> {
        self.found
    }
}

/// The version behind the first flag in `bytes` that has one. A version that reaches the end of
/// `bytes` may be cut and does not count.
fn find(bytes: &[u8]) -> Option<String> {
    let mut from = 0;
    while let Some(at) = position(&bytes[from..], FLAG) {
        let start = from + at + FLAG.len();
        if let Some(version) = version_at(&bytes[start..]) {
            return Some(version);
        }
        from = start;
    }
    None
}

/// The version that `bytes` begin with: a digit first, an end in sight.
fn version_at(bytes: &[u8]) -> Option<String> {
    let len = bytes.iter().position(|&b| !is_version_byte(b))?;
    believable(&bytes[..len])
}

fn believable(text: &[u8]) -> Option<String> {
    let plausible = text.first()?.is_ascii_digit() && text.len() <= MAX_LEN && text.iter().all(|&b| is_version_byte(b));
    plausible.then(|| String::from_utf8_lossy(text).into_owned())
}

fn is_version_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'.' | b'+' | b'-' | b'~' | b'_')
}

fn position(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    // The first byte is looked for alone: that loop is vectorised, and dockerd has 100 MB.
    let mut from = 0;
    while let Some(at) = haystack.get(from..)?.iter().position(|&b| b == needle[0]) {
        if haystack[from + at..].starts_with(needle) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}

/// The version that a symbol of a 64-bit little-endian ELF file leads to, or its read-only data.
pub(super) fn of_elf(elf: &[u8]) -> Option<String> {
    // e_ident[EI_CLASS] = 64 bits, e_ident[EI_DATA] = little endian.
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let sections = Sections {
        elf,
        offset: usize::try_from(u64_at(elf, 0x28)?).ok()?,
        entry: usize::from(u16_at(elf, 0x3a)?),
        count: usize::from(u16_at(elf, 0x3c)?),
    };
    // SHT_SYMTAB and, in binaries that are stripped but export their symbols, SHT_DYNSYM.
    let tables = || (0..sections.count).filter(|&i| matches!(sections.kind(i), Some(2 | 11)));
    let names = usize::from(u16_at(elf, 0x3e)?);
    tables().find_map(|table| sections.version_in(table)).or_else(|| {
        let read_only = (0..sections.count).find(|&i| sections.name(names, i) == Some(b".rodata"))?;
        standing_alone(sections.bytes(read_only)?)
    })
}

/// The one text in `bytes`, a zero byte on either side, that looks like a release of Docker.
fn standing_alone(bytes: &[u8]) -> Option<String> {
    let first = bytes.iter().position(|&b| b == 0)?;
    let last = bytes.iter().rposition(|&b| b == 0)?;
    let texts = bytes[first..last].split(|&b| b == 0).filter(|text| text.first().is_some_and(u8::is_ascii_digit));
    let mut releases: BTreeSet<String> = texts.filter_map(believable).filter(|text| is_release(text)).collect();
    releases.pop_first().filter(|_| releases.is_empty())
}

/// Whether it has three numbers, of which the first could be one of Docker's.
fn is_release(text: &str) -> bool {
    let numbers = text.split(['+', '-', '~']).next().unwrap_or_default();
    let numbers: Result<Vec<u32>, _> = numbers.split('.').map(str::parse).collect();
    numbers.is_ok_and(|numbers| numbers.len() == 3 && MAJORS.contains(&numbers[0]))
}

/// The section headers of a 64-bit little-endian ELF file.
struct Sections<'a> {
    elf: &'a [u8],
    offset: usize,
    entry: usize,
    count: usize,
}

impl<'a> Sections<'a> {
    fn header(&self, index: usize) -> Option<&'a [u8]> {
        let start = self.offset.checked_add(index.checked_mul(self.entry)?)?;
        self.elf.get(start..start.checked_add(64)?)
    }

    fn name(&self, names: usize, index: usize) -> Option<&'a [u8]> {
        let name = self.bytes(names)?.get(usize::try_from(u32_at(self.header(index)?, 0)?).ok()?..)?;
        Some(&name[..name.iter().position(|&b| b == 0)?])
    }

    fn kind(&self, index: usize) -> Option<u32> {
        u32_at(self.header(index)?, 4)
    }

    fn link(&self, index: usize) -> Option<u32> {
        u32_at(self.header(index)?, 40)
    }

    /// The version that a symbol of the table leads to.
    fn version_in(&self, table: usize) -> Option<String> {
        let symbols = self.bytes(table)?;
        let names = self.bytes(usize::try_from(self.link(table)?).ok()?)?;
        symbols.chunks_exact(24).find_map(|symbol| {
            let name = names.get(usize::try_from(u32_at(symbol, 0)?).ok()?..)?;
            let name = &name[..name.iter().position(|&b| b == 0)?];
            // Only the whole last part of a path counts.
            if !name.strip_suffix(SYMBOL)?.ends_with(b"/") {
                return None;
            }
            let (address, size) = (u64_at(symbol, 8)?, u64_at(symbol, 16)?);
            let text = self.memory(usize::from(u16_at(symbol, 6)?), address, size)?;
            believable(text.strip_suffix(b"\0").unwrap_or(text))
        })
    }

    fn bytes(&self, index: usize) -> Option<&'a [u8]> {
        let header = self.header(index)?;
        slice(self.elf, u64_at(header, 24)?, u64_at(header, 32)?)
    }

    /// `size` bytes that will be at `address`, from the section that has them.
    fn memory(&self, index: usize, address: u64, size: u64) -> Option<&'a [u8]> {
        let base = u64_at(self.header(index)?, 16)?;
        slice(self.bytes(index)?, address.checked_sub(base)?, size)
    }
}

fn slice(bytes: &[u8], start: u64, len: u64) -> Option<&[u8]> {
    let start = usize::try_from(start).ok()?;
    bytes.get(start..start.checked_add(usize::try_from(len).ok()?)?)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: &[u8] =
        br#"build -ldflags=" -w -X \"github.com/docker/docker/dockerversion.Version=20.10.24+dfsg1\" -X "#;

    #[test]
    fn the_flag_is_found_however_the_stream_is_cut() {
        for size in 1..FLAGS.len() {
            let mut scanner = Scanner::default();
            FLAGS.chunks(size).for_each(|chunk| scanner.feed(chunk));
            assert_eq!(scanner.finish().as_deref(), Some("20.10.24+dfsg1"), "chunks of {size}");
        }
    }

    #[test]
    fn only_a_version_counts() {
        for bytes in [
            &b"dockerversion.Version="[..],
            b"dockerversion.Version=%s and more",
            b"dockerversion.Version=library-import\"",
            b"dockerversion.Version=28.5.2",
        ] {
            let mut scanner = Scanner::default();
            scanner.feed(bytes);
            assert_eq!(scanner.finish(), None, "{}", String::from_utf8_lossy(bytes));
        }
        let mut scanner = Scanner::default();
        scanner.feed(b"dockerversion.Version=%s dockerversion.Version=29.0.0-rc.1\0");
        assert_eq!(scanner.finish().as_deref(), Some("29.0.0-rc.1"));
    }

    #[test]
    fn a_text_that_stands_alone_is_believed_if_it_is_the_only_one() {
        let none: &[u8] = b"28.5.2\x001.2.3\0x28.5.2\x000.12.3\x0017.2.3.4\0v28.5.2\x0028.5\x0028.5.x\x00127.0.1\0";
        assert_eq!(standing_alone(none), None);
        let one = [none, b"28.5.2+dfsg4\0x", none].concat();
        assert_eq!(standing_alone(&one).as_deref(), Some("28.5.2+dfsg4"));
        assert_eq!(standing_alone(&[&one[..], b"27.0.1\0"].concat()), None, "there are two");
        assert_eq!(standing_alone(b""), None);
    }

    #[test]
    fn elf_files_lead_to_the_text() {
        for table in [2, 11] {
            let elf = sample(table, b"....28.5.2....");
            assert_eq!(of_elf(&elf).as_deref(), Some("28.5.2"), "by symbol");
            for len in 0..elf.len() {
                // Cut anywhere it gives nothing, or the truth; it never panics.
                assert!(of_elf(&elf[..len]).is_none_or(|version| version == "28.5.2"));
            }
        }
        assert_eq!(of_elf(&sample(4, b"....28.5.2....")), None, "without symbols");
        assert_eq!(of_elf(&sample(4, b"...\x0028.5.2\0...")).as_deref(), Some("28.5.2"), "by its zeros");
    }

    /// An ELF file of four sections: none, this read-only data, names, and a symbol table of that type.
    fn sample(table: u32, data: &[u8]) -> Vec<u8> {
        let names = b"\0x/other.Version.str\0example.com/moby/dockerversion.Version.str\0.rodata\0";
        let rodata = names.len() as u32 - 8;
        let symbols: Vec<u8> = [(1_u32, 0_u64, 2_u64), (21, 0x1004, 6)]
            .into_iter()
            .flat_map(|(name, address, size)| {
                let mut symbol = name.to_le_bytes().to_vec();
                symbol.extend([1, 0, 1, 0]);
                symbol.extend(address.to_le_bytes());
                symbol.extend(size.to_le_bytes());
                symbol
            })
            .collect();
        let mut elf = vec![0; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let mut headers = vec![0; 64];
        for (name, kind, address, link, bytes) in
            [(rodata, 1_u32, 0x1000_u64, 0_u32, data), (0, 3, 0, 0, names), (0, table, 0, 2, &symbols)]
        {
            let mut header = vec![0; 64];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[4..8].copy_from_slice(&kind.to_le_bytes());
            header[16..24].copy_from_slice(&address.to_le_bytes());
            header[24..32].copy_from_slice(&(elf.len() as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
            header[40..44].copy_from_slice(&link.to_le_bytes());
            headers.extend(header);
            elf.extend(bytes);
        }
        let at = elf.len() as u64;
        elf[0x28..0x30].copy_from_slice(&at.to_le_bytes());
        elf[0x3a..0x3c].copy_from_slice(&64_u16.to_le_bytes());
        elf[0x3c..0x3e].copy_from_slice(&4_u16.to_le_bytes());
        elf[0x3e..0x40].copy_from_slice(&2_u16.to_le_bytes());
        elf.extend(headers);
        elf
    }
}
