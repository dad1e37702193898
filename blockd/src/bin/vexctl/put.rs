//! `vexctl put`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::cli::PutArgs;
use crate::npy::Vectors;
use crate::output::print;
use crate::remedy::failed;
use crate::schema::Schema;
use crate::session::{Put, Row, SessionDir};
use crate::vectors;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonRow {
    vector: Vec<f32>,
    #[serde(default)]
    offset: u64,
    length: Option<u64>,
    #[serde(default)]
    tag: u64,
}

/// Gives a file its vectors.
///
/// # Errors
/// The file is not in a collection, or the vectors do not fit it.
pub fn run(args: &PutArgs) -> Result<ExitCode> {
    let metadata =
        std::fs::symlink_metadata(&args.file).map_err(|error| failed(args.file.display(), &error))?;
    if !metadata.is_file() {
        bail!("{}: is not a regular file; only these have vectors", args.file.display());
    }
    let Some(name) = args.file.file_name().map(PathBuf::from) else {
        bail!("{}: has no name; name a file", args.file.display());
    };
    let parent = args.file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let session = SessionDir::open(parent)?;
    let schema = session.collection_schema()?;
    let size = metadata.len();
    let (rows, vectors) = match &args.rows {
        Some(path) => json_rows(path, &schema, size)?,
        None => {
            let vectors = vectors::given(&args.vector, &schema)?.context("no vectors are given")?;
            let length = args.length.unwrap_or_else(|| size.saturating_sub(args.offset));
            (vec![Row { offset: args.offset, length, tag: args.tag }; vectors.count()], vectors)
        }
    };
    if let Some(row) = rows.iter().find(|row| row.offset.checked_add(row.length).is_none_or(|end| end > size))
    {
        bail!(
            "{}: has {size} bytes; a passage of {} bytes at {} is not in it",
            args.file.display(),
            row.length,
            row.offset
        );
    }
    let answer = session.put(&Put {
        file: &name,
        rows: &rows,
        vectors: &vectors.elements,
        dim: vectors.dim,
        append: args.append,
        publish_as: args.publish_as.as_deref(),
    })?;
    if args.json {
        let value = serde_json::json!({
            "ino": answer.ino, "first_row": answer.first_row, "count": answer.count, "epoch": answer.epoch,
        });
        print(&format!("{value}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn json_rows(path: &Path, schema: &Schema, size: u64) -> Result<(Vec<Row>, Vectors)> {
    let bytes = vectors::read_input(path)?;
    let parsed: Vec<JsonRow> = serde_json::from_slice(&bytes).with_context(|| {
        format!(
            "{}: is not an array of {{\"vector\":[..],\"offset\":0,\"length\":10,\"tag\":0}}",
            path.display()
        )
    })?;
    let mut rows = Vec::with_capacity(parsed.len());
    let mut all = Vectors { dim: schema.dim, elements: Vec::with_capacity(parsed.len() * schema.dim) };
    for (i, row) in parsed.into_iter().enumerate() {
        let vector = Vectors { dim: row.vector.len(), elements: row.vector };
        vectors::check(&format!("{}: row {i}", path.display()), &vector, schema)?;
        let length = row.length.unwrap_or_else(|| size.saturating_sub(row.offset));
        rows.push(Row { offset: row.offset, length, tag: row.tag });
        all.elements.extend(vector.elements);
    }
    Ok((rows, all))
}
