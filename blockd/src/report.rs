//! Errors as one line for people.

use std::error::Error;

/// An error and its causes, joined by ": "; a cause that the text holds already is not said twice.
pub fn one_line(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Sample {
        #[error("cannot listen on /x: {source}; make its directory")]
        Says { source: std::io::Error },
        #[error("cannot open /x")]
        LeavesOut { source: std::io::Error },
    }

    #[test]
    fn each_cause_is_said_once() {
        let source = || std::io::Error::other("no such file");
        let says = Sample::Says { source: source() };
        assert_eq!(one_line(&says), "cannot listen on /x: no such file; make its directory");
        let leaves_out = Sample::LeavesOut { source: source() };
        assert_eq!(one_line(&leaves_out), "cannot open /x: no such file");
    }
}
