//! What goes to stdout, and is safe to show on a terminal.

use std::io::{self, Write};

use anyhow::Result;

/// Writes `text` to stdout, whole.
///
/// # Errors
/// Stdout is closed or full; see [`is_broken_pipe`].
pub fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}

/// The reader of our output went away (`vexctl search … | head -1`), which is no failure of ours.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// `text` without the control characters by which a file could steer the terminal; newlines and tabs stay.
pub fn tame(text: &str) -> String {
    text.chars()
        .filter(|c| *c != '\r')
        .map(|c| if c.is_control() && !matches!(c, '\n' | '\t') { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_are_tamed() {
        assert_eq!(tame("a\x1b[31mb\r\n\tc\u{9b}"), "a\u{fffd}[31mb\n\tc\u{fffd}");
    }
}
