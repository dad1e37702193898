//! `vexctl collection create` and `show`.

use std::fs;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};
use blockd::embed::Identity;

use crate::cli::{CreateArgs, ShowArgs};
use crate::output::print;
use crate::remedy::failed;
use crate::schema::Schema;
use crate::session::SessionDir;

/// Makes a collection.
///
/// # Errors
/// The directory is one already, or may not become one.
pub fn create(args: &CreateArgs) -> Result<ExitCode> {
    let schema = Schema { dim: args.dim as usize, element: args.element, metric: args.metric };
    make(&args.dir, &schema)?;
    print(&format!("{}: is now a collection of {schema}\n", args.dir.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// Makes `dir`, if it is missing, a collection.
///
/// # Errors
/// As [`create`]; a directory made for it is removed again.
pub fn make(dir: &Path, schema: &Schema) -> Result<SessionDir> {
    let made = match fs::create_dir(dir) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!("{}: its parent directory does not exist; make that first (mkdir -p)", dir.display())
        }
        Err(error) => return Err(failed(dir.display(), &error)),
    };
    let become_collection = || {
        let session = SessionDir::open(dir)?;
        if let Some(existing) = session.schema()? {
            bail!(
                "{}: is (in) a collection of {existing} already; a schema never changes, and collections do not nest: choose another directory",
                dir.display()
            );
        }
        session.create_collection(schema)?;
        Ok(session)
    };
    become_collection().inspect_err(|_| {
        if made {
            // The first error is the one to show; an empty directory more is no harm.
            let _ = fs::remove_dir(dir);
        }
    })
}

/// Shows the schema and the embedder.
///
/// # Errors
/// There is no collection.
pub fn show(args: &ShowArgs) -> Result<ExitCode> {
    let session = SessionDir::open(&args.dir)?;
    let schema = session.collection_schema()?;
    let root = session.collection_root()?;
    let embedder = Identity::load(root.dir())?.map(|identity| identity.describe());
    let stats = root.stats()?;
    let live = stats.get("rows_live").and_then(serde_json::Value::as_u64);
    if args.json {
        let value = serde_json::json!({
            "collection": root.dir().to_string_lossy(), "schema": schema, "embedder": embedder, "rows_live": live,
        });
        print(&format!("{value}\n"))?;
    } else {
        let embedder = embedder.unwrap_or_else(|| "none (vectors were put by hand)".to_owned());
        let live = live.map_or_else(|| "unknown".to_owned(), |live| live.to_string());
        print(&format!(
            "collection  {}\nvectors     {schema}\nrows        {live}\nembedder    {embedder}\n",
            root.dir().display()
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}
