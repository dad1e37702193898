//! The text of a file, with a map back to the file's bytes.
//!
//! Passages are cut in text, but a row's range counts bytes of the stored file. For UTF-8 the two are the same;
//! HTML loses its tags and bytes that are not UTF-8 are read as Latin-1, so [`Extracted`] keeps where each piece of
//! text came from.

use std::ops::Range;
use std::path::Path;

use super::html;

/// Text and its origin.
#[derive(Debug, Default)]
pub struct Extracted {
    /// The text.
    pub text: String,
    /// In order of both offsets; each reaches to the next.
    segments: Vec<Segment>,
    /// Headings found by the markup: offset in `text`, title.
    pub headings: Vec<(usize, String)>,
}

#[derive(Debug)]
struct Segment {
    text_start: usize,
    source: Range<usize>,
    /// Byte by byte from the source (though white space may be shown as another kind); else a replacement for the
    /// whole source range.
    linear: bool,
}

/// Why a file has no text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binary;

/// Control characters that text files have.
fn is_text_control(byte: u8) -> bool {
    matches!(byte, b'\t' | b'\n' | b'\r' | 0x0c | 0x08 | 0x1b)
}

/// The text of a file with these bytes; `name` tells HTML.
///
/// # Errors
/// [`Binary`] if the bytes have a NUL among them, or more than 1 % control characters.
pub fn extract(name: &Path, bytes: &[u8]) -> Result<Extracted, Binary> {
    let decoded = decode(bytes)?;
    let is_html = name.extension().and_then(|e| e.to_str()).is_some_and(|extension| {
        ["html", "htm", "xhtml"].iter().any(|known| extension.eq_ignore_ascii_case(known))
    });
    Ok(if is_html { html::strip(&decoded) } else { decoded })
}

fn decode(bytes: &[u8]) -> Result<Extracted, Binary> {
    let controls = bytes.iter().filter(|&&b| b < 0x20 && !is_text_control(b)).count();
    if bytes.contains(&0) || controls * 100 > bytes.len() {
        return Err(Binary);
    }
    let mut extracted = Extracted::default();
    let bom = if bytes.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
    let mut at = bom;
    for chunk in bytes[bom..].utf8_chunks() {
        extracted.push(chunk.valid(), at);
        at += chunk.valid().len();
        for &byte in chunk.invalid() {
            extracted.push_replacement(char::from(byte), at..at + 1);
            at += 1;
        }
    }
    Ok(extracted)
}

impl Extracted {
    /// Adds text of which each byte stands for one byte of the file, from `source` on.
    pub fn push(&mut self, text: &str, source: usize) {
        if text.is_empty() {
            return;
        }
        match self.segments.last_mut() {
            Some(last) if last.linear && last.source.end == source => last.source.end += text.len(),
            _ => self.segments.push(Segment {
                text_start: self.text.len(),
                source: source..source + text.len(),
                linear: true,
            }),
        }
        self.text.push_str(text);
    }

    /// Adds a character that stands for the bytes at `source`.
    pub fn push_replacement(&mut self, character: char, source: Range<usize>) {
        self.segments.push(Segment { text_start: self.text.len(), source, linear: false });
        self.text.push(character);
    }

    /// The bytes of the file that the text at `range` (not empty, in bounds) came from.
    pub fn source_range(&self, range: Range<usize>) -> Range<usize> {
        let first = &self.segments[self.segment_of(range.start)];
        let start = if first.linear {
            first.source.start + (range.start - first.text_start)
        } else {
            first.source.start
        };
        let last = &self.segments[self.segment_of(range.end - 1)];
        let end =
            if last.linear { last.source.start + (range.end - last.text_start) } else { last.source.end };
        start..end
    }

    fn segment_of(&self, offset: usize) -> usize {
        self.segments.partition_point(|segment| segment.text_start <= offset).saturating_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(name: &str, bytes: &[u8]) -> Vec<(char, Vec<u8>)> {
        let e = extract(Path::new(name), bytes).unwrap();
        e.text.char_indices().map(|(i, c)| (c, bytes[e.source_range(i..i + c.len_utf8())].to_vec())).collect()
    }

    #[test]
    fn utf8_is_taken_as_it_is() {
        let text = "größe 1\n";
        let e = extract(Path::new("a"), text.as_bytes()).unwrap();
        assert_eq!(e.text, text);
        assert_eq!(e.source_range(0..text.len()), 0..text.len());
    }

    #[test]
    fn latin1_bytes_become_characters_that_know_their_byte() {
        let found = sources("a.txt", b"caf\xe9 x");
        assert_eq!(found[3], ('é', vec![0xe9]));
        assert_eq!(found[5], ('x', b"x".to_vec()));
    }

    #[test]
    fn byte_order_mark_is_no_text() {
        assert_eq!(sources("a", b"\xef\xbb\xbfhi"), [('h', b"h".to_vec()), ('i', b"i".to_vec())]);
    }

    #[test]
    fn binaries_are_told() {
        assert!(extract(Path::new("a"), b"ELF\0x").is_err());
        assert!(extract(Path::new("a"), b"\x01\x02\x03abc").is_err());
        assert!(extract(Path::new("a"), b"bold\x08d \x1b[1m").is_ok());
        assert_eq!(extract(Path::new("a"), b"").unwrap().text, "");
    }

    #[test]
    fn html_keeps_the_way_back() {
        let html = b"<p>Salt &amp; <b>pepper</b>";
        let e = extract(Path::new("a.HTML"), html).unwrap();
        let at = e.text.find("Salt & pepper").unwrap();
        let range = e.source_range(at..at + "Salt & pepper".len());
        assert_eq!(&html[range], b"Salt &amp; <b>pepper");
    }
}
