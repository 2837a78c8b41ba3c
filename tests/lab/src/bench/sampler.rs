//! Samplers on nodes, from outside: putting them there, starting them, asking what they saw.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, Stdio};
use std::time::Duration;

use super::sample::{BACK, Outage, READY, Samples};
use crate::command::parallel;
use crate::{Error, Node, Result};

/// Where the lab's program is on a node.
const PLACE: &str = "/root/requeen-lab";

/// Copies the lab's program to nodes.
pub(super) fn install(nodes: &[Node], program: &Path) -> Result<()> {
    parallel("copying the sampler", nodes, |node| node.copy_in(program, PLACE)).map(drop)
}

/// A sampler that runs on a node. It ends with this.
pub(super) struct Sampler {
    node: String,
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Sampler {
    /// Starts one, and returns when the API has answered it.
    pub(super) fn start(node: &Node, every: Duration) -> Result<Self> {
        let every = every.as_millis().to_string();
        let mut command = node.command(&[PLACE, "sample-api", "--every-ms", &every], false);
        let failed = |source| Error::Start { program: "the sampler".to_owned(), source };
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(failed)?;
        let out = child.stdout.take().ok_or_else(|| failed(std::io::ErrorKind::BrokenPipe.into()))?;
        let mut sampler = Self { node: node.name().to_owned(), child, out: BufReader::new(out) };
        sampler.hear(READY).map(|()| sampler)
    }

    /// Waits until an outage has ended. The sampler itself bounds the wait.
    pub(super) fn wait_until_back(&mut self) -> Result<()> {
        self.hear(BACK)
    }

    fn hear(&mut self, word: &'static str) -> Result<()> {
        let mut line = String::new();
        let read = self.out.read_line(&mut line);
        read.map_err(|source| Error::Start { program: "the sampler".to_owned(), source })?;
        if line.trim_end() == word {
            return Ok(());
        }
        Err(Error::Answer { what: "the sampler", answer: line, expected: word })
    }

    /// Ends it and returns what it saw.
    pub(super) fn finish(mut self) -> Result<Samples> {
        drop(self.child.stdin.take());
        let mut text = String::new();
        let failed = |source| Error::Start { program: "the sampler".to_owned(), source };
        self.out.read_to_string(&mut text).map_err(failed)?;
        self.child.wait().map_err(failed)?;
        // Before it come the words that nobody waited for; without it the sampler has said why on standard error.
        let last = text.lines().last().unwrap_or_default();
        serde_json::from_str(last).map_err(|source| Error::Json { what: "the sampler", source })
    }

    /// Ends it and returns the one outage that it must have seen.
    pub(super) fn finish_with_one(self) -> Result<Outage> {
        let node = self.node.clone();
        self.finish()?.only_outage(&node)
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        // With the client the sampler's input ends, and so does it. One that has ended needs neither.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A sampler on every node.
pub(super) struct Samplers(Vec<Sampler>);

impl Samplers {
    /// Starts them all.
    pub(super) fn start(nodes: &[Node], every: Duration) -> Result<Self> {
        parallel("starting a sampler", nodes, |node| Sampler::start(node, every)).map(Self)
    }

    /// Ends them all and returns every node's one outage, by the node's name.
    pub(super) fn finish(self) -> Result<BTreeMap<String, Outage>> {
        let finish = |sampler: Sampler| Ok((sampler.node.clone(), sampler.finish_with_one()?));
        self.0.into_iter().map(finish).collect()
    }
}
