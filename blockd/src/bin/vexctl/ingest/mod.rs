//! `vexctl ingest`: a tree of text files becomes a collection.
//!
//! [`source`] walks the tree, [`target`] the collection; [`decide`] says what to do with each file; [`prepare`] makes
//! passages ([`extract`], [`html`], [`cut`]) and vectors of it, and [`target`] stores both in one commit.
//! What was done is remembered per file ([`record`]), so that an interrupted run is simply repeated.

mod cut;
mod decide;
pub mod extract;
mod html;
mod prepare;
mod progress;
mod record;
mod setup;
mod source;
mod tally;
mod target;
mod workers;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::available_parallelism;

use anyhow::{Context, Result, ensure};
use blockd::embed::{EMBEDDER_FILE, Embedder, hash_bytes};

use crate::cli::IngestArgs;
use crate::output::print;
use crate::remedy::failed;
use cut::CUTTER_VERSION;
use decide::{Choice, Foreign, Run, Stored, decide, decide_stored};
use prepare::Passages;
use progress::Progress;
use record::Record;
use setup::Plan;
use source::{Filter, ReadError, SourceFile, SourceTree};
use tally::{Skip, Tally};
use target::{NewFile, Scan, Target};

const TEMPORARY_PREFIX: &str = ".vexfs-ingest-";
const TEMPORARY_SUFFIX: &str = ".tmp";
/// Files stored before are read no further when they are embedded again.
const STORED_BYTES_MAX: u64 = 1 << 30;
const EXIT_PARTIAL: u8 = 3;
const EXIT_INTERRUPTED: u8 = 130;

/// Is this the path of a file that an ingest has not published?
pub fn is_temporary(path: &Path) -> bool {
    path.file_name().is_some_and(is_temporary_name)
}

fn is_temporary_name(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.starts_with(TEMPORARY_PREFIX.as_bytes()) && name.ends_with(TEMPORARY_SUFFIX.as_bytes())
}

/// Names that a source may not bring along.
fn is_reserved(name: &OsStr) -> bool {
    name == ".vexfs" || name == EMBEDDER_FILE || is_temporary_name(name)
}

/// Ingests.
///
/// # Errors
/// Wrong directories, a failing embedder, a full volume, …: what was stored until then is whole.
pub fn run(args: &IngestArgs) -> Result<ExitCode> {
    let source_root = args.dir.canonicalize().map_err(|error| failed(args.dir.display(), &error))?;
    ensure!(source_root.is_dir(), "{}: is not a directory; name the tree to copy", args.dir.display());
    let filter = Filter::new(&args.include)?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).context("signals cannot be caught")?;
    }

    let plan = setup::plan(&args.into, args)?;
    let session = setup::open_collection(&args.into, plan.dim())?;
    let collection = session.dir().canonicalize().map_err(|error| failed(args.into.display(), &error))?;
    ensure!(
        !collection.starts_with(&source_root) && !source_root.starts_with(&collection),
        "{} and {} lie in one another; copy a tree from elsewhere",
        args.dir.display(),
        args.into.display()
    );
    if !matches!(plan, Plan::Remembered(..)) && !args.retrain {
        setup::check_unremembered(&session)?;
    }
    let lock = setup::lock(&collection)?;

    let tally = Tally::default();
    let tree = source::walk(&source_root, &filter, &tally);
    let target = Target::new(session, plan.dim(), tree.directory_modes.clone());
    let scan = target.scan()?;
    tally.leftovers.store(scan.leftovers, Ordering::Relaxed);
    let jobs = args.jobs.map_or_else(|| available_parallelism().map_or(1, usize::from), usize::from);

    let (identity, embedder) = match plan {
        Plan::Remembered(identity, embedder) => (identity, embedder),
        Plan::Command(identity, embedder) => {
            identity.store(target.dir(), &target.temporary_name())?;
            (identity, embedder)
        }
        Plan::Train => {
            let items = training_items(&tree, &scan, target.dir());
            let trained =
                setup::train(&items, jobs, &stop, &|item: &TrainingItem| item.passages(args.max_file_size))?;
            if stop.load(Ordering::Relaxed) {
                eprintln!("vexctl: interrupted before anything was stored");
                return Ok(ExitCode::from(EXIT_INTERRUPTED));
            }
            trained.0.store(target.dir(), &target.temporary_name())?;
            trained
        }
    };
    let run = Run {
        root: hash_bytes(0, source_root.as_os_str().as_bytes()),
        embedder: identity.fingerprint(),
        overwrite: args.overwrite,
    };
    let ingest = Ingest { args, run, target: &target, embedder: embedder.as_ref(), tally: &tally };
    let worked = ingest.work(&tree, &scan, jobs, &stop);
    // Also what an interrupted or failed run stored shall last.
    let durable = make_durable(target.dir());
    worked?;
    durable?;
    drop(lock);
    report(args, &tally, target.dir())?;
    Ok(if stop.load(Ordering::Relaxed) {
        eprintln!("vexctl: interrupted; run it again to go on");
        ExitCode::from(EXIT_INTERRUPTED)
    } else if tally.is_partial() {
        ExitCode::from(EXIT_PARTIAL)
    } else {
        ExitCode::SUCCESS
    })
}

fn make_durable(collection: &Path) -> Result<()> {
    let path = collection.join(EMBEDDER_FILE);
    File::open(&path).and_then(|file| file.sync_all()).map_err(|error| failed(path.display(), &error))
}

fn report(args: &IngestArgs, tally: &Tally, collection: &Path) -> Result<()> {
    for note in tally.notes() {
        eprintln!("vexctl: {note}");
    }
    if args.json {
        print(&format!("{}\n", tally.to_json()))
    } else {
        print(&format!("{}: {}", collection.display(), tally.to_text()))
    }
}

/// A file whose words are counted.
struct TrainingItem {
    path: PathBuf,
    target: PathBuf,
    gzip: bool,
}

impl TrainingItem {
    /// What cannot be read is reported when it is to be stored, not here.
    fn passages(&self, bytes_max: u64) -> Option<Passages> {
        let (_, bytes) = source::read(&self.path, self.gzip, bytes_max).ok()?;
        Passages::of(&self.target, &bytes).ok()
    }
}

/// The source's files, and those ingested before that it has not.
fn training_items(tree: &SourceTree, scan: &Scan, collection: &Path) -> Vec<TrainingItem> {
    let source = tree.files.iter().map(|file| TrainingItem {
        path: file.path.clone(),
        target: file.target.clone(),
        gzip: file.gzip,
    });
    let stored = scan
        .files
        .iter()
        .filter(|(path, stored)| stored.record.is_some() && !tree.targets.contains_key(*path));
    let stored = stored.map(|(path, _)| TrainingItem {
        path: collection.join(path),
        target: path.clone(),
        gzip: false,
    });
    source.chain(stored).collect()
}

struct Ingest<'a> {
    args: &'a IngestArgs,
    run: Run,
    target: &'a Target,
    embedder: &'a dyn Embedder,
    tally: &'a Tally,
}

impl Ingest<'_> {
    fn work(&self, tree: &SourceTree, scan: &Scan, jobs: usize, stop: &AtomicBool) -> Result<()> {
        let progress = Progress::new("ingesting", tree.files.len());
        workers::for_each(&tree.files, jobs, stop, |file| {
            let done = self.source_file(file, scan.files.get(&file.target));
            progress.step();
            done
        })?;
        drop(progress);
        let taken: HashMap<&Path, ()> = tree.files.iter().map(|file| (file.target.as_path(), ())).collect();
        let rest: Vec<(&PathBuf, &Stored)> =
            scan.files.iter().filter(|(path, _)| !taken.contains_key(path.as_path())).collect();
        let progress = Progress::new("refreshing", rest.len());
        workers::for_each(&rest, jobs, stop, |(path, stored)| {
            let is_gone = !tree.targets.contains_key(*path);
            let done = self.other_file(path, stored, is_gone);
            progress.step();
            done
        })
    }

    fn source_file(&self, file: &SourceFile, stored: Option<&Stored>) -> Result<()> {
        let stamp = match std::fs::symlink_metadata(&file.path) {
            Ok(metadata) => record::Stamp::of(&metadata),
            Err(error) => {
                self.tally.unreadable(&file.path, &error);
                return Ok(());
            }
        };
        match decide(&self.run, stamp, stored) {
            Choice::Keep => {
                Tally::count(&self.tally.kept);
                Ok(())
            }
            Choice::Refuse(reason) => {
                self.tally.refused(&file.target, reason);
                Ok(())
            }
            Choice::Reembed { conflict } => {
                if conflict {
                    self.tally.refused(&file.target, Foreign::Edited);
                }
                self.reembed(&file.target, stored)
            }
            Choice::Add if self.target.is_occupied(&file.target) => {
                self.tally.refused(&file.target, Foreign::NotIngested);
                Ok(())
            }
            choice => self.copy(file, choice),
        }
    }

    fn copy(&self, file: &SourceFile, choice: Choice) -> Result<()> {
        let (source, bytes) = match source::read(&file.path, file.gzip, self.args.max_file_size) {
            Ok(read) => read,
            Err(ReadError::TooLarge) => return self.skip(Skip::TooLarge),
            Err(ReadError::BadGzip) => return self.skip(Skip::BadGzip),
            Err(ReadError::Io(error)) => {
                self.tally.unreadable(&file.path, &error);
                return Ok(());
            }
        };
        let Ok(passages) = Passages::of(&file.target, &bytes) else { return self.skip(Skip::Binary) };
        let embedded = passages.embed(self.embedder).with_context(|| file.path.display().to_string())?;
        self.target.publish(&NewFile {
            target: &file.target,
            bytes: &bytes,
            mode: file.mode,
            embedded: &embedded,
            record: Record {
                cutter_version: CUTTER_VERSION,
                root: self.run.root,
                source,
                stored: source,
                embedder: self.run.embedder,
                passages: 0,
                edited: false,
            },
        })?;
        self.tally.passages.fetch_add(embedded.rows.len() as u64, Ordering::Relaxed);
        self.tally.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Tally::count(if choice == Choice::Add { &self.tally.added } else { &self.tally.replaced });
        Ok(())
    }

    fn skip(&self, reason: Skip) -> Result<()> {
        self.tally.skip(reason);
        Ok(())
    }

    /// A file of the collection that the source does not give.
    fn other_file(&self, path: &Path, stored: &Stored, is_gone: bool) -> Result<()> {
        let is_ours = stored.record.is_some_and(|record| record.root == self.run.root);
        let is_edited = stored.record.is_some_and(|record| record.edited || record.stored != stored.stamp);
        if is_gone && is_ours {
            if self.args.prune && (!is_edited || self.args.overwrite) {
                self.target.remove(path)?;
                Tally::count(&self.tally.pruned);
                return Ok(());
            }
            Tally::count(&self.tally.gone);
            self.tally.note(if is_edited && self.args.prune {
                format!("{}: is gone from the source, but was edited in the collection; --prune --overwrite removes it", path.display())
            } else {
                format!("{}: is gone from the source", path.display())
            });
        }
        match decide_stored(&self.run, stored) {
            Choice::Reembed { .. } => self.reembed(path, Some(stored)),
            _ => Ok(()),
        }
    }

    /// Makes the rows of a stored file anew, of its text as it stands.
    fn reembed(&self, target: &Path, stored: Option<&Stored>) -> Result<()> {
        let Some((stored, record)) = stored.and_then(|stored| Some((stored, stored.record?))) else {
            return Ok(());
        };
        let path = self.target.dir().join(target);
        let (read_at, bytes) = match source::read(&path, false, STORED_BYTES_MAX) {
            Ok(read) => read,
            Err(ReadError::Io(error)) => return Err(failed(path.display(), &error)),
            Err(ReadError::TooLarge | ReadError::BadGzip) => return self.skip(Skip::TooLarge),
        };
        let embedded = match Passages::of(target, &bytes) {
            Ok(passages) => passages.embed(self.embedder).with_context(|| path.display().to_string())?,
            // It was text once: its old rows go.
            Err(extract::Binary) => prepare::Embedded::default(),
        };
        let edited = record.edited || record.stored != stored.stamp;
        let record = Record { cutter_version: CUTTER_VERSION, embedder: self.run.embedder, edited, ..record };
        if !self.target.refresh(target, read_at, &embedded, record)? {
            self.tally.note(format!("{}: changed while it was embedded; run ingest again", target.display()));
        }
        self.tally.passages.fetch_add(embedded.rows.len() as u64, Ordering::Relaxed);
        Tally::count(&self.tally.reembedded);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_our_own_are_known() {
        for name in [".vexfs", ".vexfs-embedder", ".vexfs-ingest-12-3.tmp"] {
            assert!(is_reserved(OsStr::new(name)), "{name}");
        }
        assert!(!is_reserved(OsStr::new(".vexfs-ingest.txt")) && !is_temporary(Path::new("a/b.tmp")));
        assert!(is_temporary(Path::new("a/.vexfs-ingest-1-2.tmp")));
    }
}
