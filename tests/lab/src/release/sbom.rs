//! The bill of materials: everything that is linked into the binaries, in CycloneDX's form 1.5 as JSON.
//!
//! Written by hand: it takes a dozen fields, and a crate that knows them all is several times the lab's own size. The form:
//! <https://cyclonedx.org/docs/1.5/json/>.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde::Serialize;

use super::binaries::PLACE;
use super::oci::json;
use super::tree::Tree;
use super::{Binaries, NAME, Release, lock, tree};
use crate::images::{PACKAGES, Toolchain};
use crate::{Error, Result, cache};

/// The bill for these binaries, of the workspace's Cargo.lock and what the one who built them linked besides.
pub(super) fn write(
    repository: &Path,
    binaries: &Binaries,
    toolchain: &Toolchain,
    release: &Release,
) -> Result<Vec<u8>> {
    let path = repository.join("Cargo.lock");
    let lock = fs::read_to_string(&path).map_err(Error::file("read", &path))?;
    let tree = tree::of(repository, &PACKAGES, binaries.architecture().target())?;
    let linked = linked(toolchain, binaries.architecture().in_images());
    json("the bill of materials", &bill(&tree, &lock::checksums(&lock), &linked, &binaries.digests()?, release))
}

/// A whole bill.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Bill {
    bom_format: &'static str,
    spec_version: &'static str,
    serial_number: String,
    /// The bill's own version: one of another content has another number above.
    version: u8,
    metadata: Metadata,
    components: Vec<Component>,
    dependencies: Vec<Dependency>,
}

/// What the bill is of.
#[derive(Debug, Serialize)]
struct Metadata {
    timestamp: String,
    component: Component,
}

/// A thing and its parts.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Component {
    r#type: &'static str,
    /// Its name in this bill.
    #[serde(rename = "bom-ref")]
    reference: String,
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    version: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    hashes: Vec<Hash>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    licenses: Vec<Licence>,
    /// Its name in the world, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    purl: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    components: Vec<Component>,
}

#[derive(Clone, Debug, Serialize)]
struct Hash {
    alg: &'static str,
    content: String,
}

#[derive(Clone, Debug, Serialize)]
struct Licence {
    expression: String,
}

/// What a component uses.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Dependency {
    r#ref: String,
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    depends_on: BTreeSet<String>,
}

impl Component {
    fn new(r#type: &'static str, name: &str, version: &str) -> Self {
        Self {
            r#type,
            reference: if version.is_empty() { name.to_owned() } else { format!("{name}@{version}") },
            name: name.to_owned(),
            version: version.to_owned(),
            hashes: Vec::new(),
            licenses: Vec::new(),
            purl: None,
            components: Vec::new(),
        }
    }

    /// Named in the bill as in the world.
    fn known_as(mut self, purl: String) -> Self {
        self.reference.clone_from(&purl);
        self.purl = Some(purl);
        self
    }

    fn hashed(mut self, sha256: &str) -> Self {
        self.hashes.push(Hash { alg: "SHA-256", content: sha256.to_owned() });
        self
    }

    fn licensed(mut self, expression: &str) -> Self {
        if !expression.is_empty() {
            self.licenses.push(Licence { expression: expression.to_owned() });
        }
        self
    }
}

/// What is linked beside crates: the C library, and Rust's own.
fn linked(toolchain: &Toolchain, architecture: &str) -> [Component; 2] {
    let Toolchain { libc, rust } = toolchain;
    // In a name of this kind a plus sign stands for itself only as its number.
    let debian = format!("pkg:deb/debian/libc6-dev@{}?arch={architecture}", libc.replace('+', "%2B"));
    [
        Component::new("library", "libc6-dev", libc).known_as(debian).licensed("LGPL-2.1-or-later"),
        Component::new("library", "rust-std", rust)
            .known_as(format!("pkg:generic/rust-std@{rust}"))
            .licensed("MIT OR Apache-2.0"),
    ]
}

/// The bill of a tree of crates. Those of a registry have a checksum; the workspace's own have no name in the world.
fn bill(
    tree: &Tree,
    checksums: &BTreeMap<String, String>,
    linked: &[Component],
    binaries: &[(&str, String)],
    release: &Release,
) -> Bill {
    let mut components = linked.to_vec();
    let mut references = BTreeMap::new();
    for (key, found) in &tree.crates {
        let (name, version) = key.split_once('@').unwrap_or((key, ""));
        let component = Component::new("library", name, version).licensed(&found.licence);
        let component = match checksums.get(key) {
            Some(sum) => component.known_as(format!("pkg:cargo/{name}@{}", version.replace('+', "%2B"))).hashed(sum),
            None => component,
        };
        references.insert(key, component.reference.clone());
        components.push(component);
    }
    let refer = |keys: &BTreeSet<String>| keys.iter().filter_map(|key| references.get(key).cloned()).collect();

    let mut product = Component::new("application", NAME, &release.version).licensed("Apache-2.0 OR MIT");
    let mut digests = String::new();
    for (binary, digest) in binaries {
        digests.push_str(digest);
        product.components.push(Component::new("file", &format!("{PLACE}/{binary}"), "").hashed(digest));
    }
    let mut uses: BTreeSet<String> = refer(&tree.roots);
    uses.extend(linked.iter().map(|component| component.reference.clone()));
    let mut dependencies = vec![Dependency { r#ref: product.reference.clone(), depends_on: uses }];
    for (key, found) in &tree.crates {
        if let Some(reference) = references.get(key) {
            dependencies.push(Dependency { r#ref: reference.clone(), depends_on: refer(&found.uses) });
        }
    }
    Bill {
        bom_format: "CycloneDX",
        spec_version: "1.5",
        serial_number: serial_number(&cache::digest_text(&digests)),
        version: 1,
        metadata: Metadata { timestamp: release.created.to_string(), component: product },
        components,
        dependencies,
    }
}

/// A number of version 8, made of a digest's digits (RFC 9562).
fn serial_number(digest: &str) -> String {
    let part = |range: std::ops::Range<usize>| digest.get(range).unwrap_or_default();
    format!("urn:uuid:{}-{}-8{}-8{}-{}", part(0..8), part(8..12), part(12..15), part(15..18), part(18..30))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::images::repository;
    use crate::release::image::tests::release;
    use crate::release::tree::Crate;

    fn toolchain() -> Toolchain {
        Toolchain { rust: "1.95.0".to_owned(), libc: "2.41-12+deb13u1".to_owned() }
    }

    fn made(tree: &Tree, checksums: &BTreeMap<String, String>) -> Value {
        let binaries = [("agent", "aa".to_owned()), ("coordinator", "bb".to_owned())];
        let bill = bill(tree, checksums, &linked(&toolchain(), "amd64"), &binaries, &release());
        serde_json::to_value(bill).expect("JSON")
    }

    #[test]
    fn a_bill_names_crates_checksums_and_binaries() {
        let found = |licence: &str, uses: &[&str]| Crate {
            licence: licence.to_owned(),
            uses: uses.iter().map(|name| (*name).to_owned()).collect(),
        };
        let tree = Tree {
            crates: BTreeMap::from([
                ("own@0.1.0".to_owned(), found("MIT", &["a@1.0.0+x"])),
                ("a@1.0.0+x".to_owned(), found("", &[])),
            ]),
            roots: BTreeSet::from(["own@0.1.0".to_owned()]),
        };
        let got = made(&tree, &BTreeMap::from([("a@1.0.0+x".to_owned(), "00ff".to_owned())]));
        let libc = "pkg:deb/debian/libc6-dev@2.41-12%2Bdeb13u1?arch=amd64";
        let rust = "pkg:generic/rust-std@1.95.0";
        let of_a = "pkg:cargo/a@1.0.0%2Bx";
        assert_eq!(
            got,
            json!({
                "bomFormat": "CycloneDX",
                "specVersion": "1.5",
                "serialNumber": serial_number(&cache::digest_text("aabb")),
                "version": 1,
                "metadata": {
                    "timestamp": "2023-11-14T22:13:20Z",
                    "component": {
                        "type": "application",
                        "bom-ref": "requeen@1.2.3",
                        "name": "requeen",
                        "version": "1.2.3",
                        "licenses": [{"expression": "Apache-2.0 OR MIT"}],
                        "components": [
                            {"type": "file", "bom-ref": "usr/local/bin/agent", "name": "usr/local/bin/agent",
                             "hashes": [{"alg": "SHA-256", "content": "aa"}]},
                            {"type": "file", "bom-ref": "usr/local/bin/coordinator", "name": "usr/local/bin/coordinator",
                             "hashes": [{"alg": "SHA-256", "content": "bb"}]},
                        ],
                    },
                },
                "components": [
                    {"type": "library", "bom-ref": libc, "name": "libc6-dev", "version": "2.41-12+deb13u1",
                     "licenses": [{"expression": "LGPL-2.1-or-later"}], "purl": libc},
                    {"type": "library", "bom-ref": rust, "name": "rust-std", "version": "1.95.0",
                     "licenses": [{"expression": "MIT OR Apache-2.0"}], "purl": rust},
                    {"type": "library", "bom-ref": of_a, "name": "a", "version": "1.0.0+x",
                     "hashes": [{"alg": "SHA-256", "content": "00ff"}], "purl": of_a},
                    {"type": "library", "bom-ref": "own@0.1.0", "name": "own", "version": "0.1.0",
                     "licenses": [{"expression": "MIT"}]},
                ],
                "dependencies": [
                    {"ref": "requeen@1.2.3", "dependsOn": ["own@0.1.0", libc, rust]},
                    {"ref": of_a},
                    {"ref": "own@0.1.0", "dependsOn": [of_a]},
                ],
            })
        );
    }

    #[test]
    fn a_serial_number_is_one_of_its_binaries() {
        let number = serial_number(&cache::digest_text("x"));
        let parts: Vec<usize> = number.trim_start_matches("urn:uuid:").split('-').map(str::len).collect();
        assert_eq!(parts, [8, 4, 4, 4, 12]);
        assert_ne!(number, serial_number(&cache::digest_text("y")));
    }

    /// What the workspace really links, as cargo tells it: every reference leads somewhere, and nothing tells where it was made.
    #[test]
    fn the_products_own_bill_is_whole() {
        let folder = tempfile::tempdir().expect("a folder");
        let binaries = crate::release::binaries::tests::written(folder.path(), [62, 62]).expect("binaries");
        let bytes = write(&repository(), &binaries, &toolchain(), &release()).expect("a bill");
        let bill: Value = serde_json::from_slice(&bytes).expect("JSON");
        let components = bill["components"].as_array().expect("components");
        let references: BTreeSet<&str> = components.iter().filter_map(|part| part["bom-ref"].as_str()).collect();
        assert_eq!(references.len(), components.len(), "no two are of one name");
        for linked in ["requeen-agent@0.1.0", "requeen-coordinator@0.1.0", "requeen-protocol@0.1.0"] {
            assert!(references.contains(linked), "{linked}");
        }
        assert!(references.iter().any(|name| name.starts_with("pkg:cargo/rustls@")));
        // Tests' and macros' crates are not linked.
        for not in ["pkg:cargo/proptest@", "pkg:cargo/serde_derive@", "requeen-lab@"] {
            assert!(!references.iter().any(|name| name.starts_with(not)), "{not}");
        }
        for part in
            components.iter().filter(|part| part["purl"].as_str().is_some_and(|purl| purl.starts_with("pkg:cargo/")))
        {
            assert_eq!(part["hashes"][0]["content"].as_str().map(str::len), Some(64), "{part}");
        }
        for dependency in bill["dependencies"].as_array().expect("dependencies") {
            for used in dependency["dependsOn"].as_array().into_iter().flatten() {
                assert!(used.as_str().is_some_and(|name| references.contains(name)), "{used}");
            }
        }
        let place = repository().display().to_string();
        assert!(!String::from_utf8_lossy(&bytes).contains(&place), "{place} is in the bill");
    }
}
