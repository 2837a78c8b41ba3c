//! The checksums that Cargo.lock has of the crates that came from a registry.

use std::collections::BTreeMap;

/// Reads them: each crate's SHA-256 by its name and version, as `serde@1.0.229`.
///
/// Line by line, as cargo writes the file: a table per crate, each key on a line of its own, the checksum last of the three.
pub(super) fn checksums(text: &str) -> BTreeMap<String, String> {
    let mut sums = BTreeMap::new();
    let (mut name, mut version) = ("", "");
    for line in text.lines() {
        if line == "[[package]]" {
            (name, version) = ("", "");
        }
        let Some((key, value)) = line.split_once(" = ") else { continue };
        let value = value.trim_matches('"');
        if key == "name" {
            name = value;
        } else if key == "version" {
            version = value;
        } else if key == "checksum" {
            sums.insert(format!("{name}@{version}"), value.to_owned());
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_crates_of_a_registry_have_one() {
        let text = "version = 4\n\n[[package]]\nname = \"own\"\nversion = \"0.1.0\"\ndependencies = [\n \"a\",\n]\n\n\
                    [[package]]\nname = \"a\"\nversion = \"1.2.3+x\"\nsource = \"registry\"\nchecksum = \"00ff\"\n";
        let sums = checksums(text);
        assert_eq!(sums.into_iter().collect::<Vec<_>>(), [("a@1.2.3+x".to_owned(), "00ff".to_owned())]);
    }

    #[test]
    fn the_workspaces_own_file_is_read() {
        let text = std::fs::read_to_string(crate::images::repository().join("Cargo.lock")).expect("Cargo.lock");
        let sums = checksums(&text);
        assert_eq!(sums.len(), text.lines().filter(|line| line.starts_with("checksum = ")).count());
        assert!(sums.values().all(|sum| sum.len() == 64));
    }
}
