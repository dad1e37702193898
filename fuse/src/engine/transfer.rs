//! Moving pages between the cache and the device, in few large requests.

use blockd::buf::AlignedBuf;
use blockd::device::{ClientId, Device, IoError, IoOp, batch, blocking};
use layout::addr::{PAGE, PAGE_SHIFT, PageNo};

use super::page::{PageArc, PageBuf};

/// Most pages of one write request (1 MiB).
const REQUEST_PAGES_MAX: usize = 256;
/// Most requests in flight at once.
const ROUND_REQUESTS_MAX: usize = 256;
/// Most pages in flight at once (32 MiB).
const ROUND_PAGES_MAX: usize = 8192;

/// Reads one page.
///
/// # Errors
/// What the device says.
pub fn read_page(device: &dyn Device, client: ClientId, page: u64) -> Result<PageArc, IoError> {
    Ok(PageBuf::copy_of(&read_pages(device, client, page, 1)?))
}

/// Reads `count` pages from `first` in one request.
///
/// # Errors
/// What the device says.
pub fn read_pages(
    device: &dyn Device,
    client: ClientId,
    first: u64,
    count: usize,
) -> Result<AlignedBuf, IoError> {
    let op = IoOp::Read { offset: first << PAGE_SHIFT, buf: AlignedBuf::zeroed(count * PAGE) };
    let buf = blocking(device, client, op)?;
    buf.filter(|b| b.len() == count * PAGE)
        .ok_or_else(|| IoError::Io(format!("the device returned a short read at page {first:#x}")))
}

/// Reads several runs of pages (first, count) at once; results stand in the same order.
///
/// # Errors
/// The first failure.
pub fn read_runs(
    device: &dyn Device,
    client: ClientId,
    runs: &[(u64, usize)],
) -> Result<Vec<AlignedBuf>, IoError> {
    let ops = runs.iter().map(|&(first, count)| IoOp::Read {
        offset: first << PAGE_SHIFT,
        buf: AlignedBuf::zeroed(count * PAGE),
    });
    let results = batch(device, client, ops);
    let mut bufs = Vec::with_capacity(runs.len());
    for (result, &(first, count)) in results.into_iter().zip(runs) {
        let buf = result?.filter(|b| b.len() == count * PAGE);
        bufs.push(
            buf.ok_or_else(|| IoError::Io(format!("the device returned a short read at page {first:#x}")))?,
        );
    }
    Ok(bufs)
}

/// Writes pages, given in ascending order, and waits for all acknowledgements. Requests that find no
/// space are sent again, those alone, as long as `wait_for_space` says so.
///
/// # Errors
/// The first failure, with the page where its request began; the other requests of its round were still waited for.
pub fn write_pages(
    device: &dyn Device,
    client: ClientId,
    pages: &[(u64, PageArc)],
    mut wait_for_space: impl FnMut() -> bool,
) -> Result<(), (PageNo, IoError)> {
    let mut rest = pages;
    while !rest.is_empty() {
        let mut requests = Vec::new();
        let mut sent_pages = 0;
        while !rest.is_empty() && requests.len() < ROUND_REQUESTS_MAX && sent_pages < ROUND_PAGES_MAX {
            let run = leading_run(rest);
            requests.push(&rest[..run]);
            sent_pages += run;
            rest = &rest[run..];
        }
        while !requests.is_empty() {
            let results = batch(device, client, requests.iter().map(|run| write_request(run)));
            let mut refused = Vec::new();
            for (result, run) in results.into_iter().zip(requests) {
                match result {
                    Ok(_) => {}
                    Err(IoError::NoSpace) => refused.push(run),
                    Err(error) => return Err((PageNo(run[0].0), error)),
                }
            }
            if let Some(run) = refused.first()
                && !wait_for_space()
            {
                return Err((PageNo(run[0].0), IoError::NoSpace));
            }
            requests = refused;
        }
    }
    Ok(())
}

/// How many of the first pages are contiguous and fit one request.
fn leading_run(pages: &[(u64, PageArc)]) -> usize {
    let first = pages[0].0;
    let contiguous = pages.iter().zip(first..).take_while(|((page, _), expected)| page == expected);
    contiguous.take(REQUEST_PAGES_MAX).count()
}

fn write_request(run: &[(u64, PageArc)]) -> IoOp {
    let mut buf = AlignedBuf::recycled(run.len() * PAGE);
    for (chunk, (_, page)) in buf.chunks_exact_mut(PAGE).zip(run) {
        chunk.copy_from_slice(&page[..]);
    }
    IoOp::Write { offset: run[0].0 << PAGE_SHIFT, buf, fua: false }
}

/// Writes the superblock, durably: the commit.
///
/// # Errors
/// What the device says.
pub fn write_superblock(
    device: &dyn Device,
    client: ClientId,
    image: &layout::page_store::PageBytes,
) -> Result<(), IoError> {
    let op = IoOp::Write {
        offset: layout::addr::SUPERBLOCK_PAGE.byte(),
        buf: AlignedBuf::from_slice(image),
        fua: true,
    };
    blocking(device, client, op).map(drop)
}
