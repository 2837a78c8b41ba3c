//! Work under way as an HTTP answer: now and then a line of JSON that says how far it is, and at last
//! its result.

use std::convert::Infallible;
use std::pin::Pin;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::api::{Fetched, Fetching};

/// At most so often is it said how far the work is.
const EVERY: Duration = Duration::from_millis(200);

/// The work: done by whoever reads the answer, so that it ends with the connection.
type Work = Pin<Box<dyn Future<Output = Fetched> + Send>>;

struct Lines {
    /// Gone when its result was given.
    work: Option<Work>,
    seen: watch::Receiver<Fetching>,
    ticks: Interval,
}

/// The answer.
pub(super) fn response(work: Work, seen: watch::Receiver<Fetching>) -> Response {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let lines = Lines { work: Some(work), seen, ticks };
    Response::new(Body::from_stream(stream::unfold(lines, Lines::next)))
}

impl Lines {
    async fn next(mut self) -> Option<(Result<Bytes, Infallible>, Self)> {
        let mut work = self.work.take()?;
        let line = loop {
            tokio::select! {
                result = &mut work => break json(&result),
                _ = self.ticks.tick() => {}
            }
            // An error means that nobody tells any more: then the work is done.
            if self.seen.has_changed().unwrap_or(false) {
                let mut line = json(&*self.seen.borrow_and_update());
                line.push(b'\n');
                self.work = Some(work);
                break line;
            }
        };
        Some((Ok(line.into()), self))
    }
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("the API's types are JSON")
}
