//! The disk that a machine boots from: the nodes' root with the kernel's modules, and a way in from outside.
//!
//! It is one file, an ext4 that nobody writes to: every machine has a copy-on-write file of its own on top of it. What
//! one machine has and another has not is on the kernel's command line, and a unit puts it where it belongs, in memory
//! only: the disk is the engine's and the product's.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::apt::Archive;
use crate::{Error, Init, Result, Suite, cache, command, tools};

use super::node::{self, Root};

/// Part of the file's digest: raise it when the same packages shall give another disk.
const RECIPE: &str = "1";

/// What a machine's PID 1 is: the way in, and what puts the command line's words in place, are units.
const INIT: Init = Init::Systemd;

/// What a machine carries beside what every node does: the way in, and what a disk is made of block by block with.
const PACKAGES: [&str; 2] = ["openssh-server", "dmsetup"];

/// Units of the packages that have another unit here.
const MASKED: [&str; 3] = ["ssh.service", "ssh.socket", "e2scrub_reap.service"];

/// Modules that engines ask for at times when nobody may load them, or in ways that this kernel does not understand.
const MODULES: &str = "overlay\nbr_netfilter\nip_tables\niptable_filter\niptable_nat\nxt_MASQUERADE\nxt_conntrack\nvxlan\nip_vs\nip_vs_rr\n";

/// Where Debian's package has the modules of its kernel.
const MODULES_FROM: &str = "/usr/lib/uml/modules";

/// Nothing is written to the disk by itself, or a sync that somebody forgot would not be missed.
const SYSCTL: &str = "vm.dirty_writeback_centisecs = 0\n";

/// The size of the disk; what nobody wrote takes no room.
const SIZE: &str = "8G";

/// Puts in place what the kernel's command line says of this machine.
const SCRIPT: &str = r#"#!/bin/sh
# What this machine has and another one has not: its addresses, its neighbours' names, and who may come in.
set -eu
umask 022
mkdir -p /run/lab
printf '127.0.0.1 localhost\n' > /run/lab/hosts
for word in $(cat /proc/cmdline); do
    case $word in
    lab.address=*) ip address add "${word#*=}/24" dev vec0 ;;
    lab.control=*) ip address add "${word#*=}/24" dev vec1 ;;
    lab.host=*:*) pair=${word#*=}; printf '%s %s\n' "${pair#*:}" "${pair%%:*}" >> /run/lab/hosts ;;
    lab.key=*) printf 'ssh-ed25519 %s\n' "${word#*=}" > /run/lab/authorized_keys ;;
    esac
done
ip link set lo up
ip link set vec0 up
ip link set vec1 up
ssh-keygen -q -t ed25519 -N '' -f /run/lab/host_key
"#;

/// How a machine's disk is mounted: nothing reaches it but what was synced, not after a while, and not because a file was
/// replaced.
pub const MOUNT_OPTIONS: &str = "commit=600,noauto_da_alloc";

/// The name that device-mapper has for a disk whose writes are logged.
pub(crate) const LOGGED_DISK: &str = "logged";

/// What a machine boots with whose writes are logged, as a path of the disk.
pub(crate) const LOGGED_INIT: &str = "/usr/local/sbin/lab-logged";

/// Puts a log between a machine and its disk, and goes on from there as every machine does. The root is the disk that all
/// machines share, the machine's own one the second, the log the third.
fn logged_script() -> String {
    format!(
        r#"#!/bin/sh
# PID 1 of a machine whose writes are logged, until its root is its own disk below the log.
set -eu
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mountpoint -q /dev || mount -t devtmpfs dev /dev
# sshd believes no key below a folder that everybody may write to.
mount -t tmpfs -o mode=0755,nosuid,nodev run /run
modprobe dm-log-writes
size=$(blockdev --getsz /dev/ubdb)
# There is no udev yet that would make its name.
DM_DISABLE_UDEV=1 dmsetup create {LOGGED_DISK} --table "0 $size log-writes /dev/ubdb /dev/ubdc"
# Not below what moves there.
mount -t ext4 -o {MOUNT_OPTIONS} /dev/mapper/{LOGGED_DISK} /mnt
exec switch_root /mnt /sbin/init
"#
    )
}

const BOOT_UNIT: &str = "[Unit]
Description=What the lab says of this machine
DefaultDependencies=no
Wants=network-pre.target
Before=network-pre.target network.target docker.service shutdown.target
Conflicts=shutdown.target
After=systemd-tmpfiles-setup-dev.service local-fs.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/lab-boot

[Install]
WantedBy=sysinit.target
";

const SSH_UNIT: &str = "[Unit]
Description=The lab's way in
Requires=lab-boot.service
After=lab-boot.service

[Service]
RuntimeDirectory=sshd
ExecStart=/usr/sbin/sshd -D -e -f /etc/ssh/lab
# What came in by it lives on, as with a container's.
KillMode=process
Restart=always

[Install]
WantedBy=multi-user.target
";

const SSH_CONFIG: &str = "HostKey /run/lab/host_key
AuthorizedKeysFile /run/lab/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
PrintMotd no
PrintLastLog no
MaxSessions 200
MaxStartups 200
PerSourcePenalties no
";

/// The disk of a suite, made if the cache does not have it.
///
/// # Errors
/// [`Error::SuiteUnavailable`] if the suite can't be had here.
pub fn machine_disk(suite: Suite) -> Result<PathBuf> {
    tools::install()?;
    tools::install_for_machines()?;
    let archive = Archive::open(suite)?;
    let parts = [RECIPE, SIZE, MODULES, SYSCTL, SCRIPT, &logged_script(), BOOT_UNIT, SSH_UNIT, SSH_CONFIG].concat();
    let kernel = cache::digest_file(Path::new(crate::machine::KERNEL))?;
    let recipe = format!("{} {parts} {PACKAGES:?} {MASKED:?} {kernel}", node::recipe(&archive, INIT));
    let name = format!("{suite}-{}.ext4", cache::short(&cache::digest_text(&recipe)));
    let path = cache::folder(FOLDER)?.join(name);
    let _lock = cache::lock(&format!("machine-disk-{suite}"))?;
    if !path.is_file() {
        tracing::info!(%suite, path = %path.display(), "make the machines' disk; this takes about two minutes");
        make(suite, &archive, &path)?;
    }
    Ok(path)
}

/// The part of the cache that has the disks.
const FOLDER: &str = "disks";

/// Removes the disks. A machine that runs keeps its own until its power is gone, and then it has none.
pub(super) fn clean() -> Result<Vec<String>> {
    let folder = cache::folder(FOLDER)?;
    let mut removed = Vec::new();
    for entry in fs::read_dir(&folder).map_err(Error::file("read", &folder))? {
        let path = entry.map_err(Error::file("read", &folder))?.path();
        fs::remove_file(&path).map_err(Error::file("remove", &path))?;
        removed.push(path.display().to_string());
    }
    Ok(removed)
}

fn make(suite: Suite, archive: &Archive, path: &Path) -> Result<()> {
    // A killed run leaves a folder of its own name, which is no disk.
    let work =
        tempfile::tempdir_in(cache::folder("images")?).map_err(Error::file("create a folder in", "the cache"))?;
    let root = work.path().join("root");
    let masked: Vec<&str> =
        INIT.masked().iter().copied().filter(|unit| *unit != "systemd-modules-load.service").collect();
    let masked = [&masked, &MASKED[..]].concat();
    let hooks = [
        // The kernel has no nftables.
        "--customize-hook=chroot \"$1\" update-alternatives --set iptables /usr/sbin/iptables-legacy",
        "--customize-hook=rm -f \"$1\"/etc/ssh/ssh_host_*",
    ];
    let recipe = Root { format: "directory", init: INIT, packages: &PACKAGES, masked: &masked, hooks: &hooks };
    node::make_root(suite, archive, work.path(), &recipe, &root)?;
    fit(&root)?;
    let unfinished = work.path().join("disk");
    let root = root.display().to_string();
    let unfinished_name = unfinished.display().to_string();
    // Tables that the kernel would write later would fill every machine's own file.
    let whole = "lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0";
    command::run(
        "mke2fs",
        &["-q", "-t", "ext4", "-E", whole, "-L", "requeen-lab", "-d", &root, &unfinished_name, SIZE],
    )?;
    fs::rename(&unfinished, path).map_err(Error::file("move a disk to", path))
}

/// Puts what makes a machine of a root into it.
fn fit(root: &Path) -> Result<()> {
    let modules = root.join("usr/lib/modules");
    fs::create_dir_all(&modules).map_err(Error::file("create", &modules))?;
    for entry in fs::read_dir(MODULES_FROM).map_err(Error::file("read", MODULES_FROM))? {
        let entry = entry.map_err(Error::file("read", MODULES_FROM))?;
        command::run("cp", &["--archive".as_ref(), entry.path().as_os_str(), modules.as_os_str()])?;
        command::run("chroot", &[root.as_os_str(), "depmod".as_ref(), entry.file_name().as_os_str()])?;
    }
    let logged_script = logged_script();
    let files = [
        ("etc/modules-load.d/lab.conf", MODULES, 0o644),
        ("etc/sysctl.d/lab.conf", SYSCTL, 0o644),
        ("usr/local/sbin/lab-boot", SCRIPT, 0o755),
        (LOGGED_INIT.trim_start_matches('/'), &logged_script, 0o755),
        ("etc/systemd/system/lab-boot.service", BOOT_UNIT, 0o644),
        ("etc/systemd/system/lab-ssh.service", SSH_UNIT, 0o644),
        ("etc/ssh/lab", SSH_CONFIG, 0o644),
        // A resolver that can't answer would make every task wait for it.
        ("etc/resolv.conf", "", 0o644),
    ];
    for (name, content, mode) in files {
        let path = root.join(name);
        fs::remove_file(&path).ok();
        fs::write(&path, content).map_err(Error::file("write", &path))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).map_err(Error::file("set the mode of", &path))?;
    }
    let hosts = root.join("etc/hosts");
    fs::remove_file(&hosts).ok();
    symlink("/run/lab/hosts", &hosts).map_err(Error::file("link", &hosts))?;
    let root = root.display().to_string();
    let units = ["lab-boot.service", "lab-ssh.service"];
    command::run("chroot", &[&[root.as_str(), "systemctl", "enable"][..], &units].concat()).map(drop)
}
