//! Who asks, and for what.

/// The caller of an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Credentials<'a> {
    /// File system user id; 0 may everything.
    pub uid: u32,
    /// File system group id.
    pub gid: u32,
    /// Supplementary groups; empty if they are not known.
    pub groups: &'a [u32],
}

/// A permission bit of one class of `rwx`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Read a file, list a directory.
    Read = 4,
    /// Write a file, change a directory's entries.
    Write = 2,
    /// Search a directory: use a name in it.
    Search = 1,
}

impl Credentials<'_> {
    /// Whether the caller is in a group.
    pub fn in_group(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }
}
