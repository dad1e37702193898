//! Compares what a worker left with what it did.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use walkdir::WalkDir;

use super::history::{History, Step};
use super::namespace::{Namespace, Seen};
use super::page::{PAGE, Stamp};
use super::worker::Finished;

/// What must be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    /// Every step that was answered, and no version of a page but the newest: the mount lived on.
    Everything,
    /// What the last fsync promised, and a state that was (see the module [`super`]).
    SinceFsync,
}

/// Checks all workers' directories.
///
/// # Errors
/// A broken promise, with the path and what was expected; or the tree cannot be read.
pub fn check(workers: &[Finished], promise: Promise) -> Result<()> {
    let durable = workers.iter().filter_map(|worker| worker.history.last_fsync_began()).max().unwrap_or(0);
    for worker in workers {
        let at_least = match promise {
            Promise::Everything => worker.history.ended_before(u64::MAX),
            Promise::SinceFsync => worker.history.ended_before(durable),
        };
        check_worker(&worker.root, &worker.history, at_least, promise)
            .with_context(|| format!("{}, {} steps", worker.root.display(), worker.history.records.len()))?;
    }
    Ok(())
}

fn check_worker(root: &Path, history: &History, at_least: usize, promise: Promise) -> Result<()> {
    let found = read_tree(root)?;
    let names = matching_prefix(history, &found, at_least)?;
    let allowed = Allowed::from_history(history, promise);
    for (path, entry) in &found {
        if let (Some(number), Some(size)) = (names.file(path), entry.size) {
            let full = root.join(path);
            check_file(&full, number, size, &allowed).with_context(|| format!("file {number} at {path}"))?;
        }
    }
    Ok(())
}

struct Found {
    seen: Seen,
    /// Bytes, of files.
    size: Option<u64>,
    /// The number in the first page that has one.
    number: Option<u64>,
}

fn read_tree(root: &Path) -> Result<BTreeMap<String, Found>> {
    let mut all = BTreeMap::new();
    for entry in WalkDir::new(root).min_depth(1) {
        let entry = entry?;
        let path = entry.path().strip_prefix(root)?.to_str().context("a name that is not ours")?.to_owned();
        let meta = entry.metadata()?;
        let found = if meta.is_dir() {
            Found { seen: Seen::Directory, size: None, number: None }
        } else if meta.is_symlink() {
            let target = fs::read_link(entry.path())?.to_string_lossy().into_owned();
            Found { seen: Seen::Symlink { target }, size: None, number: None }
        } else {
            let tag = xattr::get(entry.path(), "user.tag")?
                .map(|value| value.try_into().map(u64::from_le_bytes))
                .transpose()
                .map_err(|value| anyhow::anyhow!("{path}: user.tag is {value:?}"))?;
            let seen = Seen::File { mode: meta.mode() & 0o7777, links: meta.nlink(), tag };
            let number = first_number(entry.path()).with_context(|| path.clone())?;
            Found { seen, size: Some(meta.len()), number }
        };
        all.insert(path, found);
    }
    Ok(all)
}

fn first_number(path: &Path) -> Result<Option<u64>> {
    let mut number = None;
    each_page(path, |stamp| {
        number = number.or((stamp.version != 0).then_some(stamp.file));
        Ok(())
    })?;
    Ok(number)
}

fn each_page(path: &Path, mut visit: impl FnMut(Stamp) -> Result<()>) -> Result<()> {
    let file = fs::File::open(path)?;
    // What the kernel holds in its cache would hide what the file system lost.
    let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
    let mut bytes = [0; PAGE];
    for page in 0.. {
        match file.read_exact_at(&mut bytes, page * PAGE as u64) {
            Ok(()) => visit(Stamp::read(&bytes, page).map_err(anyhow::Error::msg)?)?,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error).with_context(|| format!("cannot read page {page}")),
        }
    }
    Ok(())
}

/// The state of the names after the shortest prefix of at least `at_least` steps that equals what was found.
fn matching_prefix(history: &History, found: &BTreeMap<String, Found>, at_least: usize) -> Result<Namespace> {
    let mut names = Namespace::default();
    let mut wrong: BTreeSet<String> = found.keys().cloned().collect();
    let mut nearest: Option<(usize, usize, String)> = None;
    for prefix in 0..=history.records.len() {
        if prefix > 0
            && let Step::Change(change) = &history.records[prefix - 1].step
        {
            for path in names.apply(change) {
                let equal = is_equal(&names, &path, found.get(&path));
                let _ = if equal { wrong.remove(&path) } else { wrong.insert(path) };
            }
        }
        if prefix < at_least {
            continue;
        }
        let Some(example) = wrong.first() else { return Ok(names) };
        if nearest.as_ref().is_none_or(|(count, ..)| wrong.len() < *count) {
            let there = found.get(example).map(|found| &found.seen);
            let text = format!("{example:?} is {there:?} instead of {:?}", names.seen(example));
            nearest = Some((wrong.len(), prefix, text));
        }
    }
    let (count, prefix, example) = nearest.context("the worker did nothing")?;
    bail!(
        "names and metadata equal no state after {at_least} or more steps; nearest is step {prefix} with {count} paths different: {example}"
    )
}

fn is_equal(names: &Namespace, path: &str, found: Option<&Found>) -> bool {
    let same_file = match (names.file(path), found.and_then(|found| found.number)) {
        (Some(expected), Some(number)) => expected == number,
        _ => true,
    };
    same_file && names.seen(path).as_ref() == found.map(|found| &found.seen)
}

/// What each file may hold, from its last fsync on.
struct Allowed {
    files: HashMap<u64, AllowedFile>,
    promise: Promise,
}

#[derive(Default)]
struct AllowedFile {
    /// Sizes in pages since the last fsync, the first being that at the fsync.
    sizes: Vec<u64>,
    /// Versions of each page since the last fsync, likewise. A page that is not here was never written.
    versions: HashMap<u64, Vec<u64>>,
}

impl AllowedFile {
    fn write(&mut self, first: u64, pages: u64, version: u64) {
        for page in first..first + pages {
            self.versions.entry(page).or_insert_with(|| vec![0]).push(version);
        }
        let size = self.sizes.last().copied().unwrap_or(0).max(first + pages);
        self.sizes.push(size);
    }

    fn truncate(&mut self, pages: u64) {
        for (_, versions) in self.versions.iter_mut().filter(|(page, _)| **page >= pages) {
            versions.push(0);
        }
        self.sizes.push(pages);
    }

    fn keep_newest(&mut self) {
        for list in self.versions.values_mut().chain([&mut self.sizes]) {
            list.drain(..list.len().saturating_sub(1));
        }
    }
}

impl Allowed {
    fn from_history(history: &History, promise: Promise) -> Self {
        let mut files: HashMap<u64, AllowedFile> = HashMap::new();
        for (record, version) in history.records.iter().zip(1..) {
            match &record.step {
                Step::Change(super::namespace::Change::Create { file, .. }) => {
                    files.insert(*file, AllowedFile { sizes: vec![0], ..AllowedFile::default() });
                }
                Step::Change(_) | Step::Fsync { file: None } => {}
                Step::Write { file, first, pages } => {
                    files.entry(*file).or_default().write(*first, *pages, version)
                }
                Step::Truncate { file, pages } => files.entry(*file).or_default().truncate(*pages),
                Step::Fsync { file: Some(file) } if record.ended.is_some() => {
                    files.entry(*file).or_default().keep_newest();
                }
                Step::Fsync { .. } => {}
            }
            // Who promises everything keeps the newest alone; but a step without an answer may be half done.
            let answered = promise == Promise::Everything && record.ended.is_some();
            if let Step::Write { file, .. } | Step::Truncate { file, .. } = &record.step
                && answered
            {
                files.entry(*file).or_default().keep_newest();
            }
        }
        Self { files, promise }
    }
}

fn check_file(path: &Path, number: u64, size: u64, allowed: &Allowed) -> Result<()> {
    let file = allowed.files.get(&number).context("a file that was never made")?;
    let range = || file.sizes.iter().copied();
    let (smallest, largest) = range().min().zip(range().max()).context("a file without a size")?;
    let pages = size / PAGE as u64;
    ensure!(
        size.is_multiple_of(PAGE as u64) && (smallest..=largest).contains(&pages),
        "size {size} is none it had ({smallest} to {largest} pages, {:?})",
        allowed.promise
    );
    each_page(path, |stamp| {
        let versions = file.versions.get(&stamp.page).map_or(&[0][..], Vec::as_slice);
        ensure!(
            versions.contains(&stamp.version) && (stamp.version == 0 || stamp.file == number),
            "page {} holds {stamp:?}, allowed are versions {versions:?} ({:?})",
            stamp.page,
            allowed.promise
        );
        Ok(())
    })
}

#[cfg(test)]
mod tests;
