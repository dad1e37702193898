//! Page-aligned owned buffers, as O_DIRECT and io_uring want them.
//!
//! Small ones are recycled: a dropped buffer goes to its thread's store, from there, a batch at a time, to one that
//! all threads share (requests are taken in by one thread and finished by another), and beyond that to the allocator.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use parking_lot::Mutex;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// Alignment of every buffer, in bytes.
pub const ALIGN: usize = 4096;

/// Buffers of 4 KiB, 8 KiB, ... 2 MiB are recycled: new memory costs a page fault and a zeroing a page.
const CLASSES: usize = 10;
/// The largest, and those beyond, are made of huge pages where the system has them.
const HUGE: usize = 2 << 20;
/// Bytes of each class that a thread keeps, twice at most; as much moves to or from the shared store at once.
const THREAD_BYTES: usize = 128 << 10;
/// Bytes of each class that the shared store keeps. Buffers too large for a thread's are in the shared one only,
const SHARED_BYTES: usize = 2 << 20;
/// and so many of the largest: new ones are zeroed whole by the kernel. The cleaner has four under way, clients of large requests more.
const SHARED_HUGE: usize = 16;

/// An owned byte buffer aligned to [`ALIGN`]; any length.
pub struct AlignedBuf {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: the buffer is plain owned memory with no thread affinity; `&AlignedBuf` gives only `&[u8]`.
unsafe impl Send for AlignedBuf {}
// SAFETY: as above.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// A zeroed buffer of `len` bytes.
    pub fn zeroed(len: usize) -> Self {
        if class_of(len).is_none() {
            return Self::allocate(len);
        }
        let mut buf = Self::recycled(len);
        buf.fill(0);
        buf
    }

    /// A buffer of `len` bytes of any content, an earlier buffer's perhaps: for those who fill all of it before
    /// anybody sees it.
    pub fn recycled(len: usize) -> Self {
        match class_of(len).and_then(take) {
            Some(ptr) => AlignedBuf { ptr, len },
            None => Self::allocate(len),
        }
    }

    /// As [`AlignedBuf::recycled`], at least `len` bytes long and of huge pages, where the system has them: to a disk it is one piece
    /// of memory, not hundreds, which fill up the queue of a virtio disk (256 pieces) for all others.
    pub fn in_one_piece(len: usize) -> Self {
        Self::recycled(len.max(HUGE))
    }

    fn allocate(len: usize) -> Self {
        if len == 0 {
            return AlignedBuf { ptr: NonNull::dangling(), len: 0 };
        }
        AlignedBuf { ptr: obtain(len), len }
    }

    /// A copy of `bytes`.
    pub fn from_slice(bytes: &[u8]) -> Self {
        let mut buf = Self::recycled(bytes.len());
        buf.copy_from_slice(bytes);
        buf
    }
}

/// Bytes that are allocated for a buffer: a recycled one has its class's size.
fn allocated_bytes(len: usize) -> usize {
    class_of(len).map_or(len.next_multiple_of(HUGE), class_bytes)
}

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes, ALIGN).expect("a buffer length fits isize")
}

/// Zeroed memory for a buffer of `len` bytes, above zero.
fn obtain(len: usize) -> NonNull<u8> {
    let bytes = allocated_bytes(len);
    let layout = layout(bytes);
    let raw = if bytes >= HUGE {
        map_huge(bytes)
    } else {
        // SAFETY: the layout has a size above zero.
        unsafe { alloc_zeroed(layout) }
    };
    NonNull::new(raw).unwrap_or_else(|| handle_alloc_error(layout))
}

/// Gives back what [`obtain`] gave for a length of these [`allocated_bytes`].
///
/// # Safety
/// Nobody uses it any more.
unsafe fn discard(ptr: NonNull<u8>, bytes: usize) {
    if bytes >= HUGE {
        // SAFETY: `map_huge` mapped just this; the caller vouches for the rest.
        let unmapped = unsafe { munmap(ptr.as_ptr().cast(), bytes) };
        debug_assert!(unmapped.is_ok());
    } else {
        // SAFETY: allocated in `obtain` with this very layout; the caller vouches for the rest.
        unsafe { dealloc(ptr.as_ptr(), layout(bytes)) }
    }
}

/// Maps a multiple of [`HUGE`] of zeroed memory, so aligned; null if there is none.
fn map_huge(bytes: usize) -> *mut u8 {
    let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
    // SAFETY: a new mapping at an address of the system's choice.
    let mapped = unsafe { mmap_anonymous(std::ptr::null_mut(), bytes + HUGE, protection, flags) };
    let Ok(start) = mapped else { return std::ptr::null_mut() };
    let before = start.addr().next_multiple_of(HUGE) - start.addr();
    let ptr = start.wrapping_byte_add(before);
    for (spare, len) in [(start, before), (ptr.wrapping_byte_add(bytes), HUGE - before)] {
        if len > 0 {
            // SAFETY: a part of the mapping just made that nobody uses.
            let unmapped = unsafe { munmap(spare, len) };
            debug_assert!(unmapped.is_ok());
        }
    }
    // SAFETY: all of the range is mapped; this only says how.
    if let Err(error) = unsafe { madvise(ptr, bytes, Advice::LinuxHugepage) } {
        tracing::trace!(%error, "no huge pages");
    }
    ptr.cast()
}

fn class_of(len: usize) -> Option<usize> {
    let class = len.div_ceil(ALIGN).next_power_of_two().trailing_zeros() as usize;
    (len > 0 && class < CLASSES).then_some(class)
}

fn class_bytes(class: usize) -> usize {
    ALIGN << class
}

/// Most buffers of a class in a store of so many bytes.
fn most(class: usize, bytes: usize) -> usize {
    bytes / class_bytes(class)
}

/// Most buffers of a class in the shared store.
fn most_shared(class: usize) -> usize {
    if class == CLASSES - 1 { SHARED_HUGE } else { most(class, SHARED_BYTES) }
}

/// Memory of dropped buffers, by class; all of it was initialised when it was allocated.
struct Store([Vec<NonNull<u8>>; CLASSES]);

// SAFETY: plain owned memory, as in `AlignedBuf`.
unsafe impl Send for Store {}

impl Store {
    const EMPTY: Store = Store([const { Vec::new() }; CLASSES]);
}

impl Drop for Store {
    fn drop(&mut self) {
        for (class, free) in self.0.iter_mut().enumerate() {
            free.drain(..).for_each(|ptr| release(ptr, class));
        }
    }
}

static SHARED: Mutex<Store> = Mutex::new(Store::EMPTY);

thread_local! {
    static MINE: RefCell<Store> = const { RefCell::new(Store::EMPTY) };
}

fn release(ptr: NonNull<u8>, class: usize) {
    // SAFETY: obtained for a length of this class, and owned by the caller.
    unsafe { discard(ptr, class_bytes(class)) }
}

fn take(class: usize) -> Option<NonNull<u8>> {
    // A thread that is ending has no store any more.
    if most(class, THREAD_BYTES) == 0 {
        return SHARED.lock().0[class].pop();
    }
    let taken = MINE.try_with(|mine| {
        let mine = &mut mine.borrow_mut().0[class];
        if mine.is_empty() {
            let shared = &mut SHARED.lock().0[class];
            let from = shared.len().saturating_sub(most(class, THREAD_BYTES));
            mine.extend(shared.drain(from..));
        }
        mine.pop()
    });
    taken.ok().flatten()
}

fn give(ptr: NonNull<u8>, class: usize) {
    if most(class, THREAD_BYTES) == 0 {
        let mut shared = SHARED.lock();
        if shared.0[class].len() < most_shared(class) {
            shared.0[class].push(ptr);
        } else {
            drop(shared);
            release(ptr, class);
        }
        return;
    }
    let kept = MINE.try_with(|mine| {
        let mine = &mut mine.borrow_mut().0[class];
        let batch = most(class, THREAD_BYTES);
        if mine.len() >= 2 * batch {
            let mut shared = SHARED.lock();
            let room = most_shared(class).saturating_sub(shared.0[class].len()).min(batch);
            shared.0[class].extend(mine.drain(mine.len() - room..));
            drop(shared);
            let surplus = mine.len().saturating_sub(2 * batch - 1);
            mine.drain(..surplus).for_each(|ptr| release(ptr, class));
        }
        mine.push(ptr);
    });
    if kept.is_err() {
        release(ptr, class);
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        match class_of(self.len) {
            Some(class) => give(self.ptr, class),
            // SAFETY: obtained for this length, and dropped once.
            None if self.len > 0 => unsafe { discard(self.ptr, allocated_bytes(self.len)) },
            None => {}
        }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `ptr` is valid for `len` initialised bytes (or dangling and aligned when len is 0).
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes the access unique.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl std::fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_zeroed_and_copy() {
        let buf = AlignedBuf::zeroed(10_000);
        assert_eq!(buf.as_ptr() as usize % ALIGN, 0);
        assert!(buf.iter().all(|&b| b == 0));
        assert_eq!(&*AlignedBuf::from_slice(b"abc"), b"abc");
        assert_eq!(AlignedBuf::zeroed(0).len(), 0);
        assert_eq!(AlignedBuf::recycled(0).len(), 0);
    }

    #[test]
    fn a_zeroed_buffer_holds_nothing_of_an_earlier_one() {
        for len in [1, 4095, 4096, 4097, 100_000, 128 << 10, (128 << 10) + 1, 1 << 20, 2 << 20, 3 << 20] {
            let mut first = AlignedBuf::recycled(len);
            first.fill(0xaa);
            drop(first);
            assert!(AlignedBuf::zeroed(len).iter().all(|&b| b == 0), "{len} bytes");
        }
    }

    #[test]
    fn buffers_taken_by_one_thread_and_dropped_by_another_stay_apart_and_bounded() {
        let (send, recv) = std::sync::mpsc::sync_channel::<(usize, AlignedBuf)>(600);
        let dropper = std::thread::spawn(move || {
            for (i, buf) in recv {
                assert!(buf.iter().all(|&b| b == i as u8), "buffer {i} is its owner's alone");
            }
            MINE.with(|mine| mine.borrow().0.iter().map(Vec::len).collect::<Vec<_>>())
        });
        for i in 0..6000 {
            let mut buf = AlignedBuf::recycled([4096, 512, 8192, 300_000, 600_000][i % 5]);
            buf.fill(i as u8);
            send.send((i, buf)).unwrap();
        }
        drop(send);
        let kept = dropper.join().unwrap();
        for (class, kept) in kept.into_iter().enumerate() {
            assert!(kept <= 2 * most(class, THREAD_BYTES), "class {class}: {kept} kept by a thread");
            let shared = SHARED.lock().0[class].len();
            assert!(shared <= most_shared(class), "class {class}: {shared} shared");
        }
    }
}
