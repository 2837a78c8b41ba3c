//! `diag`: one archive of what every node and this server know, for a bug report.
//!
//! A collection lies beside everything that concerns rollouts: it is [`collection`]'s, agents hear of it in the
//! answers to their reports, and no order waits for it or is changed by it. It lives as long as the operator's
//! request: an operator who leaves ends it. What the coordinator adds is in [`own`], the archive itself in
//! [`archive`], the server's last words in [`log`].

mod archive;
pub(crate) mod collection;
pub mod log;
mod own;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use jiff::Timestamp;
use requeen_protocol::{COLLECT_SECS, Collect, NodeId};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::api::{DiagArgs, DiagEvent, Failure, FailureKind, StatusView};
use crate::ops::Ops;
use crate::plan::refuse;
use archive::Contents;
use collection::{Delivery, OpenCollection, Part};
use log::LogTail;
use own::Own;

/// How long nodes are waited for.
const PATIENCE: Duration = Duration::from_secs(COLLECT_SECS);

/// From when on logs are wanted, unless the operator or the last rollout says otherwise.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// How much of the archive is sent at once, bytes.
const CHUNK: usize = 64 << 10;

/// Collects for bug reports. See the module.
pub(crate) struct Diag {
    pub(crate) ops: Arc<Ops>,
    pub(crate) log: Arc<LogTail>,
    pub(crate) version: &'static str,
    /// `/proc/self`, where this process learns which container it is.
    pub(crate) proc_self: PathBuf,
    pub(crate) patience: Duration,
}

impl Diag {
    /// As it is outside tests.
    pub(crate) fn new(ops: Arc<Ops>, log: Arc<LogTail>, version: &'static str) -> Self {
        Self { ops, log, version, proc_self: PathBuf::from("/proc/self"), patience: PATIENCE }
    }

    /// Asks the nodes, and gives the answer's body: lines of JSON, each a [`DiagEvent`], and behind the line that
    /// says so the archive. Dropping it ends the collection.
    pub(crate) async fn begin(self: &Arc<Self>, args: DiagArgs) -> Result<Said, Failure> {
        let made = (self.ops.world.now)();
        let status = self.ops.status().await;
        let hostnames = self.hostnames(status.as_ref().ok(), &args.nodes)?;
        let rollout = status.as_ref().ok().and_then(|status| status.rollout.as_ref());
        let started = rollout.and_then(|rollout| rollout.started_at.parse().ok());
        let since = since(args.since_unix, started, made);
        let random = (self.ops.world.random)().map_err(|error| failed(format!("no random bytes: {error}")))?;
        let collect = Collect { id: hex::encode(random).as_str().into(), since_unix: since.as_second() };
        let rollout = rollout.map(|rollout| rollout.id.clone());
        let Some(open) = self.ops.hub.collect(collect, hostnames.keys().cloned()) else {
            return Err(Failure {
                kind: FailureKind::Refused,
                error: "another `requeen diag` is collecting on this manager".to_owned(),
                hint: Some(format!("it ends within {COLLECT_SECS} s; then try again")),
            });
        };
        tracing::info!(nodes = hostnames.len(), %since, "collecting for a bug report");
        let begun = DiagEvent::Begun { rollout, made: made.to_string(), nodes: hostnames.values().cloned().collect() };
        let run = Run { diag: Arc::clone(self), status, hostnames, open, made, since };
        let (tell, said) = mpsc::channel(8);
        tokio::spawn(async move {
            let gone = tell.clone();
            tokio::select! {
                // Nobody listens any more: what has arrived goes with it.
                () = gone.closed() => {}
                () = run.go(&begun, Out(tell)) => {}
            }
        });
        Ok(Said { words: said, ended: false })
    }

    /// The nodes to ask, with their names: those of the swarm as far as it is known, and those whose agents call.
    fn hostnames(&self, status: Option<&StatusView>, only: &[String]) -> Result<BTreeMap<NodeId, String>, Failure> {
        let mut all: BTreeMap<NodeId, String> =
            self.ops.hub.agents().into_keys().map(|node| (node.clone(), node.0)).collect();
        let known = status.iter().flat_map(|status| &status.nodes);
        all.extend(known.map(|node| (NodeId(node.id.clone()), node.hostname.clone())));
        if only.is_empty() {
            return Ok(all);
        }
        let Some(observed) = self.ops.last_observed() else {
            return Err(Failure {
                kind: FailureKind::Refused,
                error: "nothing has been seen of the swarm yet, so its nodes have no names".to_owned(),
                hint: Some("leave --nodes out".to_owned()),
            });
        };
        let mut wanted = BTreeMap::new();
        for name in only {
            let node = refuse::resolve(&observed, name)?;
            let hostname = all.get(&node).cloned().unwrap_or_else(|| node.to_string());
            wanted.insert(node, hostname);
        }
        Ok(wanted)
    }
}

fn failed(error: String) -> Failure {
    Failure { kind: FailureKind::Failed, error, hint: None }
}

/// From when on logs are wanted: as asked; else a day back, or the start of the last rollout if that is earlier. What
/// is long ago costs little: each log has a number of lines that it does not exceed.
fn since(asked: Option<i64>, started: Option<Timestamp>, now: Timestamp) -> Timestamp {
    if let Some(asked) = asked {
        return Timestamp::from_second(asked).unwrap_or(Timestamp::UNIX_EPOCH);
    }
    let day_ago = now.checked_sub(DAY).unwrap_or(Timestamp::UNIX_EPOCH);
    started.map_or(day_ago, |started| started.min(day_ago))
}

/// One collection, from the question to the archive.
struct Run {
    diag: Arc<Diag>,
    status: Result<StatusView, Failure>,
    hostnames: BTreeMap<NodeId, String>,
    open: OpenCollection,
    made: Timestamp,
    since: Timestamp,
}

impl Run {
    async fn go(self, begun: &DiagEvent, out: Out) {
        let diag = &self.diag;
        out.event(begun).await;
        let status = self.status.as_ref().map_err(|failure| failure.error.as_str());
        let own = async {
            let mut own = own::remembered(status, &diag.ops.hub, &diag.log.text(), diag.version);
            own::asked(&mut own, &diag.ops.engine, &diag.proc_self).await;
            own
        };
        let (own, ()) = tokio::join!(own, self.wait(&out));
        let contents = self.contents(own, &out).await;
        out.event(&DiagEvent::Archive).await;
        let written = tokio::task::spawn_blocking(move || {
            let to = Chunks { out: out.clone(), chunk: BytesMut::with_capacity(CHUNK) };
            archive::write(Box::new(to), contents)?;
            out.end();
            Ok::<_, io::Error>(())
        });
        match written.await {
            Ok(Ok(())) => {}
            // Its reader sees the body break off.
            Ok(Err(error)) => tracing::warn!("the archive can't be written: {error}"),
            Err(error) => tracing::warn!("the archive can't be written: {error}"),
        }
    }

    /// Waits for the nodes, and tells of each part that has arrived.
    async fn wait(&self, out: &Out) {
        let until = Instant::now() + self.diag.patience;
        let mut changed = self.open.changed();
        let mut told = Vec::new();
        loop {
            changed.mark_unchanged();
            let (news, settled) = self.open.look(|nodes| {
                let here = |(_, delivery): &(&NodeId, &Delivery)| matches!(delivery, Delivery::Arrived(_));
                let news: Vec<NodeId> = nodes
                    .iter()
                    .filter(here)
                    .map(|(node, _)| node.clone())
                    .filter(|node| !told.contains(node))
                    .collect();
                (news, nodes.values().all(Delivery::is_settled))
            });
            for node in news {
                out.event(&self.here(&node)).await;
                told.push(node);
            }
            if settled || tokio::time::timeout_at(until, changed.changed()).await.is_err() {
                return;
            }
        }
    }

    fn here(&self, node: &NodeId) -> DiagEvent {
        let hostname = self.hostnames.get(node).cloned().unwrap_or_else(|| node.to_string());
        DiagEvent::Node { hostname, collected: true, why: None }
    }

    /// Closes the collection, and tells of each node of which nothing came.
    async fn contents(self, own: Own, out: &Out) -> Contents {
        let folders = archive::folders(&self.hostnames);
        let agents = self.diag.ops.hub.agents();
        let mut missing = Vec::new();
        let mut parts: BTreeMap<String, Result<Part, String>> = BTreeMap::new();
        let Run { diag, status, hostnames, open, made, since } = self;
        for (node, delivery) in open.close() {
            let folder = folders.get(&node).cloned().unwrap_or_else(|| node.to_string());
            let heard = agents.get(&node).map(|agent| agent.silent_secs);
            let part = part(delivery, heard, diag.patience.as_secs());
            if let Err(why) = &part {
                let hostname = hostnames.get(&node).cloned().unwrap_or_else(|| node.to_string());
                missing.push(DiagEvent::Node { hostname, collected: false, why: Some(why.clone()) });
            }
            parts.insert(folder, part);
        }
        for event in &missing {
            out.event(event).await;
        }
        let on = status.as_ref().map_or_else(|_| "an unknown node".to_owned(), |status| status.server_node.clone());
        let rollout = match &status {
            Ok(StatusView { rollout: Some(rollout), .. }) => format!("{} to {}", rollout.id, rollout.to),
            Ok(StatusView { rollout: None, .. }) => "none on record".to_owned(),
            Err(failure) => format!("unknown: {}", failure.error),
        };
        let about = vec![
            ("made", format!("{made} by requeen {} on {on}", diag.version)),
            ("rollout", rollout),
            ("logs", format!("since {since}, the newest lines of each unit, times in UTC")),
        ];
        Contents { made, about, nodes: parts, own }
    }
}

/// A node's part, or why there is none.
fn part(delivery: Delivery, heard: Option<u64>, patience_secs: u64) -> Result<Part, String> {
    match (delivery, heard) {
        (Delivery::Arrived(part), _) => Ok(part),
        (Delivery::Refused(why), _) => Err(why),
        (Delivery::Asked, _) => Err(format!("its agent was asked and has not answered within {patience_secs} s")),
        (Delivery::Arriving, _) => Err(format!("its part had not arrived as a whole within {patience_secs} s")),
        (Delivery::Unasked, None) => Err("no agent has called from this node".to_owned()),
        (Delivery::Unasked, Some(secs)) => {
            Err(format!("its agent did not ask for an order within {patience_secs} s; it was last heard {secs} s ago"))
        }
    }
}

/// What goes to the operator. Where nobody listens any more, all of it is dropped and the collection with it.
#[derive(Clone)]
struct Out(mpsc::Sender<Option<Bytes>>);

impl Out {
    async fn event(&self, event: &DiagEvent) {
        let mut line = serde_json::to_vec(event).expect("the API's types are JSON");
        line.push(b'\n');
        let _ = self.0.send(Some(line.into())).await;
    }

    /// All was said. Blocks.
    fn end(&self) {
        let _ = self.0.blocking_send(None);
    }
}

/// The archive on its way out, in chunks.
struct Chunks {
    out: Out,
    chunk: BytesMut,
}

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.chunk.extend_from_slice(bytes);
        if self.chunk.len() >= CHUNK {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let chunk = self.chunk.split().freeze();
        if chunk.is_empty() {
            return Ok(());
        }
        self.out.0.blocking_send(Some(chunk)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// What is said, as a body. One that ends without its last word breaks off, so that nobody takes half an archive for a
/// whole one.
pub(crate) struct Said {
    words: mpsc::Receiver<Option<Bytes>>,
    ended: bool,
}

impl Stream for Said {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut task::Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let word = task::ready!(self.words.poll_recv(context));
        self.ended = !matches!(word, Some(Some(_)));
        Poll::Ready(match word {
            Some(Some(bytes)) => Some(Ok(bytes)),
            Some(None) => None,
            None => Some(Err(io::ErrorKind::UnexpectedEof.into())),
        })
    }
}

#[cfg(test)]
mod tests;
