//! Power cuts that need no luck: all that a worker writes to its disk while it is upgraded and taken back is logged, and
//! the disk is looked at as a cut after each single flush would have left it, by what the worker would do at its boot.
//!
//! The disk is mounted with the file system's own recovery. The boot is played by what matters in it: systemd's rules for
//! the unit of the recovery, and that unit's program, from that disk and with that disk as its root.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use lab::Node;
use lab::command::{self, Input};
use lab::figures::Figures;
use lab::writes::{self, Recording, Replay};
use serde_json::Value;

use crate::cuts::{Cuts, End, Files, WORKER, digests_script, pairs};
use crate::faults::JOURNAL;
use crate::operator::requeen_ok;
use crate::world::World;

/// The programs of the disk's own root.
const PROGRAMS: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How many incoherent states are told in full.
const TOLD: usize = 10;

/// What a boot does for the files of an engine before it starts it: an engine that requires the unit does not start
/// without it, and one whose program can't be executed counts as done.
const BOOT: &str = r#"set -eu
cd /etc/systemd/system
required=$(find . -path '*.requires/requeen-recover.service')
if [ -z "$required" ]; then echo 'nothing requires a recovery'; exit 0; fi
unit=$(cat requeen-recover.service)
condition=$(printf '%s\n' "$unit" | sed -n 's/^ConditionFileIsExecutable=//p')
program=$(printf '%s\n' "$unit" | sed -n 's/^ExecStart=//p')
if [ -z "$condition" ] || [ -z "$program" ]; then echo "the unit is damaged: $unit" >&2; exit 1; fi
if ! [ -x "$condition" ]; then echo "$condition can't be executed"; exit 0; fi
exec $program 2>&1
"#;

/// Everything that a recovery may touch: names, kinds, owners, modes, sizes, where links lead, and which file it is since when.
/// The journal may be written anew, but with the same words.
const STATE: &str = "agent=/var/lib/requeen/agent
find /var/lib/requeen /etc/systemd/system /usr/bin /usr/sbin /usr/libexec/docker -path $agent -prune -o \
    -printf '%p %y %i %n %m %U %G %s %T@ %C@ %l\\n' | sort
find $agent -printf '%p %y %n %m %U %G %s %l\\n' | sort
cat $agent/*.json || true";

/// One way of the worker, between two marks in the log.
struct Way<'a> {
    /// Its name, and the mark before it.
    name: &'static str,
    /// The mark after it.
    end: &'static str,
    from: &'a Files,
    to: &'a Files,
}

/// An upgrade and its rollback.
pub(crate) fn power_may_fail_at_every_flush(world: &World) -> Result<()> {
    let small = world.recorded()?;
    let (first, worker) = (small.first()?, small.worker()?);
    let cuts = Cuts::of(small)?;
    let (old, new) = cuts.sides(worker)?;
    let upgrade = Way { name: "upgrade", end: "upgraded", from: old, to: new };
    let rollback = Way { name: "rollback", end: "rolled-back", from: new, to: old };

    worker.mark(upgrade.name)?;
    requeen_ok(first, &["upgrade", "--bundle", &new.place, "--only", WORKER])?;
    cuts.check(End::Upgraded, new)?;
    worker.mark(upgrade.end)?;
    worker.mark(rollback.name)?;
    requeen_ok(first, &["rollback"])?;
    cuts.check(End::Upgraded, old)?;
    worker.mark(rollback.end)?;

    let recording = cut(worker)?;
    let counted = writes::replay(&recording, |replay| {
        [upgrade, rollback].iter().map(|way| way.look_at_every_flush(replay)).collect::<Result<Vec<Counted>>>()
    })?;
    let wrong: Vec<String> = counted.into_iter().flat_map(|counted| counted.wrong).collect();
    ensure!(
        wrong.is_empty(),
        "{} states are not coherent, such as:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(TOLD)].join("\n")
    );
    Ok(())
}

/// Cuts the worker's power: what it would go on writing is of no interest.
fn cut(worker: &Node) -> Result<Recording> {
    let recording = worker.recording()?;
    worker.kill()?;
    Ok(recording)
}

/// What came of the states of one way.
#[derive(Default)]
struct Counted {
    /// How many ended with the files that were there before, and with the new ones.
    ends: [u64; 2],
    /// What was wrong with each of the others.
    wrong: Vec<String>,
}

impl Counted {
    fn tried(&self) -> u64 {
        self.coherent() + self.wrong.len() as u64
    }

    fn coherent(&self) -> u64 {
        self.ends.iter().sum()
    }
}

/// Which files are in the engine's places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    From,
    To,
}

impl Way<'_> {
    /// Looks at the disk after each flush of this way. The first must have the files of before, the last the new ones, and once
    /// they have come they stay.
    fn look_at_every_flush(&self, replay: &mut Replay) -> Result<Counted> {
        replay.to_mark(self.name)?;
        let mut counted = Counted::default();
        let mut before = Side::From;
        while let Some(entry) = replay.to_flush(self.end)? {
            let looked = replay.found(|root| self.boot(root)).and_then(|side| {
                ensure!(before == Side::From || side == Side::To, "the new files had come, and are gone again");
                Ok(side)
            });
            match looked {
                Ok(side) => {
                    counted.ends[side as usize] += 1;
                    before = side;
                }
                Err(error) => {
                    let wrong = format!("{}, entry {entry} of the log: {error:#}", self.name);
                    eprintln!("{wrong}");
                    counted.wrong.push(wrong);
                }
            }
        }
        let [from, to] = counted.ends;
        eprintln!(
            "{}: {} flushes tried, {} coherent, {from} with the files of before, {to} with the new ones",
            self.name,
            counted.tried(),
            counted.coherent()
        );
        Figures { flushes: counted.tried(), flushes_coherent: counted.coherent(), ..Figures::default() }.note()?;
        ensure!(from > 0 && before == Side::To, "{}: nothing was seen to change", self.name);
        Ok(counted)
    }

    /// Does what a boot from this disk does, and says whose files its engine would start from.
    fn boot(&self, root: &Path) -> Result<Side> {
        let said = run(root, BOOT).context("the recovery failed")?;
        let found = pairs(&run(root, &digests_script())?);
        let side = self.side(&found).with_context(|| format!("after {:?}", said.trim()))?;
        journal(root)?;
        let state = state(root)?;
        run(root, BOOT).context("the second recovery failed")?;
        let again = self::state(root)?;
        let differs = state.lines().zip(again.lines()).find(|(before, after)| before != after);
        ensure!(again == state, "a second recovery changed something, such as {differs:?}");
        Ok(side)
    }

    fn side(&self, found: &BTreeMap<String, String>) -> Result<Side> {
        if *found == self.from.digests {
            return Ok(Side::From);
        }
        if *found == self.to.digests {
            return Ok(Side::To);
        }
        let odd = |name: &&String| found.get(*name) != self.from.digests.get(*name);
        let odd: Vec<&String> = self.to.digests.keys().filter(odd).collect();
        bail!("a mixture: not of before are {odd:?}, and yet these are not the new ones: {found:?}")
    }
}

/// The journal, if there is one, is whole.
fn journal(root: &Path) -> Result<()> {
    let path = root.join(JOURNAL.trim_start_matches('/'));
    match std::fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        read => serde_json::from_slice::<Value>(&read?).map(drop).context("the journal can't be read"),
    }
}

/// What there is, and what the journal says.
fn state(root: &Path) -> Result<String> {
    run(root, STATE)
}

/// Runs a script with the disk as its root.
fn run(root: &Path, script: &str) -> Result<String> {
    let mut chroot = Command::new("chroot");
    chroot.arg(root).args(["/bin/sh", "-c", script]).env_clear().env("PATH", PROGRAMS);
    let output = command::collect(&mut chroot, Input::Empty)?.ok()?;
    Ok(output.stdout)
}
