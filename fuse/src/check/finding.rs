//! What a check can find: stable codes, what each means, and what a repair does about it.

use serde::Serialize;

use crate::printable::Printable;

/// How much a repair may cost.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Weight {
    /// Space or numbers that are wasted; the volume is usable as it is. Does not count as an error.
    Note,
    /// The repair loses nothing: preening does it.
    Safe,
    /// The repair may lose something, or move it to lost+found.
    Loss,
    /// There is no repair here.
    None,
}

macro_rules! codes {
    ($($name:ident, $code:literal, $weight:ident, $title:literal, $repair:literal;)*) => {
        /// What was found. Codes are stable: scripts may rely on them.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Code {
            $(#[doc = $title] $name,)*
        }

        impl Code {
            /// Every code.
            pub const ALL: &[Code] = &[$(Code::$name,)*];

            /// Its name in output.
            pub const fn name(self) -> &'static str {
                match self { $(Code::$name => $code,)* }
            }

            /// What it means.
            pub const fn title(self) -> &'static str {
                match self { $(Code::$name => $title,)* }
            }

            /// What `-y` does.
            pub const fn repair(self) -> &'static str {
                match self { $(Code::$name => $repair,)* }
            }

            /// How much that may cost.
            pub const fn weight(self) -> Weight {
                match self { $(Code::$name => Weight::$weight,)* }
            }
        }
    };
}

codes! {
    SbDamaged, "sb-damaged", Loss, "the superblock is damaged", "put together again from the inode table";
    SbUuid, "sb-uuid", Safe, "the superblock has another uuid than the store", "set to the store's";
    SbNextIno, "sb-next-ino", Safe, "the first never-used inode number is wrong", "set to the one behind the last inode";
    SbNextWindow, "sb-next-window", Safe, "the first never-used window number is wrong", "set behind the last window in use";
    SbInodesUsed, "sb-inodes-used", Safe, "the count of inodes in use is wrong", "set to what was counted";
    InodeUnreadable, "inode-unreadable", Loss, "a page of the inode table cannot be read", "its 8 inodes are made anew from their first MiB of bytes, for root alone, or freed";
    InodeDamaged, "inode-damaged", Loss, "an inode is damaged", "its bad fields are mended";
    InodeLost, "inode-lost", Loss, "an inode is damaged beyond use", "made anew from its first MiB of bytes, for root alone, or freed with its names";
    InodeReserved, "inode-reserved", Safe, "a slot that is never used is not zero", "zeroed";
    InodeHole, "inode-hole", Safe, "an inode number was passed over", "made free";
    InodeField, "inode-field", Safe, "an inode has a field set that its kind or state does not have", "cleared";
    InodeWindow, "inode-window", Loss, "a window number is out of range or has two owners", "taken from this inode; its bytes there read as zeros";
    InodeKind, "inode-kind", Loss, "an inode's kind is not that of its content", "set as its content and its name say";
    InodeLinks, "inode-links", Safe, "the link count is wrong", "set to the names found";
    InodePlace, "inode-place", Safe, "the place names no link of the inode", "set to a link, or unknown";
    InodeUnreachable, "inode-unreachable", Loss, "an inode has no name", "linked in /lost+found as #NUMBER";
    InodeNameless, "inode-nameless", Safe, "an empty inode has no name", "freed";
    RootMissing, "root-missing", Loss, "there is no root directory", "made new";
    Symlink, "symlink-target", Loss, "a symbolic link's target is damaged", "cut where the damage begins, or the link removed";
    XattrArea, "xattr-area", Loss, "the extended attributes cannot be read", "removed; where there are ACLs the group loses its permissions";
    XattrEntry, "xattr-entry", Loss, "extended attributes are damaged", "those from the damaged one on are removed; if an ACL may be among them, the group loses its permissions";
    XattrTwice, "xattr-twice", Loss, "an extended attribute stands twice", "the later one is removed";
    Acl, "acl", Loss, "an ACL is damaged, or stands where none may be", "removed; the group loses its permissions";
    AclMode, "acl-mode", Safe, "the mode is not what the ACL says", "set to what the ACL says";
    AclPlain, "acl-plain", Safe, "an ACL is stored that says no more than the mode", "removed";
    SbAcl, "sb-acl", Safe, "the superblock does not say that there are ACLs", "its bit is set";
    DirPage, "dir-page", Loss, "a page of a directory is damaged", "the tree is built anew from the entries that are good";
    DirTree, "dir-tree", Safe, "a directory's tree is not in order", "built anew from its entries";
    DirEntries, "dir-entries", Safe, "the count of a directory's entries is wrong", "set to what was counted";
    EntryName, "entry-name", Loss, "an entry's name is none", "the entry is dropped";
    EntryKey, "entry-key", Safe, "an entry stands under another key than its name's", "moved to its place";
    EntryTwice, "entry-twice", Loss, "a name stands twice in a directory", "the later entry is dropped";
    EntryDangling, "entry-dangling", Loss, "an entry names an inode that is not in use", "dropped";
    EntryKind, "entry-kind", Safe, "an entry's kind is not its inode's", "set to the inode's";
    EntryDir, "entry-dir", Loss, "a second name of a directory, or one that makes a loop", "dropped";
    OrphanList, "orphan-list", Safe, "the list of unlinked inodes is broken", "the unlinked inodes are freed";
    OrphanLinked, "orphan-linked", Safe, "an inode marked as unlinked has a name", "the mark is taken off";
    StackEntry, "free-stack", Safe, "a free stack is wrong", "the free stacks are built anew";
    NumberLost, "number-lost", Safe, "numbers are neither in use nor free", "put on the free stacks";
    NumberGap, "number-gap", Note, "very many numbers are neither in use nor free", "none needed";
    CollectionRows, "collection-rows", Loss, "a collection and its rows file do not name each other", "mended, or made a plain directory";
    RowsHeader, "rows-header", Loss, "a rows file's header is damaged", "mended, or the rows file is freed";
    RowsUnowned, "rows-unowned", Loss, "a rows file belongs to no collection", "freed";
    RowsSize, "rows-size", Safe, "a rows file's size is not that of its rows", "set to the end of its last chunk";
    RowsPage, "rows-page", Loss, "a page of row headers cannot be read", "its 64 rows die";
    RowDamaged, "row-damaged", Loss, "a row's header is damaged", "the row dies";
    RowStray, "row-stray", Loss, "a live row belongs to no file", "the row dies";
    RowChain, "row-chain", Loss, "a file's chain of rows is broken", "cut behind the last good row";
    RowsLive, "rows-live", Safe, "a collection's count of live rows is wrong", "set to what was counted";
    RowsChunk, "rows-chunk", Safe, "a chunk without live rows is mapped", "unmapped";
    LeakPage, "leak", Loss, "pages belong to nothing", "unmapped";
    LeakZero, "leak-zero", Note, "pages of zeros belong to nothing", "unmapped";
    PastEnd, "past-end", Loss, "pages stand behind the end of their file", "unmapped";
    Outside, "outside", None, "pages are mapped where no region is", "none";
    DataUnreadable, "data-unreadable", None, "bytes of a file cannot be read", "none: restore the file, or remove it";
}

/// One thing found.
#[derive(Clone, Debug)]
pub struct Finding {
    /// What it is.
    pub code: Code,
    /// The inode.
    pub ino: Option<u64>,
    /// The device page.
    pub page: Option<u64>,
    /// What exactly, for people.
    pub detail: String,
    /// What should stand there.
    pub expected: Option<u64>,
    /// What does.
    pub found: Option<u64>,
    /// Where in the tree, once known.
    pub path: Option<String>,
}

impl Finding {
    /// A finding without particulars.
    pub fn new(code: Code) -> Self {
        Finding {
            code,
            ino: None,
            page: None,
            detail: String::new(),
            expected: None,
            found: None,
            path: None,
        }
    }

    /// Of this inode.
    #[must_use]
    pub fn ino(self, ino: u64) -> Self {
        Finding { ino: Some(ino), ..self }
    }

    /// On this page.
    #[must_use]
    pub fn page(self, page: u64) -> Self {
        Finding { page: Some(page), ..self }
    }

    /// With these values.
    #[must_use]
    pub fn values(self, expected: u64, found: u64) -> Self {
        Finding { expected: Some(expected), found: Some(found), ..self }
    }

    /// In these words.
    #[must_use]
    pub fn detail(self, detail: impl Into<String>) -> Self {
        Finding { detail: detail.into(), ..self }
    }

    /// What the file system logic says of a page.
    #[must_use]
    pub fn of(self, error: &layout::error::Error) -> Self {
        match error {
            layout::error::Error::Corrupt(c) => {
                Finding { page: Some(c.page.0), ..self }.values(c.expected, c.found).detail(c.what)
            }
            other => self.detail(other.to_string()),
        }
    }
}

#[derive(Serialize)]
struct Line<'a> {
    code: &'static str,
    weight: Weight,
    what: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    inode: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    page: Option<u64>,
    #[serde(skip_serializing_if = "str::is_empty")]
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    expected: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    found: Option<u64>,
    repair: &'static str,
}

impl Finding {
    /// As one line of JSON.
    pub fn to_json(&self) -> String {
        let line = Line {
            code: self.code.name(),
            weight: self.code.weight(),
            what: self.code.title(),
            inode: self.ino,
            path: self.path.as_deref(),
            page: self.page,
            detail: &self.detail,
            expected: self.expected,
            found: self.found,
            repair: self.code.repair(),
        };
        serde_json::to_string(&line).unwrap_or_default()
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.code.name(), self.code.title())?;
        if let Some(ino) = self.ino {
            write!(f, ", inode {ino}")?;
        }
        if let Some(path) = &self.path {
            write!(f, " ({})", Printable(path))?;
        }
        if let Some(page) = self.page {
            write!(f, ", page {page:#x}")?;
        }
        if !self.detail.is_empty() {
            write!(f, ": {}", self.detail)?;
        }
        if let (Some(expected), Some(found)) = (self.expected, self.found) {
            write!(f, " (expected {expected}, found {found})")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_words_and_no_two_are_the_same() {
        let mut names: Vec<_> = Code::ALL.iter().map(|code| code.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Code::ALL.len());
        assert!(names.iter().all(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')));
        assert!(
            Code::ALL
                .iter()
                .all(|code| (code.weight() == Weight::None) == code.repair().starts_with("none:")
                    || code.repair() == "none"
                    || code.weight() == Weight::Note)
        );
    }

    #[test]
    fn the_manual_has_every_code_as_it_is() {
        let manual = include_str!("../../fsck.vexfs.md");
        for code in Code::ALL {
            let weight = format!("{:?}", code.weight()).to_lowercase();
            let row = format!("| `{}` | {weight} | {} | {} |", code.name(), code.title(), code.repair());
            assert!(manual.contains(&row), "fsck.vexfs.md lacks: {row}");
        }
    }

    #[test]
    fn a_finding_reads_as_a_sentence_and_as_json() {
        let finding = Finding::new(Code::InodeLinks).ino(12).values(2, 3);
        assert_eq!(
            finding.to_string(),
            "inode-links: the link count is wrong, inode 12 (expected 2, found 3)"
        );
        let json: serde_json::Value = serde_json::from_str(&finding.to_json()).unwrap();
        assert_eq!((json["code"].as_str(), json["found"].as_u64()), (Some("inode-links"), Some(3)));
        let path = Some("/two\nlines".to_owned());
        assert_eq!(Finding { path, ..finding }.to_string().lines().count(), 1);
    }
}
