//! A model of the names and metadata in a worker's directory.

use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A step on names or metadata. Paths are relative to the worker's directory, without a leading slash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A new file with a number.
    Create { path: String, file: u64, mode: u32 },
    /// A new directory.
    Mkdir { path: String },
    /// A symbolic link.
    Symlink { path: String, target: String },
    /// Another name of a file.
    Link { from: String, to: String },
    /// Over what stands at `to`, if anything does.
    Rename { from: String, to: String },
    /// RENAME_EXCHANGE.
    Exchange { a: String, b: String },
    /// Of a file or symlink.
    Unlink { path: String },
    /// Of an empty directory.
    Rmdir { path: String },
    /// Permission bits of a file.
    Chmod { path: String, mode: u32 },
    /// The xattr `user.tag` of a file.
    Tag { path: String, tag: u64 },
}

/// What can be seen at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// A file.
    File { mode: u32, links: u64, tag: Option<u64> },
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink { target: String },
}

#[derive(Debug, Clone)]
enum Name {
    File(u64),
    Directory,
    Symlink(String),
}

#[derive(Debug, Clone)]
struct File {
    mode: u32,
    tag: Option<u64>,
    paths: BTreeSet<String>,
}

/// Names and metadata.
#[derive(Debug, Clone, Default)]
pub struct Namespace {
    names: BTreeMap<String, Name>,
    files: HashMap<u64, File>,
}

impl Namespace {
    /// What stands at `path`.
    pub fn seen(&self, path: &str) -> Option<Seen> {
        Some(match self.names.get(path)? {
            Name::Directory => Seen::Directory,
            Name::Symlink(target) => Seen::Symlink { target: target.clone() },
            Name::File(number) => {
                let file = &self.files[number];
                Seen::File { mode: file.mode, links: file.paths.len() as u64, tag: file.tag }
            }
        })
    }

    /// Number of the file at `path`.
    pub fn file(&self, path: &str) -> Option<u64> {
        match self.names.get(path)? {
            Name::File(number) => Some(*number),
            _ => None,
        }
    }

    /// All paths.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(String::as_str)
    }

    /// Paths of the files.
    pub fn file_paths(&self) -> Vec<&str> {
        self.names
            .iter()
            .filter(|(_, name)| matches!(name, Name::File(_)))
            .map(|(path, _)| path.as_str())
            .collect()
    }

    /// Paths of the directories; the worker's own is the empty path.
    pub fn directories(&self) -> Vec<&str> {
        let below = self.names.iter().filter(|(_, name)| matches!(name, Name::Directory));
        std::iter::once("").chain(below.map(|(path, _)| path.as_str())).collect()
    }

    /// Whether a directory holds nothing.
    pub fn is_empty_directory(&self, path: &str) -> bool {
        self.below(path).is_empty()
    }

    /// Carries out a change that the file system accepted; gives the paths where something else may be seen now.
    pub fn apply(&mut self, change: &Change) -> Vec<String> {
        match change {
            Change::Create { path, file, mode } => {
                let paths = BTreeSet::from([path.clone()]);
                self.files.insert(*file, File { mode: *mode, tag: None, paths });
                self.names.insert(path.clone(), Name::File(*file));
                vec![path.clone()]
            }
            Change::Mkdir { path } => {
                self.names.insert(path.clone(), Name::Directory);
                vec![path.clone()]
            }
            Change::Symlink { path, target } => {
                self.names.insert(path.clone(), Name::Symlink(target.clone()));
                vec![path.clone()]
            }
            Change::Link { from, to } => {
                let number = self.file(from).expect("a link is made to a file");
                self.put(to.clone(), Name::File(number));
                self.paths_of(number)
            }
            Change::Rename { from, to } => {
                let mut touched = self.remove(to);
                touched.extend(self.move_tree(from, to));
                touched
            }
            Change::Exchange { a, b } => {
                let aside = format!("{a}\0aside");
                let mut touched = self.move_tree(a, &aside);
                touched.extend(self.move_tree(b, a));
                touched.extend(self.move_tree(&aside, b));
                touched.retain(|path| !path.contains('\0'));
                touched
            }
            Change::Unlink { path } | Change::Rmdir { path } => self.remove(path),
            Change::Chmod { path, mode } => self.with_file(path, |file| file.mode = *mode),
            Change::Tag { path, tag } => self.with_file(path, |file| file.tag = Some(*tag)),
        }
    }

    fn with_file(&mut self, path: &str, change: impl FnOnce(&mut File)) -> Vec<String> {
        let number = self.file(path).expect("the change is of a file");
        change(self.files.get_mut(&number).expect("a named file is known"));
        self.paths_of(number)
    }

    fn paths_of(&self, number: u64) -> Vec<String> {
        self.files[&number].paths.iter().cloned().collect()
    }

    fn put(&mut self, path: String, name: Name) {
        if let Name::File(number) = name {
            self.files.get_mut(&number).expect("a named file is known").paths.insert(path.clone());
        }
        self.names.insert(path, name);
    }

    /// Removes what stands at `path`, if anything does; other links of the same file are touched.
    fn remove(&mut self, path: &str) -> Vec<String> {
        let mut touched = vec![path.to_owned()];
        if let Some(Name::File(number)) = self.names.remove(path) {
            let file = self.files.get_mut(&number).expect("a named file is known");
            file.paths.remove(path);
            touched.extend(file.paths.iter().cloned());
        }
        touched
    }

    /// Moves `from` and what is below it.
    fn move_tree(&mut self, from: &str, to: &str) -> Vec<String> {
        let mut touched = Vec::new();
        let mut old_paths = self.below(from);
        old_paths.push(from.to_owned());
        for old in old_paths {
            let new = format!("{to}{}", &old[from.len()..]);
            let name = self.names.remove(&old).expect("what is moved is there");
            if let Name::File(number) = name {
                self.files.get_mut(&number).expect("a named file is known").paths.remove(&old);
            }
            self.put(new.clone(), name);
            touched.extend([old, new]);
        }
        touched
    }

    fn below(&self, path: &str) -> Vec<String> {
        let prefix = format!("{path}/");
        let from = self.names.range(prefix.clone()..);
        from.map(|(path, _)| path).take_while(|path| path.starts_with(&prefix)).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create(path: &str, file: u64) -> Change {
        Change::Create { path: path.into(), file, mode: 0o600 }
    }

    #[test]
    fn links_are_counted_at_every_path() {
        let mut names = Namespace::default();
        names.apply(&create("a", 1));
        let touched = names.apply(&Change::Link { from: "a".into(), to: "b".into() });
        assert_eq!(touched, ["a", "b"]);
        assert_eq!(names.seen("a"), Some(Seen::File { mode: 0o600, links: 2, tag: None }));
        assert!(names.apply(&Change::Unlink { path: "b".into() }).contains(&"a".to_owned()));
        assert_eq!(names.seen("a"), Some(Seen::File { mode: 0o600, links: 1, tag: None }));
    }

    #[test]
    fn a_renamed_directory_takes_its_tree_along() {
        let mut names = Namespace::default();
        for path in ["d", "d-neighbour", "e"] {
            names.apply(&Change::Mkdir { path: path.into() });
        }
        names.apply(&create("d/f", 1));
        let touched = names.apply(&Change::Rename { from: "d".into(), to: "e".into() });
        assert_eq!(names.paths().collect::<Vec<_>>(), ["d-neighbour", "e", "e/f"]);
        for path in ["d", "d/f", "e", "e/f"] {
            assert!(touched.contains(&path.to_owned()), "{path} in {touched:?}");
        }
    }

    #[test]
    fn exchange_swaps_a_file_and_a_tree() {
        let mut names = Namespace::default();
        names.apply(&Change::Mkdir { path: "d".into() });
        names.apply(&create("d/f", 1));
        names.apply(&create("g", 2));
        names.apply(&Change::Exchange { a: "d".into(), b: "g".into() });
        assert_eq!(names.paths().collect::<Vec<_>>(), ["d", "g", "g/f"]);
        assert_eq!((names.file("d"), names.file("g/f")), (Some(2), Some(1)));
    }
}
