//! A device in memory whose requests can be held back, failed and counted.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use blockd::buf::AlignedBuf;
use blockd::device::{ClientId, Device, DeviceInfo, Done, Extent, IoError, IoOp, IoResult, VolumeKind};
use parking_lot::{Condvar, Mutex};

const PAGE: u64 = 4096;

/// One request as the device saw it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Seen {
    Read(u64, u64),
    Write {
        offset: u64,
        len: u64,
        fua: bool,
    },
    Flush,
    Trim(u64, u64),
    WriteZeroes(u64, u64),
    /// The same, as data.
    NoHole(u64, u64),
    Allocation(u64, u64),
}

type Fault = Box<dyn FnMut(&Seen) -> Option<IoError> + Send>;

#[derive(Default)]
struct State {
    pages: BTreeMap<u64, Box<[u8; PAGE as usize]>>,
    seen: Vec<Seen>,
    holding: bool,
    held: VecDeque<(IoOp, Done)>,
    fault: Option<Fault>,
    clients: u64,
    connected: Vec<ClientId>,
    here: u64,
}

/// See the module.
pub struct Ram {
    info: DeviceInfo,
    state: Mutex<State>,
    changed: Condvar,
}

impl Ram {
    pub fn new(size_bytes: u64) -> Arc<Ram> {
        Self::with(DeviceInfo {
            kind: VolumeKind::Raw,
            size_bytes,
            block_bytes_min: 512,
            read_only: false,
            uuid: uuid::Uuid::from_u128(7),
        })
    }

    pub fn with(info: DeviceInfo) -> Arc<Ram> {
        Arc::new(Ram { info, state: Mutex::default(), changed: Condvar::new() })
    }

    /// From now on requests wait for [`Ram::release`].
    pub fn hold(&self) {
        self.state.lock().holding = true;
    }

    /// Waits until `n` requests are held.
    pub fn wait_held(&self, n: usize) {
        let mut state = self.state.lock();
        while state.held.len() < n {
            self.changed.wait(&mut state);
        }
    }

    pub fn held(&self) -> usize {
        self.state.lock().held.len()
    }

    /// Carries out the held request number `i` (in order of arrival).
    pub fn release(&self, i: usize) {
        let (op, done) = self.state.lock().held.remove(i).expect("so many are held");
        let result = self.execute(op);
        done(result);
    }

    /// Carries out all that is held, and holds no more.
    pub fn release_all(&self) {
        self.state.lock().holding = false;
        while self.held() > 0 {
            self.release(0);
        }
    }

    /// `fault` decides about each request that is carried out.
    pub fn set_fault(&self, fault: impl FnMut(&Seen) -> Option<IoError> + Send + 'static) {
        self.state.lock().fault = Some(Box::new(fault));
    }

    /// What was carried out, in order; forgets it.
    pub fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state.lock().seen)
    }

    /// Requests of callers that would have waited; see [`Device::submit_here`].
    pub fn submitted_here(&self) -> u64 {
        self.state.lock().here
    }

    pub fn connected(&self) -> usize {
        self.state.lock().connected.len()
    }

    /// Waits until `n` clients are connected.
    pub fn wait_connected(&self, n: usize) {
        let mut state = self.state.lock();
        while state.connected.len() != n {
            self.changed.wait(&mut state);
        }
    }

    pub fn bytes(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        self.state.lock().read(offset, &mut out);
        out
    }

    fn execute(&self, op: IoOp) -> IoResult {
        let mut state = self.state.lock();
        let seen = match &op {
            IoOp::Read { offset, buf } => Seen::Read(*offset, buf.len() as u64),
            IoOp::Write { offset, buf, fua } => {
                Seen::Write { offset: *offset, len: buf.len() as u64, fua: *fua }
            }
            IoOp::Flush => Seen::Flush,
            IoOp::Trim { offset, len_bytes, .. } => Seen::Trim(*offset, *len_bytes),
            IoOp::WriteZeroes { offset, len_bytes, no_hole: true, .. } => Seen::NoHole(*offset, *len_bytes),
            IoOp::WriteZeroes { offset, len_bytes, .. } => Seen::WriteZeroes(*offset, *len_bytes),
        };
        let failure = state.fault.as_mut().and_then(|fault| fault(&seen));
        state.seen.push(seen);
        if let Some(error) = failure {
            return Err(error);
        }
        match op {
            IoOp::Read { offset, mut buf } => {
                assert!(offset + buf.len() as u64 <= self.info.size_bytes, "the server checks ranges");
                state.read(offset, &mut buf);
                Ok(Some(buf))
            }
            IoOp::Write { offset, buf, .. } => {
                assert!(!self.info.read_only, "the server refuses writes");
                assert!(offset + buf.len() as u64 <= self.info.size_bytes, "the server checks ranges");
                state.write(offset, &buf);
                Ok(None)
            }
            IoOp::Flush => Ok(None),
            IoOp::WriteZeroes { offset, len_bytes, no_hole: true, .. } => {
                assert!(offset + len_bytes <= self.info.size_bytes, "the server checks ranges");
                state.write(offset, &vec![0; len_bytes as usize]);
                Ok(None)
            }
            IoOp::Trim { offset, len_bytes, .. } | IoOp::WriteZeroes { offset, len_bytes, .. } => {
                assert!(offset + len_bytes <= self.info.size_bytes, "the server checks ranges");
                state.zero(offset, len_bytes);
                Ok(None)
            }
        }
    }
}

impl State {
    fn read(&self, offset: u64, out: &mut [u8]) {
        for (i, byte) in chunks(offset, out.len()) {
            let part = &mut out[i.clone()];
            let at = (byte % PAGE) as usize;
            match self.pages.get(&(byte / PAGE)) {
                Some(page) => part.copy_from_slice(&page[at..at + part.len()]),
                None => part.fill(0),
            }
        }
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        for (i, byte) in chunks(offset, bytes.len()) {
            let part = &bytes[i];
            let at = (byte % PAGE) as usize;
            let page = self.pages.entry(byte / PAGE).or_insert_with(|| Box::new([0; PAGE as usize]));
            page[at..at + part.len()].copy_from_slice(part);
        }
    }

    fn zero(&mut self, offset: u64, len: u64) {
        let end = offset + len;
        for (&number, page) in self.pages.range_mut(offset / PAGE..end.div_ceil(PAGE)) {
            let first = number * PAGE;
            let from = offset.max(first) - first;
            let to = end.min(first + PAGE) - first;
            page[from as usize..to as usize].fill(0);
        }
        let whole = offset.div_ceil(PAGE)..end / PAGE;
        self.pages.retain(|number, _| !whole.contains(number));
    }
}

/// Cuts a range at page borders: (indices in the range, device byte).
fn chunks(offset: u64, len: usize) -> impl Iterator<Item = (std::ops::Range<usize>, u64)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at == len {
            return None;
        }
        let byte = offset + at as u64;
        let n = ((PAGE - byte % PAGE) as usize).min(len - at);
        let range = at..at + n;
        at += n;
        Some((range, byte))
    })
}

impl Device for Ram {
    fn info(&self) -> DeviceInfo {
        self.info.clone()
    }

    fn connect(&self) -> ClientId {
        let mut state = self.state.lock();
        state.clients += 1;
        let client = ClientId(state.clients);
        state.connected.push(client);
        self.changed.notify_all();
        client
    }

    fn disconnect(&self, client: ClientId) {
        let mut state = self.state.lock();
        let before = state.connected.len();
        state.connected.retain(|&c| c != client);
        assert_eq!(state.connected.len() + 1, before, "disconnected once");
        self.changed.notify_all();
    }

    fn submit(&self, client: ClientId, op: IoOp, done: Done) {
        {
            let mut state = self.state.lock();
            assert!(state.connected.contains(&client), "a client is connected while it submits");
            if state.holding {
                state.held.push_back((op, done));
                self.changed.notify_all();
                return;
            }
        }
        done(self.execute(op));
    }

    fn allocation(
        &self,
        client: ClientId,
        offset: u64,
        len_bytes: u64,
        extents_max: usize,
    ) -> Result<Vec<Extent>, IoError> {
        let mut state = self.state.lock();
        assert!(state.connected.contains(&client), "a client is connected while it asks");
        let end = offset + len_bytes;
        assert!(len_bytes > 0 && end <= self.info.size_bytes, "the server checks ranges");
        let seen = Seen::Allocation(offset, len_bytes);
        let failure = state.fault.as_mut().and_then(|fault| fault(&seen));
        state.seen.push(seen);
        if let Some(error) = failure {
            return Err(error);
        }
        let mut extents: Vec<Extent> = Vec::new();
        let mut at = offset;
        while at < end {
            let page = at / PAGE;
            let mapped = state.pages.contains_key(&page);
            let next = if mapped {
                (page + 1) * PAGE
            } else {
                // Nothing stands before the next page that there is.
                state.pages.range(page..).next().map_or(end, |(next, _)| next * PAGE)
            };
            let next = next.min(end);
            let full = extents.len() == extents_max;
            match extents.last_mut() {
                Some(last) if last.mapped == mapped => last.len_bytes += next - at,
                _ if full => break,
                _ => extents.push(Extent { len_bytes: next - at, mapped }),
            }
            at = next;
        }
        Ok(extents)
    }

    fn submit_here(&self, client: ClientId, op: IoOp, done: Done) {
        self.state.lock().here += 1;
        self.submit(client, op, done);
    }
}

/// A buffer whose every 8 bytes say `tag`.
pub fn tagged(tag: u64, len: usize) -> AlignedBuf {
    let mut buf = AlignedBuf::zeroed(len);
    for word in buf.chunks_exact_mut(8) {
        word.copy_from_slice(&tag.to_le_bytes());
    }
    buf
}
