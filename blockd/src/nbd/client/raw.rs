//! A fresh connection that one thread uses, one request at a time: for recognising the volume and
//! for [`super::options::ReconnectHook`].

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use layout::addr::{DEVICE_BYTES, PAGE, STATUS_PAGE};
use layout::command::{STATUS_MAGIC, Status};
use zerocopy::FromBytes;

use super::negotiation::{ConnectError, Negotiated, check_usable, negotiate};
use super::options::ConnectOptions;
use super::pending::RequestFrame;
use super::reply::{Head, Progress};
use super::target::Target;
use crate::device::{DeviceInfo, IoError, VolumeKind};
use crate::nbd::proto::flags;
use crate::nbd::proto::request::{CMD_READ, CMD_WRITE, Request};
use crate::nbd::wire::outbox::Frame;
use crate::nbd::wire::receiver::Receiver;
use crate::nbd::wire::send::send_all;
use crate::nbd::wire::stream::SharedStream;

/// See the module. Every method waits at most for the handshake's time limit.
pub struct RawConnection {
    pub(super) stream: Arc<UnixStream>,
    pub(super) receiver: Receiver<SharedStream>,
    pub(super) negotiated: Negotiated,
    cookie: u64,
}

impl RawConnection {
    /// Connects and negotiates.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub fn connect(target: &Target, options: &ConnectOptions) -> Result<Self, ConnectError> {
        let stream = UnixStream::connect(&target.socket).map_err(|source| {
            let socket = target.socket.display().to_string();
            match source.kind() {
                io::ErrorKind::PermissionDenied => ConnectError::NotPermitted(socket),
                io::ErrorKind::InvalidInput => ConnectError::Unusable { socket, why: source.to_string() },
                _ => ConnectError::NoServer { socket, source },
            }
        })?;
        let limit = Duration::from_millis(options.handshake_timeout_ms.max(1));
        stream
            .set_read_timeout(Some(limit))
            .and_then(|()| stream.set_write_timeout(Some(limit)))
            .map_err(|e| ConnectError::handshake(target, e))?;
        let stream = Arc::new(stream);
        let mut receiver = Receiver::new(SharedStream(Arc::clone(&stream)));
        let negotiated = negotiate(target, options.form, &stream, &mut receiver)?;
        check_usable(target, &negotiated)?;
        Ok(RawConnection { stream, receiver, negotiated, cookie: 0 })
    }

    /// Fills `out` from `offset`.
    ///
    /// # Errors
    /// The server's answer, or [`IoError::Io`] if the connection broke.
    pub fn read(&mut self, offset: u64, out: &mut [u8]) -> Result<(), IoError> {
        let len = out.len();
        self.request(CMD_READ, 0, (offset, len), b"", Some(out))
    }

    /// Writes `bytes` at `offset`; with `fua` they are durable afterwards.
    ///
    /// # Errors
    /// As [`RawConnection::read`].
    pub fn write(&mut self, offset: u64, bytes: &[u8], fua: bool) -> Result<(), IoError> {
        let flags = if fua { flags::COMMAND_FUA } else { 0 };
        self.request(CMD_WRITE, flags, (offset, bytes.len()), bytes, None)
    }

    fn request(
        &mut self,
        command: u16,
        flags: u16,
        (offset, len): (u64, usize),
        payload: &[u8],
        mut out: Option<&mut [u8]>,
    ) -> Result<(), IoError> {
        let len_bytes = len as u64;
        if len_bytes > u64::from(self.negotiated.blocks.payload_max) {
            return Err(IoError::Invalid(format!("a request of {len} bytes is too long for the server")));
        }
        let form = self.negotiated.form;
        self.cookie += 1;
        let request = Request { flags, command, cookie: self.cookie, offset, len_bytes };
        send_all(&self.stream, RequestFrame::bare(&request, form).head()).map_err(broken)?;
        send_all(&self.stream, payload).map_err(broken)?;
        let mut progress = Progress::default();
        loop {
            let head = Head::receive(&mut self.receiver, form).map_err(broken)?;
            let Some(head) = head.filter(|head| head.cookie() == self.cookie) else {
                return Err(broken(io::ErrorKind::UnexpectedEof.into()));
            };
            let out = out.as_deref_mut();
            if progress.take(&mut self.receiver, head, &request, form, out).map_err(broken)? {
                return progress
                    .finish(|| format!("a {} of {len} bytes at {offset:#x}", Request::name(command)));
            }
        }
    }

    /// What is served: kind and uuid come from the status page of a VexFS volume, from the
    /// description of a raw one (nil if another server serves it).
    pub(super) fn identify(&mut self, target: &Target) -> Result<DeviceInfo, ConnectError> {
        let mut info = DeviceInfo {
            kind: VolumeKind::Raw,
            size_bytes: self.negotiated.size_bytes,
            block_bytes_min: self.negotiated.blocks.min,
            read_only: self.negotiated.flags & flags::EXPORT_READ_ONLY != 0,
            uuid: uuid_of(&self.negotiated.description),
        };
        if info.size_bytes == DEVICE_BYTES {
            let mut page = vec![0; PAGE];
            self.read(STATUS_PAGE.byte(), &mut page)
                .map_err(|e| ConnectError::handshake(target, io::Error::other(e)))?;
            if let Ok(status) = Status::read_from_bytes(&page)
                && status.magic == STATUS_MAGIC
            {
                info.kind = VolumeKind::VexFs;
                info.uuid = uuid::Uuid::from_bytes(status.uuid);
            }
        }
        Ok(info)
    }

    /// Takes the time limits away: requests may take as long as they need.
    pub(super) fn unlimit(&self) -> io::Result<()> {
        self.stream.set_read_timeout(None)?;
        self.stream.set_write_timeout(None)
    }
}

fn broken(error: io::Error) -> IoError {
    IoError::Io(format!("the connection to the daemon broke: {error}"))
}

fn uuid_of(description: &str) -> uuid::Uuid {
    let last = description.rsplit(' ').next().unwrap_or_default();
    if description.starts_with("vexfs-blockd ") {
        last.parse().unwrap_or_default()
    } else {
        uuid::Uuid::nil()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nbd::server::describe;

    #[test]
    fn the_uuid_travels_in_the_description() {
        let uuid = uuid::Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
        let info =
            DeviceInfo { kind: VolumeKind::Raw, size_bytes: 1, block_bytes_min: 512, read_only: false, uuid };
        assert_eq!(uuid_of(&describe(&info)), uuid);
        assert_eq!(uuid_of("nbdkit memory"), uuid::Uuid::nil());
        assert_eq!(uuid_of(""), uuid::Uuid::nil());
    }
}
