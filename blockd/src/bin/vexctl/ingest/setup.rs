//! Before the work: the collection, the embedder it remembers, and the lock that keeps a second run out.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, bail, ensure};
use blockd::embed::{EmbedError, Embedder, Identity, Kind, LEXICAL_DIM, LexicalEmbedder, Trainer};
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::prepare::Passages;
use super::progress::Progress;
use super::workers;
use crate::cli::IngestArgs;
use crate::collection;
use crate::embedder;
use crate::remedy::failed;
use crate::schema::{Element, Metric, Schema};
use crate::session::SessionDir;

/// Opens the collection that `--into` names, and makes it if it is missing.
///
/// # Errors
/// It is not on a VexFS mount, lies inside a collection, or holds vectors of another dimension.
pub fn open_collection(into: &Path, dim: usize) -> Result<SessionDir> {
    if !into.exists() {
        let schema = Schema { dim, element: Element::F32, metric: Metric::Cosine };
        return collection::make(into, &schema);
    }
    let session = SessionDir::open(into)?;
    let Some(schema) = session.schema()? else {
        ensure!(
            is_empty(into)?,
            "{}: is a directory with files, and no collection; choose a new directory, or make it one with `vexctl collection create`",
            into.display()
        );
        return collection::make(into, &Schema { dim, element: Element::F32, metric: Metric::Cosine });
    };
    let root = session.collection_root()?;
    let here = into.canonicalize().map_err(|error| failed(into.display(), &error))?;
    ensure!(
        root.dir() == here,
        "{}: lies inside the collection {}; ingest into that",
        into.display(),
        root.dir().display()
    );
    ensure!(
        schema.dim == dim,
        "{}: has vectors of {} elements, the embedder gives {dim}; use the embedder that the collection was made with, or another collection",
        into.display(),
        schema.dim
    );
    Ok(root)
}

fn is_empty(dir: &Path) -> Result<bool> {
    let mut entries = std::fs::read_dir(dir).map_err(|error| failed(dir.display(), &error))?;
    Ok(entries.next().is_none())
}

/// Keeps other runs out of the collection while the file is held.
///
/// # Errors
/// Another run is in it.
pub fn lock(dir: &Path) -> Result<File> {
    let file = File::open(dir).map_err(|error| failed(dir.display(), &error))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => {
            bail!("{}: another `vexctl ingest` is at work there; wait for it to end", dir.display())
        }
        Err(error) => Err(failed(format_args!("{}: cannot be locked", dir.display()), &error.into())),
    }
}

/// What is known of the embedder before the collection is opened.
pub enum Plan {
    /// The one that the collection remembers.
    Remembered(Identity, Box<dyn Embedder>),
    /// A new one, a command.
    Command(Identity, Box<dyn Embedder>),
    /// The built-in one, whose rarities are to be counted.
    Train,
}

impl Plan {
    /// Elements of its vectors.
    pub fn dim(&self) -> usize {
        match self {
            Self::Remembered(identity, _) | Self::Command(identity, _) => identity.dim,
            Self::Train => LEXICAL_DIM,
        }
    }
}

/// Which embedder to use for the collection at `into` (which need not exist).
///
/// # Errors
/// The collection was made by another one than the user chose, or the command fails.
pub fn plan(into: &Path, args: &IngestArgs) -> Result<Plan> {
    let remembered = match Identity::load(into) {
        // A damaged file is what --retrain is for.
        Err(EmbedError::BadFile { .. }) if args.retrain => None,
        other => other?,
    };
    if let Some(identity) = remembered.filter(|_| !args.retrain) {
        let embedder = embedder::start(&identity, &args.embedder)?;
        return Ok(Plan::Remembered(identity, embedder));
    }
    match (embedder::start_command(&args.embedder)?, embedder::chosen_name(&args.embedder)) {
        (Some(command), Some(name)) => {
            let identity = Identity { dim: command.dim(), kind: Kind::Command { name: name.to_owned() } };
            Ok(Plan::Command(identity, Box::new(command)))
        }
        _ => Ok(Plan::Train),
    }
}

/// Refuses to mix vectors in a collection that has some, but does not remember by what.
///
/// # Errors
/// So it is.
pub fn check_unremembered(session: &SessionDir) -> Result<()> {
    let live = session.stats()?.get("rows_live").and_then(serde_json::Value::as_u64);
    ensure!(
        live.is_none_or(|live| live == 0),
        "{}: has vectors that no ingest made, and those of two embedders must not be compared; ingest into another collection",
        session.dir().display()
    );
    Ok(())
}

/// One file for training: its bytes are got by `read`, which is silent about what it cannot read.
pub type ReadForTraining<'a, T> = &'a (dyn Fn(&T) -> Option<Passages> + Sync);

/// Counts rarities over `items`.
///
/// # Errors
/// None of the items has a passage.
pub fn train<T: Sync>(
    items: &[T],
    jobs: usize,
    stop: &AtomicBool,
    read: ReadForTraining<'_, T>,
) -> Result<(Identity, Box<dyn Embedder>)> {
    let trainer = Trainer::new();
    let progress = Progress::new("counting", items.len());
    workers::for_each(items, jobs, stop, |item| {
        if let Some(passages) = read(item) {
            passages.train(&trainer);
        }
        progress.step();
        Ok(())
    })?;
    drop(progress);
    let table = trainer.finish();
    Some(table.passages())
        .filter(|n| *n > 0 || stop.load(std::sync::atomic::Ordering::Relaxed))
        .context("there is no text to ingest; check the directory, --include and --max-file-size")?;
    Ok((Identity::lexical(table.clone()), Box::new(LexicalEmbedder::new(table))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_run_is_kept_out() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path()).unwrap();
        assert!(lock(dir.path()).unwrap_err().to_string().contains("another `vexctl ingest`"));
        drop(held);
        lock(dir.path()).unwrap();
    }

    #[test]
    fn a_tree_without_text_cannot_train() {
        let stop = AtomicBool::new(false);
        let items = [b"\0\0".to_vec()];
        let read = |bytes: &Vec<u8>| Passages::of(Path::new("x"), bytes).ok();
        assert!(train(&items, 1, &stop, &read).err().unwrap().to_string().contains("no text"));
    }
}
