//! The image: one layer with the binaries, assembled without an engine, so that its digest depends on nothing else.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::binaries::PLACE;
use super::oci::{Blobs, DOCKER_CONFIG, DOCKER_LAYER, DOCKER_MANIFEST, Descriptor, Manifest, json};
use super::{Binaries, NAME, Release};
use crate::{Error, Result, archive, cache};

/// What the Dockerfile's labels begin with.
const LABELS: &str = "org.opencontainers.image.";

/// The annotation that names an image of a layout by its tag.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The annotation by which engines that keep their images in containerd name what they load.
const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// An image in a folder, as an OCI layout that is also what `docker load` takes once it is packed.
#[derive(Clone, Debug)]
pub struct Image {
    blobs: Blobs,
    manifest: Descriptor,
    config: Descriptor,
    layer: Descriptor,
}

impl Image {
    /// Assembles it in an empty folder.
    pub fn assemble(binaries: &Binaries, release: &Release, folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).map_err(Error::file("create", folder))?;
        let blobs = Blobs::of_layout(folder)?;
        let work = tempfile::tempdir_in(folder).map_err(Error::file("create a folder in", folder))?;
        let (plain, packed) = (work.path().join("layer.tar"), work.path().join("layer.tar.gz"));
        let root = work.path().join("root");
        lay_out(binaries, &root.join(PLACE))?;
        let (top, _) = PLACE.split_once('/').unwrap_or((PLACE, ""));
        archive::tar(&root, &[top], release.created.as_second(), &plain)?;
        archive::gzip(&plain, &packed)?;

        let content = format!("sha256:{}", cache::digest_file(&plain)?);
        let layer = blobs.take(DOCKER_LAYER, &packed)?;
        let config = json("the image's configuration", &Config::new(binaries, release, content))?;
        let config = blobs.put(DOCKER_CONFIG, &config)?;
        let manifest = Manifest {
            schema_version: 2,
            media_type: DOCKER_MANIFEST,
            artifact_type: None,
            config: &config,
            layers: std::slice::from_ref(&layer),
            subject: None,
        };
        let manifest = blobs.put(DOCKER_MANIFEST, &json("the image's manifest", &manifest)?)?;
        let image = Self { blobs, manifest, config, layer };
        image.write_index(folder, &release.version)?;
        Ok(image)
    }

    /// The digest by which registries know it, `sha256:…`.
    pub fn digest(&self) -> &str {
        &self.manifest.digest
    }

    /// The digest by which engines know it, `sha256:…`.
    pub fn id(&self) -> &str {
        &self.config.digest
    }

    /// What a node pulls, in bytes.
    pub const fn size(&self) -> u64 {
        self.manifest.size + self.config.size + self.layer.size
    }

    /// Its manifest.
    pub(super) const fn manifest(&self) -> &Descriptor {
        &self.manifest
    }

    /// Where its manifest is.
    pub(super) fn manifest_path(&self) -> PathBuf {
        self.blobs.path(&self.manifest)
    }

    /// The name and place of every blob that its manifest lists.
    pub(super) fn parts(&self) -> [(&str, PathBuf); 2] {
        [&self.config, &self.layer].map(|blob| (blob.hex(), self.blobs.path(blob)))
    }

    /// Writes what leads to the manifest: for OCI's tools, and for `docker load`.
    fn write_index(&self, folder: &Path, version: &str) -> Result<()> {
        let name = format!("{NAME}:{version}");
        let listed =
            self.manifest.clone().with(REF_NAME, version).with(CONTAINERD_NAME, &format!("docker.io/library/{name}"));
        let index = Index { schema_version: 2, manifests: [listed] };
        let place = |blob: &Descriptor| format!("blobs/sha256/{}", blob.hex());
        let loaded = [Loaded { config: place(&self.config), repo_tags: [name], layers: [place(&self.layer)] }];
        let layout = Layout { image_layout_version: "1.0.0" };
        for (file, bytes) in [
            ("oci-layout", json("the layout's version", &layout)?),
            ("index.json", json("the layout's index", &index)?),
            ("manifest.json", json("the index for docker", &loaded)?),
        ] {
            let path = folder.join(file);
            fs::write(&path, bytes).map_err(Error::file("write", &path))?;
        }
        Ok(())
    }
}

/// Copies the binaries to where the image shall have them.
fn lay_out(binaries: &Binaries, place: &Path) -> Result<()> {
    fs::create_dir_all(place).map_err(Error::file("create", place))?;
    for (name, file) in binaries.files() {
        let to = place.join(name);
        // One of them may be another name of the other.
        if let Ok(target) = fs::read_link(&file) {
            std::os::unix::fs::symlink(&target, &to).map_err(Error::file("link", &to))?;
            continue;
        }
        fs::copy(&file, &to).map_err(Error::file("copy", &file))?;
        fs::set_permissions(&to, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .map_err(Error::file("change", &to))?;
    }
    Ok(())
}

/// An image's configuration.
#[derive(Debug, Serialize)]
struct Config {
    architecture: &'static str,
    config: Defaults,
    created: String,
    history: [History; 1],
    os: &'static str,
    rootfs: RootFs,
}

/// What containers of it start with.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Defaults {
    env: [&'static str; 1],
    labels: BTreeMap<String, String>,
}

/// Where a layer came from.
#[derive(Debug, Serialize)]
struct History {
    created: String,
    created_by: &'static str,
}

/// Its layers, by the digests of what is in them.
#[derive(Debug, Serialize)]
struct RootFs {
    r#type: &'static str,
    diff_ids: [String; 1],
}

impl Config {
    fn new(binaries: &Binaries, release: &Release, content: String) -> Self {
        let created = release.created.to_string();
        Self {
            architecture: binaries.architecture().in_images(),
            config: Defaults { env: ["PATH=/usr/local/bin"], labels: labels(release) },
            created: created.clone(),
            history: [History { created, created_by: "cargo lab publish" }],
            os: "linux",
            rootfs: RootFs { r#type: "layers", diff_ids: [content] },
        }
    }
}

/// The labels that the Dockerfile gives its image.
fn labels(release: &Release) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    let mut label = |key: &str, value: &str| labels.insert(format!("{LABELS}{key}"), value.to_owned());
    label("title", "Requeen");
    label("description", "Upgrades Docker Engine on every node of a swarm, in order, without its services noticing");
    label("version", &release.version);
    label("revision", &release.revision);
    label("created", &release.created.to_string());
    label("licenses", "Apache-2.0 OR MIT");
    if let Some(source) = &release.source {
        label("source", source);
    }
    labels
}

/// The file that makes a folder an OCI layout.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Layout {
    image_layout_version: &'static str,
}

/// A layout's images.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u8,
    manifests: [Descriptor; 1],
}

/// An image as `docker load` finds it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Loaded {
    config: String,
    repo_tags: [String; 1],
    layers: [String; 1],
}

#[cfg(test)]
pub(super) mod tests {
    use std::process::Command;

    use jiff::Timestamp;
    use serde_json::{Value, json};

    use super::*;
    use crate::command::{self, Input};
    use crate::images::repository;
    use crate::release::binaries::tests::written;

    pub(in crate::release) fn release() -> Release {
        Release {
            version: "1.2.3".to_owned(),
            revision: "abc".to_owned(),
            created: Timestamp::from_second(1_700_000_000).expect("a time"),
            source: Some("https://example.org/requeen".to_owned()),
            changed: Vec::new(),
        }
    }

    fn read(folder: &Path, file: &str) -> Value {
        serde_json::from_slice(&fs::read(folder.join(file)).expect(file)).expect("JSON")
    }

    #[test]
    fn the_same_binaries_give_the_same_image() {
        let folder = tempfile::tempdir().expect("a folder");
        let made = |name: &str, release: &Release| {
            let (from, to) = (folder.path().join(format!("{name}-binaries")), folder.path().join(name));
            fs::create_dir(&from).expect("a folder");
            let image = Image::assemble(&written(&from, [62, 62]).expect("binaries"), release, &to).expect("an image");
            let whole = folder.path().join(format!("{name}.tar"));
            archive::tar(&to, &["blobs", "index.json", "manifest.json", "oci-layout"], 0, &whole).expect("packed");
            (image.digest().to_owned(), fs::read(whole).expect("read"))
        };
        let (one, other) = (made("one", &release()), made("other", &release()));
        assert!(one == other, "{} and {}", one.0, other.0);
        let later = Release { created: Timestamp::UNIX_EPOCH, ..release() };
        assert_ne!(one.0, made("later", &later).0);
    }

    #[test]
    fn everything_leads_to_the_binaries() {
        let folder = tempfile::tempdir().expect("a folder");
        let to = folder.path().join("image");
        let binaries = written(folder.path(), [183, 183]).expect("binaries");
        let image = Image::assemble(&binaries, &release(), &to).expect("an image");
        let entries = fs::read_dir(&to).expect("a folder").count();
        assert_eq!(entries, 4, "nothing but the layout is left");
        assert_eq!(read(&to, "oci-layout"), json!({"imageLayoutVersion": "1.0.0"}));

        let index = read(&to, "index.json");
        assert_eq!(index["manifests"][0]["digest"], image.digest());
        assert_eq!(index["manifests"][0]["annotations"][REF_NAME], "1.2.3");
        let blob = |digest: &Value| {
            let hex = digest.as_str().and_then(|digest| digest.strip_prefix("sha256:")).expect("a digest");
            let path = to.join("blobs/sha256").join(hex);
            assert_eq!(cache::digest_file(&path).expect("a blob"), hex);
            path
        };
        blob(&index["manifests"][0]["digest"]);
        let manifest = read(&to, &format!("blobs/sha256/{}", image.manifest().hex()));
        assert_eq!(manifest["mediaType"], DOCKER_MANIFEST);
        assert_eq!(manifest["config"]["digest"], image.id());
        let layer = blob(&manifest["layers"][0]["digest"]);
        assert_eq!(manifest["layers"][0]["size"], fs::metadata(&layer).expect("a layer").len());

        let config: Value =
            serde_json::from_slice(&fs::read(blob(&manifest["config"]["digest"])).expect("read")).expect("JSON");
        assert_eq!(config["architecture"], "arm64");
        assert_eq!(config["created"], "2023-11-14T22:13:20Z");
        assert_eq!(config["config"]["Env"], json!(["PATH=/usr/local/bin"]));
        let plain = folder.path().join("layer.tar");
        let out = fs::File::create(&plain).expect("a file");
        let mut gzip = Command::new("gzip");
        // By its input, since a blob's name has no suffix.
        let input = fs::File::open(&layer).expect("open");
        command::inherit_ok(gzip.args(["--decompress", "--stdout"]).stdin(input).stdout(out)).expect("unpacked");
        let content = format!("sha256:{}", cache::digest_file(&plain).expect("a digest"));
        assert_eq!(config["rootfs"], json!({"type": "layers", "diff_ids": [content]}));
        let mut tar = Command::new("tar");
        tar.args(["--list", "--verbose", "--numeric-owner", "--utc", "--file"]).arg(&plain);
        let listed = command::collect(&mut tar, Input::Empty).expect("tar").ok().expect("a layer").stdout;
        let lines: Vec<Vec<&str>> = listed.lines().map(|line| line.split_whitespace().collect()).collect();
        let names: Vec<&str> = lines.iter().filter_map(|line| line.last().copied()).collect();
        assert_eq!(names, ["usr/", "usr/local/", "usr/local/bin/", "usr/local/bin/agent", "usr/local/bin/coordinator"]);
        for line in &lines {
            assert!(line[0].ends_with("rwxr-xr-x") && line[1] == "0/0", "{line:?}");
            assert_eq!(line[3..5], ["2023-11-14", "22:13"]);
        }

        let loaded = read(&to, "manifest.json");
        assert_eq!(loaded[0]["RepoTags"], json!(["requeen:1.2.3"]));
        assert_eq!(loaded[0]["Config"], format!("blobs/sha256/{}", image.id().trim_start_matches("sha256:")));
    }

    #[test]
    fn the_labels_are_those_of_the_dockerfile() {
        let text = fs::read_to_string(repository().join("Dockerfile")).expect("the Dockerfile");
        let mut expected = BTreeMap::new();
        for line in text.lines() {
            let line = line.trim_start().trim_start_matches("LABEL ").trim_end_matches('\\').trim_end();
            if let Some((key, value)) = line.split_once('=')
                && key.starts_with(LABELS)
            {
                expected.insert(key.to_owned(), value.trim_matches('"').to_owned());
            }
        }
        let release = Release {
            version: "${VERSION}".to_owned(),
            revision: "${REVISION}".to_owned(),
            source: Some("${SOURCE}".to_owned()),
            ..release()
        };
        let mut labels = labels(&release);
        labels.insert(format!("{LABELS}created"), "${CREATED}".to_owned());
        assert_eq!(labels, expected);
    }
}
