//! Somebody sets the time of day on the coordinator's manager while a rollout is open.

use super::*;

/// By how much, seconds.
const JUMP: i64 = 3600;

/// What a rollout may take here, milliseconds: far from [`JUMP`].
const TAKES_MS: u64 = 60_000;

#[tokio::test]
async fn the_time_of_day_may_be_set_while_a_rollout_is_open() {
    for jump in [JUMP, -JUMP] {
        SET_BY.set(0);
        let lab = Lab::start(&["m1", "m2", "m3"], &["w1"]).await;
        lab.ops.start(lab.args(), 0).await.unwrap();
        lab.until("a node in work", |status| status.nodes.iter().any(|node| node.times.len() > 2)).await;
        SET_BY.set(jump);
        let status = lab.until_phase(ended).await;
        let took = status.rollout.unwrap().elapsed_ms;
        assert!((1..TAKES_MS).contains(&took), "{took} ms, {jump}");
        for node in &status.nodes {
            assert!(node.times.is_sorted_by_key(|(_, ms)| *ms), "{:?}, {jump}", node.times);
            assert!(node.times.iter().all(|(_, ms)| *ms <= took), "{:?}, {jump}", node.times);
        }
        assert_eq!(lab.ops.history().await.unwrap().rollouts[0].elapsed_ms, took);
    }
}
