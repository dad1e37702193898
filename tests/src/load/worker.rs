//! Workers that change a mount at random and write down what they do.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::history::{History, Record, Step};
use super::namespace::{Change, Namespace};
use super::page::{PAGE, Stamp};
use crate::wait;

const FILES_MAX: usize = 60;
const FILE_PAGES_MAX: u64 = 400; // beyond the first data class' megabyte

/// Running workers, each in a directory of its own.
pub struct Load {
    stop: Arc<AtomicBool>,
    clock: Arc<AtomicU64>,
    threads: Vec<JoinHandle<(PathBuf, History, Option<io::Error>)>>,
}

/// What a worker left.
pub struct Finished {
    /// The worker's directory.
    pub root: PathBuf,
    /// What it did there.
    pub history: History,
    /// Why it ended before it was told to.
    pub error: Option<io::Error>,
}

impl Load {
    /// Starts `workers` workers in new directories below `parent`, which are made durable before.
    ///
    /// # Panics
    /// The directories cannot be made.
    pub fn start(parent: &Path, workers: u64, seed: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let clock = Arc::new(AtomicU64::new(1));
        let roots: Vec<PathBuf> =
            (0..workers).map(|number| parent.join(format!("worker-{number}"))).collect();
        for root in &roots {
            fs::create_dir_all(root).expect("a directory for a worker can be made");
        }
        File::open(parent).and_then(|directory| directory.sync_all()).expect("a directory can be synced");
        let threads = roots.into_iter().zip(0..).map(|(root, number)| {
            let (stop, clock) = (Arc::clone(&stop), Arc::clone(&clock));
            std::thread::spawn(move || Worker::new(root, clock, seed.wrapping_add(number)).run(&stop))
        });
        Self { threads: threads.collect(), stop, clock }
    }

    /// Steps begun or ended so far, of all workers together.
    pub fn progress(&self) -> u64 {
        self.clock.load(Ordering::SeqCst)
    }

    /// Waits until each worker has met an error of a mount that died.
    ///
    /// # Panics
    /// One goes on without.
    pub fn end(self) -> Vec<Finished> {
        wait::until("the load to meet the mount's death", || {
            self.threads.iter().all(JoinHandle::is_finished).then_some(())
        });
        self.finish()
    }

    /// Tells the workers to stop and waits for them.
    ///
    /// # Panics
    /// A worker did.
    pub fn finish(self) -> Vec<Finished> {
        self.stop.store(true, Ordering::SeqCst);
        let finished = self.threads.into_iter().map(|thread| thread.join().expect("a worker does not panic"));
        finished.map(|(root, history, error)| Finished { root, history, error }).collect()
    }
}

pub(super) struct Worker {
    root: PathBuf,
    clock: Arc<AtomicU64>,
    rng: StdRng,
    names: Namespace,
    pub(super) history: History,
}

impl Worker {
    pub(super) fn new(root: PathBuf, clock: Arc<AtomicU64>, seed: u64) -> Self {
        Self {
            root,
            clock,
            rng: StdRng::seed_from_u64(seed),
            names: Namespace::default(),
            history: History::default(),
        }
    }

    fn run(mut self, stop: &AtomicBool) -> (PathBuf, History, Option<io::Error>) {
        while !stop.load(Ordering::SeqCst) {
            let Some(step) = self.choose() else { continue };
            if let Err(error) = self.carry_out(step) {
                return (self.root, self.history, Some(error));
            }
        }
        (self.root, self.history, None)
    }

    pub(super) fn carry_out(&mut self, step: Step) -> io::Result<()> {
        let path = self.path_of(&step);
        self.history.records.push(Record { step: step.clone(), began: self.tick(), ended: None });
        let version = self.history.records.len() as u64;
        execute(&self.root, &step, path.as_deref(), version).map_err(|error| {
            io::Error::new(error.kind(), format!("{step:?} in {}: {error}", self.root.display()))
        })?;
        let ended = self.tick();
        self.history.records.last_mut().expect("one was pushed").ended = Some(ended);
        if let Step::Change(change) = &step {
            self.names.apply(change);
        }
        Ok(())
    }

    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    /// A path of the file that the step is about.
    fn path_of(&self, step: &Step) -> Option<PathBuf> {
        let number = match step {
            Step::Write { file, .. } | Step::Truncate { file, .. } | Step::Fsync { file: Some(file) } => {
                *file
            }
            _ => return None,
        };
        let path = self.names.file_paths().into_iter().find(|path| self.names.file(path) == Some(number))?;
        Some(self.root.join(path))
    }

    /// A step that the file system must accept; `None` if the dice gave one that has no object.
    fn choose(&mut self) -> Option<Step> {
        let files = self.names.file_paths();
        let file = files.choose(&mut self.rng).map(|path| (*path).to_owned());
        let number = file.as_deref().and_then(|path| self.names.file(path));
        Some(match self.rng.random_range(0..100) {
            0..14 if files.len() < FILES_MAX => {
                let mode = *[0o600, 0o640, 0o644, 0o755].choose(&mut self.rng)?;
                let file = self.history.records.len() as u64 + 1;
                Step::Change(Change::Create { path: self.new_path()?, file, mode })
            }
            0..50 => {
                let pages = self.rng.random_range(1..=16);
                // Mostly near the beginning, at times far out.
                let reach = if self.rng.random_ratio(1, 8) { FILE_PAGES_MAX } else { 24 };
                Step::Write { file: number?, first: self.rng.random_range(0..reach), pages }
            }
            50..55 => Step::Truncate { file: number?, pages: self.rng.random_range(0..32) },
            55..63 => Step::Fsync { file: Some(number?) },
            63..65 => Step::Fsync { file: None },
            _ => Step::Change(self.choose_change(file)?),
        })
    }

    fn choose_change(&mut self, file: Option<String>) -> Option<Change> {
        let directories: Vec<String> = self.names.directories().into_iter().map(str::to_owned).collect();
        let directory = directories.choose(&mut self.rng)?.clone();
        Some(match self.rng.random_range(0..35) {
            0..4 if directories.len() < 12 => Change::Mkdir { path: self.new_path()? },
            4..7 => {
                Change::Symlink { path: self.new_path()?, target: format!("to/{}", self.rng.random::<u64>()) }
            }
            7..10 => Change::Link { from: file?, to: self.new_path()? },
            10..15 => Change::Rename { from: file?, to: self.new_path()? },
            15..18 => {
                let (from, to) = (file?, self.names.file_paths().choose(&mut self.rng)?.to_string());
                // rename(2) between two links of one file does nothing.
                (self.names.file(&from) != self.names.file(&to)).then_some(Change::Rename { from, to })?
            }
            18..20 => {
                let to = self.new_path()?;
                let into_itself = directory.is_empty() || to.starts_with(&format!("{directory}/"));
                (!into_itself).then_some(Change::Rename { from: directory, to })?
            }
            20..21 => {
                let (a, b) = (file?, self.names.file_paths().choose(&mut self.rng)?.to_string());
                (self.names.file(&a) != self.names.file(&b)).then_some(Change::Exchange { a, b })?
            }
            21..26 => Change::Unlink { path: file? },
            26..27 => {
                let empty = !directory.is_empty() && self.names.is_empty_directory(&directory);
                empty.then_some(Change::Rmdir { path: directory })?
            }
            27..31 => Change::Chmod {
                path: file?,
                mode: *[0o400, 0o600, 0o666, 0o711].choose(&mut self.rng)? | 0o200,
            },
            _ => Change::Tag { path: file?, tag: self.rng.random() },
        })
    }

    /// A path that does not exist, in one of the directories; names of several lengths.
    fn new_path(&mut self) -> Option<String> {
        let directory = (*self.names.directories().choose(&mut self.rng)?).to_owned();
        let padding = *[0, 0, 0, 20, 180].choose(&mut self.rng)?;
        let name = format!("n{:x}{}", self.rng.random::<u32>(), "x".repeat(padding));
        let path = if directory.is_empty() { name } else { format!("{directory}/{name}") };
        (path.len() < 2000 && self.names.seen(&path).is_none()).then_some(path)
    }
}

/// Makes the system call of a step; `path` is that of the file it is about.
fn execute(root: &Path, step: &Step, path: Option<&Path>, version: u64) -> io::Result<()> {
    let path = || path.ok_or_else(|| io::Error::other("the step's file has no path"));
    match step {
        Step::Change(change) => execute_change(root, change),
        Step::Write { file, first, pages } => {
            let stamps = (*first..first + pages).map(|page| Stamp { file: *file, page, version });
            let bytes: Vec<u8> = stamps.flat_map(Stamp::bytes).collect();
            OpenOptions::new().write(true).open(path()?)?.write_all_at(&bytes, first * PAGE as u64)
        }
        Step::Truncate { pages, .. } => {
            OpenOptions::new().write(true).open(path()?)?.set_len(pages * PAGE as u64)
        }
        Step::Fsync { file: Some(_) } => File::open(path()?)?.sync_all(),
        Step::Fsync { file: None } => File::open(root)?.sync_all(),
    }
}

fn execute_change(root: &Path, change: &Change) -> io::Result<()> {
    match change {
        Change::Create { path, mode, .. } => {
            let file = OpenOptions::new().write(true).create_new(true).mode(*mode).open(root.join(path))?;
            drop(file);
            Ok(())
        }
        Change::Mkdir { path } => fs::create_dir(root.join(path)),
        Change::Symlink { path, target } => std::os::unix::fs::symlink(target, root.join(path)),
        Change::Link { from, to } => fs::hard_link(root.join(from), root.join(to)),
        Change::Rename { from, to } => fs::rename(root.join(from), root.join(to)),
        Change::Exchange { a, b } => {
            Ok(renameat_with(CWD, root.join(a), CWD, root.join(b), RenameFlags::EXCHANGE)?)
        }
        Change::Unlink { path } => fs::remove_file(root.join(path)),
        Change::Rmdir { path } => fs::remove_dir(root.join(path)),
        Change::Chmod { path, mode } => {
            fs::set_permissions(root.join(path), fs::Permissions::from_mode(*mode))
        }
        Change::Tag { path, tag } => xattr::set(root.join(path), "user.tag", &tag.to_le_bytes()),
    }
}
