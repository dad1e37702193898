//! Which pages of the volume are mapped: told by the device itself where it can, else by the allocation map
//! (FORMAT.md section 3.3), with what the check has changed and not sent laid over it.

use std::collections::{BTreeMap, VecDeque};

use blockd::buf::AlignedBuf;
use blockd::device::{ClientId, Device, IoError, IoOp, blocking};
use layout::addr::{MAP_BASE, MAP_SUMMARY, MAP_UNIT_PAGES, MAP_UPPER, MAP_UPPER_PAGES, PAGE, PAGE_SHIFT};

use super::pool::{Run, Stop};
use crate::engine::{PageArc, RangeSet};

/// Extents asked for at once.
const EXTENTS: usize = 1024;

/// Who knows what is mapped.
pub enum Walker {
    /// [`Device::allocation`]: a store in this process.
    Native,
    /// The pages of the allocation map, read like any others (NBD).
    Map(MapReader),
}

impl Walker {
    /// The device's map changes.
    pub(super) fn forget(&mut self) {
        if let Walker::Map(reader) = self {
            *reader = MapReader::default();
        }
    }
}

/// Reads the allocation map's three levels, keeping the last piece of each.
#[derive(Default)]
pub struct MapReader {
    recent: [Option<(u64, AlignedBuf)>; 3],
}

impl MapReader {
    /// `len` bytes of the map at `at`, both multiples of 8, from a piece of up to 64 KiB.
    fn bytes(
        &mut self,
        device: &dyn Device,
        client: ClientId,
        level: usize,
        at: u64,
    ) -> Result<&[u8], IoError> {
        let piece_bytes = [PAGE as u64, 16 * PAGE as u64, 16 * PAGE as u64][level];
        let piece = at / piece_bytes * piece_bytes;
        if self.recent[level].as_ref().is_none_or(|(number, _)| *number != piece) {
            let op = IoOp::Read { offset: MAP_BASE + piece, buf: AlignedBuf::zeroed(piece_bytes as usize) };
            let buf = blocking(device, client, op)?
                .filter(|buf| buf.len() as u64 == piece_bytes)
                .ok_or_else(|| IoError::Io("a short read of the allocation map".into()))?;
            self.recent[level] = Some((piece, buf));
        }
        let bytes = self.recent[level].as_ref().map(|(_, buf)| &buf[(at - piece) as usize..]);
        Ok(bytes.unwrap_or(&[]))
    }

    /// Mapped runs from `from` on, some of them, and up to where they are all.
    fn runs(
        &mut self,
        device: &dyn Device,
        client: ClientId,
        from: u64,
        end: u64,
        out: &mut VecDeque<(u64, u64)>,
    ) -> Result<u64, IoError> {
        let upper = from / MAP_UPPER_PAGES;
        let number = self.bytes(device, client, 2, MAP_UPPER + upper * 8)?.first_chunk::<8>();
        if number.is_none_or(|n| u64::from_le_bytes(*n) == 0) {
            return Ok(end.min((upper + 1) * MAP_UPPER_PAGES));
        }
        let unit = from / MAP_UNIT_PAGES;
        let unit_end = end.min((unit + 1) * MAP_UNIT_PAGES);
        let number = self.bytes(device, client, 1, MAP_SUMMARY + unit * 4)?.first_chunk::<4>();
        if number.is_none_or(|n| u32::from_le_bytes(*n) == 0) {
            return Ok(unit_end);
        }
        let bits = self.bytes(device, client, 0, unit * MAP_UNIT_PAGES / 8)?;
        let is_mapped = |page: u64| {
            let rel = page % MAP_UNIT_PAGES;
            bits.get((rel / 8) as usize).is_some_and(|byte| byte & (1 << (rel % 8)) != 0)
        };
        let mut at = from;
        while at < unit_end {
            let mapped = is_mapped(at);
            let run_end = (at + 1..unit_end).find(|&page| is_mapped(page) != mapped).unwrap_or(unit_end);
            if mapped {
                out.push_back((at, run_end));
            }
            at = run_end;
        }
        Ok(unit_end)
    }
}

/// A walk over the mapped pages of a range, in order.
#[derive(Debug)]
pub struct Mapped {
    /// Given out up to here.
    at: u64,
    /// Known up to here: `ready` has every run before it.
    known: u64,
    end: u64,
    ready: VecDeque<(u64, u64)>,
    /// How often changes had been sent when it was looked up.
    sent: u64,
}

impl Mapped {
    /// Over pages `first..end`.
    pub fn new(first: u64, end: u64) -> Self {
        Mapped { at: first, known: first, end, ready: VecDeque::new(), sent: 0 }
    }

    /// Changes were sent to the device: what was looked up ahead of the last of them is forgotten.
    pub(super) fn forget_before(&mut self, sent: u64) {
        if self.sent != sent {
            self.ready.clear();
            (self.known, self.sent) = (self.at, sent);
        }
    }

    /// The next run: first page, one past the last.
    ///
    /// # Errors
    /// [`Stop`].
    pub(super) fn next(
        &mut self,
        device: &dyn Device,
        client: ClientId,
        walker: &mut Walker,
        changed: &BTreeMap<u64, PageArc>,
        freed: &RangeSet,
    ) -> Run<Option<(u64, u64)>> {
        loop {
            if self.at >= self.end {
                return Ok(None);
            }
            let from_device = loop {
                match self.ready.front().copied() {
                    Some((_, to)) if to <= self.at => drop(self.ready.pop_front()),
                    Some((from, to)) => break Some((from.max(self.at), to)),
                    None if self.known >= self.end => break None,
                    None => self.look_up(device, client, walker)?,
                }
            };
            let overlaid = changed.range(self.at..self.end).next().map(|(page, _)| *page);
            let run = match (from_device, overlaid) {
                (_, Some(page)) if from_device.is_none_or(|(from, _)| page < from) => (page, page + 1),
                (Some((from, to)), _) => {
                    // A run ends where it was unmapped meanwhile, but for pages written since.
                    match freed.overlaps(from, to).next() {
                        Some((first, last)) if first == from => match changed.range(from..last).next() {
                            Some((page, _)) => (*page, page + 1),
                            None => {
                                self.at = last;
                                continue;
                            }
                        },
                        Some((first, _)) => (from, first),
                        None => (from, to),
                    }
                }
                (None, _) => return Ok(None),
            };
            self.at = run.1;
            return Ok(Some(run));
        }
    }

    fn look_up(&mut self, device: &dyn Device, client: ClientId, walker: &mut Walker) -> Run<()> {
        let from = self.known.max(self.at);
        match walker {
            Walker::Native => {
                let len_bytes = (self.end - from) << PAGE_SHIFT;
                let extents = device
                    .allocation(client, from << PAGE_SHIFT, len_bytes, EXTENTS)
                    .map_err(Stop::Device)?;
                let mut at = from;
                for extent in extents {
                    let next = at + (extent.len_bytes >> PAGE_SHIFT);
                    if extent.mapped && next > at {
                        self.ready.push_back((at, next));
                    }
                    at = next;
                }
                if at == from {
                    return Err(Stop::Device(IoError::Io("the device does not say what it maps".into())));
                }
                self.known = at;
            }
            Walker::Map(reader) => {
                self.known =
                    reader.runs(device, client, from, self.end, &mut self.ready).map_err(Stop::Device)?;
            }
        }
        Ok(())
    }
}
