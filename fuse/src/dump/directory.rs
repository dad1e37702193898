//! The pages of a directory's tree, in the order of its keys.

use std::collections::BTreeSet;

use layout::addr::{PAGE, PageNo};
use layout::dir::branch::Branch;
use layout::dir::leaf::Leaf;
use layout::dir::page::{self, DirPlace, LEVEL_FREE};
use layout::inode::{Ino, Kind};
use layout::page_store::PageBytes;
use layout::windows::map_page;

use super::node::Node;
use super::volume::{DumpError, Volume, damaged};

impl Volume {
    /// A directory's tree: each page with its address and what is in it.
    ///
    /// # Errors
    /// [`DumpError`].
    pub fn directory(&self, ino: u64) -> Result<Node, DumpError> {
        let dir = self.used(ino)?;
        if dir.kind != Kind::Dir {
            return Err(DumpError::Nothing(format!("inode {ino} is no directory")));
        }
        let mut pages = Vec::new();
        let mut seen = BTreeSet::new();
        let mut todo = if dir.size == 0 { Vec::new() } else { vec![0] };
        while let Some(index) = todo.pop() {
            let at = map_page(&dir, u64::from(index)).filter(|_| u64::from(index) * (PAGE as u64) < dir.size);
            let (Some(page_no), true) = (at, seen.insert(index)) else {
                let what = "no such page, or shown already".into();
                pages.push(Node::Fields(vec![("index", index.into()), ("damaged", what)]));
                continue;
            };
            let bytes = match self.page_bytes(page_no) {
                Ok(bytes) => bytes,
                Err(error) => {
                    pages.push(Node::Fields(vec![
                        ("index", index.into()),
                        ("damaged", error.to_string().into()),
                    ]));
                    continue;
                }
            };
            pages.push(dir_page(page_no, dir.ino, index, &bytes));
            if let Ok(header) = page::check(&bytes, DirPlace { page: page_no, dir: dir.ino, index })
                && header.level != 0
                && header.level != LEVEL_FREE
            {
                let branch = Branch::new(&bytes, page_no, header.count);
                todo.extend(
                    (0..header.count).rev().filter_map(|i| branch.child(i).ok()).map(|child| child.index),
                );
            }
        }
        Ok(Node::Fields(vec![
            ("inode", ino.into()),
            ("size", dir.size.into()),
            ("entries", dir.entries.into()),
            ("pages", Node::List(pages)),
        ]))
    }
}

/// One page of a directory.
pub fn dir_page(page_no: PageNo, dir: Ino, index: u32, bytes: &PageBytes) -> Node {
    let mut fields = vec![("page", Node::Address(page_no.0)), ("index", index.into())];
    let header = match page::check(bytes, DirPlace { page: page_no, dir, index }) {
        Ok(header) => header,
        Err(error) => {
            fields.push(("damage", damaged(&error, bytes)));
            return Node::Fields(fields);
        }
    };
    if index == 0 {
        fields.push(("pages_used", header.used.into()));
        fields.push(("first_free", header.free_head.into()));
    }
    if header.level == LEVEL_FREE {
        fields.push(("level", "free".into()));
        fields.push(("next_free", header.next.into()));
        return Node::Fields(fields);
    }
    fields.push(("level", u32::from(header.level).into()));
    fields.push(("count", header.count.into()));
    let bad = |error: layout::error::Error| Node::Fields(vec![("damaged", error.to_string().into())]);
    if header.level > 0 {
        let branch = Branch::new(bytes, page_no, header.count);
        let children = (0..header.count).map(|i| match branch.child(i) {
            Ok(child) => Node::Fields(vec![("key", Node::Address(child.key)), ("index", child.index.into())]),
            Err(error) => bad(error),
        });
        fields.push(("children", Node::List(children.collect())));
        return Node::Fields(fields);
    }
    fields.push(("right", header.next.into()));
    let leaf = Leaf::new(bytes, page_no, header.count);
    let entries = (0..header.count).map(|i| match leaf.entry(i) {
        Ok(entry) => Node::Fields(vec![
            ("key", Node::Address(entry.key)),
            ("inode", entry.ino.0.into()),
            ("kind", format!("{:?}", entry.kind).to_lowercase().into()),
            ("name", String::from_utf8_lossy(entry.name).into_owned().into()),
        ]),
        Err(error) => bad(error),
    });
    fields.push(("entries", Node::List(entries.collect())));
    Node::Fields(fields)
}
