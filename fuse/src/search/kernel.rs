//! Lower bounds of distances by SIMD.
//!
//! simsimd adds floats in f32. With n elements and unit roundoff u = 2^-24 the sum of n products
//! differs from the true one by at most about n u sum |a_i b_i| (Higham, Accuracy and Stability of
//! Numerical Algorithms, section 3.1), which for a dot product is at most n u |a||b|. The kernel doubles u
//! for headroom and subtracts that bound; what overflows f32 gets no bound at all.
//! i8 sums are exact.
//!
//! f16 rows are widened to f32 first (F16C where there is one): on machines with AVX512-FP16
//! simsimd would add in f16, which loses 11 bits and overflows at 65504.

use layout::distance::cosine_of;
use layout::schema::{Element, Metric, Schema};
use layout::search::Bounds;
use simsimd::SpatialSimilarity;

use super::chunk::{Chunk, Vectors, widen};

/// Below this product of norms f32's underflow is no longer negligible.
const NORMS_MIN: f64 = 1e-24;
/// At most what a product may lose by underflow, denormals flushed to zero included: 2^-126.
const UNDERFLOW: f64 = 1.2e-38;

/// A query ready to be compared with chunks.
#[derive(Debug)]
pub struct Kernel {
    metric: Metric,
    dim: usize,
    query: Floats,
    /// Squared norm of the query, exact to f64.
    norm: f64,
    /// Relative error of a sum.
    error: f64,
    widened: Vec<f32>,
}

#[derive(Debug)]
enum Floats {
    F32(Vec<f32>),
    I8(Vec<i8>),
}

impl Kernel {
    /// For a query in the schema's element type that [`layout::vector::check`] accepted.
    pub fn new(schema: &Schema, query: &[u8]) -> Self {
        let dim = schema.dim() as usize;
        let query = match schema.element() {
            Element::F32 => {
                Floats::F32(query.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
            }
            Element::F16 => {
                let halves: Vec<u16> =
                    query.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)).collect();
                let mut floats = vec![0.0; halves.len()];
                widen(&halves, &mut floats);
                Floats::F32(floats)
            }
            Element::I8 => Floats::I8(query.iter().map(|b| b.cast_signed()).collect()),
        };
        let norm = match &query {
            Floats::F32(query) => query.iter().map(|&x| f64::from(x) * f64::from(x)).sum(),
            Floats::I8(query) => query.iter().map(|&x| f64::from(x) * f64::from(x)).sum(),
        };
        Kernel {
            metric: schema.metric(),
            dim,
            query,
            norm,
            error: (dim + 8) as f64 * f64::from(f32::EPSILON),
            widened: vec![0.0; dim],
        }
    }

    /// Writes a lower bound of the distance for each slot in `wanted`.
    pub fn bounds(&mut self, chunk: &Chunk, wanted: u64, bounds: &mut Bounds) {
        for (slot, bound) in bounds.iter_mut().enumerate().filter(|(slot, _)| wanted >> slot & 1 == 1) {
            *bound = self.bound(chunk, slot).unwrap_or(f64::NEG_INFINITY);
        }
    }

    /// None: no bound is known.
    fn bound(&mut self, chunk: &Chunk, slot: usize) -> Option<f64> {
        let range = slot * self.dim..(slot + 1) * self.dim;
        let norm = *chunk.norms.get(slot)?;
        let float_row: &[f32] = match (&chunk.vectors, &self.query) {
            (Vectors::F32(vectors), _) => vectors.get(range)?,
            (Vectors::F16(vectors), _) => {
                widen(vectors.get(range)?, &mut self.widened);
                &self.widened
            }
            (Vectors::I8(vectors), Floats::I8(query)) => {
                return whole_bound(self.metric, query, vectors.get(range)?, self.norm, norm);
            }
            (Vectors::I8(_), Floats::F32(_)) => return None,
        };
        let Floats::F32(query) = &self.query else { return None };
        let underflow = self.dim as f64 * UNDERFLOW;
        let bound = match self.metric {
            Metric::L2 => {
                let sum = f32::l2sq(query, float_row)?;
                sum * (1.0 - self.error) - underflow
            }
            Metric::Ip => {
                let norms = (self.norm * (norm * (1.0 + self.error) + underflow)).sqrt();
                -f32::dot(query, float_row)? - self.error * norms - underflow
            }
            Metric::Cosine => {
                let norms = self.norm * norm;
                if !norm.is_finite() || norm < NORMS_MIN || norms < NORMS_MIN {
                    return None;
                }
                1.0 - f32::dot(query, float_row)? / norms.sqrt() - 3.0 * self.error
            }
        };
        bound.is_finite().then_some(bound)
    }
}

/// For whole numbers the distance itself.
fn whole_bound(metric: Metric, query: &[i8], row: &[i8], query_norm: f64, norm: f64) -> Option<f64> {
    Some(match metric {
        Metric::L2 => i8::l2sq(query, row)?,
        Metric::Ip => -i8::dot(query, row)?,
        Metric::Cosine => cosine_of(i8::dot(query, row)?, query_norm, norm),
    })
}

#[cfg(test)]
mod tests {
    use layout::distance::distance;
    use layout::schema::CHUNK_ROWS;
    use proptest::prelude::*;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    use zerocopy::IntoBytes;

    use super::*;

    fn encode(element: Element, values: &[f32]) -> Vec<u8> {
        match element {
            Element::F32 => values.as_bytes().to_vec(),
            Element::F16 => values.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect(),
            Element::I8 => values.iter().map(|&v| (v as i8).cast_unsigned()).collect(),
        }
    }

    fn chunk(schema: &Schema, bytes: &[u8]) -> Chunk {
        let vectors = match schema.element() {
            Element::F32 => {
                Vectors::F32(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
            }
            Element::F16 => {
                Vectors::F16(bytes.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)).collect())
            }
            Element::I8 => Vectors::I8(bytes.iter().map(|b| b.cast_signed()).collect()),
        };
        Chunk::new(vectors, schema.dim() as usize)
    }

    /// Checks that every bound is below the distance, and if `near`, near it.
    fn check(schema: &Schema, query: &[f32], rows: &[Vec<f32>], near: bool) {
        let query = encode(schema.element(), query);
        let bytes: Vec<u8> = rows.iter().flat_map(|row| encode(schema.element(), row)).collect();
        let chunk = chunk(schema, &bytes);
        let mut bounds = [f64::NAN; CHUNK_ROWS as usize];
        let wanted = if rows.len() == 64 { u64::MAX } else { (1 << rows.len()) - 1 };
        Kernel::new(schema, &query).bounds(&chunk, wanted, &mut bounds);
        for (slot, row) in bytes.chunks_exact(schema.vector_bytes()).enumerate() {
            let exact = distance(schema.metric(), schema.element(), &query, row);
            assert!(bounds[slot] <= exact, "{schema:?} slot {slot}: bound {} above {exact}", bounds[slot]);
            if schema.element() == Element::I8 {
                assert_eq!(bounds[slot], exact, "{schema:?} slot {slot}: i8 is exact");
            } else if near {
                let scale = rows[slot].iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().max(1.0) * 4.0;
                assert!(exact - bounds[slot] < 1e-3 * scale, "{schema:?}: bound {} of {exact}", bounds[slot]);
            }
        }
    }

    fn schemas(dim: u32) -> impl Iterator<Item = Schema> {
        let metrics = [Metric::L2, Metric::Ip, Metric::Cosine];
        [Element::F32, Element::F16, Element::I8]
            .into_iter()
            .flat_map(move |element| metrics.map(|metric| Schema::new(dim, element, metric).unwrap()))
    }

    #[test]
    fn bounds_hold_and_are_near_for_every_metric_and_element() {
        let mut rng = StdRng::seed_from_u64(7);
        for dim in [1, 3, 15, 16, 17, 63, 384, 1000] {
            for schema in schemas(dim) {
                let scale = if schema.element() == Element::I8 { 127.0 } else { 1.0 };
                let mut vector = || -> Vec<f32> {
                    (0..dim).map(|_| (rng.random_range(-1.0f32..1.0) * scale).round_to(scale)).collect()
                };
                let rows: Vec<_> = (0..64).map(|_| vector()).collect();
                check(&schema, &vector(), &rows, true);
            }
        }
    }

    trait RoundTo {
        fn round_to(self, scale: f32) -> f32;
    }

    impl RoundTo for f32 {
        /// Whole numbers where the scale is that of i8; never 0.
        fn round_to(self, scale: f32) -> f32 {
            if scale > 1.0 { if self.round() == 0.0 { 1.0 } else { self.round() } } else { self }
        }
    }

    #[test]
    fn extremes_of_each_element_type_have_no_wrong_bound() {
        for schema in schemas(384) {
            let most = match schema.element() {
                Element::F32 => f32::MAX,
                Element::F16 => 65504.0,
                Element::I8 => 127.0,
            };
            let least = match schema.element() {
                Element::F32 => 1e-45,
                Element::F16 => 6e-8,
                Element::I8 => 1.0,
            };
            let low = if schema.element() == Element::I8 { -128.0 } else { -most };
            let rows: Vec<Vec<f32>> = [most, low, least, -least, most / 2.0, 1.0]
                .iter()
                .map(|&value| vec![value; 384])
                .chain([(0..384).map(|i| if i % 2 == 0 { most } else { low }).collect()])
                .collect();
            for query in &rows {
                check(&schema, query, &rows, false);
            }
        }
    }

    proptest! {
        #[test]
        fn bounds_hold_for_any_floats(
            rows in proptest::collection::vec(
                proptest::collection::vec(proptest::num::f32::NORMAL | proptest::num::f32::SUBNORMAL, 9),
                2..10,
            ),
        ) {
            for schema in schemas(9).filter(|schema| schema.element() == Element::F32) {
                check(&schema, &rows[0], &rows, false);
            }
        }
    }
}
