//! Untrusted vectors: what is refused, and the conversion from f32 to a collection's element.

use half::f16;

use crate::error::{Error, Result};
use crate::schema::{Element, Metric, Schema};

/// Checks a vector of the schema's own element type.
///
/// # Errors
/// [`Error::Invalid`] for a wrong length, a NaN or infinite element, or (cosine) norm 0.
pub fn check(schema: &Schema, vector: &[u8]) -> Result<()> {
    if vector.is_empty() {
        return Err(Error::Invalid("the vector is empty"));
    }
    if vector.len() != schema.vector_bytes() {
        return Err(WRONG_DIM);
    }
    let finite = match schema.element() {
        Element::F32 => vector.as_chunks::<4>().0.iter().all(|&b| f32::from_le_bytes(b).is_finite()),
        Element::F16 => vector.as_chunks::<2>().0.iter().all(|&b| f16::from_le_bytes(b).is_finite()),
        Element::I8 => true,
    };
    if !finite {
        return Err(NOT_FINITE);
    }
    if schema.metric() == Metric::Cosine && is_zero(schema.element(), vector) {
        return Err(NORM_ZERO);
    }
    Ok(())
}

/// Writes the vector `given` (of element type `from`) as the schema's element type into `out`, checked.
///
/// The same type is copied. f32 becomes f16 by rounding to nearest. f32 becomes i8 if all elements
/// are whole numbers in -128..=127; with the cosine metric, which knows no scale, any other vector
/// is scaled so that its largest magnitude is 127, and rounded.
///
/// # Errors
/// [`Error::Invalid`] as [`check`], and for elements that the schema's type cannot hold.
pub fn convert(schema: &Schema, from: Element, given: &[u8], out: &mut [u8]) -> Result<()> {
    if given.is_empty() {
        return Err(Error::Invalid("the vector is empty"));
    }
    if given.len() != schema.dim() as usize * from.bytes() || out.len() != schema.vector_bytes() {
        return Err(WRONG_DIM);
    }
    let floats = given.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
    match (from, schema.element()) {
        (from, to) if from == to => out.copy_from_slice(given),
        (Element::F32, Element::F16) => {
            for (value, out) in floats.zip(out.as_chunks_mut::<2>().0) {
                let rounded = f16::from_f32(value);
                if value.is_finite() && !rounded.is_finite() {
                    return Err(Error::Invalid("an element is beyond f16's range (65504); scale the vector"));
                }
                *out = rounded.to_le_bytes();
            }
        }
        (Element::F32, Element::I8) => to_i8(schema.metric(), floats, out)?,
        _ => {
            return Err(Error::Invalid(
                "the vector's element type is neither the collection's nor f32; convert it first",
            ));
        }
    }
    check(schema, out)
}

const WRONG_DIM: Error =
    Error::Invalid("the vector has not the collection's number of elements (read .vexfs/schema)");
const NOT_FINITE: Error = Error::Invalid("the vector has an element that is NaN or infinite");
const NORM_ZERO: Error =
    Error::Invalid("the vector's norm is 0, which has no direction for the cosine metric");

fn to_i8(metric: Metric, values: impl Iterator<Item = f32> + Clone, out: &mut [u8]) -> Result<()> {
    if values.clone().any(|value| !value.is_finite()) {
        return Err(NOT_FINITE);
    }
    let whole =
        values.clone().all(|value| (-128.0..=127.0).contains(&value) && f32::from(value as i8) == value);
    let scale = match (whole, metric) {
        (true, _) => 1.0,
        (false, Metric::Cosine) => {
            127.0 / values.clone().fold(0.0, |most, value| f64::max(most, f64::from(value).abs()))
        }
        (false, _) => {
            return Err(Error::Invalid(
                "an i8 collection with l2 or ip takes whole numbers from -128 to 127; scale the vector",
            ));
        }
    };
    for (value, out) in values.zip(out) {
        *out = round_half_away(f64::from(value) * scale).cast_unsigned();
    }
    Ok(())
}

fn round_half_away(value: f64) -> i8 {
    (if value < 0.0 { value - 0.5 } else { value + 0.5 }) as i8
}

fn is_zero(element: Element, vector: &[u8]) -> bool {
    match element {
        Element::F32 => vector.as_chunks::<4>().0.iter().all(|&b| f32::from_le_bytes(b) == 0.0),
        Element::F16 => vector.as_chunks::<2>().0.iter().all(|&b| f16::from_le_bytes(b).to_f32() == 0.0),
        Element::I8 => vector.iter().all(|&b| b == 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    extern crate std;
    use std::vec;
    use std::vec::Vec;

    fn schema(dim: u32, element: Element, metric: Metric) -> Schema {
        Schema::new(dim, element, metric).expect("in range")
    }

    fn bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    fn converted(schema: &Schema, values: &[f32]) -> Result<Vec<u8>> {
        let mut out = vec![0; schema.vector_bytes()];
        convert(schema, Element::F32, &bytes(values), &mut out)?;
        Ok(out)
    }

    #[test]
    fn what_is_refused_says_why() {
        let cosine = schema(2, Element::F32, Metric::Cosine);
        for (vector, word) in [
            (bytes(&[]), "empty"),
            (bytes(&[1.0]), "number of elements"),
            (bytes(&[1.0, 2.0, 3.0]), "number of elements"),
            (bytes(&[1.0, f32::NAN]), "NaN"),
            (bytes(&[f32::INFINITY, 1.0]), "infinite"),
            (bytes(&[0.0, -0.0]), "norm is 0"),
        ] {
            let Err(Error::Invalid(why)) = check(&cosine, &vector) else { panic!("{vector:?} was taken") };
            assert!(why.contains(word), "{why}");
        }
        assert_eq!(check(&schema(2, Element::F32, Metric::L2), &bytes(&[0.0, 0.0])), Ok(()));
        assert_eq!(check(&cosine, &bytes(&[1e-45, 0.0])), Ok(()), "the smallest norm is not 0");
    }

    #[test]
    fn f16_rounds_and_refuses_what_it_cannot_hold() {
        let halves = schema(2, Element::F16, Metric::Cosine);
        assert_eq!(converted(&halves, &[1.0, -2.0]).expect("fits"), [0x00, 0x3c, 0x00, 0xc0]);
        assert!(converted(&halves, &[1.0, 70000.0]).is_err());
        assert!(converted(&halves, &[1.0, f32::NAN]).is_err());
        assert_eq!(converted(&halves, &[1e-9, 0.0]), Err(NORM_ZERO), "it rounds to zero");
        let mut out = [0; 4];
        assert!(convert(&halves, Element::I8, &[1, 2], &mut out).is_err());
        assert_eq!(convert(&halves, Element::F16, &[0, 0x3c, 0, 0x7c], &mut out), Err(NOT_FINITE));
    }

    #[test]
    fn i8_takes_whole_numbers_and_scales_only_directions() {
        let l2 = schema(3, Element::I8, Metric::L2);
        assert_eq!(converted(&l2, &[-128.0, 127.0, 0.0]).expect("fits"), [0x80, 0x7f, 0]);
        assert!(converted(&l2, &[0.5, 1.0, 2.0]).is_err());
        assert!(converted(&l2, &[128.0, 1.0, 2.0]).is_err());
        let cosine = schema(3, Element::I8, Metric::Cosine);
        assert_eq!(converted(&cosine, &[3.0, -5.0, 100.0]).expect("kept"), [3, 0xfb, 100]);
        assert_eq!(converted(&cosine, &[0.5, -1.0, 0.25]).expect("scaled"), [64, 0x81, 32]);
        assert_eq!(converted(&cosine, &[1e-45, 0.0, 0.0]).expect("scaled"), [127, 0, 0]);
        assert_eq!(converted(&cosine, &[0.0, 0.0, 0.0]), Err(NORM_ZERO));
    }
}
