//! What the lexical embedder sees in a text: words, pairs of neighbouring words, and character 3- to 5-grams of words.
//!
//! A word is a run of alphanumeric characters, lower-cased. Words and pairs are taken after [`stem`], so that
//! `file` and `files` are one; the character n-grams (of the word between boundary marks) bring together what
//! shares a part: `mount`, `unmounted`, `mountpoint`.

use super::hash::hash_bytes;

/// Kinds of feature; the number seeds its hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum FeatureKind {
    Word = 1,
    Pair = 2,
    Gram3 = 3,
    Gram4 = 4,
    Gram5 = 5,
}

/// A feature: its hash, with the kind in the lowest 3 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Feature(u64);

impl Feature {
    fn new(kind: FeatureKind, text: &str) -> Self {
        Self(hash_bytes(kind as u64, text.as_bytes()) & !KIND_BITS | kind as u64)
    }

    /// Spread evenly over all but the lowest 3 bits.
    pub fn hash(self) -> u64 {
        self.0
    }

    pub fn kind(self) -> FeatureKind {
        match self.0 & KIND_BITS {
            1 => FeatureKind::Word,
            2 => FeatureKind::Pair,
            3 => FeatureKind::Gram3,
            4 => FeatureKind::Gram4,
            _ => FeatureKind::Gram5,
        }
    }
}

const KIND_BITS: u64 = 7;

/// Longer words (encoded data, rulers) are cut here; they carry nothing for a search.
const WORD_CHARS_MAX: usize = 40;

const GRAM_KINDS: [(usize, FeatureKind); 3] =
    [(3, FeatureKind::Gram3), (4, FeatureKind::Gram4), (5, FeatureKind::Gram5)];

/// A feature and how often it occurs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counted {
    pub feature: Feature,
    pub count: u32,
}

/// All features of `text`, each once with its count, in order of hash.
pub(super) fn count_features(text: &str) -> Vec<Counted> {
    let mut all = Vec::with_capacity(text.len() * 3);
    collect(text, &mut all);
    all.sort_unstable();
    let mut counted: Vec<Counted> = Vec::with_capacity(all.len() / 2);
    for feature in all {
        match counted.last_mut() {
            Some(last) if last.feature == feature => last.count += 1,
            _ => counted.push(Counted { feature, count: 1 }),
        }
    }
    counted
}

fn collect(text: &str, out: &mut Vec<Feature>) {
    let mut previous = String::new();
    let mut pair = String::new();
    let mut marked: Vec<char> = Vec::new();
    let mut gram = String::new();
    for word in text.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()) {
        let word: String = word.chars().take(WORD_CHARS_MAX).flat_map(char::to_lowercase).collect();
        let stemmed = stem(&word);
        out.push(Feature::new(FeatureKind::Word, stemmed));
        if !previous.is_empty() {
            pair.clear();
            pair.push_str(&previous);
            pair.push(' ');
            pair.push_str(stemmed);
            out.push(Feature::new(FeatureKind::Pair, &pair));
        }
        previous.clear();
        previous.push_str(stemmed);

        marked.clear();
        marked.push('<');
        marked.extend(word.chars());
        marked.push('>');
        for (len, kind) in GRAM_KINDS {
            for window in marked.windows(len) {
                gram.clear();
                gram.extend(window);
                out.push(Feature::new(kind, &gram));
            }
        }
    }
}

/// Takes the commonest English endings off: enough to bring plural and verb forms together, and harmless
/// elsewhere, since query and passage are treated alike.
fn stem(word: &str) -> &str {
    let base = ["ies", "ing", "ed", "es", "s"]
        .iter()
        .find_map(|ending| {
            let rest = word.strip_suffix(ending)?;
            let long_enough = rest.len() >= if *ending == "s" { 3 } else { 4 };
            let plural = *ending != "s" || !rest.ends_with(['s', 'u', 'i']);
            (long_enough && plural).then_some(rest)
        })
        .unwrap_or(word);
    base.strip_suffix(['e', 'y']).filter(|rest| rest.len() >= 4).unwrap_or(base)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_of_a_word_meet() {
        for (a, b) in [
            ("file", "files"),
            ("mount", "mounted"),
            ("mount", "mounting"),
            ("create", "creates"),
            ("create", "created"),
            ("library", "libraries"),
        ] {
            assert_eq!(stem(a), stem(b), "{a} {b}");
        }
        for word in ["class", "status", "bus", "this", "red", "sing", "is"] {
            assert_eq!(stem(word), word);
        }
    }

    #[test]
    fn counts_words_pairs_and_grams() {
        let counted = count_features("disk, DISK!");
        let total: u32 = counted.iter().map(|c| c.count).sum();
        // 2 words, 1 pair; <disk> has 4 + 3 + 2 grams, twice.
        assert_eq!(total, 2 + 1 + 18);
        assert_eq!(counted.iter().filter(|c| c.feature.kind() == FeatureKind::Word).count(), 1);
    }

    #[test]
    fn text_without_words_has_no_features() {
        assert!(count_features(" -- \u{2014} ...\n").is_empty());
    }

    #[test]
    fn every_script_is_text() {
        assert!(!count_features("файловая система").is_empty());
        assert!(!count_features("文件系统").is_empty());
    }
}
