//! "Error values": the few errno numbers that NBD knows, and their mapping to [`IoError`].

use crate::device::IoError;

/// Operation not permitted: a write to a read-only export.
pub const EPERM: u32 = 1;
/// Input/output error.
pub const EIO: u32 = 5;
/// Invalid argument.
pub const EINVAL: u32 = 22;
/// No space left on device; also a write beyond the end.
pub const ENOSPC: u32 = 28;
/// Operation not supported.
pub const ENOTSUP: u32 = 95;
/// The server is being shut down. Our daemon says it for one reason only: the client is fenced
/// (FORMAT.md 3.2); when the daemon stops it closes the connection instead.
pub const ESHUTDOWN: u32 = 108;

/// The number to put into a reply.
pub fn to_wire(error: &IoError) -> u32 {
    match error {
        IoError::Io(_) => EIO,
        IoError::NoSpace => ENOSPC,
        IoError::Invalid(_) => EINVAL,
        IoError::Fenced(_) | IoError::Shutdown => ESHUTDOWN,
        IoError::ReadOnly => EPERM,
    }
}

/// The error that a reply's number means; `what` names the request, `sentence` is the server's own, or empty.
pub fn from_wire(errno: u32, what: &str, sentence: &str) -> IoError {
    let or = |otherwise: &str| {
        if sentence.is_empty() { otherwise.to_owned() } else { format!("it says: {sentence}") }
    };
    match errno {
        EPERM => IoError::ReadOnly,
        ENOSPC => IoError::NoSpace,
        EINVAL => {
            IoError::Invalid(format!("the server refused {what} with EINVAL; {}", or("its log may say why")))
        }
        ESHUTDOWN => IoError::Fenced(format!(
            "the server refused {what}: {}",
            or("this client does not hold the volume's live session")
        )),
        EIO => {
            IoError::Io(format!("the server failed {what}; {}", or("its log has the address and the reason")))
        }
        other => {
            IoError::Io(format!("the server answered {what} with error {other}; {}", or("it says no more")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_survives_the_wire_with_its_errno() {
        let text = || "x".to_string();
        for error in [
            IoError::Io(text()),
            IoError::NoSpace,
            IoError::Invalid(text()),
            IoError::Fenced(text()),
            IoError::ReadOnly,
        ] {
            assert_eq!(from_wire(to_wire(&error), "a write", "").errno(), error.errno());
            assert_eq!(i32::try_from(to_wire(&error)).ok(), Some(error.errno()));
        }
    }

    #[test]
    fn numbers_outside_the_specification_are_io_errors() {
        assert!(matches!(from_wire(9999, "a read", ""), IoError::Io(text) if text.contains("9999")));
    }

    #[test]
    fn the_servers_sentence_is_passed_on() {
        for number in [EIO, EINVAL, ESHUTDOWN, 9999] {
            assert!(from_wire(number, "a read", "page 7 is bad").to_string().contains("page 7 is bad"));
        }
    }
}
