//! Arrays of numpy's `.npy` format, as vectors of f32.
//!
//! ```text
//! \x93NUMPY | major u8 | minor u8 | header length u16 (major 1) or u32 (2, 3) | header: a Python dict | data
//! ```
//! One or two dimensions, C order, elements f2, f4, f8, i1, u1, i2, i4 of either byte order. The bytes are untrusted: every length is
//! checked against the file before it is used. Source: numpy's `numpy.lib.format`, "Format Version 1.0" to 3.0.

use anyhow::{Context, Result, bail, ensure};
use half::f16;

/// First bytes of a `.npy` file.
pub const MAGIC: &[u8; 6] = b"\x93NUMPY";

/// Vectors of one length.
#[derive(Debug, PartialEq)]
pub struct Vectors {
    /// Elements of each.
    pub dim: usize,
    /// `[n][dim]`, row-major.
    pub elements: Vec<f32>,
}

impl Vectors {
    /// Number of vectors.
    pub fn count(&self) -> usize {
        self.elements.len() / self.dim
    }
}

/// The vectors in the bytes of a `.npy` file.
///
/// # Errors
/// A sentence saying what is not as it must be.
pub fn parse(bytes: &[u8]) -> Result<Vectors> {
    let rest = bytes.strip_prefix(MAGIC).context("it does not begin with \\x93NUMPY")?;
    let (&[major, _minor], rest) = rest.split_first_chunk().context("its header is cut off")?;
    let (header_bytes, rest) = match major {
        1 => {
            let (len, rest) = rest.split_first_chunk().context("its header is cut off")?;
            (usize::from(u16::from_le_bytes(*len)), rest)
        }
        2 | 3 => {
            let (len, rest) = rest.split_first_chunk().context("its header is cut off")?;
            (u32::from_le_bytes(*len) as usize, rest)
        }
        other => bail!("it has format version {other}, known are 1 to 3"),
    };
    ensure!(header_bytes <= rest.len(), "its header is cut off");
    let (header, data) = rest.split_at(header_bytes);
    let header = std::str::from_utf8(header).context("its header is not text")?;

    ensure!(
        dict_value(header, "fortran_order")?.starts_with("False"),
        "it is in Fortran order; save it in C order"
    );
    let (count, dim) = shape(dict_value(header, "shape")?)?;
    let descr = dict_value(header, "descr")?;
    let descr =
        descr.get(1..).and_then(|d| d.split(['\'', '"']).next()).context("its descr is not a string")?;
    let (element_bytes, read) = element(descr)?;
    let expected = count.checked_mul(dim).and_then(|n| n.checked_mul(element_bytes));
    ensure!(
        expected == Some(data.len()),
        "its shape {count} x {dim} of {element_bytes}-byte elements needs other than the {} bytes of data it has",
        data.len()
    );
    ensure!(count > 0 && dim > 0, "it is empty");
    Ok(Vectors { dim, elements: data.chunks_exact(element_bytes).map(read).collect() })
}

/// The text after `'key':`.
fn dict_value<'a>(header: &'a str, key: &str) -> Result<&'a str> {
    let quoted = [format!("'{key}'"), format!("\"{key}\"")];
    quoted
        .iter()
        .find_map(|q| header.split_once(q.as_str()))
        .and_then(|(_, rest)| rest.trim_start().strip_prefix(':'))
        .map(str::trim_start)
        .with_context(|| format!("its header has no {key}"))
}

fn shape(text: &str) -> Result<(usize, usize)> {
    let inside =
        text.strip_prefix('(').and_then(|t| t.split_once(')')).context("its shape is not a tuple")?.0;
    let lengths: Vec<usize> = inside
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(|part| part.parse().with_context(|| format!("its shape has the length `{part}`")))
        .collect::<Result<_>>()?;
    match lengths[..] {
        [dim] => Ok((1, dim)),
        [count, dim] => Ok((count, dim)),
        _ => bail!("it has {} dimensions; one (a vector) or two (vectors) are wanted", lengths.len()),
    }
}

type Reader = fn(&[u8]) -> f32;

fn element(descr: &str) -> Result<(usize, Reader)> {
    /// Reads `$ty` from exactly its bytes (`chunks_exact` upholds that).
    macro_rules! reader {
        ($ty:ty, $from:ident, |$value:ident| $to:expr) => {
            (size_of::<$ty>(), |bytes| {
                let mut exact = [0; size_of::<$ty>()];
                exact.copy_from_slice(bytes);
                let $value = <$ty>::$from(exact);
                $to
            })
        };
    }
    Ok(match descr {
        "<f2" => reader!(f16, from_le_bytes, |x| x.to_f32()),
        ">f2" => reader!(f16, from_be_bytes, |x| x.to_f32()),
        "<f4" => reader!(f32, from_le_bytes, |x| x),
        ">f4" => reader!(f32, from_be_bytes, |x| x),
        "<f8" => reader!(f64, from_le_bytes, |x| x as f32),
        ">f8" => reader!(f64, from_be_bytes, |x| x as f32),
        "|i1" | "<i1" | ">i1" => reader!(i8, from_le_bytes, |x| f32::from(x)),
        "|u1" | "<u1" | ">u1" => reader!(u8, from_le_bytes, |x| f32::from(x)),
        "<i2" => reader!(i16, from_le_bytes, |x| f32::from(x)),
        ">i2" => reader!(i16, from_be_bytes, |x| f32::from(x)),
        "<i4" => reader!(i32, from_le_bytes, |x| x as f32),
        ">i4" => reader!(i32, from_be_bytes, |x| x as f32),
        other => bail!("it has elements of type `{other}`; save it as float32 (arr.astype('f4'))"),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn npy(dict: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend([1, 0]);
        bytes.extend((dict.len() as u16).to_le_bytes());
        bytes.extend(dict.as_bytes());
        bytes.extend(data);
        bytes
    }

    const DICT: &str = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1), }      \n";

    #[test]
    fn reads_what_numpy_writes() {
        let data: Vec<u8> = [1.5f32, -2.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(parse(&npy(DICT, &data)).unwrap(), Vectors { dim: 1, elements: vec![1.5, -2.0] });
        let one = "{'descr': '|i1', 'fortran_order': False, 'shape': (3,), }";
        assert_eq!(parse(&npy(one, &[1, 255, 128])).unwrap().elements, [1.0, -1.0, -128.0]);
        let half = "{'descr': '<f2', 'fortran_order': False, 'shape': (1,), }";
        assert_eq!(parse(&npy(half, &[0x00, 0x3e])).unwrap().elements, [1.5]);
        let big = "{'descr': '>f8', 'fortran_order': False, 'shape': (1, 1), }";
        assert_eq!(parse(&npy(big, &0.25f64.to_be_bytes())).unwrap().elements, [0.25]);
    }

    #[test]
    fn hostile_headers_are_refused_with_the_reason() {
        let data = [0u8; 8];
        for (dict, reason) in [
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), }", "needs other"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (18446744073709551615, 4), }", "needs other"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (18446744073709551616,), }", "length"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (-2,), }", "length"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (), }", "0 dimensions"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (1,1,2), }", "3 dimensions"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': 2, }", "tuple"),
            ("{'descr': '<f4', 'fortran_order': True, 'shape': (2,), }", "Fortran"),
            ("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", "type `|O`"),
            ("{'descr': ", "fortran_order"),
            ("{'descr', 'fortran_order': False, 'shape': (2,)", "no descr"),
        ] {
            let message = parse(&npy(dict, &data)).unwrap_err().to_string();
            assert!(message.contains(reason), "{dict}: {message}");
        }
        let empty = "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 4), }";
        assert!(parse(&npy(empty, &[])).is_err());
    }

    #[test]
    fn every_cut_is_refused() {
        let bytes = npy(DICT, &[0; 8]);
        assert!((0..bytes.len()).all(|len| parse(&bytes[..len]).is_err()));
        let mut long = MAGIC.to_vec();
        long.extend([2, 0, 255, 255, 255, 255]);
        assert!(parse(&long).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(dict in "[ -~é]{0,80}", at in 0usize..60, byte: u8) {
            let _ = parse(&npy(&dict, &[0; 8]));
            let mut bytes = npy(DICT, &[0; 8]);
            bytes[at] = byte;
            let _ = parse(&bytes);
        }
    }
}
