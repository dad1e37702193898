//! The built-in embedder: hashed words and character n-grams, weighted by rarity. *Lexical*: it finds passages that share words,
//! parts of words and phrases with the query, not passages that say the same in other words.
//!
//! Each feature of a text weighs `share(kind) * sqrt(count) * idf^IDF_POWER`. It is added with a sign of its own to
//! several of the 384 dimensions (a sparse random projection with ±1 entries: Weinberger et al., "Feature Hashing for
//! Large Scale Multitask Learning", ICML 2009; Kane and Nelson, "Sparser Johnson-Lindenstrauss Transforms", JACM
//! 2014), and the sum is scaled to length 1. Only operations that IEEE 754 defines exactly are used, in a fixed order:
//! the same text and table give the same bits everywhere.

use super::features::{Counted, FeatureKind, count_features};
use super::hash::mix;
use super::{EmbedError, Embedder, IdfTable, Passage};

/// Elements of a vector of the built-in embedder.
pub const LEXICAL_DIM: usize = 384;

/// Version of features and weights: vectors of two versions are not comparable.
pub(super) const LEXICAL_VERSION: u32 = 1;

pub struct P {
    pub proj: u64,
    pub pow: f32,
    pub title: f32,
    pub w: [f32; 5],
}
fn env(n: &str, d: f32) -> f32 {
    std::env::var(n).ok().and_then(|v| v.parse().ok()).unwrap_or(d)
}
static PARAMS: std::sync::LazyLock<P> = std::sync::LazyLock::new(|| P {
    proj: env("PROJ", 4.0) as u64,
    pow: env("POW", 2.0),
    title: env("TITLE", 0.5),
    w: [env("W1", 1.0), env("W2", 0.5), env("G3", 0.2), env("G4", 0.25), env("G5", 0.25)],
});

/// See the module's text.
pub struct LexicalEmbedder {
    table: IdfTable,
}

impl LexicalEmbedder {
    /// With the rarities of `table`.
    pub fn new(table: IdfTable) -> Self {
        Self { table }
    }

    /// The rarities.
    pub fn table(&self) -> &IdfTable {
        &self.table
    }

    /// The vector of one passage: length 1, or all zeros if nothing in it has weight.
    pub fn embed_one(&self, passage: Passage<'_>) -> Vec<f32> {
        let mut sum = vec![0f64; LEXICAL_DIM];
        self.add(passage.text, 1.0, &mut sum);
        if !passage.title.is_empty() {
            let scale = norm(&sum).max(1.0);
            sum.iter_mut().for_each(|x| *x /= scale);
            let mut title = vec![0f64; LEXICAL_DIM];
            self.add(passage.title, 1.0, &mut title);
            let scale = f64::from(PARAMS.title) / norm(&title).max(1e-9);
            sum.iter_mut().zip(&title).for_each(|(x, t)| *x += t * scale);
        }
        let length = norm(&sum);
        if length == 0.0 { vec![0.0; LEXICAL_DIM] } else { sum.iter().map(|x| (x / length) as f32).collect() }
    }

    fn add(&self, text: &str, share: f64, sum: &mut [f64]) {
        for Counted { feature, count } in count_features(text) {
            let idf = f64::from(self.table.weight(feature.hash));
            let k = PARAMS.w[feature.kind as usize - 1];
            if k == 0.0 {
                continue;
            }
            let weight = share * f64::from(k) * f64::from(count).sqrt() * idf.powf(f64::from(PARAMS.pow));
            for i in 0..PARAMS.proj {
                let h = mix(feature.hash.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
                let d = ((h >> 32) * LEXICAL_DIM as u64 >> 32) as usize;
                sum[d] += if h & 1 == 0 { weight } else { -weight };
            }
        }
        let _ = FeatureKind::Word;
    }
}

fn norm(v: &[f64]) -> f64 {
    v.iter().map(|x| x * x).sum::<f64>().sqrt()
}

impl Embedder for LexicalEmbedder {
    fn dim(&self) -> usize {
        LEXICAL_DIM
    }

    fn embed(&self, passages: &[Passage<'_>]) -> Result<Vec<Vec<f32>>, EmbedError> {
        Ok(passages.iter().map(|passage| self.embed_one(*passage)).collect())
    }
}
