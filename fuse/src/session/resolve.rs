//! From a path in a request to inodes, with the checks that a path lookup makes.

use layout::error::Error;
use layout::fs::{Fs, Inode};
use layout::inode::{Ino, InodeFlags, Kind};
use layout::page_store::PageStore;
use layout::search::{Access, Credentials};

use super::error::{SessionError, SessionResult};

/// What a path names.
#[derive(Clone, Copy, Debug)]
pub(super) struct Resolved {
    /// The directory of the last name.
    pub parent: Inode,
    /// What the path names.
    pub inode: Inode,
    /// The collection it lies in.
    pub collection: Option<Ino>,
}

/// Walks a relative path below `dir`; an empty one is `dir` itself. Symbolic links are not followed.
pub(super) fn resolve<P: PageStore>(
    fs: &Fs<P>,
    dir: Ino,
    path: &[u8],
    who: &Credentials<'_>,
) -> SessionResult<Resolved> {
    let start = fs.inode(dir).map_err(|e| SessionError::about(e, "the directory of the session file"))?;
    let collection = match fs.collection_of(dir) {
        Ok(collection) => Some(collection),
        Err(Error::NotFound) => None,
        Err(error) => return Err(error.into()),
    };
    let mut at = Resolved { parent: start, inode: start, collection };
    for name in path.split(|byte| *byte == b'/').filter(|_| !path.is_empty()) {
        let shown =
            || format!("{:?} of {:?}", name.escape_ascii().to_string(), path.escape_ascii().to_string());
        if at.inode.kind != Kind::Dir {
            return Err(SessionError::about(Error::NotDir, format!("what stands before {}", shown())));
        }
        if !fs.permits(who, &at.inode, Access::Search)? {
            return Err(SessionError::denied(format!(
                "no search permission (x) on the directory of {}",
                shown()
            )));
        }
        let inode = fs.lookup(at.inode.ino, name).map_err(|e| SessionError::about(e, shown()))?;
        let enters = inode.kind == Kind::Dir && inode.flags.contains(InodeFlags::COLLECTION);
        at = Resolved {
            parent: at.inode,
            inode,
            collection: if enters { Some(inode.ino) } else { at.collection },
        };
    }
    Ok(at)
}

impl Resolved {
    /// The collection, or the error that there is none.
    pub(super) fn in_collection(&self) -> SessionResult<Ino> {
        self.collection.ok_or_else(|| {
            SessionError::invalid(
                "the directory is not in a collection; make one: write {\"dim\":..,\"element\":..,\"metric\":..} to .vexfs/schema",
            )
        })
    }
}
