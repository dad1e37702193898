//! Where command and status pages are read and written: a device, or a fresh NBD connection.

use layout::addr::{PAGE, PageNo};

use crate::buf::AlignedBuf;
use crate::device::{ClientId, Device, IoError, IoOp, blocking};
use crate::nbd::client::RawConnection;

/// Reads and writes single pages, waiting.
pub trait CommandPort {
    /// Reads a page.
    ///
    /// # Errors
    /// The device's.
    fn read_page(&mut self, page: PageNo) -> Result<AlignedBuf, IoError>;

    /// Writes a page of 4096 bytes.
    ///
    /// # Errors
    /// The device's.
    fn write_page(&mut self, page: PageNo, bytes: &[u8]) -> Result<(), IoError>;
}

/// The pages of a device, as one of its clients.
pub struct DevicePort<'a> {
    /// The device.
    pub device: &'a dyn Device,
    /// Who asks.
    pub client: ClientId,
}

impl CommandPort for DevicePort<'_> {
    fn read_page(&mut self, page: PageNo) -> Result<AlignedBuf, IoError> {
        let op = IoOp::Read { offset: page.byte(), buf: AlignedBuf::zeroed(PAGE) };
        blocking(self.device, self.client, op)?
            .filter(|buf| buf.len() == PAGE)
            .ok_or_else(|| IoError::Io(format!("the device gave no data for page {}", page.0)))
    }

    fn write_page(&mut self, page: PageNo, bytes: &[u8]) -> Result<(), IoError> {
        let op = IoOp::Write { offset: page.byte(), buf: AlignedBuf::from_slice(bytes), fua: false };
        blocking(self.device, self.client, op).map(|_| ())
    }
}

impl CommandPort for RawConnection {
    fn read_page(&mut self, page: PageNo) -> Result<AlignedBuf, IoError> {
        let mut buf = AlignedBuf::zeroed(PAGE);
        self.read(page.byte(), &mut buf)?;
        Ok(buf)
    }

    fn write_page(&mut self, page: PageNo, bytes: &[u8]) -> Result<(), IoError> {
        self.write(page.byte(), bytes, false)
    }
}
