//! Text that a volume holds, for people: whoever named a file does not write to the terminal of who looks at it.

use std::fmt::{Display, Formatter, Write};

/// Shows text with its control characters escaped, in one line.
pub struct Printable<'a>(pub &'a str);

impl Display for Printable<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        self.0.chars().try_for_each(|c| match c.is_control() {
            true => write!(f, "{}", c.escape_default()),
            false => f.write_char(c),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown_and_not_carried_out() {
        assert_eq!(Printable("/a b\u{1b}[2J/\nü\u{9b}").to_string(), r"/a b\u{1b}[2J/\nü\u{9b}");
    }
}
