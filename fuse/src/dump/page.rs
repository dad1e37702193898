//! A page by its device address: what it is follows from its region, and from the inode that owns it.

use layout::addr::{
    CLASS0_BASE, CLASS1_BASE, CLASS2_BASE, CLASS3_BASE, COMMAND_PAGE, INDEX_BASE, INO_LIMIT, INODE_BASE,
    INODE_BYTES, MAP_BASE, PAGE, PAGE_SHIFT, PageNo, STACK_BASE, STACK_STRIDE, STATUS_PAGE, SUPERBLOCK_PAGE,
    XATTR_BASE, XATTR_BYTES,
};
use layout::fs::Inode;
use layout::inode::{INODES_PER_PAGE, Ino, Kind, slot};
use layout::page_store::PageBytes;
use layout::rows::headers;
use layout::schema::{CHUNK_ROWS, CollectionHeader};
use layout::windows::map_page;
use layout::xattr::RawXattrHeader;
use zerocopy::FromBytes;

use super::directory::dir_page;
use super::node::{Node, hex_lines};
use super::volume::{DumpError, Volume, damaged, inode, superblock};

impl Volume {
    /// Any page.
    ///
    /// # Errors
    /// [`DumpError`] when it can't be read.
    pub fn page(&self, page: PageNo) -> Result<Node, DumpError> {
        let byte = page.byte();
        if page == STATUS_PAGE {
            return self.status();
        }
        let bytes = &*self.page_bytes(page)?;
        let with = |what: &str, more: Vec<(&'static str, Node)>| {
            let begin = vec![("page", Node::Address(page.0)), ("what", what.into())];
            Ok(Node::Fields([begin, more].concat()))
        };
        match byte {
            _ if page == SUPERBLOCK_PAGE => Ok(superblock(bytes)),
            _ if page == COMMAND_PAGE => with("command page", vec![("bytes", hex_lines(bytes))]),
            STACK_BASE..INODE_BASE => {
                let stack = (byte - STACK_BASE) / STACK_STRIDE;
                let first = (byte - STACK_BASE) % STACK_STRIDE / 8;
                let entries =
                    bytes.as_chunks::<8>().0.iter().map(|entry| Node::Number(u64::from_le_bytes(*entry)));
                let fields = vec![
                    ("stack", stack.into()),
                    ("first_entry", first.into()),
                    ("numbers", Node::List(entries.collect())),
                ];
                with("free stack", fields)
            }
            INODE_BASE..XATTR_BASE => {
                let first = (byte - INODE_BASE) / INODE_BYTES;
                if first >= INO_LIMIT {
                    return with("between regions", vec![("bytes", hex_lines(bytes))]);
                }
                let slots = (first..first + INODES_PER_PAGE as u64)
                    .map(|ino| inode(page, ino, slot(bytes, Ino(ino))))
                    .collect();
                with("inode table", vec![("inodes", Node::List(slots))])
            }
            XATTR_BASE..CLASS0_BASE => {
                let ino = (byte - XATTR_BASE) / XATTR_BYTES;
                let mut fields = vec![("inode", ino.into())];
                if (byte - XATTR_BASE).is_multiple_of(XATTR_BYTES)
                    && let Ok((header, _)) = RawXattrHeader::ref_from_prefix(&bytes[..])
                {
                    fields.push(("entry_bytes", header.len.get().into()));
                    fields.push(("of_inode", header.ino.get().into()));
                    fields.push(("generation", header.generation.get().into()));
                }
                fields.push(("bytes", hex_lines(bytes)));
                with("xattr area", fields)
            }
            CLASS0_BASE..INDEX_BASE => self.data_page(page, bytes),
            INDEX_BASE..MAP_BASE => with("index", vec![("bytes", hex_lines(bytes))]),
            MAP_BASE.. => with("allocation map", vec![("bytes", hex_lines(bytes))]),
            _ => with("between regions", vec![("bytes", hex_lines(bytes))]),
        }
    }

    /// A page of some inode's content.
    fn data_page(&self, page: PageNo, bytes: &PageBytes) -> Result<Node, DumpError> {
        let byte = page.byte();
        let (class, base, shift) = match byte {
            CLASS0_BASE..CLASS1_BASE => (0, CLASS0_BASE, 20),
            CLASS1_BASE..CLASS3_BASE => (1, CLASS1_BASE, 30),
            CLASS3_BASE..CLASS2_BASE => (3, CLASS3_BASE, 48),
            _ => (2, CLASS2_BASE, 40),
        };
        let (number, offset) = ((byte - base) >> shift, (byte - base) & ((1 << shift) - 1));
        let index = offset >> PAGE_SHIFT;
        let mut fields = vec![("page", Node::Address(page.0)), ("class", Node::Number(class))];
        let owner = if class == 0 {
            fields.push(("inode", number.into()));
            self.used(number).ok()
        } else {
            // Who owns a window stands in the inodes alone.
            fields.push(("window", number.into()));
            None
        };
        fields.push(("offset", offset.into()));
        let shown = match owner {
            Some(dir) if dir.kind == Kind::Dir => {
                u32::try_from(index).map_or(hex_lines(bytes), |index| dir_page(page, dir.ino, index, bytes))
            }
            Some(rows) if rows.kind == Kind::Rows => self.rows_page(&rows, page, index, bytes),
            _ => match layout::dir::page::raw(bytes) {
                raw if raw.magic == layout::dir::page::DIR_MAGIC => {
                    dir_page(page, Ino(raw.dir.get()), raw.index.get(), bytes)
                }
                _ => hex_lines(bytes),
            },
        };
        fields.push(("content", shown));
        Ok(Node::Fields(fields))
    }

    fn rows_page(&self, rows: &Inode, page: PageNo, index: u64, bytes: &PageBytes) -> Node {
        let first =
            map_page(rows, 0).and_then(|first| self.page_bytes(first).ok().map(|bytes| (first, bytes)));
        let Some((first, header)) = first else { return hex_lines(bytes) };
        let header = match CollectionHeader::decode(first, &header) {
            Ok(header) => header,
            Err(error) => return damaged(&error, bytes),
        };
        if index == 0 {
            return Node::Fields(vec![
                ("element", header.schema.element().name().into()),
                ("metric", header.schema.metric().name().into()),
                ("dim", header.schema.dim().into()),
                ("collection", header.dir.into()),
                ("next_row", header.next_row.into()),
                ("live_rows", header.live_rows.into()),
            ]);
        }
        let chunk_pages = header.schema.chunk_bytes() / PAGE as u64;
        let (chunk, in_chunk) = ((index - 1) / chunk_pages, (index - 1) % chunk_pages);
        if in_chunk > 0 {
            return Node::Fields(vec![("vectors_of_chunk", chunk.into()), ("bytes", hex_lines(bytes))]);
        }
        let given = header.next_row.saturating_sub(chunk * CHUNK_ROWS).min(CHUNK_ROWS) as usize;
        let rows = headers(bytes).iter().enumerate().take(given).map(|(slot, raw)| {
            let id = ("row", Node::Number(chunk * CHUNK_ROWS + slot as u64));
            match raw.decode(page) {
                Ok(Some(row)) => Node::Fields(vec![
                    id,
                    ("inode", row.ino.0.into()),
                    ("generation", row.generation.into()),
                    ("data_version", row.data_version.into()),
                    ("offset", row.offset.into()),
                    ("length", row.length.into()),
                    ("tag", row.tag.into()),
                    ("next", row.next.map_or("none".into(), Node::from)),
                ]),
                Ok(None) => Node::Fields(vec![id, ("state", "dead".into())]),
                Err(error) => Node::Fields(vec![id, ("damaged", error.to_string().into())]),
            }
        });
        Node::Fields(vec![("chunk", chunk.into()), ("rows", Node::List(rows.collect()))])
    }
}
