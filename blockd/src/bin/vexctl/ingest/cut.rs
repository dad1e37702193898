//! Cuts a text into passages of about 200 words.
//!
//! Paragraphs are kept whole where they fit; a longer one is divided at the ends of sentences, else between words,
//! and the passages then share the last piece (at most [`PIECE_CHARS_MAX`] characters), so that what
//! stands at a cut is found. A heading begins a new passage when the one before it has some length already.
//!
//! Invariants: each character that is not white space is in some passage; a passage has at most
//! [`PASSAGE_CHARS_MAX`] characters and [`PASSAGE_WORDS_MAX`] words, begins and ends with neither white space nor
//! inside a character; passages begin in rising order.

use std::ops::Range;

use super::extract::Extracted;

/// Changes when other passages would be cut: files recorded with another one are embedded anew.
pub const CUTTER_VERSION: u32 = 1;

/// Characters of a passage, at most.
pub const PASSAGE_CHARS_MAX: usize = 1200;
/// Words of a passage, at most.
pub const PASSAGE_WORDS_MAX: usize = 200;
/// Characters of a piece of a divided paragraph, at most; so also of an overlap.
pub const PIECE_CHARS_MAX: usize = 240;
const PIECE_WORDS_MAX: usize = 40;
/// A passage of so many characters ends before a heading.
const HEADED_CHARS_MIN: usize = 200;
/// A passage that must end somewhere ends at a paragraph if so many characters are before it.
const PARAGRAPH_END_CHARS_MIN: usize = PASSAGE_CHARS_MAX * 2 / 5;

/// A passage, as a range of the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Bytes of [`Extracted::text`].
    pub range: Range<usize>,
    /// The nearest heading at or before it; empty if there is none.
    pub heading: String,
}

/// The passages of a text.
pub fn cut(extracted: &Extracted) -> Vec<Cut> {
    let text = extracted.text.as_str();
    let mut headings = extracted.headings.clone();
    if headings.is_empty() {
        headings = plain_headings(text);
    }
    let pieces = pieces(text, &headings);
    let mut cuts = Vec::new();
    let mut start = 0;
    while start < pieces.len() {
        let end = passage_end(&pieces, start);
        let range = pieces[start].range.start..pieces[end - 1].range.end;
        let before = headings.partition_point(|(at, _)| *at <= range.start);
        let heading = before.checked_sub(1).map(|i| headings[i].1.clone()).unwrap_or_default();
        cuts.push(Cut { range, heading });
        let divided = end < pieces.len() && !pieces[end].begins_paragraph;
        start = if divided && end - 1 > start { end - 1 } else { end };
    }
    cuts
}

struct Piece {
    range: Range<usize>,
    chars: usize,
    words: usize,
    begins_paragraph: bool,
    begins_heading: bool,
}

/// The first piece that is not in the passage that begins with piece `start`.
fn passage_end(pieces: &[Piece], start: usize) -> usize {
    let (mut chars, mut words) = (pieces[start].chars, pieces[start].words);
    let mut paragraph_end = None;
    for (i, piece) in pieces.iter().enumerate().skip(start + 1) {
        if piece.begins_heading && chars >= HEADED_CHARS_MIN {
            return i;
        }
        if piece.begins_paragraph && chars >= PARAGRAPH_END_CHARS_MIN {
            paragraph_end = Some(i);
        }
        chars += piece.chars;
        words += piece.words;
        if chars > PASSAGE_CHARS_MAX || words > PASSAGE_WORDS_MAX {
            return paragraph_end.unwrap_or(i);
        }
    }
    pieces.len()
}

/// Paragraphs, or parts of them; `chars` of a piece counts the white space after it.
fn pieces(text: &str, headings: &[(usize, String)]) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    for paragraph in paragraphs(text) {
        let mut at = paragraph.start;
        while at < paragraph.end {
            let len = piece_len(&text[at..paragraph.end]);
            let part = text[at..at + len].trim_end();
            let range = at..at + part.len();
            let following = text[at + len..].chars().take_while(|c| c.is_whitespace()).count();
            pieces.push(Piece {
                chars: text[at..at + len].chars().count() + following,
                words: part.split_whitespace().count(),
                begins_paragraph: at == paragraph.start,
                begins_heading: headings.binary_search_by_key(&range.start, |(at, _)| *at).is_ok(),
                range,
            });
            at += len;
            at += text[at..paragraph.end].len() - text[at..paragraph.end].trim_start().len();
        }
    }
    pieces
}

/// Ranges between blank lines, trimmed.
fn paragraphs(text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut open: Option<Range<usize>> = None;
    let mut at = 0;
    for line in text.split_inclusive(['\n', '\x0c']) {
        let trimmed = line.trim();
        if trimmed.is_empty() {
            found.extend(open.take());
        } else {
            let start = at + (line.len() - line.trim_start().len());
            let end = at + line.trim_end().len();
            open = Some(open.map_or(start, |o| o.start)..end);
        }
        at += line.len();
    }
    found.extend(open);
    found
}

/// Bytes of the next piece of a paragraph (which does not begin with white space).
fn piece_len(paragraph: &str) -> usize {
    let mut words = 0;
    let mut in_word = false;
    let mut sentence_end = None;
    let mut word_end = None;
    let mut previous = ' ';
    for (chars, (at, c)) in paragraph.char_indices().enumerate() {
        if c.is_whitespace() {
            if in_word {
                word_end = Some(at);
                if matches!(previous, '.' | '!' | '?' | ':' | ';') || c == '\n' {
                    sentence_end = Some(at);
                }
            }
            in_word = false;
        } else {
            words += usize::from(!in_word);
            in_word = true;
        }
        if chars >= PIECE_CHARS_MAX || words > PIECE_WORDS_MAX {
            return sentence_end.or(word_end).unwrap_or(at);
        }
        previous = c;
    }
    paragraph.len()
}

/// Headings of plain text and Markdown: `# Title`, and lines underlined with `=`, `-` or `~`.
fn plain_headings(text: &str) -> Vec<(usize, String)> {
    let mut headings = Vec::new();
    let mut previous: Option<(usize, &str)> = None;
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let trimmed = line.trim();
        let start = at + (line.len() - line.trim_start().len());
        if let Some(title) = hashed_title(trimmed) {
            headings.push((start, title.to_owned()));
        } else if let Some((start, title)) = previous.filter(|(_, title)| is_underline(trimmed, title)) {
            headings.push((start, title.to_owned()));
        }
        previous = Some((start, trimmed));
        at += line.len();
    }
    headings
}

fn hashed_title(line: &str) -> Option<&str> {
    let title = line.trim_start_matches('#');
    let level = line.len() - title.len();
    let title = title.strip_prefix(' ')?.trim_end_matches(['#', ' ']).trim();
    ((1..=6).contains(&level) && !title.is_empty() && title.len() <= 120).then_some(title)
}

fn is_underline(line: &str, title: &str) -> bool {
    let ruler = ['=', '-', '~'].iter().any(|&r| line.chars().all(|c| c == r));
    let is_title = title.chars().any(char::is_alphanumeric) && title.len() <= 120;
    ruler && is_title && line.len() >= 3 && line.len() + 3 >= title.chars().count()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::super::extract::extract;
    use super::*;

    fn cuts(text: &str) -> Vec<String> {
        let e = extract(Path::new("a.txt"), text.as_bytes()).unwrap();
        cut(&e).into_iter().map(|c| e.text[c.range].to_owned()).collect()
    }

    #[test]
    fn short_text_is_one_passage_without_its_margins() {
        assert_eq!(cuts("\n\n  Hello,\n  world.  \n\n"), ["Hello,\n  world."]);
        assert!(cuts(" \n\t\n").is_empty());
    }

    #[test]
    fn paragraphs_are_kept_whole() {
        let paragraph = "word ".repeat(100).trim().to_owned();
        let text = format!("{paragraph}\n\n{paragraph}\n\n{paragraph}\n");
        let found = cuts(&text);
        assert_eq!(found, [format!("{paragraph}\n\n{paragraph}"), paragraph]);
    }

    #[test]
    fn a_long_paragraph_is_cut_at_sentences_and_overlaps_by_one_piece() {
        let text: String = (0..100).map(|i| format!("This is the sentence number {i}. ")).collect();
        let found = cuts(&text);
        assert!(found.len() > 2);
        for pair in found.windows(2) {
            assert!(pair[0].ends_with('.'));
            let first_sentence = pair[1].split_inclusive('.').next().unwrap();
            assert!(pair[0].contains(first_sentence), "{pair:?}");
            assert!(!pair[0].starts_with(first_sentence));
        }
    }

    #[test]
    fn headings_begin_passages_and_name_them() {
        let body = "Some words about it that fill a line of the text. ".repeat(6);
        let text = format!("# One\n\n{body}\n\nTwo\n===\n\n{body}\n");
        let e = extract(Path::new("a.md"), text.as_bytes()).unwrap();
        let found = cut(&e);
        assert_eq!(found.iter().map(|c| c.heading.as_str()).collect::<Vec<_>>(), ["One", "Two"]);
        assert!(e.text[found[1].range.clone()].starts_with("Two\n==="));
    }

    #[test]
    fn rulers_are_no_headings() {
        assert!(plain_headings("\n-----\n\n====\n| a |\n#hash\n#\n").is_empty());
    }

    #[test]
    fn a_word_without_end_is_cut_at_characters() {
        let found = cuts(&"ü".repeat(5000));
        assert!(found.len() >= 4);
        assert!(found.iter().all(|p| p.chars().count() <= PASSAGE_CHARS_MAX));
    }

    proptest! {
        #[test]
        fn passages_cover_the_text_within_bounds(
            words in proptest::collection::vec(("[a-zéß文#=]{1,12}|[.]{1,3}|[a-z]{300}", "[ \n]{1,3}|\n\n|\u{a0}|\x0c"), 0..700)
        ) {
            let text: String = words.iter().map(|(w, s)| format!("{w}{s}")).collect();
            let e = extract(Path::new("a"), text.as_bytes()).unwrap();
            let found = cut(&e);
            let mut covered = vec![false; text.len()];
            let mut last_start = None;
            for c in &found {
                let passage = text.get(c.range.clone());
                prop_assert!(passage.is_some(), "inside a character");
                let passage = passage.unwrap();
                prop_assert!(!passage.is_empty() && passage.trim() == passage);
                prop_assert!(passage.chars().count() <= PASSAGE_CHARS_MAX);
                prop_assert!(passage.split_whitespace().count() <= PASSAGE_WORDS_MAX);
                prop_assert!(last_start.is_none_or(|last| last < c.range.start));
                last_start = Some(c.range.start);
                prop_assert_eq!(e.source_range(c.range.clone()), c.range.clone());
                covered[c.range.clone()].fill(true);
            }
            for (i, c) in text.char_indices() {
                prop_assert!(c.is_whitespace() || covered[i], "byte {} is in no passage", i);
            }
        }
    }
}
