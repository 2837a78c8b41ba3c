//! The log that the kernel's dm-log-writes makes (Documentation/admin-guide/device-mapper/log-writes.rst, and the structs
//! in drivers/md/dm-log-writes.c).
//!
//! All numbers are little-endian. A superblock, then the entries, each a sector that says what it is, followed by its
//! data. A write is logged when it is durable: before the flush that made it so, or by itself if it forced its way (FUA).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// What a log begins with.
const MAGIC: u64 = 0x006a_7366_7773_6872;

/// The only version that there is.
const VERSION: u64 = 1;

/// The size of what is read of the superblock: magic, version and number of entries of 8 bytes each, a sector's size of 4.
const SUPERBLOCK: usize = 28;

/// The size of an entry's numbers: first sector, sectors, flags, length of the mark, of 8 bytes each.
const ENTRY: usize = 32;

/// Sizes of sectors that a disk may have.
const SECTORS: [u64; 4] = [512, 1024, 2048, 4096];

const FLUSH: u64 = 1 << 0;
const FUA: u64 = 1 << 1;
const DISCARD: u64 = 1 << 2;
const MARK: u64 = 1 << 3;
/// Says only that a file system wrote it for itself.
const METADATA: u64 = 1 << 4;

/// What an entry did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Nothing but flush.
    Nothing,
    /// Bytes were written.
    Write {
        /// Where to on the disk.
        to: u64,
        /// Where they are in the log.
        from: u64,
        /// How many.
        length: u64,
    },
    /// What was there is of no use any more.
    Discard {
        /// Where on the disk.
        at: u64,
        /// How many bytes.
        length: u64,
    },
    /// Somebody left a word.
    Mark(String),
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it did.
    pub what: What,
    /// Whether it and all before it outlive a power cut.
    pub durable: bool,
}

/// A log, its data still in its file.
#[derive(Debug)]
pub struct Log {
    pub(super) path: PathBuf,
    pub(super) file: File,
    /// Its entries, in the order of the log.
    pub entries: Vec<Entry>,
}

impl Log {
    /// Reads all entries that the superblock counts.
    ///
    /// # Errors
    /// [`Error::NoLog`] if it is something else or not whole.
    pub fn read(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::file("open", path))?;
        let reader = Reader { path, file: &file };
        let (count, sector) = reader.superblock()?;
        let (mut entries, mut at) = (Vec::new(), sector);
        for _ in 0..count {
            let (entry, next) = reader.entry(at, sector)?;
            entries.push(entry);
            at = next;
        }
        Ok(Self { path: path.to_owned(), file, entries })
    }

    /// Whether somebody left that word.
    pub fn has(&self, mark: &str) -> bool {
        self.entries.iter().any(|entry| entry.is_mark(mark))
    }
}

impl Entry {
    /// Whether it is that word.
    pub fn is_mark(&self, mark: &str) -> bool {
        match &self.what {
            What::Mark(word) => word == mark,
            What::Nothing | What::Write { .. } | What::Discard { .. } => false,
        }
    }
}

struct Reader<'a> {
    path: &'a Path,
    file: &'a File,
}

impl Reader<'_> {
    /// The number of entries, and the size of a sector.
    fn superblock(&self) -> Result<(u64, u64)> {
        let bytes: [u8; SUPERBLOCK] = self.bytes(0)?;
        let (magic, version, entries) = (number(&bytes, 0), number(&bytes, 8), number(&bytes, 16));
        if (magic, version) != (MAGIC, VERSION) {
            return Err(self.wrong(0, format!("magic {magic:#x}, version {version}")));
        }
        let sector = u64::from(u32::from_le_bytes([bytes[24], bytes[25], bytes[26], bytes[27]]));
        if !SECTORS.contains(&sector) {
            return Err(self.wrong(0, format!("sectors of {sector} bytes")));
        }
        Ok((entries, sector))
    }

    /// The entry at that byte, and where the next one is.
    fn entry(&self, at: u64, sector: u64) -> Result<(Entry, u64)> {
        let bytes: [u8; ENTRY] = self.bytes(at)?;
        let [first, sectors, flags, marked] = [0, 8, 16, 24].map(|from| number(&bytes, from));
        if flags & !(FLUSH | FUA | DISCARD | MARK | METADATA) != 0 {
            return Err(self.wrong(at, format!("unknown flags {flags:#x}")));
        }
        let in_bytes = |sectors: u64| {
            sectors.checked_mul(sector).ok_or_else(|| self.wrong(at, format!("{sectors} sectors of {sector} bytes")))
        };
        let (to, length, data) = (in_bytes(first)?, in_bytes(sectors)?, at + sector);
        let what = match (flags & MARK != 0, flags & DISCARD != 0, sectors) {
            (true, _, _) => What::Mark(self.word(at, marked, sector)?),
            (false, true, _) => What::Discard { at: to, length },
            (false, false, 0) => What::Nothing,
            (false, false, _) => What::Write { to, from: data, length },
        };
        let next = match what {
            What::Write { .. } => {
                data.checked_add(length).ok_or_else(|| self.wrong(at, format!("{length} bytes of data")))?
            }
            What::Nothing | What::Discard { .. } | What::Mark(_) => data,
        };
        Ok((Entry { what, durable: flags & (FLUSH | FUA) != 0 }, next))
    }

    /// A mark's word, in the same sector as its entry.
    fn word(&self, at: u64, length: u64, sector: u64) -> Result<String> {
        let wrong = |_| self.wrong(at, format!("a mark of {length} bytes"));
        let length = usize::try_from(length).map_err(wrong)?;
        let room = usize::try_from(sector).map_err(wrong)?.saturating_sub(ENTRY);
        if length > room {
            return Err(self.wrong(at, format!("a mark of {length} bytes")));
        }
        let mut word = vec![0; length];
        self.fill(&mut word, at + ENTRY as u64)?;
        // The kernel counts the end of its string, too.
        Ok(String::from_utf8_lossy(&word).trim_end_matches('\0').to_owned())
    }

    fn bytes<const N: usize>(&self, at: u64) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes, at).map(|()| bytes)
    }

    fn fill(&self, bytes: &mut [u8], at: u64) -> Result<()> {
        self.file.read_exact_at(bytes, at).map_err(|error| self.wrong(at, error.to_string()))
    }

    fn wrong(&self, at: u64, reason: String) -> Error {
        Error::NoLog { path: self.path.to_owned(), at, reason }
    }
}

/// The 8 bytes from `from` on as a number; the callers' arrays have them.
fn number(bytes: &[u8], from: usize) -> u64 {
    bytes.iter().skip(from).take(8).rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The size of a sector in the logs that tests make.
    pub(crate) const SECTOR: usize = 512;

    /// The bytes of a log as the kernel makes it: superblock, then entries with flags, first sector, data and mark.
    pub(crate) fn made(entries: &[(u64, u64, &[u8], &str)]) -> Vec<u8> {
        let mut log = Vec::new();
        for number in [MAGIC, VERSION, entries.len() as u64] {
            log.extend(number.to_le_bytes());
        }
        log.extend((SECTOR as u32).to_le_bytes());
        log.resize(SECTOR, 0);
        for (flags, sector, data, mark) in entries {
            assert_eq!(data.len() % SECTOR, 0, "whole sectors");
            let begin = log.len();
            for number in [*sector, (data.len() / SECTOR) as u64, *flags, mark.len() as u64] {
                log.extend(number.to_le_bytes());
            }
            log.extend(mark.as_bytes());
            log.resize(begin + SECTOR, 0);
            log.extend(*data);
        }
        log
    }

    fn read(bytes: &[u8]) -> Result<Vec<Entry>> {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), bytes).expect("written");
        Log::read(file.path()).map(|log| log.entries)
    }

    #[test]
    fn entries_are_read_with_their_data_and_their_words() {
        let (one, two) = ([1; SECTOR], [2; 2 * SECTOR]);
        let log = made(&[
            (METADATA, 7, &one, ""),
            (FLUSH, 0, &[], ""),
            (FUA | METADATA, 9, &two, ""),
            (MARK, 0, &[], "begin"),
            (0, 1, &one, ""),
            (FLUSH | FUA, 3, &one, ""),
        ]);
        let sector = SECTOR as u64;
        let write = |to: u64, from: u64, sectors: u64, durable| Entry {
            what: What::Write { to: to * sector, from: from * sector, length: sectors * sector },
            durable,
        };
        let entries = read(&log).expect("a log");
        assert_eq!(
            entries,
            [
                write(7, 2, 1, false),
                Entry { what: What::Nothing, durable: true },
                write(9, 5, 2, true),
                Entry { what: What::Mark("begin".to_owned()), durable: false },
                write(1, 9, 1, false),
                write(3, 11, 1, true),
            ]
        );
        assert!(entries[3].is_mark("begin") && !entries[3].is_mark("end"));
    }

    #[test]
    fn a_discard_has_a_length_and_no_data() {
        let mut log = made(&[(DISCARD, 5, &[], ""), (FLUSH, 0, &[], "")]);
        log[SECTOR + 8] = 4;
        let entries = read(&log).expect("a log");
        assert_eq!(entries[0].what, What::Discard { at: 5 * 512, length: 4 * 512 });
        assert_eq!(entries[1], Entry { what: What::Nothing, durable: true });
    }

    #[test]
    fn what_is_no_log_is_named() {
        let good = made(&[(0, 1, &[3; SECTOR], ""), (FLUSH, 0, &[], "")]);
        let spoilt = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            bytes
        };
        for (what, bytes) in [
            ("another magic", spoilt(0, 0)),
            ("another version", spoilt(8, 2)),
            ("a sector of no size", spoilt(25, 0)),
            ("an unknown flag", spoilt(SECTOR + 16, 32)),
            ("more entries than there are", spoilt(16, 9)),
            ("a size beyond all numbers", spoilt(SECTOR + 15, 0xff)),
            ("nothing", Vec::new()),
        ] {
            assert!(matches!(read(&bytes), Err(Error::NoLog { .. })), "{what}");
        }
        let long = made(&[(MARK, 0, &[], "x")]);
        let mut long = long;
        long[SECTOR + 25] = 2;
        assert!(matches!(read(&long), Err(Error::NoLog { .. })), "a mark longer than its sector");
    }
}
