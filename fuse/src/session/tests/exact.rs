//! Exact search against an oracle that shares no code with it.

use std::collections::HashSet;

use layout::uapi::search::{SearchReply, SearchRequest};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use zerocopy::IntoBytes;

use super::*;

/// `[rows][dim]` numbers around a few centres, multiples of 2^-10 below 2: exact in f32 and in f16.
fn clustered(rows: usize, dim: usize, seed: u64) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    let centres: Vec<f32> = (0..40 * dim).map(|_| rng.random_range(-1.0..1.0)).collect();
    let mut all = Vec::with_capacity(rows * dim);
    for row in 0..rows {
        if row % 1000 == 999 {
            // A copy of an earlier row: equal distances are ordered by row id.
            all.extend_from_within((row - 500) * dim..(row - 499) * dim);
            continue;
        }
        let centre = rng.random_range(0..40) * dim;
        let near = centres[centre..centre + dim].iter();
        all.extend(near.map(|c| ((c + rng.random_range(-0.3f32..0.3)) * 1024.0).round() / 1024.0));
    }
    all
}

/// The distance by the book, in f64.
fn oracle(metric: &str, a: &[f64], b: &[f64]) -> f64 {
    let dot: f64 = (0..a.len()).map(|i| a[i] * b[i]).sum();
    match metric {
        "ip" => -dot,
        "l2" => (0..a.len()).map(|i| (a[i] - b[i]).powi(2)).sum(),
        _ => {
            let norm = |v: &[f64]| v.iter().map(|x| x.powi(2)).sum::<f64>().sqrt();
            1.0 - dot / (norm(a) * norm(b))
        }
    }
}

/// Puts `rows` vectors in files of 100 rows each, deletes some of the files, and compares searches.
fn agrees_with_the_oracle(rows: usize, dim: usize, element: &str, metric: &str) {
    const ROWS_PER_FILE: usize = 100;
    let scale = if element == "i8" { 60.0 } else { 1.0 };
    let stored = |x: f32| if element == "i8" { (x * scale).round() } else { x };
    let data: Vec<f32> = clustered(rows, dim, 1).into_iter().map(stored).collect();
    let queries: Vec<f32> = clustered(4, dim, 2).into_iter().map(stored).collect();

    let (files, dir) = collection(dim as u32, element, metric);
    for (number, vectors) in data.chunks(ROWS_PER_FILE * dim).enumerate() {
        let name = format!("{number}");
        file(&files, dir, &name);
        put(&files, dir, &name, dim as u32, 1, vectors.as_bytes());
    }
    let deleted: HashSet<usize> = (0..rows / ROWS_PER_FILE).filter(|number| number % 7 == 3).collect();
    for number in &deleted {
        change(&files, |fs| {
            let inode = fs.unlink(dir, number.to_string().as_bytes(), now()).expect("unlinks");
            if number % 2 == 0 {
                fs.reap(inode.ino).expect("frees");
            }
        });
    }

    let wide: Vec<f64> = data.iter().map(|&x| f64::from(x)).collect();
    for (query, k) in queries.chunks(dim).zip([10, 1, 100, 1000]) {
        let wide_query: Vec<f64> = query.iter().map(|&x| f64::from(x)).collect();
        let distances: Vec<f64> = wide.chunks(dim).map(|row| oracle(metric, &wide_query, row)).collect();
        let mut expected: Vec<usize> =
            (0..rows).filter(|row| !deleted.contains(&(row / ROWS_PER_FILE))).collect();
        expected.sort_by(|&a, &b| distances[a].total_cmp(&distances[b]).then(a.cmp(&b)));

        let request = SearchRequest {
            fresh_only: false,
            tags_any: 0,
            k,
            dim: dim as u32,
            element: 1,
            query: query.as_bytes(),
            subdir: b"",
        };
        let mut bytes = vec![0; dim * 4 + 64];
        let len = request.encode(&mut bytes).expect("encodes");
        let reply = ask(&files, SessionKind::Search, dir, &bytes[..len], ROOT);
        let reply = SearchReply::parse(&reply).expect("a reply");
        assert_eq!(reply.errno, 0, "{}", reply.message);
        assert_eq!(reply.hits().len(), (k as usize).min(expected.len()));
        let mut seen = HashSet::new();
        for (hit, &row) in reply.hits().zip(&expected) {
            let found = hit.row as usize;
            assert!(seen.insert(found), "row {found} twice");
            assert_eq!(hit.path, (found / ROWS_PER_FILE).to_string().as_bytes());
            assert_eq!(hit.offset, (found % ROWS_PER_FILE) as u64);
            let (distance, wanted) = (distances[found], distances[row]);
            let close = |a: f64, b: f64| (a - b).abs() <= 1e-12 * dim as f64 * f64::from(scale * scale);
            assert!(close(hit.distance, distance), "{element} {metric}: {} is not {distance}", hit.distance);
            // The same row, or one that is as far but for the last bits of f64.
            assert!(found == row || close(distance, wanted), "{element} {metric}: row {found} for {row}");
            if distance == wanted && element != "i8" && metric != "cosine" {
                assert_eq!(found, row, "{element} {metric}: equal distances go by row id");
            }
        }
    }
    assert!(files.searcher().cache().bytes() > 0, "chunks are kept");
}

#[test]
fn fifty_thousand_rows_in_every_metric_f32() {
    for metric in ["l2", "ip", "cosine"] {
        agrees_with_the_oracle(50_000, 384, "f32", metric);
    }
}

#[test]
fn fifty_thousand_rows_in_every_metric_f16() {
    for metric in ["l2", "ip", "cosine"] {
        agrees_with_the_oracle(50_000, 384, "f16", metric);
    }
}

#[test]
fn fifty_thousand_rows_in_every_metric_i8() {
    for metric in ["l2", "ip", "cosine"] {
        agrees_with_the_oracle(50_000, 384, "i8", metric);
    }
}

#[test]
fn few_rows_of_odd_dimensions() {
    for dim in [1, 2, 3, 31, 100, 1025] {
        for element in ["f32", "f16", "i8"] {
            // One element has no direction but its sign; nearly all cosines would be ties.
            for metric in if dim == 1 { &["l2", "ip"][..] } else { &["l2", "ip", "cosine"] } {
                agrees_with_the_oracle(1100, dim, element, metric);
            }
        }
    }
}
