//! Taking a stream in.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam_channel::{Receiver as Channel, Sender, bounded};
use layout::addr::{COMMAND_PAGE, DEVICE_PAGES, MAP_BASE, MAP_UNIT_PAGES, PAGE, STATUS_PAGE};

use super::frame::{Frame, FrameReader, Header};
use super::{BackupError, Progress};
use crate::buf::AlignedBuf;
use crate::device::{IoError, VolumeKind};
use crate::store::create::backing_for_raw;
use crate::store::log::{Job, Op};
use crate::store::snapshot::SnapshotId;
use crate::store::snapshot::change::Change;
use crate::volume::snapshot::{SnapshotError, SnapshotInfo};
use crate::volume::{CreateOptions, Volume};

/// Frames on their way to the log at once.
const IN_FLIGHT_MAX: usize = 8;

/// A stream whose header was read.
pub struct Receiver<R> {
    frames: FrameReader<R>,
    header: Header,
}

impl<R: Read> Receiver<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// [`BackupError::Stream`], `Pipe`.
    pub fn new(input: R) -> Result<Self, BackupError> {
        let mut frames = FrameReader::new(input);
        let header = frames.header()?;
        Ok(Receiver { frames, header })
    }

    /// What the stream says of itself.
    pub fn header(&self) -> &Header {
        &self.header
    }
}

/// Makes the image that receives a full stream; `size_bytes` 0: as large as the one it was made from.
///
/// # Errors
/// [`BackupError::Refused`] if the stream is not a full one; `Store`.
pub fn create_target(path: &Path, header: &Header, size_bytes: u64) -> Result<(), BackupError> {
    if let Some(from) = &header.from {
        return Err(BackupError::Refused(format!(
            "{} does not exist, and the stream continues snapshot {:?}: receive a full stream (vexctl send without --from) \
             into a new image first",
            path.display(),
            from.name
        )));
    }
    let size_bytes = match (size_bytes, header.kind) {
        (0, VolumeKind::Raw) => header.image_bytes.max(backing_for_raw(header.raw_bytes)?),
        (0, VolumeKind::VexFs) => header.image_bytes,
        (given, _) => given,
    };
    let options = CreateOptions {
        kind: header.kind,
        uuid: uuid::Uuid::from_bytes(header.uuid),
        size_bytes,
        raw_size_bytes: header.raw_bytes,
        segment_bytes: 0,
        force: false,
    };
    Ok(Volume::create(path, &options)?)
}

impl Volume {
    /// Takes a stream in. Until all of it is verified the volume takes no requests; if it is no good, the volume goes
    /// back to the state before.
    ///
    /// # Errors
    /// [`BackupError`]; the volume is as before.
    pub fn receive<R: Read>(
        &self,
        receiver: Receiver<R>,
        mut progress: impl FnMut(Progress),
    ) -> Result<SnapshotInfo, BackupError> {
        let Receiver { mut frames, header } = receiver;
        if self.core.rolling_back.swap(true, Ordering::SeqCst) {
            return Err(SnapshotError::RollingBack.into());
        }
        let begun = self.begin_receive(&header);
        if let Err(e) = begun {
            self.core.rolling_back.store(false, Ordering::SeqCst);
            return Err(e);
        }
        let taken = self.take_frames(&mut frames, &header, &mut progress).and_then(|()| {
            let name = header.to.name.clone();
            Ok(self.change_snapshots(Change::Received {
                name,
                time_ns: header.to.time_ns,
                raw_bytes: header.raw_bytes,
            })?)
        });
        match taken {
            Ok(id) => {
                self.leave_rollback();
                let maps = self.core.store.maps.read();
                let found = maps.snapshots.get(id).map(SnapshotInfo::of);
                found.ok_or_else(|| SnapshotError::Unknown(header.to.name).into())
            }
            Err(e) => {
                self.abandon_receive();
                Err(e)
            }
        }
    }

    fn begin_receive(&self, header: &Header) -> Result<(), BackupError> {
        match self.connected.load(Ordering::SeqCst) {
            0 => {}
            connected => return Err(SnapshotError::Connected(connected).into()),
        }
        // What is being deleted would be between the last snapshot and the volume.
        self.snapshot_settle(|_| {})?;
        let onto = self.check_fit(header)?;
        self.change_snapshots(Change::Receive { onto })?;
        Ok(())
    }

    /// Whether the stream continues what the volume has; gives the snapshot that it continues.
    fn check_fit(&self, header: &Header) -> Result<Option<SnapshotId>, BackupError> {
        let refuse = |why: String| Err(BackupError::Refused(why));
        let store = &self.core.store;
        if header.kind != store.kind {
            return refuse("the stream is of a volume of another kind".into());
        }
        if header.uuid != store.uuid {
            let (of, here) = (uuid::Uuid::from_bytes(header.uuid), uuid::Uuid::from_bytes(store.uuid));
            return refuse(format!(
                "the stream is of volume {of}, and this is {here}: a full stream is received into a new image, later ones \
                 into that image"
            ));
        }
        let maps = store.maps.read();
        if maps.snapshots.find(&header.to.name).is_some() {
            return Err(SnapshotError::Exists(header.to.name.clone()).into());
        }
        let (there, here) = (header.raw_bytes, maps.raw_bytes);
        match (&header.from, maps.snapshots.all().last()) {
            (None, None) if there != here => refuse(format!(
                "the stream is of a volume of {there} bytes, and this one has {here}: vexctl resize --volume-size {there} first"
            )),
            (None, None) if maps.base.count_units(0, u64::MAX) == 0 && maps.overlay.page_count() == 0 => Ok(None),
            (None, _) => refuse(
                "the stream is a full one, and the volume has data: receive it into a new image, or send with --from".into(),
            ),
            (Some(from), Some(last)) if last.name == from.name && last.time_ns == from.time_ns => {
                let resized = here != last.raw_bytes && here != there;
                if last.entries() > 0 || maps.overlay.page_count() > 0 || resized {
                    return refuse(format!(
                        "the volume was changed since snapshot {:?}: go back to it first (vexctl snapshot rollback)",
                        last.name
                    ));
                }
                Ok(Some(last.id))
            }
            (Some(from), last) => {
                let last = last.map_or("has no snapshot".into(), |s| format!("has {:?} as its last snapshot", s.name));
                refuse(format!(
                    "the stream continues snapshot {:?}, and the volume {last}: send what leads from there",
                    from.name
                ))
            }
        }
    }

    fn take_frames<R: Read>(
        &self,
        frames: &mut FrameReader<R>,
        header: &Header,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), BackupError> {
        let (send, done) = bounded(IN_FLIGHT_MAX);
        let mut in_flight = 0;
        let mut done_bytes = 0;
        let total_bytes = header.pages_max.saturating_mul(PAGE as u64);
        let raw_bytes_before = self.core.store.raw_bytes();
        while let Some(frame) = frames.frame()? {
            let ops = match frame {
                Frame::Header(_) | Frame::Trailer { .. } => continue,
                Frame::Data { first, bytes } => {
                    let pages = bytes.len() / PAGE;
                    self.check_pages(first, pages as u64, header.raw_bytes)?;
                    done_bytes += bytes.len() as u64;
                    let buf = Arc::new(AlignedBuf::from_slice(&bytes));
                    vec![Op::Write { first, buf, page_in_buf: 0, pages }]
                }
                Frame::Holes(ranges) => {
                    let end = header.raw_bytes.max(raw_bytes_before);
                    ranges.iter().try_for_each(|&(first, count)| self.check_pages(first, count, end))?;
                    ranges.into_iter().map(|(first, count)| Op::Discard { first, count }).collect()
                }
            };
            if in_flight == IN_FLIGHT_MAX {
                wait(&done)?;
                in_flight -= 1;
            }
            self.submit(ops, &send)?;
            in_flight += 1;
            progress(Progress { done_bytes, total_bytes: total_bytes.max(done_bytes) });
        }
        if header.raw_bytes < raw_bytes_before {
            // Whatever the stream said of it.
            let (first, end) = (header.raw_bytes / PAGE as u64, raw_bytes_before / PAGE as u64);
            self.submit(vec![Op::Discard { first, count: end - first }], &send)?;
            in_flight += 1;
        }
        (0..in_flight).try_for_each(|_| wait(&done))?;
        Ok(())
    }

    /// Whether a stream may have these pages: within a volume of this size, if it is a raw one, and not made up by the daemon.
    fn check_pages(&self, first: u64, count: u64, raw_bytes: u64) -> Result<(), BackupError> {
        let store = &self.core.store;
        let end = first.checked_add(count).filter(|_| count > 0);
        let allowed = end.is_some_and(|end| match store.kind {
            VolumeKind::Raw => end <= raw_bytes / PAGE as u64,
            VolumeKind::VexFs => {
                end <= MAP_BASE / PAGE as u64
                    && end <= DEVICE_PAGES
                    && ![STATUS_PAGE.0, COMMAND_PAGE.0].iter().any(|page| (first..end).contains(page))
            }
        });
        // A unit is what a sender looks at at once.
        if allowed && first / MAP_UNIT_PAGES == (first + count - 1) / MAP_UNIT_PAGES {
            return Ok(());
        }
        Err(BackupError::Stream(format!(
            "it has pages {first:#x}+{count:#x}, which no volume of its kind has"
        )))
    }

    fn submit(&self, ops: Vec<Op>, send: &Sender<Result<(), IoError>>) -> Result<(), BackupError> {
        let send = send.clone();
        let mut job = Job::new(ops, Box::new(move |result| drop(send.send(result))));
        // No mounter is there: each frame is committed by itself.
        job.commit = self.core.store.kind == VolumeKind::VexFs;
        let log = self.log_sender()?;
        log.with_log(move |log| match log {
            Ok(log) => log.submit_user(job),
            Err(e) => (job.done)(Err(e)),
        });
        Ok(())
    }

    /// Back to the state before. What keeps it from getting there is logged: the next start tries again.
    fn abandon_receive(&self) {
        let (send, recv) = bounded(1);
        if let Ok(log) = self.log_sender() {
            log.with_log(move |log| {
                if let Ok(log) = log {
                    log.abandon_receive();
                }
                let _ = send.send(());
            });
            let _ = recv.recv();
        }
        if let Err(e) = self.finish_rollback(&mut |_| {}) {
            tracing::error!("going back to the state before the stream failed: {e}; the next start does it");
        }
    }
}

fn wait(done: &Channel<Result<(), IoError>>) -> Result<(), IoError> {
    done.recv().unwrap_or(Err(IoError::Shutdown))
}
