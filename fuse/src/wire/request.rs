//! A request of the kernel: its header, and its arguments taken one by one.

use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::abi::InHeader;

/// A request whose arguments are shorter than its operation needs, or a name without its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a request of the kernel is shorter than its operation needs")]
pub struct Malformed;

/// A request.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Operation, node and caller.
    pub header: InHeader,
    /// Where the first structure stands, if not before the rest: in a ring entry's header.
    first: Option<&'a [u8]>,
    rest: &'a [u8],
}

impl<'a> Request<'a> {
    /// A request in one piece, as read from the device.
    ///
    /// # Errors
    /// [`Malformed`] if it is shorter than its header, or its length is not what the header says.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (header, args) = InHeader::read_from_prefix(bytes).map_err(|_| Malformed)?;
        if header.len as usize != bytes.len() {
            return Err(Malformed);
        }
        // Extensions (supplementary groups) stand behind the arguments; none are asked for.
        let extensions = usize::from(header.total_extlen) * 8;
        let len = args.len().checked_sub(extensions).ok_or(Malformed)?;
        Ok(Request { header, first: None, rest: &args[..len] })
    }

    /// A request of a ring entry. A first structure stands apart in `first`, which is as long as any; what is no structure
    /// stands in `rest` from the beginning.
    pub fn of_ring(header: InHeader, first: &'a [u8], rest: &'a [u8]) -> Self {
        Request { header, first: Some(first), rest }
    }

    /// Takes the next structure.
    ///
    /// # Errors
    /// [`Malformed`] if there is less.
    pub fn take<T: FromBytes + Immutable + KnownLayout>(&mut self) -> Result<T, Malformed> {
        let from = self.first.take();
        let (value, rest) = T::read_from_prefix(from.unwrap_or(self.rest)).map_err(|_| Malformed)?;
        if from.is_none() {
            self.rest = rest;
        }
        Ok(value)
    }

    /// Takes the next name: what stands before the next NUL.
    ///
    /// # Errors
    /// [`Malformed`] without a NUL.
    pub fn name(&mut self) -> Result<&'a [u8], Malformed> {
        self.first = None;
        let end = self.rest.iter().position(|b| *b == 0).ok_or(Malformed)?;
        let name = &self.rest[..end];
        self.rest = &self.rest[end + 1..];
        Ok(name)
    }

    /// Takes bytes.
    ///
    /// # Errors
    /// [`Malformed`] if there are fewer.
    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        self.first = None;
        let (bytes, rest) = self.rest.split_at_checked(len).ok_or(Malformed)?;
        self.rest = rest;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::super::abi::{MkdirIn, RenameIn, op};
    use super::*;

    fn request(args: &[u8], extensions: u16) -> Vec<u8> {
        let len = (size_of::<InHeader>() + args.len()) as u32;
        let header = InHeader {
            len,
            opcode: op::MKDIR,
            unique: 9,
            nodeid: 1,
            uid: 2,
            gid: 3,
            pid: 4,
            total_extlen: extensions,
            padding: 0,
        };
        [header.as_bytes(), args].concat()
    }

    #[test]
    fn arguments_come_one_after_the_other() {
        let mut args = MkdirIn { mode: 0o755, umask: 0o22 }.as_bytes().to_vec();
        args.extend_from_slice(b"name\0other\0data");
        let bytes = request(&args, 0);
        let mut request = Request::parse(&bytes).unwrap();
        assert_eq!((request.header.opcode, request.header.uid), (op::MKDIR, 2));
        assert_eq!(request.take::<MkdirIn>().unwrap().mode, 0o755);
        assert_eq!(request.name(), Ok(&b"name"[..]));
        assert_eq!(request.name(), Ok(&b"other"[..]));
        assert_eq!(request.bytes(4), Ok(&b"data"[..]));
        assert_eq!(request.name(), Err(Malformed));
        assert!(request.take::<RenameIn>().is_err());
    }

    #[test]
    fn the_first_structure_of_a_ring_entry_stands_apart() {
        let header = Request::parse(&request(b"", 0)).unwrap().header;
        let mut first = MkdirIn { mode: 0o700, umask: 0 }.as_bytes().to_vec();
        first.resize(128, 0xEE);
        let mut mkdir = Request::of_ring(header, &first, b"name\0");
        assert_eq!(mkdir.take::<MkdirIn>().unwrap().mode, 0o700);
        assert_eq!(mkdir.name(), Ok(&b"name"[..]));
        assert!(mkdir.take::<MkdirIn>().is_err());
        assert_eq!(
            Request::of_ring(header, &first, b"name\0").name(),
            Ok(&b"name"[..]),
            "an operation without one"
        );
    }

    #[test]
    fn short_requests_are_refused() {
        let bytes = request(b"name", 0);
        assert!(Request::parse(&bytes[..39]).is_err());
        assert!(Request::parse(&bytes[..43]).is_err(), "not as long as its header says");
        let mut request_without_end = Request::parse(&bytes).unwrap();
        assert_eq!(request_without_end.name(), Err(Malformed));
        assert!(request_without_end.bytes(5).is_err());
        assert!(Request::parse(&request(b"name", 1)).is_err(), "extensions longer than the request");
    }
}
