//! How well the built-in embedder finds a passage by its heading, on real documentation.
//!
//! The passages are `tests/data/passages.jsonl`, or those of the file that `VEXFS_PASSAGES_JSONL` names (same form).

use blockd::embed::{Embedder, LexicalEmbedder, Passage, Trainer};
use serde::Deserialize;

#[derive(Deserialize)]
struct Row {
    file: String,
    heading: String,
    text: String,
}

fn rows() -> Vec<Row> {
    let path = std::env::var("VEXFS_PASSAGES_JSONL")
        .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/passages.jsonl").to_owned());
    let text = std::fs::read_to_string(path).expect("the passages are there");
    text.lines().map(|line| serde_json::from_str(line).expect("a passage a line")).collect()
}

/// The share of headings whose own passage is among the first `k`.
fn recall(embedder: &LexicalEmbedder, rows: &[Row], vectors: &[Vec<f32>], k: usize) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let found = rows.iter().zip(vectors).filter(|(row, own)| {
        let query = embedder.embed_query(&row.heading).expect("the embedder works");
        let own = dot(&query, own);
        vectors.iter().filter(|vector| dot(&query, vector) > own).count() < k
    });
    found.count() as f64 / rows.len() as f64
}

#[test]
fn headings_find_their_passages() {
    let rows = rows();
    let trainer = Trainer::new();
    rows.iter().for_each(|row| trainer.add(Passage { title: "", text: &row.text }));
    let embedder = LexicalEmbedder::new(trainer.finish());

    let bare: Vec<Passage<'_>> = rows.iter().map(|row| Passage { title: "", text: &row.text }).collect();
    let bare = embedder.embed(&bare).expect("the embedder works");
    let (first, ten) = (recall(&embedder, &rows, &bare, 1), recall(&embedder, &rows, &bare, 10));
    println!("text alone: recall@1 {first:.3}, recall@10 {ten:.3}");
    // Measured: 0.393 and 0.605.
    assert!(first > 0.3 && ten > 0.5, "recall@1 {first:.3}, recall@10 {ten:.3}");

    let titled: Vec<Passage<'_>> =
        rows.iter().map(|row| Passage { title: &row.file, text: &row.text }).collect();
    let titled = recall(&embedder, &rows, &embedder.embed(&titled).expect("the embedder works"), 10);
    println!("with the path as title: recall@10 {titled:.3}");
    assert!(titled > ten - 0.02, "the path made it worse: {titled:.3} from {ten:.3}");
}
