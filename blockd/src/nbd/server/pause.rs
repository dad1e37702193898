//! How a connection's thread is called away from the socket it waits at, without harm to the socket.
//!
//! A read that waits cannot be given up by closing or shutting down: the socket goes on in another process. So the thread
//! gets a signal, whose only effect is that its read returns EINTR; it looks for the call then, and else never but
//! between two system calls. Since a signal may come just before the read begins, it is sent again until the thread answers.
//! In the middle of a message it reads on, but not for longer than the rest of it keeps coming.
//!
//! At the end of a server the socket is shut down for reading, which ends a read that waits. But TCP still gives out what
//! arrives afterwards, so the thread is told too that it stops.

use std::cell::Cell;
use std::io::{self, IoSliceMut, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::thread::gettid;

use super::polling::Polling;

/// Ignored by default, and used by nobody else here.
const SIGNAL: libc::c_int = libc::SIGURG;

/// Calls one thread away.
#[derive(Default, Debug)]
pub struct Pause {
    wanted: AtomicBool,
    stopping: AtomicBool,
    /// The thread that waits; 0 if none does yet, or any more.
    thread: AtomicI32,
}

impl Pause {
    /// Calls, or calls again.
    pub fn call(&self) {
        self.wanted.store(true, Ordering::SeqCst);
        let thread = self.thread.load(Ordering::SeqCst);
        if thread == 0 {
            return;
        }
        catch_signal();
        // SAFETY: no memory is involved. Were the thread gone and its number used again, the only effect of this
        // signal on another of our threads is an EINTR, which all of them expect; none of another process can be meant.
        let failed = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, SIGNAL) } != 0;
        if failed {
            tracing::debug!(error = %io::Error::last_os_error(), "a connection's thread cannot be called");
        }
    }

    /// No more is to be read than what has arrived.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
    }

    /// Whether it was called.
    pub fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }
}

/// Has the signal interrupt system calls.
fn catch_signal() {
    extern "C" fn nothing(_: libc::c_int) {}
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the struct is plain data, for which zeros are valid (no flags: no SA_RESTART); the handler does
        // nothing, so it may run at any point of any thread; sigaction only reads `action`.
        let failed = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
            libc::sigaction(SIGNAL, &raw const action, std::ptr::null_mut()) != 0
        };
        if failed {
            tracing::error!(error = %io::Error::last_os_error(), "connections cannot be called for a hand-over");
        }
    });
}

/// The reading end of a connection. A read by the thread that made it ends with [`io::ErrorKind::TimedOut`] when the thread
/// is called while it may be ([`Source::may_pause`]).
pub struct Source<'a> {
    stream: &'a UnixStream,
    pause: Arc<Pause>,
    may_pause: Cell<bool>,
    stalled_max: Duration,
    polling: Polling,
}

impl<'a> Source<'a> {
    /// To be read by the calling thread. Once it is called, bytes in the middle of a message are waited for so long.
    pub fn new(stream: &'a UnixStream, pause: Arc<Pause>, stalled_max: Duration) -> Self {
        pause.thread.store(gettid().as_raw_nonzero().get(), Ordering::SeqCst);
        Source { stream, pause, may_pause: Cell::new(false), stalled_max, polling: Polling::default() }
    }

    /// Whether reads may end with a pause: between messages only, where nothing that was read can be lost.
    pub fn may_pause(&self, may: bool) {
        self.may_pause.set(may);
    }

    /// What decides whether bytes are looked for before the thread sleeps.
    pub fn polling(&self) -> &Polling {
        &self.polling
    }

    /// The thread was called.
    pub fn is_called(&self) -> bool {
        self.pause.is_wanted()
    }

    /// No more is to be read than what has arrived.
    pub fn is_stopping(&self) -> bool {
        self.pause.stopping.load(Ordering::Relaxed)
    }

    fn uninterrupted(&mut self, mut read: impl FnMut(&UnixStream) -> io::Result<usize>) -> io::Result<usize> {
        loop {
            if self.pause.is_wanted() {
                if self.may_pause.get() {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                self.wait_for_more()?;
            }
            match read(self.stream) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    /// Waits for bytes, but not for long.
    fn wait_for_more(&self) -> io::Result<()> {
        let until = Instant::now() + self.stalled_max;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            // Fails only for times that no one configures.
            let left = Timespec::try_from(left).map_err(io::Error::other)?;
            match poll(&mut [PollFd::new(self.stream, PollFlags::IN)], Some(&left)) {
                Ok(0) => {
                    let why = "the rest of a request did not come while the server waited to be handed over";
                    return Err(io::Error::new(io::ErrorKind::TimedOut, why));
                }
                Ok(_) => return Ok(()),
                // A call; the time goes on.
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl Drop for Source<'_> {
    fn drop(&mut self) {
        self.pause.thread.store(0, Ordering::SeqCst);
    }
}

impl Read for Source<'_> {
    /// Reads; where bytes are expected soon, awake.
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if !self.polling.is_learning() {
            return self.uninterrupted(|mut stream| stream.read(out));
        }
        let begun = Instant::now();
        if let Some(max) = self.polling.wait_max() {
            while !self.pause.is_wanted() {
                match rustix::net::recv(self.stream, &mut *out, RecvFlags::DONTWAIT) {
                    Ok((n, _)) => return Ok(n),
                    Err(Errno::AGAIN | Errno::INTR) if begun.elapsed() < max => std::thread::yield_now(),
                    // The read that waits tells what else is wrong.
                    Err(_) => break,
                }
            }
        }
        let n = self.uninterrupted(|mut stream| stream.read(out))?;
        self.polling.waited(begun.elapsed());
        Ok(n)
    }

    fn read_vectored(&mut self, out: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        self.uninterrupted(|mut stream| stream.read_vectored(out))
    }
}

impl AsFd for Source<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_waiting_read_is_called_away_and_the_socket_is_unharmed() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let pause = Arc::new(Pause::default());
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let mut source = Source::new(&ours, Arc::clone(&pause), Duration::from_secs(60));
                let mut out = [0; 8];
                assert_eq!(source.read(&mut out).unwrap(), 3, "not called yet");
                source.may_pause(true);
                let called = source.read(&mut out).unwrap_err();
                assert_eq!(called.kind(), io::ErrorKind::TimedOut);
                source.may_pause(false);
                assert_eq!(source.read(&mut out).unwrap(), 2, "a message that began is read to its end");
            });
            theirs.write_all(b"abc").unwrap();
            while pause.thread.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            for _ in 0..20 {
                pause.call();
                std::thread::sleep(Duration::from_millis(1));
            }
            // Called or not, the bytes are for whoever reads next.
            theirs.write_all(b"de").unwrap();
            thread.join().unwrap();
        });
        theirs.write_all(b"f").unwrap();
        let mut out = [0; 8];
        assert_eq!((&ours).read(&mut out).unwrap(), 1);
    }

    #[test]
    fn a_message_whose_rest_does_not_come_is_given_up_when_called() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let pause = Arc::new(Pause::default());
        let mut source = Source::new(&ours, Arc::clone(&pause), Duration::from_millis(1));
        pause.call();
        theirs.write_all(b"abc").unwrap();
        let mut out = [0; 8];
        assert_eq!(source.read(&mut out).unwrap(), 3, "what is there is read");
        assert_eq!(source.read(&mut out).unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
