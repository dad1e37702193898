//! HTML to text, simply: tags go, block tags break paragraphs, entities become characters, headings are noted.
//!
//! Not a parser: documentation is readable without one, and each character kept can be traced to its bytes.
//! Every step is linear in the input, whatever the input is.

use super::extract::Extracted;

/// A tag longer than this is taken as text.
const TAG_BYTES_MAX: usize = 8192;

const BLOCKS: [&str; 36] = [
    "address",
    "article",
    "aside",
    "blockquote",
    "body",
    "caption",
    "center",
    "dd",
    "div",
    "dl",
    "dt",
    "fieldset",
    "figure",
    "footer",
    "form",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "header",
    "hr",
    "li",
    "main",
    "nav",
    "ol",
    "p",
    "pre",
    "section",
    "table",
    "td",
    "th",
    "title",
    "tr",
    "ul",
];
const HIDDEN: [&str; 3] = ["script", "style", "template"];
const HEADINGS: [&str; 7] = ["title", "h1", "h2", "h3", "h4", "h5", "h6"];
const ENTITIES: [(&str, char); 18] = [
    ("amp", '&'),
    ("lt", '<'),
    ("gt", '>'),
    ("quot", '"'),
    ("apos", '\''),
    ("nbsp", ' '),
    ("mdash", '—'),
    ("ndash", '–'),
    ("hellip", '…'),
    ("copy", '©'),
    ("reg", '®'),
    ("lsquo", '‘'),
    ("rsquo", '’'),
    ("ldquo", '“'),
    ("rdquo", '”'),
    ("laquo", '«'),
    ("raquo", '»'),
    ("times", '×'),
];

/// The text of an HTML document; `html` maps to the bytes of the file.
pub fn strip(html: &Extracted) -> Extracted {
    let mut stripper = Stripper { html, out: Extracted::default(), at: 0, preformatted: 0, heading: None };
    stripper.run();
    stripper.out
}

struct Stripper<'a> {
    html: &'a Extracted,
    out: Extracted,
    /// In `html.text`.
    at: usize,
    preformatted: usize,
    /// Where in `out.text` the open heading begins.
    heading: Option<usize>,
}

impl Stripper<'_> {
    fn run(&mut self) {
        while let Some(next) = self.rest().chars().next() {
            let taken = match next {
                '<' => self.markup(),
                '&' => self.entity(),
                _ => None,
            };
            match taken {
                Some(len) => self.at += len,
                None => {
                    self.character(next);
                    self.at += next.len_utf8();
                }
            }
        }
    }

    fn rest(&self) -> &str {
        &self.html.text[self.at..]
    }

    fn character(&mut self, c: char) {
        let space = c.is_whitespace();
        if space && self.preformatted == 0 && self.out.text.ends_with([' ', '\n']) {
            return;
        }
        let shown = if space && self.preformatted == 0 { ' ' } else { c };
        let source = self.html.source_range(self.at..self.at + c.len_utf8());
        if source.len() == shown.len_utf8() {
            self.out.push(shown.encode_utf8(&mut [0; 4]), source.start);
        } else {
            self.out.push_replacement(shown, source);
        }
    }

    /// Takes a comment, tag or hidden element at `at`; gives its length.
    fn markup(&mut self) -> Option<usize> {
        let rest = self.rest();
        if rest.starts_with("<!--") {
            return Some(rest.find("-->").map_or(rest.len(), |end| end + 3));
        }
        let len = tag_len(rest)?;
        let inside = &rest[1..len - 1];
        let closing = inside.starts_with('/');
        let name: String = inside
            .trim_start_matches('/')
            .chars()
            .take_while(char::is_ascii_alphanumeric)
            .flat_map(char::to_lowercase)
            .collect();
        if HIDDEN.contains(&name.as_str()) && !closing {
            return Some(len + hidden_len(&rest[len..], &name));
        }
        self.tag(&name, closing, len);
        Some(len)
    }

    fn tag(&mut self, name: &str, closing: bool, len: usize) {
        let is_heading = HEADINGS.contains(&name);
        if let Some(start) = self.heading.filter(|_| is_heading) {
            let title = self.out.text[start..].split_whitespace().collect::<Vec<_>>().join(" ");
            if !title.is_empty() {
                self.out.headings.push((start, title));
            }
            self.heading = None;
        }
        if name == "br" {
            self.line_break(1, len);
        } else if BLOCKS.contains(&name) {
            self.line_break(2, len);
        }
        if is_heading && !closing {
            self.heading = Some(self.out.text.len());
        }
        if name == "pre" {
            self.preformatted =
                if closing { self.preformatted.saturating_sub(1) } else { self.preformatted + 1 };
        }
    }

    /// Makes the text end in at least `newlines` newlines, which stand for the tag.
    fn line_break(&mut self, newlines: usize, len: usize) {
        let present = self.out.text.bytes().rev().take_while(|&b| b == b'\n').count();
        if self.out.text.is_empty() {
            return;
        }
        for _ in present..newlines {
            let source = self.html.source_range(self.at..self.at + len);
            self.out.push_replacement('\n', source);
        }
    }

    /// Takes an entity at `at`; gives its length.
    fn entity(&mut self) -> Option<usize> {
        let rest = self.rest();
        let end = rest.bytes().take(12).position(|b| b == b';')?;
        let name = rest.get(1..end)?;
        let character = match name.strip_prefix('#') {
            Some(number) => {
                let code = match number.strip_prefix(['x', 'X']) {
                    Some(hex) => u32::from_str_radix(hex, 16).ok()?,
                    None => number.parse().ok()?,
                };
                char::from_u32(code).filter(|c| !c.is_control() || c.is_whitespace())?
            }
            None => ENTITIES.iter().find(|(known, _)| *known == name)?.1,
        };
        let source = self.html.source_range(self.at..self.at + end + 1);
        self.out.push_replacement(character, source);
        Some(end + 1)
    }
}

/// Bytes of the tag that `text` begins with, or `None` if it is no tag.
fn tag_len(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    if !bytes.get(1).is_some_and(|b| b.is_ascii_alphabetic() || matches!(b, b'/' | b'!' | b'?')) {
        return None;
    }
    let mut quote = None;
    for (i, &byte) in bytes.iter().enumerate().take(TAG_BYTES_MAX).skip(1) {
        match (quote, byte) {
            (None, b'>') => return Some(i + 1),
            (None, b'<') => return None,
            (None, b'"' | b'\'') if bytes[i - 1] == b'=' => quote = Some(byte),
            (Some(open), _) if open == byte => quote = None,
            _ => {}
        }
    }
    None
}

/// Bytes up to and with the closing tag of a hidden element, or all if it is not closed.
fn hidden_len(text: &str, name: &str) -> usize {
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(found) = text[at..].find("</") {
        let start = at + found;
        let after = start + 2;
        if bytes.get(after..after + name.len()).is_some_and(|tag| tag.eq_ignore_ascii_case(name.as_bytes())) {
            return text[start..].find('>').map_or(text.len(), |end| start + end + 1);
        }
        at = after;
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::super::extract::extract;

    fn text(html: &str) -> String {
        extract(Path::new("x.html"), html.as_bytes()).unwrap().text.trim().to_owned()
    }

    #[test]
    fn tags_go_and_blocks_break() {
        assert_eq!(text("<html><body><p>One <i>two</i></p><p>three<br/>four"), "One two\n\nthree\nfour");
    }

    #[test]
    fn scripts_styles_and_comments_are_no_text() {
        assert_eq!(text("a<script>if (1 < 2) alert('</b>')</SCRIPT >b<!-- c > d -->e<style>x"), "abe");
    }

    #[test]
    fn entities_become_characters() {
        assert_eq!(text("a &lt;b&gt; &#65;&#x42; &unknown; & AT&T;"), "a <b> AB &unknown; & AT&T;");
    }

    #[test]
    fn white_space_collapses_but_not_in_pre() {
        assert_eq!(text("a\n   b<pre>c\n   d</pre>e\n  f"), "a b\n\nc\n   d\n\ne f");
    }

    #[test]
    fn a_lone_angle_is_text() {
        assert_eq!(text("1 < 2 and x <- y, <unfinished"), "1 < 2 and x <- y, <unfinished");
    }

    #[test]
    fn a_quoted_angle_does_not_end_a_tag() {
        assert_eq!(text("<a title=\"x > y\">z</a>"), "z");
    }

    #[test]
    fn headings_are_noted_where_they_stand() {
        let e = extract(Path::new("x.html"), b"<title>T</title><h1>Big <b>One</b></h1>text").unwrap();
        let titles: Vec<&str> = e.headings.iter().map(|(_, t)| t.as_str()).collect();
        assert_eq!(titles, ["T", "Big One"]);
        assert!(e.text[e.headings[1].0..].starts_with("Big One"));
    }

    proptest! {
        #[test]
        fn any_input_maps_back_in_order(bytes in proptest::collection::vec(
            proptest::sample::select(b"<>/&;#!-pre \n\"='abx\xc3\xa9\xff".to_vec()), 0..200)) {
            if let Ok(e) = extract(Path::new("x.html"), &bytes) {
                let mut last = 0;
                for (i, c) in e.text.char_indices() {
                    let range = e.source_range(i..i + c.len_utf8());
                    prop_assert!(range.start <= range.end && range.end <= bytes.len());
                    prop_assert!(range.start >= last);
                    last = range.start;
                }
            }
        }
    }
}
