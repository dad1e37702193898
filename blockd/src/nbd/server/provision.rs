//! NBD_CMD_WRITE_ZEROES with NBD_CMD_FLAG_NO_HOLE: zeros that take the space of data, as much as a client asks for.
//!
//! They are written in portions, each after the one before, so that requests of others come in between and the memory
//! is that of one portion. Nothing more is written once nobody hears of the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use parking_lot::Mutex;

use super::reply::Reply;
use crate::device::{ClientId, Device, Done, IoError, IoOp, IoResult, NO_HOLE_BYTES_MAX};
use crate::nbd::wire::outbox::Outbox;

/// Portions end at multiples of this.
pub const PORTION_BYTES: u64 = 1 << 20;

const _: () = assert!(PORTION_BYTES <= NO_HOLE_BYTES_MAX);

/// Turns: a portion is being submitted; it is under way; it is finished.
const SUBMITTING: u8 = 0;
const WAITING: u8 = 1;
const FINISHED: u8 = 2;

/// What is left to do.
struct Rest {
    offset: u64,
    end: u64,
    flush: bool,
    outcome: Result<(), IoError>,
    done: Option<Done>,
}

/// A range on its way.
pub struct Provision {
    device: Arc<dyn Device>,
    client: ClientId,
    outbox: Arc<Outbox<Reply>>,
    turn: AtomicU8,
    rest: Mutex<Rest>,
}

/// What is asked for, in bytes.
pub struct Range {
    /// Where it begins.
    pub offset: u64,
    /// How long it is.
    pub len_bytes: u64,
    /// It is to be durable.
    pub fua: bool,
}

impl Provision {
    /// Writes the zeros of a range, whose reply goes to `outbox`; tells `done` when all is written.
    pub fn start(
        device: Arc<dyn Device>,
        client: ClientId,
        outbox: Arc<Outbox<Reply>>,
        range: &Range,
        done: Done,
    ) {
        let Range { offset, len_bytes, fua } = *range;
        let rest = Rest { offset, end: offset + len_bytes, flush: fua, outcome: Ok(()), done: Some(done) };
        let turn = AtomicU8::new(FINISHED);
        Arc::new(Provision { device, client, outbox, turn, rest: Mutex::new(rest) }).go_on();
    }

    /// Submits portion after portion, as long as they are finished at once.
    fn go_on(self: Arc<Self>) {
        loop {
            let Some(op) = self.next() else { return };
            self.turn.store(SUBMITTING, Ordering::SeqCst);
            let this = Arc::clone(&self);
            self.device.submit(self.client, op, Box::new(move |result| this.finished(&result)));
            if self.turn.swap(WAITING, Ordering::SeqCst) != FINISHED {
                return;
            }
        }
    }

    /// A portion is finished; called from any thread, also before its submission returns.
    fn finished(self: Arc<Self>, result: &IoResult) {
        if let Err(error) = result {
            self.rest.lock().end(error.clone());
        }
        if self.turn.swap(FINISHED, Ordering::SeqCst) == WAITING {
            self.go_on();
        }
    }

    /// The next thing to do; at the end tells the outcome.
    fn next(&self) -> Option<IoOp> {
        let (done, outcome) = {
            let mut rest = self.rest.lock();
            if self.outbox.is_broken() {
                rest.end(IoError::Shutdown);
            }
            let offset = rest.offset;
            if offset < rest.end {
                rest.offset = (offset / PORTION_BYTES + 1).saturating_mul(PORTION_BYTES).min(rest.end);
                let len_bytes = rest.offset - offset;
                return Some(IoOp::WriteZeroes { offset, len_bytes, fua: false, no_hole: true });
            }
            if std::mem::take(&mut rest.flush) {
                return Some(IoOp::Flush);
            }
            (rest.done.take()?, rest.outcome.clone())
        };
        done(outcome.map(|()| None));
        None
    }
}

impl Rest {
    /// Nothing more is done.
    fn end(&mut self, error: IoError) {
        self.offset = self.end;
        self.flush = false;
        self.outcome = Err(error);
    }
}
