use std::os::unix::fs::{MetadataExt, symlink};

use super::*;
use crate::host::testing::{OLD_VERSION, TestHost, bundle, digest_of};

fn captured() -> (TestHost, Store, SetId) {
    let host = TestHost::new(&[EngineFile::DockerProxy]);
    let store = host.store();
    let set = store.capture(&host.layout(), OLD_VERSION).unwrap();
    (host, store, set)
}

#[test]
fn a_set_is_named_by_its_content() {
    let files = BTreeMap::from([
        (EngineFile::Runc, SetFile { digest: digest_of(b"r"), len: 1 }),
        (EngineFile::Dockerd, SetFile { digest: digest_of(b"d"), len: 1 }),
    ]);
    let lines = format!("dockerd {}\nrunc {}\n", digest_of(b"d"), digest_of(b"r"));
    assert_eq!(SetId::of(&files).0, digest_of(lines.as_bytes()));
}

#[test]
fn the_running_engine_becomes_a_set() {
    let (host, store, set) = captured();
    let manifest = store.manifest(&set).unwrap();
    assert_eq!(manifest.version, OLD_VERSION);
    assert_eq!(manifest.files.len(), EngineFile::ALL.len() - 1);
    let init = &manifest.files[&EngineFile::DockerInit];
    assert_eq!(init.digest, digest_of(b"old docker-init"), "what the link leads to");
    store.verify(&set).unwrap();
    let inode = |path: PathBuf| fs::metadata(path).unwrap().ino();
    assert_eq!(
        inode(store.path(&set, EngineFile::Dockerd)),
        inode(host.root.join("/usr/sbin/dockerd")),
        "by a hard link, as both are on one file system"
    );
    assert_eq!(store.capture(&host.layout(), OLD_VERSION).unwrap(), set, "twice the same");
    let names: Vec<_> = fs::read_dir(&store.dir).unwrap().collect();
    assert_eq!(names.len(), 1, "no leftovers: {names:?}");
}

#[test]
fn a_bundle_becomes_a_set_with_what_it_lacks() {
    let (_host, store, base) = captured();
    let files: [(&str, &[u8]); 2] = [("docker/dockerd", b"new"), ("docker/docker-proxy", b"p")];
    let (bytes, bundle) = bundle(&files, "26.1.5");
    // What a crash left of an earlier attempt is in nobody's way.
    fs::create_dir(store.dir.join(".stage")).unwrap();
    fs::write(store.dir.join(".stage/dockerd"), b"torn").unwrap();
    let mut read = 0;
    let set = store.stage(&bytes[..], &bundle, &base, &mut |now| read = now).unwrap();
    assert_eq!(read, bundle.size);
    let manifest = store.manifest(&set).unwrap();
    assert_eq!(manifest.version, "26.1.5");
    assert_eq!(manifest.files.len(), EngineFile::ALL.len());
    assert_eq!(fs::read(store.path(&set, EngineFile::Dockerd)).unwrap(), b"new");
    assert_eq!(fs::read(store.path(&set, EngineFile::Runc)).unwrap(), b"old runc");
    store.verify(&set).unwrap();
    assert!(!store.dir.join(".stage").exists());
    assert_eq!(store.staged(&bundle, &base).unwrap(), Some(set.clone()), "it need not be staged again");
    fs::write(store.path(&set, EngineFile::Dockerd), b"bad").unwrap();
    assert_eq!(store.staged(&bundle, &base).unwrap(), None, "it was changed");
    assert_eq!(store.stage(&bytes[..], &bundle, &base, &mut |_| ()).unwrap(), set);
}

#[test]
fn a_refused_bundle_leaves_no_set() {
    let (_host, store, base) = captured();
    let (mut bytes, bundle) = bundle(&[("docker/dockerd", b"new")], "26.1.5");
    bytes.pop();
    let refused = store.stage(&bytes[..], &bundle, &base, &mut |_| {});
    assert!(matches!(refused, Err(SetError::Bundle(BundleError::Truncated { .. }))));
    store.prune(std::slice::from_ref(&base)).unwrap();
    let sets =
        fs::read_dir(&store.dir).unwrap().filter(|entry| set_named(&entry.as_ref().unwrap().file_name()).is_some());
    assert_eq!(sets.count(), 1);
}

#[test]
fn a_damaged_set_is_found_and_replaced() {
    let host = TestHost::new(&[]);
    let store = host.store();
    let files = [(EngineFile::Dockerd, "new"), (EngineFile::Runc, "r")];
    let set = host.new_set(&files, "26.1.5");
    fs::write(store.path(&set, EngineFile::Runc), b"x").unwrap();
    let verified = store.verify(&set);
    assert!(
        matches!(&verified, Err(SetError::Changed { file: EngineFile::Runc, got, .. }) if *got == digest_of(b"x")),
        "{verified:?}"
    );
    symlink(set.0.hex(), store.dir.join(CURRENT)).unwrap();
    assert_eq!(host.new_set(&files, "26.1.5"), set);
    store.verify(&set).unwrap();
    assert_eq!(store.current().unwrap(), Some(set.clone()));

    fs::write(store.set_dir(&set).join(MANIFEST), b"{").unwrap();
    assert!(matches!(store.manifest(&set), Err(SetError::ManifestDamaged { .. })));
    fs::remove_file(store.set_dir(&set).join(MANIFEST)).unwrap();
    assert!(matches!(store.manifest(&set), Err(SetError::Manifest { .. })));
}

#[test]
fn a_manifest_belongs_to_its_folder() {
    let (host, store, set) = captured();
    let other = host.new_set(&[(EngineFile::Dockerd, "new")], "26.1.5");
    fs::copy(store.set_dir(&other).join(MANIFEST), store.set_dir(&set).join(MANIFEST)).unwrap();
    assert!(matches!(store.manifest(&set), Err(SetError::ManifestForeign { .. })));
}

#[test]
fn without_dockerd_there_is_no_set() {
    let host = TestHost::new(&[]);
    let mut layout = host.layout();
    layout.present.remove(&EngineFile::Dockerd);
    assert!(matches!(host.store().capture(&layout, "1"), Err(SetError::NoEngine)));
}

#[test]
fn current_is_read_and_not_believed() {
    let (_host, store, set) = captured();
    assert_eq!(store.current().unwrap(), None);
    symlink(set.0.hex(), store.dir.join(CURRENT)).unwrap();
    assert_eq!(store.current().unwrap(), Some(set));
    fs::remove_file(store.dir.join(CURRENT)).unwrap();
    symlink("/etc", store.dir.join(CURRENT)).unwrap();
    assert!(matches!(store.current(), Err(SetError::CurrentForeign(_))));
}

#[test]
fn history_knows_the_way_back() {
    let (host, store, a) = captured();
    let [b, c] = ["b", "c"].map(|text| host.new_set(&[(EngineFile::Dockerd, text)], text));
    let install = |from: &SetId, to: &SetId| {
        if let Some(bytes) = store.history_with(from, to).unwrap() {
            files::replace(&store.dir.join(HISTORY), &bytes).unwrap();
        }
    };
    assert_eq!(store.previous(&a).unwrap(), None);
    install(&a, &b);
    install(&a, &b);
    assert_eq!(store.history().unwrap().installed, [a.clone(), b.clone()], "idempotent");
    assert_eq!(store.previous(&b).unwrap(), Some(a.clone()));
    // A package's upgrade brought c, which no swap installed: the way back is what a swap did.
    assert_eq!(store.previous(&c).unwrap(), Some(b.clone()));
    install(&b, &a);
    assert_eq!(store.previous(&a).unwrap(), Some(b.clone()), "a rollback can be taken back");

    install(&a, &c);
    store.prune(&[]).unwrap();
    assert!(store.manifest(&b).is_err(), "older than the last two");
    store.verify(&a).unwrap();
    store.verify(&c).unwrap();
    store.prune(&[]).unwrap();
    store.verify(&a).unwrap();
    fs::remove_dir_all(store.set_dir(&a)).unwrap();
    assert_eq!(store.previous(&c).unwrap(), None, "a set that is gone is no way back");

    fs::write(store.dir.join(HISTORY), b"{\"schema\":1,").unwrap();
    assert!(matches!(store.previous(&c), Err(SetError::HistoryDamaged(_))));
    assert!(store.prune(&[]).is_err(), "nothing is removed on a guess");
    store.verify(&c).unwrap();
}

#[test]
fn prune_keeps_what_is_named_or_in_use() {
    let (host, store, a) = captured();
    let [b, c] = ["b", "c"].map(|text| host.new_set(&[(EngineFile::Dockerd, text)], text));
    symlink(a.0.hex(), store.dir.join(CURRENT)).unwrap();
    store.prune(std::slice::from_ref(&b)).unwrap();
    store.verify(&a).unwrap();
    store.verify(&b).unwrap();
    assert!(!store.set_dir(&c).exists());
}
