//! One ordered way out of a connection for frames from many threads.
//!
//! Whoever pushes a frame into an idle outbox starts its sending; frames pushed meanwhile are
//! coalesced into the next system call. At any time there is at most one *driver*:
//!
//! 1. nobody: the queue is empty (or only frames held back with [`Push::Hold`] are in it);
//! 2. a pushing thread that sends one batch without waiting ([`Push::Now`], [`Outbox::flush`]);
//! 3. the outbox's own thread, which may wait for the peer; it takes over when the socket is full.
//!
//! So a push never blocks. After [`Outbox::close`] or a socket error all frames are dropped.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::send::send_some;
use crate::completion::Deferred;

/// Frames are held back up to so many bytes: what a unix socket takes, about.
const HELD_BYTES_MAX: usize = 128 << 10;
/// Most slices of one sendmsg (two a frame).
const SLICES_MAX: usize = 128;

/// Something to send: two byte strings, one after the other. Dropped once it is sent.
pub trait Frame: Send + 'static {
    /// The message's fixed part.
    fn head(&self) -> &[u8];
    /// What follows it; may be empty.
    fn payload(&self) -> &[u8];
}

/// Who sends a pushed frame if nobody is sending.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Push {
    /// The pushing thread, at once: least latency.
    Now,
    /// The outbox's thread: frames that follow soon share its system call.
    Thread,
    /// Nobody until the pusher calls [`Outbox::flush`], as it promises to do soon, or much has gathered.
    Hold,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Driver {
    Nobody,
    Pusher,
    Thread,
}

struct State<F> {
    queue: VecDeque<F>,
    /// Bytes of frames pushed since somebody last began to send.
    held_bytes: usize,
    /// Bytes of the queue's first frame that are sent already.
    front_sent: usize,
    driver: Driver,
    /// No frames are taken any more; the thread ends when the queue is empty.
    finishing: bool,
    /// All frames are dropped.
    closed: bool,
}

/// See the module.
pub struct Outbox<F> {
    stream: Arc<UnixStream>,
    state: Mutex<State<F>>,
    changed: Condvar,
}

impl<F: Frame> Outbox<F> {
    /// Starts the outbox of a stream and its thread.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(stream: Arc<UnixStream>, thread_name: &str) -> io::Result<(Arc<Self>, JoinHandle<()>)> {
        let outbox = Arc::new(Outbox {
            stream,
            state: Mutex::new(State {
                queue: VecDeque::new(),
                held_bytes: 0,
                front_sent: 0,
                driver: Driver::Nobody,
                finishing: false,
                closed: false,
            }),
            changed: Condvar::new(),
        });
        let for_thread = Arc::clone(&outbox);
        let thread =
            std::thread::Builder::new().name(thread_name.into()).spawn(move || for_thread.run_thread())?;
        Ok((outbox, thread))
    }

    /// Queues a frame, and has it sent as `push` says. Never blocks.
    pub fn push(&self, frame: F, push: Push) {
        {
            let mut state = self.state.lock();
            if state.closed || state.finishing {
                drop(state);
                drop(frame);
                return;
            }
            state.held_bytes += frame.head().len() + frame.payload().len();
            let much = state.held_bytes >= HELD_BYTES_MAX;
            state.queue.push_back(frame);
            match (state.driver, push) {
                (Driver::Nobody, Push::Now) => state.driver = Driver::Pusher,
                (Driver::Nobody, Push::Hold) if much => state.driver = Driver::Pusher,
                (Driver::Nobody, Push::Thread) => {
                    state.driver = Driver::Thread;
                    self.changed.notify_all();
                    return;
                }
                _ => return,
            }
        }
        self.send_one_batch();
    }

    /// Sends what was held back, as far as the socket takes it. Never blocks.
    pub fn flush(&self) {
        {
            let mut state = self.state.lock();
            if state.queue.is_empty() || state.driver != Driver::Nobody {
                return;
            }
            state.driver = Driver::Pusher;
        }
        self.send_one_batch();
    }

    /// Frames are dropped: the peer is gone, or the outbox was closed.
    pub fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// Nobody will get what is pushed: it is closed, or the stream is cut or its peer gone.
    pub fn is_broken(&self) -> bool {
        let mut fds = [PollFd::new(&*self.stream, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        self.is_closed()
            || poll(&mut fds, Some(&now)).is_ok()
                && fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }

    /// Takes no more frames; the thread sends the rest and ends.
    pub fn finish(&self) {
        let mut state = self.state.lock();
        state.finishing = true;
        if state.driver == Driver::Nobody {
            state.driver = Driver::Thread;
        }
        self.changed.notify_all();
    }

    /// Drops all frames and shuts the socket down; the thread ends.
    pub fn close(&self) {
        let dropped = {
            let mut state = self.state.lock();
            state.closed = true;
            std::mem::take(&mut state.queue)
        };
        self.changed.notify_all();
        // Fails only if the peer has gone already.
        let _ = self.stream.shutdown(Shutdown::Both);
        drop(dropped);
    }

    /// As driver `Pusher`: sends one batch, then gives the role back, or to the thread if more is
    /// to be sent.
    fn send_one_batch(&self) {
        let (mut batch, mut front_sent) = {
            let mut state = self.state.lock();
            let front_sent = std::mem::take(&mut state.front_sent);
            state.held_bytes = 0;
            (std::mem::take(&mut state.queue), front_sent)
        };
        let mut failed = None;
        while !batch.is_empty() {
            match send_batch(&self.stream, &mut batch, &mut front_sent, false) {
                Ok(()) => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => {
                    failed = Some(e);
                    break;
                }
            }
        }
        if let Some(e) = failed {
            self.fail(&e);
            return;
        }
        let mut state = self.state.lock();
        if state.closed {
            drop(state);
            return;
        }
        batch.append(&mut state.queue);
        state.queue = batch;
        state.front_sent = front_sent;
        if state.queue.is_empty() && !state.finishing {
            state.driver = Driver::Nobody;
        } else {
            state.driver = Driver::Thread;
            self.changed.notify_all();
        }
    }

    fn run_thread(&self) {
        let mut batch = VecDeque::new();
        let mut front_sent = 0;
        loop {
            if batch.is_empty() {
                let mut state = self.state.lock();
                loop {
                    if state.closed {
                        return;
                    }
                    if state.driver == Driver::Thread {
                        if !state.queue.is_empty() {
                            break;
                        }
                        if state.finishing {
                            return;
                        }
                        state.driver = Driver::Nobody;
                    }
                    self.changed.wait(&mut state);
                }
                std::mem::swap(&mut batch, &mut state.queue);
                state.held_bytes = 0;
                front_sent = std::mem::take(&mut state.front_sent);
            }
            if let Err(e) = send_batch(&self.stream, &mut batch, &mut front_sent, true) {
                self.fail(&e);
                return;
            }
        }
    }

    fn fail(&self, error: &io::Error) {
        tracing::debug!(%error, "the NBD peer cannot be written to");
        self.close();
    }
}

impl<F: Frame> Deferred for Outbox<F> {
    fn run(&self) {
        self.flush();
    }
}

/// One sendmsg of the first frames; the frames sent whole are dropped.
fn send_batch<F: Frame>(
    stream: &UnixStream,
    batch: &mut VecDeque<F>,
    front_sent: &mut usize,
    wait: bool,
) -> io::Result<()> {
    let mut slices = [IoSlice::new(&[]); SLICES_MAX];
    let mut used = 0;
    let mut skip = *front_sent;
    for frame in batch.iter().take(SLICES_MAX / 2) {
        for part in [frame.head(), frame.payload()] {
            let rest = part.get(skip..).unwrap_or_default();
            skip = skip.saturating_sub(part.len());
            if !rest.is_empty() {
                slices[used] = IoSlice::new(rest);
                used += 1;
            }
        }
    }
    let mut sent = send_some(stream, &slices[..used], wait)? + *front_sent;
    while let Some(frame) = batch.front() {
        let len = frame.head().len() + frame.payload().len();
        if sent < len {
            break;
        }
        sent -= len;
        batch.pop_front();
    }
    *front_sent = sent;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    struct Bytes(Vec<u8>, Vec<u8>);

    impl Frame for Bytes {
        fn head(&self) -> &[u8] {
            &self.0
        }
        fn payload(&self) -> &[u8] {
            &self.1
        }
    }

    fn frame(i: usize, payload_bytes: usize) -> Bytes {
        Bytes((i as u32).to_be_bytes().to_vec(), vec![i as u8; payload_bytes])
    }

    #[test]
    fn many_threads_and_a_slow_peer_keep_frames_whole() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (outbox, thread) = Outbox::start(Arc::new(ours), "outbox").unwrap();
        let len = |i: usize| (i * 997) % 30_000;
        std::thread::scope(|scope| {
            for t in 0..4 {
                let outbox = &outbox;
                scope.spawn(move || {
                    for i in (t..800).step_by(4) {
                        outbox.push(frame(i, len(i)), [Push::Now, Push::Thread, Push::Hold][i % 3]);
                    }
                    outbox.flush();
                });
            }
            let mut seen = vec![false; 800];
            let mut last_of = [None; 4];
            for _ in 0..800 {
                let mut head = [0; 4];
                theirs.read_exact(&mut head).unwrap();
                let i = u32::from_be_bytes(head) as usize;
                let mut payload = vec![0; len(i)];
                theirs.read_exact(&mut payload).unwrap();
                assert!(payload.iter().all(|&b| b == i as u8), "frame {i} is whole");
                assert!(!std::mem::replace(&mut seen[i], true), "frame {i} came twice");
                assert!(last_of[i % 4] < Some(i), "order of one pusher is kept");
                last_of[i % 4] = Some(i);
            }
        });
        outbox.finish();
        thread.join().unwrap();
    }

    #[test]
    fn finish_sends_the_rest_and_close_drops_it() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (outbox, thread) = Outbox::start(Arc::new(ours), "outbox").unwrap();
        outbox.push(frame(1, 10), Push::Hold);
        outbox.finish();
        thread.join().unwrap();
        let mut got = [0; 14];
        theirs.read_exact(&mut got).unwrap();
        outbox.push(frame(2, 10), Push::Now);

        let (ours, theirs) = UnixStream::pair().unwrap();
        let (outbox, thread) = Outbox::start(Arc::new(ours), "outbox").unwrap();
        outbox.push(frame(1, 50 << 20), Push::Now);
        outbox.close();
        thread.join().unwrap();
        drop(theirs);
    }

    #[test]
    fn a_half_closed_peer_is_not_a_broken_one() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let ours = Arc::new(ours);
        let (outbox, thread) = Outbox::<Bytes>::start(Arc::clone(&ours), "outbox").unwrap();
        assert!(!outbox.is_broken());
        theirs.shutdown(Shutdown::Write).unwrap();
        assert!(!outbox.is_broken());
        ours.shutdown(Shutdown::Both).unwrap();
        assert!(outbox.is_broken(), "cut");
        outbox.finish();
        thread.join().unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (outbox, thread) = Outbox::<Bytes>::start(Arc::new(ours), "outbox").unwrap();
        drop(theirs);
        assert!(outbox.is_broken(), "gone");
        outbox.close();
        thread.join().unwrap();
    }

    #[test]
    fn a_dead_peer_drops_the_frames_and_ends_the_thread() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (outbox, thread) = Outbox::start(Arc::new(ours), "outbox").unwrap();
        drop(theirs);
        outbox.push(frame(1, 10), Push::Thread);
        thread.join().unwrap();
    }
}
