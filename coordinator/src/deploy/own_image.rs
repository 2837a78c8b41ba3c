//! Which container this process runs in, as its own kernel tells. The host name is no help: with the
//! host's network it is the host's.

use std::fs;
use std::path::Path;

/// ID of the container that the process described in `proc_self` runs in, if it runs in one.
pub(crate) fn container_id(proc_self: &Path) -> Option<String> {
    let read = |name| fs::read_to_string(proc_self.join(name)).unwrap_or_default();
    in_mountinfo(&read("mountinfo")).or_else(|| in_cgroup(&read("cgroup")))
}

/// The engine mounts files of the container's own folder, `<data-root>/containers/<ID>/`, over these.
fn in_mountinfo(text: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        let ours = matches!(point, "/etc/hostname" | "/etc/hosts" | "/etc/resolv.conf");
        let (_, rest) = root.rsplit_once("/containers/").filter(|_| ours)?;
        id(rest.split('/').next()?)
    })
}

/// `…/docker/<ID>` with the cgroupfs driver, `…/docker-<ID>.scope` with systemd's. With a cgroup
/// namespace there is only `/`.
fn in_cgroup(text: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let last = line.rsplit('/').next()?;
        id(last.strip_prefix("docker-").and_then(|rest| rest.strip_suffix(".scope")).unwrap_or(last))
    })
}

fn id(text: &str) -> Option<String> {
    let whole = text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    whole.then(|| text.to_owned())
}

/// The name by which every node can get the image: by digest if a registry has it, else its ID, which
/// works where the image was loaded on every node. `named` is what the container was started from.
pub(crate) fn best_name(id: &str, repo_digests: &[String], named: &str) -> String {
    let repository = |name: &str| {
        let name = name.split('@').next().unwrap_or(name);
        // A colon after the last slash begins a tag; before it, a port.
        match name.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => repository.to_owned(),
            Some(_) | None => name.to_owned(),
        }
    };
    let wanted = repository(named);
    let same = repo_digests.iter().find(|digest| repository(digest) == wanted);
    same.or(repo_digests.first()).map_or_else(|| id.to_owned(), Clone::clone)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn found_among_the_mounts() {
        let other = "f".repeat(64);
        let text = format!(
            "621 602 0:40 / / rw - overlay overlay rw,lowerdir=/x\n\
             630 621 8:1 /docker/containers/{other}/data /host/containers rw - ext4 /dev/sda1 rw\n\
             631 621 8:1 /var/lib/docker/containers/{ID}/resolv.conf /etc/resolv.conf rw - ext4 /dev/sda1 rw\n"
        );
        assert_eq!(in_mountinfo(&text).as_deref(), Some(ID));
        // A node that is itself a container: the inner ID is the last one of the path.
        let nested =
            format!("1 2 8:1 /docker/volumes/v/_data/containers/{ID}/hostname /etc/hostname rw - ext4 /dev/sda1 rw\n");
        assert_eq!(in_mountinfo(&nested).as_deref(), Some(ID));
        assert_eq!(in_mountinfo("1 2 8:1 /etc/hostname /etc/hostname rw - ext4 /dev/sda1 rw\n"), None);
    }

    #[test]
    fn found_among_the_cgroups() {
        assert_eq!(in_cgroup(&format!("12:pids:/docker/{ID}\n0::/\n")).as_deref(), Some(ID));
        assert_eq!(in_cgroup(&format!("0::/system.slice/docker-{ID}.scope\n")).as_deref(), Some(ID));
        assert_eq!(in_cgroup("0::/user.slice/session-3.scope\n"), None);
    }

    #[test]
    fn outside_a_container_there_is_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(container_id(dir.path()), None);
        fs::write(dir.path().join("cgroup"), format!("0::/docker/{ID}\n")).unwrap();
        assert_eq!(container_id(dir.path()).as_deref(), Some(ID));
    }

    #[test]
    fn names() {
        let digests = ["mirror:5000/requeen@sha256:1".to_owned(), "hub/requeen@sha256:1".to_owned()];
        assert_eq!(best_name("sha256:id", &digests, "hub/requeen:0.1"), "hub/requeen@sha256:1");
        assert_eq!(best_name("sha256:id", &digests, "mirror:5000/requeen"), "mirror:5000/requeen@sha256:1");
        assert_eq!(best_name("sha256:id", &digests, "else"), "mirror:5000/requeen@sha256:1");
        assert_eq!(best_name("sha256:id", &[], "requeen:0.1"), "sha256:id");
    }
}
