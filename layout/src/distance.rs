//! The distances by definition: the reference that every faster kernel must agree with.
//!
//! Elements are widened to f64 (i8: summed in integers, exactly) and added in order, so the same
//! two vectors have the same distance on every machine. An answer of a search states these
//! distances; SIMD kernels only decide which rows are worth computing.

use half::f16;

use crate::schema::{Element, Metric};

/// The distance of two vectors of one schema: `[dim]` elements, little-endian, any alignment.
///
/// Vectors of different length are compared up to the shorter one's end. A cosine with a vector
/// of norm 0 is 1; such vectors are refused before they come here.
pub fn distance(metric: Metric, element: Element, a: &[u8], b: &[u8]) -> f64 {
    match element {
        Element::F32 => float_distance(metric, f32s(a), f32s(b)),
        Element::F16 => float_distance(metric, f16s(a), f16s(b)),
        Element::I8 => i8_distance(metric, a, b),
    }
}

/// The distance that follows from a dot product and squared norms: `1 - ab / sqrt(aa * bb)`.
pub fn cosine_of(ab: f64, aa: f64, bb: f64) -> f64 {
    let norms = aa * bb;
    if norms > 0.0 { 1.0 - ab / sqrt(norms) } else { 1.0 }
}

fn f32s(bytes: &[u8]) -> impl Iterator<Item = f64> + '_ {
    bytes.as_chunks::<4>().0.iter().map(|&bytes| f64::from(f32::from_le_bytes(bytes)))
}

fn f16s(bytes: &[u8]) -> impl Iterator<Item = f64> + '_ {
    bytes.as_chunks::<2>().0.iter().map(|&bytes| f16::from_le_bytes(bytes).to_f64())
}

fn float_distance(metric: Metric, a: impl Iterator<Item = f64>, b: impl Iterator<Item = f64>) -> f64 {
    let pairs = a.zip(b);
    match metric {
        Metric::L2 => pairs.map(|(a, b)| (a - b) * (a - b)).sum(),
        Metric::Ip => -pairs.map(|(a, b)| a * b).sum::<f64>(),
        Metric::Cosine => {
            let (ab, aa, bb) =
                pairs.fold((0.0, 0.0, 0.0), |(ab, aa, bb), (a, b)| (ab + a * b, aa + a * a, bb + b * b));
            cosine_of(ab, aa, bb)
        }
    }
}

fn i8_distance(metric: Metric, a: &[u8], b: &[u8]) -> f64 {
    // At most 2^14 elements, each term below 2^16: the sums stay below 2^30, exact in f64.
    let pairs = a.iter().zip(b).map(|(&a, &b)| (i64::from(a.cast_signed()), i64::from(b.cast_signed())));
    match metric {
        Metric::L2 => pairs.map(|(a, b)| (a - b) * (a - b)).sum::<i64>() as f64,
        Metric::Ip => -(pairs.map(|(a, b)| a * b).sum::<i64>() as f64),
        Metric::Cosine => {
            let (ab, aa, bb) =
                pairs.fold((0, 0, 0), |(ab, aa, bb), (a, b)| (ab + a * b, aa + a * a, bb + b * b));
            cosine_of(ab as f64, aa as f64, bb as f64)
        }
    }
}

/// Square root of a positive, finite number within 1 unit in the last place (`core` has none).
///
/// Newton's iteration from halving the exponent: the first guess is within 6 %, each step squares
/// the relative error, so four reach the end of f64's 53 bits.
fn sqrt(x: f64) -> f64 {
    if !x.is_normal() || x < 0.0 {
        // Subnormal: scale by 2^108, whose root is 2^54.
        return if x > 0.0 && x.is_finite() { sqrt(x * TWO_108) / TWO_54 } else { x };
    }
    let guess = f64::from_bits((x.to_bits() >> 1) + 0x1ff7_a3be_a91d_9b1b);
    (0..5).fold(guess, |root, _| 0.5 * (root + x / root))
}

const TWO_54: f64 = (1u64 << 54) as f64;
const TWO_108: f64 = TWO_54 * TWO_54;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    extern crate std;
    use std::vec::Vec;

    fn f32_bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    fn f16_bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect()
    }

    #[test]
    fn golden_distances() {
        let (a, b) = ([1.0, 2.0, -2.0], [3.0, 0.0, 4.0]);
        for (metric, expected) in [(Metric::L2, 44.0), (Metric::Ip, 5.0), (Metric::Cosine, 1.0 + 5.0 / 15.0)]
        {
            assert_eq!(
                distance(metric, Element::F32, &f32_bytes(&a), &f32_bytes(&b)),
                expected,
                "{metric:?}"
            );
            assert_eq!(
                distance(metric, Element::F16, &f16_bytes(&a), &f16_bytes(&b)),
                expected,
                "{metric:?}"
            );
            let (a, b) = ([1, 2, 0xfe], [3, 0, 4]);
            assert_eq!(distance(metric, Element::I8, &a, &b), expected, "{metric:?}");
        }
    }

    #[test]
    fn i8_extremes_do_not_overflow() {
        let (low, high) = ([0x80; 16384], [0x7f; 16384]);
        assert_eq!(distance(Metric::L2, Element::I8, &low, &high), 16384.0 * 255.0 * 255.0);
        assert_eq!(distance(Metric::Ip, Element::I8, &low, &low), -16384.0 * 16384.0);
        assert_eq!(distance(Metric::Cosine, Element::I8, &low, &high), 2.0);
    }

    proptest! {
        #[test]
        fn sqrt_agrees_with_the_machine(bits in 1u64..0x7ff0_0000_0000_0000) {
            let x = f64::from_bits(bits);
            let (ours, theirs) = (sqrt(x), x.sqrt());
            prop_assert!(ours.to_bits().abs_diff(theirs.to_bits()) <= 1, "{x}: {ours} {theirs}");
        }

        #[test]
        fn cosine_is_within_its_range(
            values in proptest::collection::vec((-1000.0f32..1000.0, -1000.0f32..1000.0), 1..64)
        ) {
            let (a, b): (Vec<f32>, Vec<f32>) = values.into_iter().unzip();
            let d = distance(Metric::Cosine, Element::F32, &f32_bytes(&a), &f32_bytes(&b));
            prop_assert!((-1e-12..=2.0 + 1e-12).contains(&d));
        }
    }
}
