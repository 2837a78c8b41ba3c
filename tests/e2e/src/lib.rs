//! What the end-to-end scenarios are judged by: facts that are gathered from outside the product.
//!
//! [`truth`] watches a swarm while a rollout runs and reads every node's journal afterwards; its assertions are pure
//! functions over what was seen. [`state`] takes everything of a swarm that a refusal must not change. [`bundles`] makes
//! good and bad tarballs. [`readme`] finds what readers are told to type. The scenarios themselves are in `tests/swarm`.
//!
//! What may not live here: anything that believes the coordinator's own word.

pub mod bundles;
pub mod readme;
pub mod state;
pub mod truth;
