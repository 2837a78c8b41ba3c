//! Who is who, by the certificates that every node of a swarm owns already.
//!
//! [`files`] reads this manager's own; [`peer`] reads the name in a client's; [`gate`] decides who may
//! come in, from what [`swarm`] asks the engine. No token and no certificate of our own is ever made.

pub(crate) mod files;
pub(crate) mod gate;
pub(crate) mod peer;
pub(crate) mod swarm;

#[cfg(test)]
pub(crate) mod test_pki;
