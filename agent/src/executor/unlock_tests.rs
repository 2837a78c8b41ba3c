use super::*;
use crate::unlock::testing::{Engine, OTHER, UNLOCK};

fn keys(known: &[&str]) -> Keys {
    let keys = Keys::default();
    for text in known {
        keys.learn(UnlockKey::parse(text).unwrap());
    }
    keys
}

#[tokio::test]
async fn the_key_of_before_unlocks_and_a_newer_one_that_does_not_fit_is_tried_once() {
    let engine = Engine::start("locked", UNLOCK);
    // Rotated while the manager was down: what is on its disk needs the key of before.
    let words = Unlocking::default().attempt(&engine.root(), &keys(&[UNLOCK, OTHER])).await;
    assert_eq!((words.as_str(), engine.posted()), ("unlocked just now", vec![OTHER.to_owned(), UNLOCK.to_owned()]));
}

#[tokio::test]
async fn a_refused_key_is_never_sent_again_and_the_operator_is_told_what_to_type() {
    let engine = Engine::start("locked", UNLOCK);
    let (mut unlocking, keys) = (Unlocking::default(), keys(&[OTHER]));
    for _ in 0..3 {
        let words = unlocking.attempt(&engine.root(), &keys).await;
        assert!(words.contains("does not fit") && words.contains("docker swarm unlock"), "{words}");
        assert!(!words.contains("SWMKEY"));
    }
    assert_eq!(engine.posted(), [OTHER]);
    keys.learn(UnlockKey::parse(UNLOCK).unwrap());
    assert_eq!(unlocking.attempt(&engine.root(), &keys).await, "unlocked just now");
}

#[tokio::test]
async fn without_a_key_nothing_is_tried_and_the_operator_is_told_what_to_type() {
    let engine = Engine::start("locked", UNLOCK);
    let words = Unlocking::default().attempt(&engine.root(), &Keys::default()).await;
    assert!(words.starts_with("locked, and no unlock key") && words.contains("docker swarm unlock"), "{words}");
    assert!(engine.posted().is_empty());
}

#[tokio::test]
async fn a_failure_that_says_nothing_of_the_key_is_tried_again_later() {
    let engine = Engine::start("locked", UNLOCK);
    engine.fail(1);
    let (mut unlocking, keys) = (Unlocking::default(), keys(&[UNLOCK]));
    for _ in 0..3 {
        let words = unlocking.attempt(&engine.root(), &keys).await;
        assert!(words.contains("could not be started") && words.contains("docker swarm unlock"), "{words}");
    }
    assert_eq!(engine.posted().len(), 1);
    // Time passes.
    unlocking.failed.as_mut().unwrap().1 -= AGAIN;
    assert_eq!(unlocking.attempt(&engine.root(), &keys).await, "unlocked just now");
}

#[tokio::test]
async fn an_old_engine_is_unlocked_or_left_with_words() {
    let engine = Engine::start("active", UNLOCK);
    assert_eq!(old_engine(&engine.root(), &Keys::default()).await, None, "it is not locked");
    engine.set("locked");
    let words = old_engine(&engine.root(), &keys(&[OTHER])).await.unwrap();
    assert!(words.contains("does not fit"), "{words}");
    assert_eq!(old_engine(&engine.root(), &keys(&[UNLOCK])).await, None);
    assert_eq!(engine.posted(), [OTHER, UNLOCK]);
}
