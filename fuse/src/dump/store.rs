//! The store's own structures (FORMAT.md section 4), read from the image file itself and without its lock: of an image in
//! use they may be a moment old, or torn.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use blockd::store::format::checkpoint::{Payload, Root};
use blockd::store::format::record::{Entry, FLAG_COMMIT, FLAG_LINK, FLAG_ROLLBACK, Record};
use blockd::store::format::segment::SegmentHeader;
use blockd::store::format::superblock::{SLOTS, Superblock};
use blockd::store::format::{Geometry, Loc, Malformed};
use layout::addr::{MAP_UNIT_PAGES, PAGE};

use super::node::{Node, hex, hex_lines};
use super::volume::DumpError;

/// Most bytes of a checkpoint's payload that are read.
const PAYLOAD_BYTES_MAX: u64 = 256 << 20;

/// An image.
pub struct Store {
    file: File,
    path: String,
}

impl Store {
    /// Of an image file or block device.
    ///
    /// # Errors
    /// [`DumpError::Image`].
    pub fn open(path: &Path) -> Result<Self, DumpError> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(|error| DumpError::Image(name.clone(), error))?;
        Ok(Store { file, path: name })
    }

    fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>, DumpError> {
        let mut bytes = vec![0; len];
        let read = self.file.read_exact_at(&mut bytes, offset);
        read.map_err(|error| DumpError::Image(format!("{} at byte {offset}", self.path), error))?;
        Ok(bytes)
    }

    /// The newer superblock that is intact.
    fn newest(&self) -> Result<Superblock, DumpError> {
        let slots = SLOTS.iter().filter_map(|slot| Superblock::decode(&self.read(*slot, PAGE).ok()?).ok());
        slots.max_by_key(|found| found.generation).ok_or_else(|| {
            DumpError::Nothing(format!("{}: no intact superblock of a VexFS store", self.path))
        })
    }

    /// Superblock slots, checkpoint root, segments in use and snapshots.
    ///
    /// # Errors
    /// [`DumpError`].
    pub fn overview(&self) -> Result<Node, DumpError> {
        let slots = SLOTS.iter().map(|slot| match self.read(*slot, PAGE) {
            Ok(bytes) => superblock(*slot, &bytes),
            Err(error) => Node::Fields(vec![("byte", (*slot).into()), ("damaged", error.to_string().into())]),
        });
        let mut fields = vec![("superblocks", Node::List(slots.collect()))];
        if let Ok(newest) = self.newest() {
            fields.push(("checkpoint", self.checkpoint(&newest)));
        }
        Ok(Node::Fields(fields))
    }

    fn checkpoint(&self, newest: &Superblock) -> Node {
        let bytes = match self.read(newest.geometry.byte(newest.root.loc), PAGE) {
            Ok(bytes) => bytes,
            Err(error) => return Node::Fields(vec![("damaged", error.to_string().into())]),
        };
        let root = match Root::decode(&bytes) {
            Ok(root) => root,
            Err(error) => return malformed(&error, &bytes),
        };
        let mut fields = vec![
            ("at", place(newest.root.loc)),
            ("generation", root.generation.into()),
            ("epoch", root.epoch.into()),
            ("next_sequence", root.next_seq.into()),
            ("payload_bytes", root.payload_bytes.into()),
            ("payload_runs", root.runs.len().into()),
            ("session", root.session.session().into()),
        ];
        match self.payload(newest.geometry, &root) {
            Ok(payload) => {
                let in_use =
                    payload.segments.iter().enumerate().filter(|(_, s)| s.stream.is_some()).map(|(i, s)| {
                        Node::Fields(vec![
                            ("segment", i.into()),
                            (
                                "stream",
                                s.stream.map_or("none".into(), |s| format!("{s:?}").to_lowercase().into()),
                            ),
                            ("used_pages", s.used_pages.into()),
                            ("live_pages", s.live_pages.into()),
                            ("use", s.use_seq.into()),
                        ])
                    });
                let maps = payload.maps.iter().map(|map| {
                    Node::Fields(vec![
                        ("map", format!("{:?}", map.id).to_lowercase().into()),
                        ("levels", map.levels.into()),
                        ("top", place(map.top.loc)),
                        ("pages", map.pages.into()),
                    ])
                });
                let snapshots = payload.snapshots.iter().map(|snapshot| {
                    Node::Fields(vec![
                        ("name", snapshot.name.clone().into()),
                        ("number", snapshot.number.into()),
                        ("epoch", snapshot.epoch.into()),
                        ("held_pages", snapshot.held_pages.into()),
                        ("deleting", snapshot.deleting.into()),
                    ])
                });
                let referrers = payload.referrers.iter().map(|referrer| {
                    let first = referrer.unit * MAP_UNIT_PAGES;
                    let fields =
                        vec![("segment", referrer.segment.into()), ("unit_at", Node::Address(first))];
                    Node::Fields(fields)
                });
                fields.push(("maps", Node::List(maps.collect())));
                fields.push(("snapshots", Node::List(snapshots.collect())));
                fields.push(("referrers", Node::List(referrers.collect())));
                fields.push(("segments", Node::List(in_use.collect())));
            }
            Err(why) => fields.push(("payload_damaged", why.into())),
        }
        Node::Fields(fields)
    }

    fn payload(&self, geometry: Geometry, root: &Root) -> Result<Payload, String> {
        if root.payload_bytes > PAYLOAD_BYTES_MAX {
            return Err(format!("{} bytes are more than any checkpoint has", root.payload_bytes));
        }
        let mut bytes = Vec::new();
        for run in &root.runs {
            let len = u64::from(run.pages) * PAGE as u64;
            if !geometry.contains(run.at) || bytes.len() as u64 + len > PAYLOAD_BYTES_MAX + PAGE as u64 {
                return Err("a run of it stands outside of the image".into());
            }
            bytes.extend(self.read(geometry.byte(run.at), len as usize).map_err(|e| e.to_string())?);
        }
        bytes.truncate(root.payload_bytes as usize);
        Payload::decode(root, &bytes).map_err(|error| error.to_string())
    }

    /// A segment's header, and its records in order.
    ///
    /// # Errors
    /// [`DumpError`].
    pub fn segment(&self, segment: u32) -> Result<Node, DumpError> {
        let geometry = self.newest()?.geometry;
        if segment >= geometry.segments {
            let last = geometry.segments.saturating_sub(1);
            return Err(DumpError::Nothing(format!("{}: its segments are 0 to {last}", self.path)));
        }
        let head = self.read(geometry.byte(Loc { segment, offset: 0 }), PAGE)?;
        let header = match SegmentHeader::decode(&head) {
            Ok(header) => Node::Fields(vec![
                ("segment", header.segment.into()),
                ("stream", format!("{:?}", header.stream).to_lowercase().into()),
                ("use", header.use_seq.into()),
                ("incarnation", header.incarnation.into()),
            ]),
            Err(error) => malformed(&error, &head),
        };
        let mut records = Vec::new();
        let mut at = 1;
        while at < geometry.segment_pages.min(u32::from(u16::MAX)) {
            let loc = Loc { segment, offset: at as u16 };
            let bytes = self.read(geometry.byte(loc), PAGE)?;
            let Ok(record) = Record::decode(&bytes) else { break };
            if record.at != loc {
                break;
            }
            let pages: u32 = record.entries.iter().map(Entry::pages).sum();
            records.push(shown_record(&record, pages));
            at += 1 + pages;
        }
        Ok(Node::Fields(vec![("header", header), ("records", Node::List(records)), ("end_page", at.into())]))
    }
}

fn malformed(error: &Malformed, bytes: &[u8]) -> Node {
    let head = bytes.get(..256).unwrap_or(bytes);
    Node::Fields(vec![("damaged", error.to_string().into()), ("bytes", hex_lines(head))])
}

fn place(loc: Loc) -> Node {
    Node::Text(format!("segment {} page {}", loc.segment, loc.offset))
}

fn superblock(slot: u64, bytes: &[u8]) -> Node {
    match Superblock::decode(bytes) {
        Ok(found) => Node::Fields(vec![
            ("byte", slot.into()),
            ("uuid", hex(&found.uuid).into()),
            ("generation", found.generation.into()),
            ("kind", found.kind.name().into()),
            ("segment_pages", found.geometry.segment_pages.into()),
            ("segments", found.geometry.segments.into()),
            ("root", place(found.root.loc)),
            ("backing_bytes", found.backing_bytes.into()),
            ("raw_bytes", found.raw_bytes.into()),
            ("clones", found.clones.into()),
            ("incarnation", found.incarnation.into()),
            ("session", found.session.into()),
            ("next_sequence", found.next_seq.into()),
        ]),
        Err(error) => Node::Fields(vec![("byte", slot.into()), ("damage", malformed(&error, bytes))]),
    }
}

fn shown_record(record: &Record, pages: u32) -> Node {
    let names = [(FLAG_ROLLBACK, "rollback"), (FLAG_COMMIT, "commit"), (FLAG_LINK, "link")];
    let flags: Vec<&str> =
        names.iter().filter(|(bit, _)| record.flags & bit != 0).map(|(_, name)| *name).collect();
    let entries = record.entries.iter().map(|entry| match entry {
        Entry::Write { first, crcs } => {
            Node::Fields(vec![("write", Node::Address(*first)), ("pages", crcs.len().into())])
        }
        Entry::Discard { first, count } => {
            Node::Fields(vec![("discard", Node::Address(*first)), ("pages", (*count).into())])
        }
        Entry::Relocate { page, old, .. } => {
            Node::Fields(vec![("relocate", Node::Address(*page)), ("from", place(*old))])
        }
        Entry::Clone { first, at, crcs } => Node::Fields(vec![
            ("clone", Node::Address(*first)),
            ("pages", crcs.len().into()),
            ("at", place(*at)),
        ]),
    });
    Node::Fields(vec![
        ("page", u32::from(record.at.offset).into()),
        ("sequence", record.seq.into()),
        ("epoch", record.epoch.into()),
        ("flags", if flags.is_empty() { "none".into() } else { flags.join(" ").into() }),
        ("data_pages", pages.into()),
        ("entries", Node::List(entries.collect())),
    ])
}
