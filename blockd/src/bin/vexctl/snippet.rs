//! A found passage as people read it: path and line, and the lines that answer the query.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::ingest::extract;
use crate::output::tame;

/// Passages are shown no further: a row may claim any length.
const PASSAGE_BYTES_MAX: u64 = 64 << 10;
/// Lines of a snippet.
const SNIPPET_LINES: usize = 5;
/// Characters of a snippet.
const SNIPPET_CHARS: usize = 480;

/// A passage read back from its file.
#[derive(Debug, PartialEq, Eq)]
pub struct Quote {
    /// Line of the passage's first byte, from 1.
    pub line: u64,
    /// The passage's text, without HTML tags.
    pub text: String,
}

/// Reads `length` bytes at `offset` of the file at `path`.
///
/// # Errors
/// The file cannot be read.
pub fn quote(path: &Path, offset: u64, length: u64) -> io::Result<Quote> {
    let mut file = File::open(path)?;
    let mut line = 1;
    let mut left = offset;
    let mut block = vec![0; 64 << 10];
    while left > 0 {
        let want = block.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let got = file.read(&mut block[..want])?;
        if got == 0 {
            break;
        }
        line += block[..got].iter().filter(|&&b| b == b'\n').count() as u64;
        left -= got as u64;
    }
    let mut bytes = Vec::new();
    file.take(length.min(PASSAGE_BYTES_MAX)).read_to_end(&mut bytes)?;
    let text = match extract::extract(path, &bytes) {
        Ok(extracted) => extracted.text,
        Err(extract::Binary) => format!("({} bytes that are not text)", bytes.len()),
    };
    Ok(Quote { line, text: tame(&text).trim_end().to_owned() })
}

/// The words to highlight: those of the query with at least three characters, lower-cased.
pub fn query_words(query: &str) -> Vec<String> {
    let mut words: Vec<String> = query
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| word.chars().count() >= 3)
        .map(str::to_lowercase)
        .collect();
    words.sort();
    words.dedup();
    words
}

/// The few lines of a passage that have the most of the words, without blank lines.
pub fn snippet(text: &str, words: &[String]) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let hits: Vec<usize> = lines.iter().map(|line| distinct_hits(line, words)).collect();
    let window = SNIPPET_LINES.min(lines.len());
    let best = (0..=lines.len() - window).rev().max_by_key(|&at| hits[at..at + window].iter().sum::<usize>());
    let start = best.unwrap_or(0);
    let mut shown = lines[start..start + window].join("\n");
    if let Some((cut, _)) = shown.char_indices().nth(SNIPPET_CHARS) {
        let end = shown[..cut].rfind(char::is_whitespace).unwrap_or(cut);
        shown.truncate(end);
        shown.push('…');
    }
    shown
}

fn distinct_hits(line: &str, words: &[String]) -> usize {
    let line = line.to_lowercase();
    words.iter().filter(|word| line.contains(word.as_str())).count()
}

/// `text` with the words, and longer words that begin with them, in bold.
pub fn highlight(text: &str, words: &[String]) -> String {
    let mut out = String::with_capacity(text.len() + 32);
    let mut rest = text;
    while !rest.is_empty() {
        let len = rest.find(|c: char| !c.is_alphanumeric()).unwrap_or(rest.len());
        let (word, after) = rest.split_at(len);
        let lower = word.to_lowercase();
        if words.iter().any(|wanted| lower.starts_with(wanted.as_str())) {
            out.push_str("\x1b[1m");
            out.push_str(word);
            out.push_str("\x1b[0m");
        } else {
            out.push_str(word);
        }
        let gap = after.find(char::is_alphanumeric).unwrap_or(after.len());
        out.push_str(&after[..gap]);
        rest = &after[gap..];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_know_their_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        let text = "one\ntwo\nthree \x1b[2J\nfour\n";
        std::fs::write(&path, text).unwrap();
        let quote = |offset, length| quote(&path, offset, length).unwrap();
        assert_eq!(quote(8, 10), Quote { line: 3, text: "three \u{fffd}[2J".into() });
        assert_eq!(quote(0, 3).line, 1);
        assert_eq!(quote(1 << 40, u64::MAX), Quote { line: 5, text: String::new() });
    }

    #[test]
    fn html_is_quoted_without_tags() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.html");
        std::fs::write(&path, "<p>salt &amp; <b>pepper</b></p>").unwrap();
        assert_eq!(quote(&path, 3, 24).unwrap().text, "salt & pepper");
    }

    #[test]
    fn the_snippet_is_where_the_words_are() {
        let text: String =
            (0..20).map(|i| format!("line {i} {}\n\n", if i == 13 { "needle" } else { "hay" })).collect();
        let shown = snippet(&text, &query_words("the Needle!"));
        assert!(shown.contains("needle") && shown.lines().count() == SNIPPET_LINES, "{shown}");
        assert_eq!(snippet("", &[]), "");
        assert!(snippet(&"ü ".repeat(5000), &[]).chars().count() <= SNIPPET_CHARS + 1);
    }

    #[test]
    fn words_are_highlighted_with_their_endings() {
        assert_eq!(
            highlight("To mount, unmount; Mounting", &query_words("to mount")),
            "To \x1b[1mmount\x1b[0m, unmount; \x1b[1mMounting\x1b[0m"
        );
    }
}
