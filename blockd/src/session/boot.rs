//! Which boot of the machine this is: a session dies with it.

use std::io;

/// The kernel's boot id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BootId(pub [u8; 16]);

/// Reads /proc/sys/kernel/random/boot_id (random(4)).
///
/// # Errors
/// When /proc is not mounted, or holds something else.
pub fn boot_id() -> io::Result<BootId> {
    let path = "/proc/sys/kernel/random/boot_id";
    let text = std::fs::read_to_string(path)
        .map_err(|e| io::Error::new(e.kind(), format!("cannot read {path}, is /proc mounted? {e}")))?;
    let id = uuid::Uuid::parse_str(text.trim())
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("{path} holds no uuid: {e}")))?;
    Ok(BootId(id.into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_same_all_the_time_and_not_zero() {
        let id = boot_id().unwrap();
        assert_eq!(id, boot_id().unwrap());
        assert_ne!(id.0, [0; 16]);
    }
}
