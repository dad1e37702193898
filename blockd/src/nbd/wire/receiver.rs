//! Buffered receiving: one system call picks up many small messages, and a large payload goes straight
//! into its own buffer.

use std::io::{self, ErrorKind, IoSliceMut, Read};

/// Bytes read ahead: what a unix socket holds, about. One system call costs more than copying a page once more.
const BUFFER_BYTES: usize = 256 << 10;
/// A payload of which more than this is missing goes straight into its buffer.
const STRAIGHT_BYTES_MIN: usize = 32 << 10;

/// Whether the peer ended the stream between two messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fill {
    /// The bytes are there.
    Ready,
    /// The peer closed the connection before the first byte of the message.
    End,
}

/// A read buffer in front of a stream.
pub struct Receiver<R> {
    stream: R,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    taken: u64,
}

impl<R: Read> Receiver<R> {
    /// Nothing is read yet.
    pub fn new(stream: R) -> Self {
        Receiver { stream, buffer: vec![0; BUFFER_BYTES].into_boxed_slice(), start: 0, end: 0, taken: 0 }
    }

    /// Another receiver of the same stream has read `unread` ahead already.
    pub fn resumed(stream: R, unread: &[u8]) -> Self {
        let mut receiver = Self::new(stream);
        if unread.len() > receiver.buffer.len() {
            // It had a larger buffer.
            receiver.buffer = vec![0; unread.len()].into_boxed_slice();
        }
        receiver.buffer[..unread.len()].copy_from_slice(unread);
        receiver.end = unread.len();
        receiver
    }

    /// The bytes read ahead, for another receiver of the same stream.
    pub fn into_unread(self) -> Vec<u8> {
        self.buffer[self.start..self.end].to_vec()
    }

    /// The stream behind the buffer.
    pub fn stream(&self) -> &R {
        &self.stream
    }

    /// Bytes that can be taken without a system call.
    pub fn buffered(&self) -> usize {
        self.end - self.start
    }

    /// Bytes of messages taken so far.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Takes a message head of `N` bytes (at most 256 KiB); `None` if the peer closed the
    /// connection before its first byte.
    ///
    /// # Errors
    /// Those of the stream; `UnexpectedEof` if it ends inside the head.
    pub fn head<const N: usize>(&mut self) -> io::Result<Option<[u8; N]>> {
        const { assert!(N <= BUFFER_BYTES) };
        if self.fill(N)? == Fill::End {
            return Ok(None);
        }
        let mut out = [0; N];
        out.copy_from_slice(&self.buffer[self.start..self.start + N]);
        self.start += N;
        self.taken += N as u64;
        Ok(Some(out))
    }

    fn fill(&mut self, wanted: usize) -> io::Result<Fill> {
        if self.buffered() >= wanted {
            return Ok(Fill::Ready);
        }
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        while self.end < wanted {
            let n = retry(|| self.stream.read(&mut self.buffer[self.end..]))?;
            if n == 0 {
                return if self.end == 0 { Ok(Fill::End) } else { Err(ErrorKind::UnexpectedEof.into()) };
            }
            self.end += n;
        }
        Ok(Fill::Ready)
    }

    /// Fills `out`: first from the buffer, then from the stream, a large part without a copy, reading ahead in
    /// the same system call.
    ///
    /// # Errors
    /// Those of the stream; `UnexpectedEof` if it ends before.
    pub fn payload(&mut self, out: &mut [u8]) -> io::Result<()> {
        self.taken += out.len() as u64;
        let mut filled = self.buffered().min(out.len());
        out[..filled].copy_from_slice(&self.buffer[self.start..self.start + filled]);
        self.start += filled;
        if out.len() - filled < STRAIGHT_BYTES_MIN {
            let rest = &mut out[filled..];
            if self.fill(rest.len())? == Fill::End && !rest.is_empty() {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            rest.copy_from_slice(&self.buffer[self.start..self.start + rest.len()]);
            self.start += rest.len();
            return Ok(());
        }
        while filled < out.len() {
            self.start = 0;
            self.end = 0;
            let wanted = out.len() - filled;
            let n = retry(|| {
                let parts = &mut [IoSliceMut::new(&mut out[filled..]), IoSliceMut::new(&mut self.buffer)];
                self.stream.read_vectored(parts)
            })?;
            if n == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            filled += n.min(wanted);
            self.end = n.saturating_sub(wanted);
        }
        Ok(())
    }

    /// Throws `len_bytes` away, to stay in step after a refused request.
    ///
    /// # Errors
    /// As [`Receiver::payload`].
    pub fn skip(&mut self, len_bytes: u64) -> io::Result<()> {
        self.taken = self.taken.saturating_add(len_bytes);
        let mut left = len_bytes;
        loop {
            let n = left.min(self.buffered() as u64);
            // `n` is at most the bytes buffered.
            self.start += n as usize;
            left -= n;
            if left == 0 {
                return Ok(());
            }
            if self.fill(1)? == Fill::End {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

fn retry(mut read: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match read() {
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives at most `step` bytes a call, and an interruption before each.
    struct Drip {
        bytes: Vec<u8>,
        at: usize,
        step: usize,
        interrupt: bool,
    }

    impl Read for Drip {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            self.interrupt = !self.interrupt;
            if self.interrupt {
                return Err(ErrorKind::Interrupted.into());
            }
            let n = self.step.min(out.len()).min(self.bytes.len() - self.at);
            out[..n].copy_from_slice(&self.bytes[self.at..self.at + n]);
            self.at += n;
            Ok(n)
        }
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
    }

    #[test]
    fn heads_payloads_and_skips_stay_in_step_at_any_chunking() {
        let bytes = pattern(200_000);
        for step in [1, 3, 1000, 40_000, 1 << 20] {
            let mut r = Receiver::new(Drip { bytes: bytes.clone(), at: 0, step, interrupt: false });
            let mut at = 0;
            let mut round = 0;
            while at + 60_000 < bytes.len() {
                assert_eq!(r.taken(), at as u64);
                assert_eq!(r.head::<28>().unwrap().unwrap()[..], bytes[at..at + 28]);
                at += 28;
                let mut payload = vec![0; 100 + round * 5000];
                r.payload(&mut payload).unwrap();
                assert!(payload == bytes[at..at + payload.len()], "step {step}, round {round}");
                at += payload.len();
                r.skip(round as u64 * 777).unwrap();
                at += round * 777;
                round += 1;
            }
        }
    }

    #[test]
    fn vectored_reads_keep_what_was_read_ahead() {
        let bytes = pattern(100_000);
        let mut r = Receiver::new(&bytes[..]);
        let mut payload = vec![0; 90_000];
        r.payload(&mut payload).unwrap();
        assert!(payload == bytes[..90_000]);
        assert_eq!(r.buffered(), 10_000, "read ahead in the same call");
        assert_eq!(r.head::<28>().unwrap().unwrap()[..], bytes[90_000..90_028]);
    }

    #[test]
    fn another_receiver_goes_on_with_what_was_read_ahead() {
        let bytes = pattern(100_000);
        let mut stream = &bytes[..];
        let mut first = Receiver::new(&mut stream);
        assert_eq!(first.head::<28>().unwrap().unwrap()[..], bytes[..28]);
        let unread = first.into_unread();
        assert!(!unread.is_empty(), "it reads ahead");
        let mut second = Receiver::resumed(&mut stream, &unread);
        let mut rest = vec![0; bytes.len() - 28];
        second.payload(&mut rest).unwrap();
        assert!(rest == bytes[28..]);
        let long = vec![7; 1 << 20];
        let mut whole = vec![0; 1 << 20];
        Receiver::resumed(&[][..], &long).payload(&mut whole).unwrap();
        assert!(whole == long);
    }

    #[test]
    fn the_end_is_clean_only_between_messages() {
        assert_eq!(Receiver::new(&[][..]).head::<4>().unwrap(), None);
        let eof = |r: io::Result<()>| r.unwrap_err().kind() == ErrorKind::UnexpectedEof;
        assert!(eof(Receiver::new(&[1, 2][..]).head::<4>().map(|_| ())));
        assert!(eof(Receiver::new(&[1, 2][..]).payload(&mut [0; 3])));
        assert!(eof(Receiver::new(&[1, 2][..]).skip(3)));
    }
}
