//! A file's bytes as passages with vectors, ready to be put.

use std::path::Path;

use anyhow::{Result, ensure};
use blockd::embed::{Embedder, Passage, Trainer};

use super::cut::cut;
use super::extract::{Binary, Extracted, extract};
use crate::session::Row;

/// Longest path below the collection that is taken (VEXFS_PATH_BYTES_MAX, less the temporary name's length).
pub const MAX_PATH_BYTES: usize = 4000;
/// Passages given to an embedder at a time.
const BATCH: usize = 128;

/// The passages of a file; their vectors come later.
pub struct Passages {
    extracted: Extracted,
    /// Range of the text, title.
    cuts: Vec<(std::ops::Range<usize>, String)>,
}

/// Rows of a file with their vectors, `[rows][dim]`.
#[derive(Debug, Default)]
pub struct Embedded {
    pub rows: Vec<Row>,
    pub vectors: Vec<f32>,
}

impl Passages {
    /// Cuts the file with the name `target` in the collection and these bytes.
    ///
    /// # Errors
    /// [`Binary`]: it has no text.
    pub fn of(target: &Path, bytes: &[u8]) -> Result<Self, Binary> {
        let extracted = extract(target, bytes)?;
        let name = title_of(target);
        let cuts = cut(&extracted)
            .into_iter()
            .map(|cut| match cut.heading.as_str() {
                "" => (cut.range, name.clone()),
                heading => (cut.range, format!("{name}: {heading}")),
            })
            .collect();
        Ok(Self { extracted, cuts })
    }

    fn iter(&self) -> impl Iterator<Item = Passage<'_>> {
        self.cuts.iter().map(|(range, title)| Passage { title, text: &self.extracted.text[range.clone()] })
    }

    /// Counts their words.
    pub fn train(&self, trainer: &Trainer) {
        self.iter().for_each(|passage| trainer.add(passage));
    }

    /// Their rows. A passage in which the embedder finds nothing (a ruler, a table of dashes) gets none.
    ///
    /// # Errors
    /// The embedder failed.
    pub fn embed(&self, embedder: &dyn Embedder) -> Result<Embedded> {
        let mut embedded = Embedded::default();
        let passages: Vec<Passage<'_>> = self.iter().collect();
        for (batch, cuts) in passages.chunks(BATCH).zip(self.cuts.chunks(BATCH)) {
            let vectors = embedder.embed(batch)?;
            ensure!(
                vectors.len() == batch.len(),
                "the embedder gave {} vectors for {} passages",
                vectors.len(),
                batch.len()
            );
            for (vector, (range, _)) in vectors.iter().zip(cuts) {
                if vector.iter().all(|x| *x == 0.0) {
                    continue;
                }
                let source = self.extracted.source_range(range.clone());
                embedded.rows.push(Row { offset: source.start as u64, length: source.len() as u64, tag: 0 });
                embedded.vectors.extend_from_slice(vector);
            }
        }
        Ok(embedded)
    }
}

/// What a path says about the text: its first and its last two names, without the ending.
fn title_of(target: &Path) -> String {
    let names: Vec<String> =
        target.with_extension("").iter().map(|name| name.to_string_lossy().into_owned()).collect();
    match names.len() {
        0..=3 => names.join(" "),
        len => format!("{} {} {}", names[0], names[len - 2], names[len - 1]),
    }
}

#[cfg(test)]
mod tests {
    use blockd::embed::{EmbedError, LexicalEmbedder};

    use super::*;

    #[test]
    fn titles_are_of_the_path() {
        assert_eq!(title_of(Path::new("zlib1g/changelog.Debian")), "zlib1g changelog");
        assert_eq!(title_of(Path::new("a/b/c/d/e.html")), "a d e");
        assert_eq!(title_of(Path::new("README")), "README");
    }

    #[test]
    fn rows_are_ranges_of_the_files_bytes() {
        let html = b"<h1>Caf\xc3\xa9</h1><p>Open at nine &amp; closed on <b>Sunday</b></p><p>----</p>";
        let passages = Passages::of(Path::new("x.html"), html).unwrap();
        let trainer = Trainer::new();
        passages.train(&trainer);
        assert_eq!(trainer.passages(), 1);
        let embedded = passages.embed(&LexicalEmbedder::new(trainer.finish())).unwrap();
        let Row { offset, length, .. } = embedded.rows[0];
        let range = &html[offset as usize..(offset + length) as usize];
        assert!(range.starts_with(b"Caf") && range.ends_with(b"----"));
        assert_eq!((embedded.rows.len(), embedded.vectors.len()), (1, 384));
    }

    #[test]
    fn passages_without_words_get_no_row() {
        let passages = Passages::of(Path::new("x"), b"-----\n\n*****\n").unwrap();
        assert!(passages.embed(&LexicalEmbedder::new(Trainer::new().finish())).unwrap().rows.is_empty());
    }

    struct Miscounting;
    impl Embedder for Miscounting {
        fn dim(&self) -> usize {
            1
        }
        fn embed(&self, _: &[Passage<'_>]) -> Result<Vec<Vec<f32>>, EmbedError> {
            Ok(vec![])
        }
    }

    #[test]
    fn an_embedder_that_miscounts_is_refused() {
        let passages = Passages::of(Path::new("x"), b"word").unwrap();
        assert!(passages.embed(&Miscounting).unwrap_err().to_string().contains("0 vectors for 1 passages"));
    }
}
