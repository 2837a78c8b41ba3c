//! The lab on itself: one swarm, and everything that scenarios do to its nodes.
//!
//! Ignored unless asked for, as it takes the machine's engine: `cargo test -p requeen-lab -- --ignored`.

use std::time::Duration;

use lab::{Init, Kind, Lab, Result, Spec, Suite};

const LIMIT: Duration = Duration::from_secs(180);

/// Removes the lab whether the test holds or not.
struct Guard(&'static str);

impl Drop for Guard {
    fn drop(&mut self) {
        Lab::down(self.0).ok();
    }
}

#[test]
#[ignore = "makes a swarm on the machine's engine"]
fn containers_survive_what_scenarios_do_to_them() -> Result<()> {
    nodes_survive("lab-test", Kind::Container)
}

#[test]
#[ignore = "makes a swarm of machines"]
fn machines_survive_what_scenarios_do_to_them() -> Result<()> {
    nodes_survive("lab-test-machines", Kind::Machine)
}

fn nodes_survive(name: &'static str, kind: Kind) -> Result<()> {
    let _guard = Guard(name);
    let spec =
        Spec { name: name.to_owned(), managers: 1, workers: 1, suite: Suite::Bookworm, kind, init: Init::Systemd };
    let lab = Lab::up(&spec)?;
    let (manager, worker) = (lab.node("m1")?, lab.node("w1")?);

    // What is found again is what was made.
    let found = Lab::attach(name)?;
    assert_eq!(found.nodes(), lab.nodes());
    assert!(Lab::names()?.contains(&name.to_owned()));

    // Commands, their input and their status.
    assert_eq!(worker.exec(&["false"])?.status, 1);
    assert_eq!(worker.exec_with_stdin(&["wc", "-c"], &vec![b'x'; 1 << 20])?.trimmed(), "1048576");
    assert_eq!(worker.sh("hostname")?.trimmed(), "w1");

    // Files land as the node sees them, memory file systems too, with their permissions.
    let script = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(script.path(), "#!/bin/sh\necho ran\n").expect("written");
    worker.copy_in(script.path(), "/tmp/script")?;
    assert_eq!(worker.sh("stat -c %a /tmp/script")?.trimmed(), "600");

    // An image, and a service on it: its tasks need no registry.
    let image = lab::images::node_image(Suite::Bookworm)?;
    lab.load_image(&image)?;
    manager.docker(&[
        "service",
        "create",
        "--detach",
        "--no-resolve-image",
        "--name",
        "s",
        "--mode",
        "global",
        &image,
        "sleep",
        "999",
    ])?;
    lab::product::wait_for_service(manager, "s", 2, LIMIT)?;

    // The cable.
    let id = worker.node_id()?;
    let reaches_manager =
        || -> Result<bool> { Ok(worker.exec(&["timeout", "2", "bash", "-c", "</dev/tcp/m1/2377"])?.success()) };
    assert!(reaches_manager()?);
    worker.disconnect()?;
    assert!(!reaches_manager()?);
    worker.connect()?;
    assert!(worker.sh("ip -4 address show")?.stdout.contains(&worker.ip().to_string()));
    lab.wait_until_ready(manager, LIMIT)?;

    // The power.
    worker.kill()?;
    assert!(!worker.exec(&["true"])?.success());
    worker.start()?;
    worker.wait_for_engine(LIMIT)?;
    lab.wait_until_ready(manager, LIMIT)?;
    assert_eq!(worker.node_id()?, id);
    assert!(worker.journal("docker.service", "-5min")?.contains("Started"));
    worker.reboot()?;
    worker.wait_for_engine(LIMIT)?;
    lab.wait_until_ready(manager, LIMIT)?;

    Lab::down(name)?;
    assert!(!Lab::names()?.contains(&name.to_owned()));
    Ok(())
}
