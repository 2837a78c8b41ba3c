//! What this node knows of itself, for a bug report: asked for by a coordinator beside its orders, gathered
//! without a secret, and sent to that coordinator alone.
//!
//! Nothing here touches an order or waits for one: the conversation goes on while a thread of the lowest
//! priority gathers. Whoever speaks for the node does it, the task or the executor. What is gathered is in
//! [`gather`], how it is packed in [`pack`].

mod gather;
mod pack;
mod scripts;

use std::time::Duration;

use requeen_protocol::{Collect, CollectionId, NO_COLLECTION, Report};
use tokio::sync::oneshot;

use crate::client::{Upload, UploadError};
use crate::clock::Clock;
use crate::host::HostRoot;
use crate::words::chain;
use crate::{memory, priority};
use gather::Input;

/// So often a part is sent whose way was lost, with a pause between two attempts.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_secs(1);

/// Answers to what coordinators ask beside their orders.
#[derive(Clone, Debug)]
pub struct Collector {
    root: HostRoot,
    clock: Clock,
    last: Option<CollectionId>,
}

impl Collector {
    /// One that has not been asked yet.
    pub fn new(root: &HostRoot, clock: Clock) -> Self {
        Self { root: root.clone(), clock, last: None }
    }

    /// What goes with each report: the collection that was heard of last.
    pub fn heard_of(&self) -> &str {
        self.last.as_ref().map_or(NO_COLLECTION, CollectionId::as_str)
    }

    /// Gathers and sends, and returns at once. Whatever comes of it, a collection is gathered for once.
    pub fn begin(&mut self, collect: Collect, upload: Upload, report: &Report) {
        if self.last.as_ref() == Some(&collect.id) {
            return;
        }
        self.last = Some(collect.id.clone());
        let input = Input { root: self.root.clone(), clock: self.clock, collect, report: report.clone() };
        tokio::spawn(gather_and_send(input, upload));
    }
}

async fn gather_and_send(input: Input, upload: Upload) {
    let (node, id) = (input.report.node.clone(), input.collect.id.clone());
    let (done, gathered) = oneshot::channel();
    // A thread of its own: its priority must not become that of a thread that swaps engines.
    let thread = std::thread::Builder::new().name("collect".to_owned()).spawn(move || {
        priority::give_way();
        // Nobody waits for it any more when this process ends.
        let _ = done.send(gather::gather(&input));
    });
    if let Err(error) = thread {
        tracing::warn!(%node, collection = %id, "nothing can be collected: {error}");
        return;
    }
    match gathered.await {
        Ok(Ok(part)) => {
            let bytes = part.len();
            match send(&upload, part).await {
                Ok(()) => tracing::info!(%node, collection = %id, bytes, "collected for a bug report"),
                Err(error) => tracing::info!(%node, collection = %id, "{}", chain(&error)),
            }
        }
        Ok(Err(error)) => tracing::warn!(%node, collection = %id, "what was collected can't be packed: {error}"),
        Err(_) => tracing::warn!(%node, collection = %id, "collecting ended without a result"),
    }
    memory::give_back();
}

async fn send(upload: &Upload, part: Vec<u8>) -> Result<(), UploadError> {
    let mut left = ATTEMPTS;
    loop {
        left -= 1;
        match upload.send(part.clone()).await {
            Err(UploadError::Send(error)) if left > 0 => {
                tracing::debug!("sent again: {}", chain(&error));
                tokio::time::sleep(PAUSE).await;
            }
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::boot_time;

    #[test]
    fn the_collection_heard_of_last_is_told() {
        let root = HostRoot::new("/nonexistent");
        let mut collector = Collector::new(&root, boot_time);
        assert_eq!(collector.heard_of(), "none");
        collector.last = Some("00ff".into());
        assert_eq!(collector.heard_of(), "00ff");
    }
}
