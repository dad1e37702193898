//! The one error type of the file system logic, and the one place where it becomes an errno.

use crate::addr::PageNo;

/// Result of the file system logic.
pub type Result<T> = core::result::Result<T, Error>;

/// What went wrong; each mounter maps it with [`Error::errno`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error {
    /// No such file, row or attribute owner.
    NotFound,
    /// The name exists.
    Exists,
    /// Not a directory.
    NotDir,
    /// Is a directory.
    IsDir,
    /// The directory is not empty.
    NotEmpty,
    /// A name or path is too long.
    NameTooLong,
    /// The argument is invalid; the text says which and why.
    Invalid(&'static str),
    /// Not permitted by mode bits.
    Access,
    /// Not permitted at all (EPERM).
    NotPermitted,
    /// Crosses a border that a rename or link may not cross.
    CrossDevice,
    /// Too many links.
    TooManyLinks,
    /// No space, no inode or no window left.
    NoSpace,
    /// Larger than the format allows.
    TooBig,
    /// No such extended attribute.
    NoAttr,
    /// The reply does not fit the buffer.
    Range,
    /// The operation is defined but not supported here.
    Unsupported,
    /// The volume is mounted read-only.
    ReadOnly,
    /// The page store failed to read or write this page.
    Io(PageNo),
    /// The session was fenced: another mounter holds the volume, or it was rolled back.
    Fenced,
    /// The volume holds something that FORMAT.md forbids.
    Corrupt(Corruption),
    /// An earlier failure in the middle of a change stopped this mount.
    Aborted,
}

/// Where a volume breaks the format, with what stands there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Corruption {
    /// The page that is wrong.
    pub page: PageNo,
    /// Which rule is broken (FORMAT.md's words).
    pub what: &'static str,
    /// The value expected, or a bound.
    pub expected: u64,
    /// The value found.
    pub found: u64,
}

/// Says that `page` breaks the rule `what`.
pub const fn corrupt(page: PageNo, what: &'static str, expected: u64, found: u64) -> Error {
    Error::Corrupt(Corruption { page, what, expected, found })
}

impl Error {
    /// The Linux errno (asm-generic/errno.h), positive.
    pub const fn errno(self) -> i32 {
        match self {
            Error::NotFound => 2,
            Error::Exists => 17,
            Error::NotDir => 20,
            Error::IsDir => 21,
            Error::NotEmpty => 39,
            Error::NameTooLong => 36,
            Error::Invalid(_) => 22,
            Error::Access => 13,
            Error::NotPermitted => 1,
            Error::CrossDevice => 18,
            Error::TooManyLinks => 31,
            Error::NoSpace => 28,
            Error::TooBig => 27,
            Error::NoAttr => 61,
            Error::Range => 34,
            Error::Unsupported => 95,
            Error::ReadOnly => 30,
            Error::Io(_) | Error::Aborted => 5,
            Error::Fenced => 108,
            Error::Corrupt(_) => 117,
        }
    }
}

impl core::fmt::Display for Error {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Error::NotFound => f.write_str("not found"),
            Error::Exists => f.write_str("exists already"),
            Error::NotDir => f.write_str("not a directory"),
            Error::IsDir => f.write_str("is a directory"),
            Error::NotEmpty => f.write_str("directory not empty"),
            Error::NameTooLong => f.write_str("name too long"),
            Error::Invalid(what) => write!(f, "invalid: {what}"),
            Error::Access => f.write_str("permission denied"),
            Error::NotPermitted => f.write_str("operation not permitted"),
            Error::CrossDevice => f.write_str("crosses a collection or volume border"),
            Error::TooManyLinks => f.write_str("too many links"),
            Error::NoSpace => f.write_str("no space left on the volume"),
            Error::TooBig => f.write_str("larger than the format allows"),
            Error::NoAttr => f.write_str("no such attribute"),
            Error::Range => f.write_str("does not fit the buffer"),
            Error::Unsupported => f.write_str("not supported"),
            Error::ReadOnly => f.write_str("the volume is read-only"),
            Error::Io(page) => write!(f, "I/O error at page {:#x}", page.0),
            Error::Fenced => f.write_str("fenced: another mounter took the volume"),
            Error::Corrupt(c) => write!(
                f,
                "corrupt volume at page {:#x}: {} (expected {:#x}, found {:#x})",
                c.page.0, c.what, c.expected, c.found
            ),
            Error::Aborted => f.write_str("the mount was stopped by an earlier error; remount it"),
        }
    }
}

impl core::error::Error for Error {}
