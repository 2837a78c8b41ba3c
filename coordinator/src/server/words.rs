//! Errors in words, for answers that carry one line.

/// The error and its causes as one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some errors repeat their cause's text in their own.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("can't do it")]
    struct Outer(#[source] io::Error);

    #[derive(Debug, thiserror::Error)]
    #[error("can't do it: {0}")]
    struct Repeats(#[source] io::Error);

    #[test]
    fn causes_follow_once() {
        assert_eq!(chain(&Outer(io::Error::other("no room"))), "can't do it: no room");
        assert_eq!(chain(&Repeats(io::Error::other("no room"))), "can't do it: no room");
    }
}
