//! What surrounds an engine on its host: a monitor that starts it, a start that systemd refuses, a containerd that does not
//! come up, files that others replace after the staging, files that are links. The node ends upgraded or as it was.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::bundles::{self, Failing};
use lab::Node;
use serde_json::Value;

use crate::engines::{files, rolled_back};
use crate::faults::{
    and_back, base, changed, engine_start, other_runc, runc, upgraded, wait_for_shown, waits_for_grant,
};
use crate::operator::{requeen, requeen_ok, status, wait_for_end};
use crate::power::{begin, is_whole};
use crate::world::World;

/// How long anything here may take until it is seen.
const LIMIT: Duration = Duration::from_secs(90);

/// The worker, by name.
const WORKER: &str = "w1";

/// Somebody starts the engine again and again while it is replaced. However that ends, the process that runs is of the set
/// that the node says it has.
pub(crate) fn an_engine_that_others_start_is_the_one_it_says(world: &World) -> Result<()> {
    let small = world.small()?;
    let (first, worker) = (small.first()?, small.worker()?);
    small.with_agents()?;
    let old = bundles::content(&base(worker)?.path, "dockerd")?;
    // Of the same version: what tells it from the old one is its digest alone.
    let new = [&old[..], b"another"].concat();
    let (old, place) = (bundles::sha256(&old), changed(small, "dockerd", &new)?);
    let new = bundles::sha256(&new);
    let runs = || -> Result<String> {
        Ok(worker.sh("sha256sum < /proc/$(pidof dockerd)/exe | cut -c1-64")?.trimmed().to_owned())
    };
    ensure!(runs()? == old, "{worker} runs another dockerd than the bundle's");
    and_back(small, || {
        let monitor = "systemd-run --quiet --unit monitor --property Type=exec \
                       sh -c 'while sleep 0.02; do systemctl start docker; done'";
        worker.sh(monitor)?;
        let output = requeen(first, &["upgrade", "--bundle", &place, "--only", WORKER, "--start-timeout", "30s"]);
        worker.sh("systemctl stop monitor")?;
        let output = output?;
        let phase = status(first)?.pointer("/rollout/phase").cloned().unwrap_or_default();
        worker.wait_for_engine(LIMIT)?;
        let (now, file) = (runs()?, worker.sh("sha256sum < $(command -v dockerd) | cut -c1-64")?);
        eprintln!("the rollout is {phase}; {}", if now == new { "the new engine runs" } else { "the old engine runs" });
        ensure!(now == file.trimmed(), "the process is of another file than the one that is installed: {now}");
        if output.success() {
            ensure!(now == new, "upgraded, and {now} runs");
            requeen_ok(first, &["rollback"])?;
        } else {
            ensure!(now == old && phase == "halted", "rolled back: {phase}, and {now} runs");
            wait_for_shown(first, "the worker rolled back", WORKER, rolled_back)?;
            requeen_ok(first, &["abort"])?;
            wait_for_end(first)?;
        }
        ensure!(runs()? == old, "{worker} has not got its engine back");
        is_whole(small, &runc(worker)?)
    })
}

/// The engine was started so often that systemd refuses the next start: that is cleared before the new one is started, and the
/// limit stays.
pub(crate) fn a_start_limit_that_was_hit_is_no_obstacle(world: &World) -> Result<()> {
    let small = world.small()?;
    let (first, worker) = (small.first()?, small.worker()?);
    begin(small, |place, _| {
        let folder = "/etc/systemd/system/docker.service.d";
        let text = "[Unit]\\nStartLimitBurst=1\\nStartLimitIntervalSec=1h\\n";
        worker.sh(&format!(
            "mkdir {folder} && printf '{text}' > {folder}/limit.conf && systemctl daemon-reload && \
             systemctl reset-failed docker && systemctl restart docker"
        ))?;
        let done = (|| {
            worker.wait_for_engine(LIMIT)?;
            lab_is_whole(first)?;
            requeen_ok(first, &["upgrade", "--bundle", place, "--only", WORKER])?;
            wait_for_shown(first, "the upgraded worker", WORKER, upgraded)
        })();
        // One start was all that the limit allows: the next one is refused, as it would have been in the upgrade.
        let again = worker.exec(&["systemctl", "restart", "docker"])?;
        worker.sh(&format!(
            "rm -r {folder} && systemctl daemon-reload && systemctl reset-failed docker docker.socket && \
             systemctl start docker.socket docker"
        ))?;
        done?;
        ensure!(!again.success(), "the limit was never in force");
        is_whole(small, &bundles::sha256(&other_runc(&base(worker)?)?))
    })
}

/// Waits until both nodes are ready and their agents are heard.
fn lab_is_whole(first: &Node) -> Result<()> {
    let heard = |shown: &Value| shown["ready"] == true && shown["silent_secs"] == 0;
    wait_for_shown(first, "the word of the worker's agent", WORKER, heard)
}

/// A containerd that passes every check and does not start: the engine is rolled back, and containerd with it.
pub(crate) fn a_containerd_that_fails_is_rolled_back(world: &World) -> Result<()> {
    let small = world.small()?;
    let (first, worker) = (small.first()?, small.worker()?);
    small.with_agents()?;
    let files = files(worker)?;
    let place = changed(small, "containerd", &bundles::failing_dockerd("99.1.0", Failing::AtOnce)?)?;
    and_back(small, || {
        let output = requeen(first, &["upgrade", "--bundle", &place, "--only", WORKER, "--start-timeout", "30s"])?;
        ensure!(output.status == 1, "exit {}, not 1\n{}", output.status, output.stderr);
        let said = format!("{}{}", output.stdout, output.stderr);
        for words in ["rolled back", "containerd"] {
            ensure!(said.contains(words), "{words:?} is not in what it said:\n{said}");
        }
        wait_for_shown(first, "the worker rolled back", WORKER, rolled_back)
    })?;
    ensure!(self::files(worker)? == files, "{worker} has other files");
    let containerd = worker.exec(&["systemctl", "is-active", "containerd"])?;
    ensure!(containerd.trimmed() == "active", "containerd is {}", containerd.trimmed());
    is_whole(small, &runc(worker)?)
}

/// A file of the engine is replaced while its node, staged, waits for its lease, as a package's upgrade does. It is refused
/// by name; the node stays what it is now, and has its availability back.
pub(crate) fn a_file_replaced_after_the_staging_is_named(world: &World) -> Result<()> {
    let small = world.small()?;
    let (first, worker) = (small.first()?, small.worker()?);
    begin(small, |place, old| {
        let started = engine_start(worker)?;
        requeen_ok(first, &["upgrade", "--bundle", place, "--only", WORKER, "--manual", "--detach"])?;
        wait_for_shown(first, "the node waiting for its grant", WORKER, waits_for_grant)?;
        worker.sh("path=$(command -v runc) && cp -p $path /root/runc.old && cp -p $path $path.new && echo >> $path.new && mv $path.new $path")?;
        let drifted = runc(worker)?;
        let refused = (|| {
            requeen_ok(first, &["grant", WORKER])?;
            wait_for_shown(first, "the worker's refusal", WORKER, |shown| shown["step"]["outcome"] == "failed")?;
            let shown = status(first)?;
            let reason = shown.pointer("/rollout/reason").and_then(Value::as_str).context("no reason")?.to_owned();
            for words in ["w1: ", "runc` was changed since the node was staged"] {
                ensure!(reason.contains(words), "{words:?} is not in {reason}");
            }
            wait_for_shown(first, "the availability it had", WORKER, |shown| shown["availability"] == "active")?;
            ensure!(engine_start(worker)? == started, "the engine of {worker} was restarted");
            ensure!(runc(worker)? == drifted, "{worker} has not the file that was put there");
            requeen_ok(first, &["abort"])?;
            wait_for_end(first)
        })();
        worker.sh("mv /root/runc.old $(command -v runc)")?;
        refused?;
        is_whole(small, old)
    })
}

/// A target is a symbolic link to a file elsewhere, and another has a second name there: rolled back they are again what they
/// were, and upgraded they are files of their own while those elsewhere stay.
pub(crate) fn targets_that_are_links_are_kept(world: &World) -> Result<()> {
    let small = world.small()?;
    let (first, worker) = (small.first()?, small.worker()?);
    begin(small, |place, old| {
        let base = base(worker)?;
        let folder = tempfile::tempdir()?;
        let failing = folder.path().join("failing.tgz");
        let half = folder.path().join("half.tgz");
        bundles::replaced(&base.path, "runc", &other_runc(&base)?, &half)?;
        bundles::replaced(&half, "dockerd", &bundles::failing_dockerd("99.1.0", Failing::AtOnce)?, &failing)?;
        first.copy_in(&failing, "/root/failing.tgz")?;
        worker.sh(
            "mkdir /opt/engine && mv $(command -v runc) /opt/engine/runc && ln -s /opt/engine/runc /usr/bin/runc && \
             ln $(command -v dockerd) /opt/engine/dockerd",
        )?;
        let looks = || -> Result<String> {
            let script = "stat -c '%n %F %a %U' /usr/bin/runc $(command -v dockerd) /opt/engine/*; readlink /usr/bin/runc; \
                          sha256sum /usr/bin/runc /opt/engine/* $(command -v dockerd)";
            Ok(worker.sh(script)?.stdout)
        };
        let before = looks()?;
        let output = requeen(first, &["upgrade", "--bundle", "/root/failing.tgz", "--only", WORKER])?;
        requeen_ok(first, &["abort"])?;
        wait_for_end(first)?;
        wait_for_shown(first, "the worker rolled back", WORKER, rolled_back)?;
        ensure!(output.status == 1, "exit {}, not 1", output.status);
        let after = looks()?;
        ensure!(after == before, "rolled back it is\n{after}\nand was\n{before}");

        requeen_ok(first, &["upgrade", "--bundle", place, "--only", WORKER])?;
        let kind = worker.sh("stat -c %F /usr/bin/runc; sha256sum < /opt/engine/runc | cut -c1-64")?;
        ensure!(kind.stdout == format!("regular file\n{old}\n"), "runc, and the file that it led to: {}", kind.stdout);
        worker.sh("rm -r /opt/engine")?;
        is_whole(small, &bundles::sha256(&other_runc(&base)?))
    })
}
