//! Hosts on which an upgrade would fail: each is found out, named and refused before anything is drained.

use std::time::Duration;

use anyhow::{Result, ensure};
use lab::{Node, Suite, product, wait};

use crate::operator::{requeen, requeen_ok};
use crate::world::{World, bundle};

/// How long an agent may take to come back.
const LIMIT: Duration = Duration::from_secs(60);

/// What is wrong with a host.
struct Trouble {
    /// A script that makes it so on the node.
    make: &'static str,
    /// A script that takes it back.
    mend: &'static str,
    /// Whether agents only see it from their start on: mounts that came later are not theirs.
    anew: bool,
    /// What has to be in the refusal.
    words: &'static [&'static str],
}

const TROUBLES: [Trouble; 5] = [
    Trouble {
        make: "mkdir --parents /etc/docker && echo '{\"no-such-option\": true}' > /etc/docker/daemon.json",
        mend: "rm /etc/docker/daemon.json",
        anew: false,
        words: &["refuses this node's configuration", "no-such-option", "daemon.json"],
    },
    Trouble {
        make: "touch --date '+1 min' $(systemctl show --property=FragmentPath --value docker)",
        mend: "systemctl daemon-reload",
        anew: false,
        words: &["docker.service changed on the disk and systemd has not read it yet", "systemctl daemon-reload"],
    },
    Trouble {
        make: "mount --bind /usr /usr && mount --options remount,ro,bind /usr",
        mend: "umount --lazy /usr",
        anew: true,
        words: &["/usr/bin is on a read-only file system", "remount it writable"],
    },
    Trouble {
        make: "mount --bind /var/lib/requeen /var/lib/requeen && mount --options remount,noexec,bind /var/lib/requeen",
        mend: "umount --lazy /var/lib/requeen",
        anew: true,
        words: &["/var/lib/requeen/engines is on a file system mounted noexec", "remount it with exec"],
    },
    Trouble {
        make: "mount -t tmpfs -o size=64m tmpfs /var/lib/requeen",
        mend: "umount --lazy /var/lib/requeen",
        anew: true,
        words: &["/var/lib/requeen/engines has 64 MiB free", "are needed", "make room on the file system"],
    },
];

pub(crate) fn hosts_that_cannot_follow_are_refused(world: &World) -> Result<()> {
    let small = world.small()?;
    let (first, worker) = (small.first()?, small.worker()?);
    small.with_agents()?;
    let place = product::copy_bundle(first, &bundle(Suite::Sid)?)?;
    let plan = ["plan", "--bundle", &place, "--only", "w1"];
    requeen_ok(first, &plan)?;
    for Trouble { make, mend, anew, words } in TROUBLES {
        worker.sh(make)?;
        let answer = (|| {
            if anew {
                another_agent(worker)?;
            }
            requeen(first, &plan)
        })();
        worker.sh(mend)?;
        if anew {
            another_agent(worker)?;
        }
        let answer = answer?;
        ensure!(answer.status == 2, "exit {}, not 2, after `{make}`", answer.status);
        let missing = [&["refused: node w1: ", "hint: "], words]
            .concat()
            .into_iter()
            .find(|words| !answer.stdout.contains(words));
        ensure!(missing.is_none(), "{missing:?} is not in the answer after `{make}`:\n{}", answer.stdout);
    }
    requeen_ok(first, &plan)?;
    Ok(())
}

/// Ends the agent on a node, and waits until the swarm has started another one.
pub(crate) fn another_agent(node: &Node) -> Result<()> {
    let agent = || anyhow::Ok(node.exec(&["pgrep", "--exact", "agent"])?.trimmed().to_owned());
    let before = agent()?;
    ensure!(!before.is_empty(), "there is no agent on {node}");
    node.sh(&format!("kill {before}"))?;
    let waited = wait::until_true("another agent", LIMIT, || {
        let now = agent().unwrap_or_default();
        Ok(if now.is_empty() || now == before { Err(format!("{now:?}")) } else { Ok(()) })
    });
    Ok(waited?)
}
