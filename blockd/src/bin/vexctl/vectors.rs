//! Vectors that the user gives: `.npy`, raw elements, JSON.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use half::f16;

use crate::cli::VectorArgs;
use crate::npy::{self, Vectors};
use crate::remedy::failed;
use crate::schema::{Element, Schema};

const INPUT_BYTES_MAX: u64 = 4 << 30;

/// The bytes of a file, or of stdin for `-`.
///
/// # Errors
/// It cannot be read, or is larger than 4 GiB.
pub fn read_input(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(INPUT_BYTES_MAX + 1).read_to_end(&mut bytes)
    } else {
        File::open(path).and_then(|file| file.take(INPUT_BYTES_MAX + 1).read_to_end(&mut bytes))
    };
    read.map_err(|error| failed(path.display(), &error))?;
    ensure!(
        bytes.len() as u64 <= INPUT_BYTES_MAX,
        "{}: is larger than 4 GiB; give it in parts",
        path.display()
    );
    Ok(bytes)
}

/// The vectors of `--vector-file` or `--vector`, of the schema's dimension and finite; `None` if neither is given.
///
/// # Errors
/// They cannot be read or do not fit the collection.
pub fn given(args: &VectorArgs, schema: &Schema) -> Result<Option<Vectors>> {
    let (name, vectors) = match (&args.vector_file, &args.vector) {
        (Some(path), _) => {
            let bytes = read_input(path)?;
            let name = path.display().to_string();
            let vectors = if bytes.starts_with(npy::MAGIC) {
                npy::parse(&bytes).with_context(|| format!("{name}: is a .npy file that cannot be used"))?
            } else {
                raw(&bytes, schema).with_context(|| name.clone())?
            };
            (name, vectors)
        }
        (None, Some(json)) => {
            let elements: Vec<f32> = serde_json::from_str(json)
                .context("--vector: is not a JSON array of numbers, as in [0.5,-1]")?;
            ("--vector".to_owned(), Vectors { dim: elements.len(), elements })
        }
        (None, None) => return Ok(None),
    };
    check(&name, &vectors, schema)?;
    Ok(Some(vectors))
}

/// Refuses what the collection cannot take.
///
/// # Errors
/// Wrong dimension, or an element that is not finite.
pub fn check(name: &str, vectors: &Vectors, schema: &Schema) -> Result<()> {
    if vectors.dim != schema.dim {
        bail!(
            "{name}: has vectors of {} elements, the collection has {}; give vectors of the model that the collection \
             was made for, or make another collection",
            vectors.dim,
            schema.dim
        );
    }
    if let Some(at) = vectors.elements.iter().position(|x| !x.is_finite()) {
        bail!("{name}: element {} of vector {} is not a finite number", at % vectors.dim, at / vectors.dim);
    }
    Ok(())
}

fn raw(bytes: &[u8], schema: &Schema) -> Result<Vectors> {
    let (element_bytes, elements): (usize, Vec<f32>) = match schema.element {
        Element::F32 => (4, bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
        Element::F16 => (2, bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect()),
        Element::I8 => (1, bytes.iter().map(|b| f32::from(b.cast_signed())).collect()),
    };
    let vector_bytes = schema.dim * element_bytes;
    ensure!(
        !bytes.is_empty() && bytes.len().is_multiple_of(vector_bytes),
        "has {} bytes, which is not a number of vectors of {vector_bytes} bytes ({schema}); raw files have the \
         collection's own elements, little-endian",
        bytes.len()
    );
    Ok(Vectors { dim: schema.dim, elements })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::Metric;

    const SCHEMA: Schema = Schema { dim: 2, element: Element::F32, metric: Metric::L2 };

    fn args(vector: &str) -> VectorArgs {
        VectorArgs { vector_file: None, vector: Some(vector.to_owned()) }
    }

    #[test]
    fn json_vectors_are_checked_against_the_schema() {
        assert_eq!(given(&args("[1, -2.5]"), &SCHEMA).unwrap().unwrap().elements, [1.0, -2.5]);
        for (bad, reason) in
            [("[1]", "of 1 elements"), ("[1e39, 0]", "finite"), ("1", "array"), ("[]", "of 0")]
        {
            let message = format!("{:#}", given(&args(bad), &SCHEMA).unwrap_err());
            assert!(message.contains(reason), "{bad}: {message}");
        }
    }

    #[test]
    fn raw_vectors_have_the_collections_elements() {
        let i8s = Schema { element: Element::I8, ..SCHEMA };
        assert_eq!(raw(&[1, 255, 2, 3], &i8s).unwrap().elements, [1.0, -1.0, 2.0, 3.0]);
        let f16s = Schema { element: Element::F16, ..SCHEMA };
        assert_eq!(raw(&[0, 0x3c, 0, 0xbc], &f16s).unwrap().elements, [1.0, -1.0]);
        assert!(raw(&[1, 2, 3], &i8s).is_err() && raw(&[], &i8s).is_err());
        assert!(raw(&[0; 12], &SCHEMA).is_err());
    }
}
