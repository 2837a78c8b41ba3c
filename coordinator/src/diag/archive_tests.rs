use std::io::Seek;
use std::sync::{Arc, Mutex};

use flate2::read::GzDecoder;

use super::*;

/// Where an archive is written to.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A part with these entries, names as they are given.
fn part(entries: &[(&str, tar::EntryType, &[u8])]) -> Part {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, kind, content) in entries {
        let mut header = tar::Header::new_gnu();
        // Around the library's own checks, as a hostile node would do it.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_size(content.len() as u64);
        header.set_cksum();
        tar.append(&header, *content).unwrap();
    }
    of_bytes(&tar.into_inner().unwrap())
}

fn of_bytes(bytes: &[u8]) -> Part {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    Part { file, bytes: bytes.len() as u64 }
}

fn written(nodes: Vec<(&str, Result<Part, String>)>, own: Own) -> BTreeMap<String, String> {
    let sink = Sink::default();
    let contents = Contents {
        made: Timestamp::from_second(1_763_750_000).unwrap(),
        about: vec![("rollout", "r1".to_owned())],
        nodes: nodes.into_iter().map(|(folder, part)| (folder.to_owned(), part)).collect(),
        own,
    };
    write(Box::new(sink.clone()), contents).unwrap();
    let bytes = sink.0.lock().unwrap().clone();
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(GzDecoder::new(bytes.as_slice())).entries().unwrap() {
        let mut entry = entry.unwrap();
        assert_eq!(entry.header().mtime().unwrap(), 1_763_750_000);
        assert_eq!(entry.header().entry_type(), tar::EntryType::Regular);
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        files.insert(entry.path().unwrap().display().to_string(), text);
    }
    files
}

const FILE: tar::EntryType = tar::EntryType::Regular;

#[test]
fn each_node_has_a_folder_and_the_manifest_says_the_rest() {
    let good = part(&[
        ("report.json", FILE, b"{}"),
        ("journal/docker.service.log", FILE, b"dockerd\n"),
        ("MANIFEST", FILE, b"units/cat.txt: missing: no systemctl\n"),
    ]);
    let own = Own {
        files: [("log.txt".to_owned(), "words\n".to_owned())].into(),
        missing: vec!["nodes.json: no leader".to_owned()],
    };
    let files = written(vec![("m1", Ok(good)), ("w1", Err("it has not answered within 20 s".to_owned()))], own);
    let names: Vec<&str> = files.keys().map(String::as_str).collect();
    assert_eq!(names, ["MANIFEST.txt", "coordinator/log.txt", "m1/journal/docker.service.log", "m1/report.json"]);
    assert_eq!(files["m1/journal/docker.service.log"], "dockerd\n");
    let manifest = &files["MANIFEST.txt"];
    for words in [
        "rollout     r1\n",
        "m1: 2 files\n  units/cat.txt: missing: no systemctl\n",
        "w1: nothing: it has not answered within 20 s\n",
        "coordinator: 1 files\n  nodes.json: no leader\n",
        "left out on purpose",
        "Look through the files",
    ] {
        assert!(manifest.contains(words), "{words} is missing in:\n{manifest}");
    }
}

#[test]
fn a_hostile_part_reaches_no_other_place() {
    for (name, kind, why) in [
        ("../m2/report.json", FILE, "no plain name"),
        ("/etc/passwd", FILE, "no plain name"),
        ("a/../../b", FILE, "no plain name"),
        ("a\\b", FILE, "no plain name"),
        ("a\u{1b}[2J", FILE, "no plain name"),
        ("link", tar::EntryType::Symlink, "no regular file"),
        ("hard", tar::EntryType::Link, "no regular file"),
        ("folder", tar::EntryType::Directory, "no regular file"),
    ] {
        let bad = part(&[("first", FILE, b"1"), (name, kind, b""), ("last", FILE, b"2")]);
        let files = written(vec![("w1", Ok(bad))], Own::default());
        let names: Vec<&str> = files.keys().map(String::as_str).collect();
        assert_eq!(names, ["MANIFEST.txt", "w1/first"], "{name}");
        let manifest = &files["MANIFEST.txt"];
        assert!(manifest.contains("the rest was not taken: ") && manifest.contains(why), "{name}: {manifest}");
        assert!(!manifest.contains('\u{1b}'), "{name}");
    }
    let many: Vec<String> = (0..FILES + 5).map(|number| format!("f{number}")).collect();
    let many: Vec<(&str, tar::EntryType, &[u8])> = many.iter().map(|name| (name.as_str(), FILE, &b"x"[..])).collect();
    let files = written(vec![("w1", Ok(part(&many)))], Own::default());
    assert_eq!(files.len(), FILES + 1);
}

#[test]
fn what_is_no_tarball_or_half_of_one_is_said() {
    let whole = {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(5000);
        tar.append_data(&mut header, "long", &[b'x'; 5000][..]).unwrap();
        tar.into_inner().unwrap()
    };
    for bytes in [&[b'x'; 600][..], &whole[..3000]] {
        let files = written(vec![("w1", Ok(of_bytes(bytes)))], Own::default());
        assert_eq!(files.len(), 1, "{:?}", files.keys());
        assert!(files["MANIFEST.txt"].contains("w1: 0 files\n  the rest was not taken: "), "{}", files["MANIFEST.txt"]);
    }
}

#[test]
fn folders_are_plain_and_nobody_elses() {
    let hostnames = [("1", "m1"), ("2", "w"), ("3", "w"), ("4", "coordinator"), ("5", "ü/.."), ("6", "..")];
    let hostnames = hostnames.into_iter().map(|(id, name)| (NodeId::from(id), name.to_owned())).collect();
    let folders: Vec<String> = folders(&hostnames).into_values().collect();
    assert_eq!(folders, ["m1", "w-2", "w-3", "coordinator-4", "__..", "..-6"]);
}
