//! The vectors of one chunk, contiguous, as numbers.

use layout::error::Result;
use layout::fs::{Fs, RowsFile};
use layout::page_store::PageStore;
use layout::schema::{CHUNK_ROWS, Element};
use simsimd::SpatialSimilarity;
use zerocopy::IntoBytes;

/// The vectors of up to 64 rows and their squared norms.
#[derive(Debug)]
pub struct Chunk {
    pub(super) vectors: Vectors,
    /// Squared norms: exact for i8; for floats within the kernel's error, infinite on overflow.
    pub(super) norms: [f64; CHUNK_ROWS as usize],
}

/// `[rows][dim]` elements, row-major.
#[derive(Debug)]
pub(super) enum Vectors {
    F32(Vec<f32>),
    /// binary16 as bits.
    F16(Vec<u16>),
    I8(Vec<i8>),
}

impl Chunk {
    /// Gathers the vectors of a chunk from the rows file.
    ///
    /// # Errors
    /// As [`Fs::chunk_vectors`].
    pub fn load<P: PageStore>(fs: &Fs<P>, rows: &RowsFile, chunk: u64) -> Result<Chunk> {
        let dim = rows.schema().dim() as usize;
        let elements = rows.chunk_rows(chunk) * dim;
        let vectors = match rows.schema().element() {
            Element::F32 => {
                let mut vectors = vec![0.0; elements];
                fs.chunk_vectors(rows, chunk, vectors.as_mut_bytes())?;
                Vectors::F32(vectors)
            }
            Element::F16 => {
                let mut vectors = vec![0; elements];
                fs.chunk_vectors(rows, chunk, vectors.as_mut_bytes())?;
                Vectors::F16(vectors)
            }
            Element::I8 => {
                let mut vectors = vec![0; elements];
                fs.chunk_vectors(rows, chunk, vectors.as_mut_bytes())?;
                Vectors::I8(vectors)
            }
        };
        Ok(Chunk::new(vectors, dim))
    }

    /// Measures the norms of vectors of `dim` elements.
    pub(super) fn new(vectors: Vectors, dim: usize) -> Chunk {
        let mut norms = [0.0; CHUNK_ROWS as usize];
        match &vectors {
            Vectors::F32(vectors) => {
                for (norm, vector) in norms.iter_mut().zip(vectors.chunks_exact(dim)) {
                    *norm = f32::dot(vector, vector).unwrap_or(f64::NAN);
                }
            }
            Vectors::F16(vectors) => {
                let mut widened = vec![0.0; dim];
                for (norm, vector) in norms.iter_mut().zip(vectors.chunks_exact(dim)) {
                    widen(vector, &mut widened);
                    *norm = f32::dot(&widened, &widened).unwrap_or(f64::NAN);
                }
            }
            Vectors::I8(vectors) => {
                for (norm, vector) in norms.iter_mut().zip(vectors.chunks_exact(dim)) {
                    *norm = i8::dot(vector, vector).unwrap_or(f64::NAN);
                }
            }
        }
        Chunk { vectors, norms }
    }

    /// All vectors as they stand on disk.
    pub fn bytes(&self) -> &[u8] {
        match &self.vectors {
            Vectors::F32(vectors) => vectors.as_bytes(),
            Vectors::F16(vectors) => vectors.as_bytes(),
            Vectors::I8(vectors) => vectors.as_bytes(),
        }
    }

    /// Bytes of memory it takes.
    pub fn memory_bytes(&self) -> usize {
        self.bytes().len() + size_of::<Chunk>()
    }
}

/// binary16 to binary32, exactly.
pub(super) fn widen(halves: &[u16], out: &mut [f32]) {
    use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
    halves.reinterpret_cast::<half::f16>().convert_to_f32_slice(out);
}
