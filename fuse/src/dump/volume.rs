//! A volume to look at: its superblock, status, inodes, paths, and what is mapped of a file.

use std::sync::Arc;

use blockd::device::{Device, VolumeKind};
use blockd::session::SessionError;
use layout::addr::{PAGE_SHIFT, PageNo, SUPERBLOCK_PAGE};
use layout::error::Error;
use layout::fs::{Fs, Inode, MountOptions};
use layout::inode::{Inline, Ino, InodeFlags, ROOT_INO, RawInode, Slot, slot};
use layout::page_store::{PageBytes, PageStore, Timespec};
use layout::superblock::Superblock;
use layout::windows::{CLASSES, class_pages, class_range};
use zerocopy::IntoBytes;

use super::node::{Node, hex, hex_lines};
use crate::engine::{Engine, EngineOptions, Pages};

/// Longest path shown.
const PATH_BYTES_MAX: usize = 64 << 10;

/// Why something can't be shown.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// The volume can't be read.
    #[error("the volume cannot be read: {0}")]
    Session(#[from] SessionError),
    /// The file system logic refuses it.
    #[error("{what}: {error}")]
    FileSystem {
        /// What was looked at.
        what: String,
        /// Why not.
        error: Error,
    },
    /// No such thing.
    #[error("{0}")]
    Nothing(String),
    /// The image can't be read.
    #[error("{0}: {1}")]
    Image(String, std::io::Error),
}

/// An inode by its number or its path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// A number.
    Number(u64),
    /// A path from the root; symbolic links are not followed.
    Path(String),
}

impl std::str::FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with('/') {
            return Ok(Target::Path(text.into()));
        }
        text.parse()
            .map(Target::Number)
            .map_err(|_| format!("{text:?} is neither an inode number nor a path with /"))
    }
}

/// A volume, read only.
pub struct Volume {
    pub(super) engine: Arc<Engine>,
}

impl Volume {
    /// Of a device that holds a VexFS volume.
    ///
    /// # Errors
    /// [`DumpError`].
    pub fn new(device: Arc<dyn Device>) -> Result<Self, DumpError> {
        if device.info().kind != VolumeKind::VexFs {
            return Err(DumpError::Nothing("a raw volume has no VexFS file system".into()));
        }
        let client = device.connect();
        let options = EngineOptions { read_only: true, cache_bytes: 64 << 20, ..EngineOptions::default() };
        Ok(Volume { engine: Engine::new(device, client, None, options)? })
    }

    /// A page's bytes.
    pub(super) fn page_bytes(&self, page: PageNo) -> Result<Box<PageBytes>, DumpError> {
        let pages = Pages(Arc::clone(&self.engine));
        let what = || format!("page {:#x}", page.0);
        pages
            .read(page)
            .map(|bytes| Box::new(*bytes))
            .map_err(|error| DumpError::FileSystem { what: what(), error })
    }

    /// The superblock.
    ///
    /// # Errors
    /// [`DumpError`] when its page can't be read.
    pub fn superblock(&self) -> Result<Node, DumpError> {
        Ok(superblock(&*self.page_bytes(SUPERBLOCK_PAGE)?))
    }

    /// What the store, or its daemon, says of the volume.
    ///
    /// # Errors
    /// [`DumpError`].
    pub fn status(&self) -> Result<Node, DumpError> {
        let status = self.engine.status()?;
        let flags = status.flags.get();
        Ok(Node::Fields(vec![
            ("uuid", hex(&status.uuid).into()),
            ("read_only_backing", (flags & 1 != 0).into()),
            ("session_live", (flags & 2 != 0).into()),
            ("session", status.session.get().into()),
            ("epoch", status.epoch.get().into()),
            ("incarnation", status.incarnation.get().into()),
            ("capacity_pages", status.capacity_pages.get().into()),
            ("used_pages", status.used_pages.get().into()),
            ("available_pages", status.available_pages.get().into()),
        ]))
    }

    fn mounted(&self) -> Result<Fs<Pages>, DumpError> {
        let options = MountOptions { read_only: true, session: 0, now: Timespec::default() };
        Fs::mount(Pages(Arc::clone(&self.engine)), options)
            .map_err(|error| DumpError::FileSystem { what: "the file system".into(), error })
    }

    /// The number of a target.
    ///
    /// # Errors
    /// [`DumpError`] where there is no such path.
    pub fn number(&self, target: &Target) -> Result<u64, DumpError> {
        let path = match target {
            Target::Number(number) => return Ok(*number),
            Target::Path(path) => path,
        };
        let fs = self.mounted()?;
        let mut at = ROOT_INO;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let found = fs.lookup(at, name.as_bytes());
            at = found.map_err(|error| DumpError::FileSystem { what: format!("{path}: {name}"), error })?.ino;
        }
        Ok(at.0)
    }

    /// The slot of an inode as it stands.
    pub(super) fn raw_slot(&self, ino: u64) -> Result<(PageNo, RawInode), DumpError> {
        let page =
            Ino(ino).page().ok_or_else(|| DumpError::Nothing(format!("no inode has the number {ino}")))?;
        Ok((page, *slot(&*self.page_bytes(page)?, Ino(ino))))
    }

    /// An inode in use.
    pub(super) fn used(&self, ino: u64) -> Result<Inode, DumpError> {
        let (page, raw) = self.raw_slot(ino)?;
        match raw.decode(page, Ino(ino)) {
            Ok(Slot::Used(inode)) => Ok(inode),
            Ok(_) => Err(DumpError::Nothing(format!("inode {ino} is not in use"))),
            Err(error) => Err(DumpError::FileSystem { what: format!("inode {ino}"), error }),
        }
    }

    /// An inode, with its path where its place leads to the root.
    ///
    /// # Errors
    /// [`DumpError`] when its page can't be read.
    pub fn inode(&self, ino: u64) -> Result<Node, DumpError> {
        let (page, raw) = self.raw_slot(ino)?;
        let Node::Fields(mut fields) = inode(page, ino, &raw) else {
            return Err(DumpError::Nothing(format!("inode {ino}")));
        };
        let mut out = vec![0; PATH_BYTES_MAX];
        if let Ok(fs) = self.mounted()
            && let Ok(len) = fs.path(Ino(ino), ROOT_INO, &mut out)
        {
            let path = String::from_utf8_lossy(&out[..len]);
            fields.insert(1, ("path", format!("/{path}").into()));
        }
        Ok(Node::Fields(fields))
    }

    /// What is mapped of an inode's content: runs of bytes and the pages where they stand.
    ///
    /// # Errors
    /// [`DumpError`].
    pub fn allocation(&self, ino: u64) -> Result<Node, DumpError> {
        let inode = self.used(ino)?;
        let mut runs = Vec::new();
        let mut pages = 0;
        let failed = |error| DumpError::FileSystem { what: "the allocation map".into(), error };
        for class in 0..CLASSES {
            let Some(range) = class_pages(&inode, class, 0, layout::inode::MAX_FILE_BYTES) else { continue };
            let (mut at, end) = (range.first.0, range.first.0 + range.count);
            while let Some(first) = self.engine.find_page(at, end, true).map_err(failed)? {
                let last = self.engine.find_page(first, end, false).map_err(failed)?.unwrap_or(end);
                let offset = class_range(class).0 + ((first - range.first.0) << PAGE_SHIFT);
                runs.push(Node::Fields(vec![
                    ("offset", offset.into()),
                    ("bytes", ((last - first) << PAGE_SHIFT).into()),
                    ("class", class.into()),
                    ("page", Node::Address(first)),
                    ("pages", (last - first).into()),
                ]));
                pages += last - first;
                at = last;
            }
        }
        Ok(Node::Fields(vec![
            ("inode", ino.into()),
            ("size", inode.size.into()),
            ("mapped_pages", pages.into()),
            ("runs", Node::List(runs)),
        ]))
    }
}

fn time(time: Timespec) -> Node {
    Node::Text(format!("{}.{:09}", time.secs, time.nanos))
}

/// A superblock page.
pub fn superblock(bytes: &PageBytes) -> Node {
    let found = match Superblock::decode(bytes, true) {
        Ok(found) => found,
        Err(error) => return damaged(&error, bytes),
    };
    let label = String::from_utf8_lossy(&found.label).trim_end_matches('\0').to_owned();
    Node::Fields(vec![
        ("what", "superblock".into()),
        ("uuid", hex(&found.uuid).into()),
        ("label", label.into()),
        ("compat", Node::Address(found.compat)),
        ("ro_compat", Node::Address(found.ro_compat)),
        ("incompat", Node::Address(found.incompat)),
        ("epoch", found.epoch.into()),
        ("session", found.session.into()),
        ("clean", found.clean.into()),
        ("root", found.root.0.into()),
        ("next_ino", found.next_ino.into()),
        ("next_window", Node::List(found.next_window.iter().map(|n| (*n).into()).collect())),
        ("stack_depth", Node::List(found.stack_depth.iter().map(|n| (*n).into()).collect())),
        ("orphan_head", found.orphan_head.into()),
        ("inodes_used", found.inodes_used.into()),
        ("created", found.created_secs.into()),
        ("mount_count", found.mount_count.into()),
        ("commit_time", time(found.commit_time)),
    ])
}

/// What does not decode.
pub fn damaged(error: &Error, bytes: &[u8]) -> Node {
    Node::Fields(vec![("damaged", error.to_string().into()), ("bytes", hex_lines(bytes))])
}

/// A slot of the inode table.
pub fn inode(page: PageNo, ino: u64, raw: &RawInode) -> Node {
    let begin = vec![("inode", ino.into())];
    let place = ("page", Node::Address(page.0));
    let with = |more: Vec<(&'static str, Node)>| Node::Fields([begin, vec![place], more].concat());
    let inode = match raw.decode(page, Ino(ino)) {
        Ok(Slot::NeverUsed) => return with(vec![("state", "never used".into())]),
        Ok(Slot::Free(generation)) => {
            return with(vec![("state", "free".into()), ("generation", generation.into())]);
        }
        Ok(Slot::Used(inode)) => inode,
        Err(error) => {
            return with(vec![("damaged", error.to_string().into()), ("bytes", hex_lines(raw.as_bytes()))]);
        }
    };
    let flags: Vec<Node> =
        inode.flags.iter_names().map(|(name, _): (&str, InodeFlags)| name.into()).collect();
    let windows = inode.windows.iter().map(|w| w.checked_sub(1).map_or("none".into(), |w| w.into()));
    let inline = match inode.inline {
        Inline::Nothing => "nothing".to_owned(),
        Inline::Symlink => format!("target {:?}", String::from_utf8_lossy(raw.inline_bytes())),
        Inline::Xattr => format!("{} bytes of attributes", inode.inline_len),
    };
    with(vec![
        ("state", "in use".into()),
        ("kind", format!("{:?}", inode.kind).to_lowercase().into()),
        ("mode", format!("{:06o}", inode.mode()).into()),
        ("links", inode.nlink.into()),
        ("uid", inode.uid.into()),
        ("gid", inode.gid.into()),
        ("rdev", Node::Address(inode.rdev.into())),
        ("size", inode.size.into()),
        ("generation", inode.generation.into()),
        ("flags", Node::List(flags)),
        ("data_version", inode.data_version.into()),
        ("atime", time(inode.atime)),
        ("mtime", time(inode.mtime)),
        ("ctime", time(inode.ctime)),
        ("btime", time(inode.btime)),
        ("windows", Node::List(windows.collect())),
        ("inline", inline.into()),
        ("place_dir", inode.place_dir.0.into()),
        ("place_key", Node::Address(inode.place_key)),
        ("rows_inode", inode.rows_ino.0.into()),
        ("first_row", inode.first_row.checked_sub(1).map_or("none".into(), Node::from)),
        ("row_count", inode.row_count.into()),
        ("orphan_prev", inode.orphan_prev.0.into()),
        ("orphan_next", inode.orphan_next.0.into()),
        ("entries", inode.entries.into()),
    ])
}
