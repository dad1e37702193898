//! The JSON forms of put and search, for shells and scripts.

use layout::schema::Schema;
use layout::uapi::raw::{VEXFS_K_MAX, VEXFS_PUT_ROWS_MAX, vexfs_put_row};
use serde::{Deserialize, Serialize};

use super::error::{SessionError, SessionResult};

/// A JSON request is at most this long; larger ones use the binary form.
pub(super) const JSON_BYTES_MAX: usize = 16 << 20;

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(super) struct PutForm {
    pub file: String,
    pub publish_as: Option<String>,
    #[serde(default)]
    pub append: bool,
    pub rows: Vec<RowForm>,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(super) struct RowForm {
    vector: Vec<f32>,
    #[serde(default)]
    offset: u64,
    length: u64,
    #[serde(default)]
    tag: u64,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(super) struct SearchForm {
    pub vector: Vec<f32>,
    #[serde(default = "ten")]
    pub k: u32,
    #[serde(default)]
    pub subdir: String,
    #[serde(default)]
    pub tags_any: u64,
    #[serde(default)]
    pub fresh_only: bool,
}

fn ten() -> u32 {
    10
}

#[derive(Serialize)]
pub(super) struct PutReplyForm {
    pub ino: u64,
    pub first_row: u64,
    pub count: u32,
    pub epoch: u64,
}

#[derive(Serialize)]
pub(super) struct SearchReplyForm<'a> {
    pub epoch: u64,
    pub rows_scanned: u64,
    pub results: Vec<ResultForm<'a>>,
}

#[derive(Serialize)]
pub(super) struct ResultForm<'a> {
    pub path: std::borrow::Cow<'a, str>,
    pub ino: u64,
    pub offset: u64,
    pub length: u64,
    pub distance: f64,
    pub row: u64,
    pub tag: u64,
    pub stale: bool,
}

#[derive(Serialize)]
struct ErrorForm<'a> {
    error: &'a str,
    errno: i32,
}

/// Reads a request.
pub(super) fn parse<'a, T: Deserialize<'a>>(request: &'a [u8]) -> SessionResult<T> {
    if request.len() > JSON_BYTES_MAX {
        return Err(SessionError::invalid(format!(
            "a JSON request may have {JSON_BYTES_MAX} bytes; split it, or use the binary form (uapi/vexfs.h)"
        )));
    }
    serde_json::from_slice(request)
        .map_err(|e| SessionError::invalid(format!("the JSON request is wrong: {e}")))
}

/// A reply: one line.
pub(super) fn line(reply: &impl Serialize) -> SessionResult<Vec<u8>> {
    let mut line = serde_json::to_vec(reply)
        .map_err(|e| SessionError { errno: libc::EIO, message: format!("cannot write the reply: {e}") })?;
    line.push(b'\n');
    Ok(line)
}

/// The reply of a failure.
pub(super) fn failure(error: &SessionError) -> Vec<u8> {
    line(&ErrorForm { error: &error.message, errno: error.errno }).unwrap_or_default()
}

impl PutForm {
    /// The rows, and their vectors as little-endian f32.
    pub(super) fn rows(&self, schema: &Schema) -> SessionResult<(Vec<vexfs_put_row>, Vec<u8>)> {
        if self.rows.len() > VEXFS_PUT_ROWS_MAX as usize {
            return Err(SessionError::invalid("too many rows in one put; split it (with append)"));
        }
        let mut vectors = Vec::new();
        for row in &self.rows {
            vectors.extend_from_slice(&f32_bytes(schema, &row.vector)?);
        }
        let rows = self.rows.iter().map(|row| vexfs_put_row {
            offset: row.offset.into(),
            length: row.length.into(),
            tag: row.tag.into(),
            reserved: 0.into(),
        });
        Ok((rows.collect(), vectors))
    }
}

impl SearchForm {
    pub(super) fn check_k(&self) -> SessionResult<usize> {
        if self.k == 0 || self.k > VEXFS_K_MAX {
            return Err(SessionError::invalid("k must be 1 to 10000"));
        }
        Ok(self.k as usize)
    }
}

/// A vector of the schema's dimension as little-endian f32.
pub(super) fn f32_bytes(schema: &Schema, vector: &[f32]) -> SessionResult<Vec<u8>> {
    check_dim(schema, vector.len())?;
    Ok(vector.iter().flat_map(|value| value.to_le_bytes()).collect())
}

/// Refuses a vector that has not the schema's number of elements.
pub(super) fn check_dim(schema: &Schema, elements: usize) -> SessionResult<()> {
    if elements == schema.dim() as usize {
        return Ok(());
    }
    Err(SessionError::invalid(format!(
        "the vector has {elements} elements, those of the collection have {} (read .vexfs/schema)",
        schema.dim()
    )))
}
