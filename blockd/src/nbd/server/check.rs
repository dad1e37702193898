//! Which requests are taken: a pure function from what a peer sent to what is done.

use super::handshake::{Replies, Transmission};
use super::reply::EXTENTS_MAX;
use crate::device::DeviceInfo;
use crate::nbd::proto::PAYLOAD_BYTES_MAX;
use crate::nbd::proto::errno::{EINVAL, ENOSPC, ENOTSUP, EPERM};
use crate::nbd::proto::flags::{
    COMMAND_DONT_FRAGMENT, COMMAND_FAST_ZERO, COMMAND_FUA, COMMAND_NO_HOLE, COMMAND_PAYLOAD_LEN,
    COMMAND_REQUEST_ONE,
};
use crate::nbd::proto::request::{
    CMD_BLOCK_STATUS, CMD_CACHE, CMD_DISC, CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE, CMD_WRITE_ZEROES,
    Request,
};

/// A request that passed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Checked {
    Read {
        len_bytes: usize,
    },
    Write {
        len_bytes: usize,
        fua: bool,
    },
    Flush,
    Trim {
        fua: bool,
    },
    WriteZeroes {
        fua: bool,
        no_hole: bool,
    },
    /// Nothing to do: the store reads what is asked for, when it is asked for.
    Cache,
    BlockStatus {
        extents_max: usize,
    },
    Disconnect,
}

/// Checks a request against the device and what was negotiated; `Err` is the errno of the reply.
pub fn check(request: &Request, info: &DeviceInfo, negotiated: Transmission) -> Result<Checked, u32> {
    let allowed = match request.command {
        CMD_WRITE_ZEROES => COMMAND_FUA | COMMAND_NO_HOLE | COMMAND_FAST_ZERO,
        CMD_READ if negotiated.replies != Replies::Simple => COMMAND_FUA | COMMAND_DONT_FRAGMENT,
        CMD_WRITE if negotiated.replies == Replies::Extended => COMMAND_FUA | COMMAND_PAYLOAD_LEN,
        CMD_BLOCK_STATUS => COMMAND_FUA | COMMAND_REQUEST_ONE,
        _ => COMMAND_FUA,
    };
    if request.flags & !allowed != 0 {
        return Err(EINVAL);
    }
    let fua = request.flags & COMMAND_FUA != 0;
    match request.command {
        CMD_DISC => Ok(Checked::Disconnect),
        CMD_FLUSH if request.offset != 0 || request.len_bytes != 0 => Err(EINVAL),
        CMD_FLUSH => Ok(Checked::Flush),
        CMD_READ => {
            let len_bytes = check_payload(request)?;
            check_range(request, info, EINVAL)?;
            Ok(Checked::Read { len_bytes })
        }
        CMD_WRITE => {
            check_writable(info)?;
            let len_bytes = check_payload(request)?;
            check_range(request, info, ENOSPC)?;
            Ok(Checked::Write { len_bytes, fua })
        }
        CMD_TRIM => {
            check_writable(info)?;
            check_range(request, info, EINVAL)?;
            Ok(Checked::Trim { fua })
        }
        CMD_WRITE_ZEROES => {
            check_writable(info)?;
            check_range(request, info, ENOSPC)?;
            let no_hole = request.flags & COMMAND_NO_HOLE != 0;
            if no_hole && request.flags & COMMAND_FAST_ZERO != 0 {
                // Every page is written.
                return Err(ENOTSUP);
            }
            Ok(Checked::WriteZeroes { fua, no_hole })
        }
        CMD_CACHE => {
            check_range(request, info, EINVAL)?;
            Ok(Checked::Cache)
        }
        CMD_BLOCK_STATUS if negotiated.allocation => {
            check_range(request, info, EINVAL)?;
            let one = request.flags & COMMAND_REQUEST_ONE != 0;
            Ok(Checked::BlockStatus { extents_max: if one { 1 } else { EXTENTS_MAX } })
        }
        _ => Err(EINVAL),
    }
}

/// Bytes of payload that stand behind the request in the stream, whether it is taken or not; `None` if
/// they are more than a server has to skip ("Request message": 'SHOULD initiate hard disconnect').
///
/// With extended headers the flags say whether there is a payload. A write has one in any case: QEMU (10.0) sends
/// writes without the flag.
pub fn payload_behind(request: &Request, negotiated: Transmission) -> Option<u64> {
    let extended = negotiated.replies == Replies::Extended;
    let flagged = extended && request.flags & COMMAND_PAYLOAD_LEN != 0;
    match request.len_bytes {
        _ if request.command != CMD_WRITE && !flagged => Some(0),
        len if extended && len > u64::from(PAYLOAD_BYTES_MAX) => None,
        len => Some(len),
    }
}

fn check_writable(info: &DeviceInfo) -> Result<(), u32> {
    if info.read_only { Err(EPERM) } else { Ok(()) }
}

fn check_payload(request: &Request) -> Result<usize, u32> {
    // What passes fits a usize: it is at most 32 MiB.
    if request.len_bytes > u64::from(PAYLOAD_BYTES_MAX) {
        Err(EINVAL)
    } else {
        Ok(request.len_bytes as usize)
    }
}

fn check_range(request: &Request, info: &DeviceInfo, beyond: u32) -> Result<(), u32> {
    let unit = u64::from(info.block_bytes_min);
    let len = request.len_bytes;
    if len == 0 || !request.offset.is_multiple_of(unit) || !len.is_multiple_of(unit) {
        return Err(EINVAL);
    }
    match request.offset.checked_add(len) {
        Some(end) if end <= info.size_bytes => Ok(()),
        _ => Err(beyond),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::VolumeKind;

    fn info(read_only: bool) -> DeviceInfo {
        DeviceInfo {
            kind: VolumeKind::Raw,
            size_bytes: 1 << 20,
            block_bytes_min: 512,
            read_only,
            uuid: uuid::Uuid::nil(),
        }
    }

    fn run(command: u16, flags: u16, offset: u64, len_bytes: u64) -> Result<Checked, u32> {
        run_after(Transmission::default(), command, flags, offset, len_bytes)
    }

    fn run_after(
        negotiated: Transmission,
        command: u16,
        flags: u16,
        offset: u64,
        len_bytes: u64,
    ) -> Result<Checked, u32> {
        check(&Request { flags, command, cookie: 1, offset, len_bytes }, &info(false), negotiated)
    }

    #[test]
    fn flags_and_commands_wait_for_their_negotiation() {
        let nothing = Transmission::default();
        let structured = Transmission { replies: Replies::Chunks, allocation: false };
        let all = Transmission { replies: Replies::Chunks, allocation: true };
        assert_eq!(run_after(nothing, CMD_READ, 4, 0, 512), Err(EINVAL), "DF");
        assert_eq!(run_after(structured, CMD_READ, 4, 0, 512), Ok(Checked::Read { len_bytes: 512 }));
        for negotiated in [nothing, structured] {
            assert_eq!(run_after(negotiated, CMD_BLOCK_STATUS, 0, 0, 512), Err(EINVAL));
        }
        let asked = |flags, offset, len| run_after(all, CMD_BLOCK_STATUS, flags, offset, len);
        assert_eq!(asked(0, 0, 1 << 20), Ok(Checked::BlockStatus { extents_max: EXTENTS_MAX }));
        assert_eq!(asked(8, 0, 512), Ok(Checked::BlockStatus { extents_max: 1 }));
        for (flags, offset, len) in
            [(4, 0, 512), (0, 0, 0), (0, 1, 512), (0, 1 << 20, 512), (0, 0, u32::MAX.into())]
        {
            assert_eq!(asked(flags, offset, len), Err(EINVAL), "{flags} {offset} {len}");
        }
        assert_eq!(run(CMD_CACHE, 0, 0, 1 << 20), Ok(Checked::Cache));
        assert_eq!(run(CMD_CACHE, 0, 512, 1 << 20), Err(EINVAL));
        assert_eq!(run(CMD_CACHE, 8, 0, 512), Err(EINVAL));
        let zeroes = |flags| run(CMD_WRITE_ZEROES, flags, 0, 512);
        assert_eq!(zeroes(0b1_0001), Ok(Checked::WriteZeroes { fua: true, no_hole: false }));
        assert_eq!(zeroes(0b0_0011), Ok(Checked::WriteZeroes { fua: true, no_hole: true }));
        assert_eq!(zeroes(0b1_0010), Err(ENOTSUP), "to leave no hole is as slow as a write");
        assert_eq!(run(CMD_WRITE_ZEROES, 0b1_0010, 1 << 20, 512), Err(ENOSPC), "a wrong range goes first");
    }

    #[test]
    fn extended_writes_have_their_payload_and_others_must_not() {
        let extended = Transmission { replies: Replies::Extended, allocation: true };
        let asked = |command, flags, len| run_after(extended, command, flags, 0, len);
        assert_eq!(asked(CMD_WRITE, 32, 512), Ok(Checked::Write { len_bytes: 512, fua: false }));
        assert_eq!(
            asked(CMD_WRITE, 0, 512),
            Ok(Checked::Write { len_bytes: 512, fua: false }),
            "as QEMU does"
        );
        for command in [CMD_READ, CMD_TRIM, CMD_WRITE_ZEROES, CMD_CACHE, CMD_BLOCK_STATUS] {
            assert_eq!(asked(command, 32, 512), Err(EINVAL), "{command}");
        }
        assert_eq!(run(CMD_WRITE, 32, 0, 512), Err(EINVAL), "not with compact requests");
        assert_eq!(asked(CMD_TRIM, 0, 1 << 40), Err(EINVAL), "beyond the end");
        let behind = |negotiated, command, flags, len_bytes| {
            payload_behind(&Request { flags, command, cookie: 1, offset: 0, len_bytes }, negotiated)
        };
        assert_eq!(behind(extended, CMD_READ, 32, 512), Some(512));
        assert_eq!(behind(extended, CMD_WRITE, 0, 512), Some(512));
        assert_eq!(behind(extended, CMD_WRITE, 32, (32 << 20) + 1), None);
        assert_eq!(behind(extended, CMD_TRIM, 0, u64::MAX), Some(0));
        assert_eq!(behind(Transmission::default(), CMD_WRITE, 0, 1 << 31), Some(1 << 31));
        assert_eq!(behind(Transmission::default(), CMD_READ, 32, 512), Some(0));
    }

    const ZEROES_NO_HOLE: Checked = Checked::WriteZeroes { fua: false, no_hole: true };

    #[test]
    fn ranges_up_to_the_last_byte_pass() {
        assert_eq!(run(CMD_READ, 0, (1 << 20) - 512, 512), Ok(Checked::Read { len_bytes: 512 }));
        assert_eq!(run(CMD_WRITE, 1, 0, 1 << 20), Ok(Checked::Write { len_bytes: 1 << 20, fua: true }));
        assert_eq!(run(CMD_WRITE_ZEROES, 2, 0, 1 << 20), Ok(ZEROES_NO_HOLE));
        assert_eq!(run(CMD_TRIM, 1, 512, 512), Ok(Checked::Trim { fua: true }));
        assert_eq!(run(CMD_FLUSH, 1, 0, 0), Ok(Checked::Flush));
    }

    #[test]
    fn beyond_the_end_is_enospc_for_writes_and_einval_for_the_rest() {
        for (offset, len) in
            [(1 << 20, 512), ((1 << 20) - 512, 1024), (u64::MAX - 511, 512), (u64::MAX - 511, 1024)]
        {
            assert_eq!(run(CMD_WRITE, 0, offset, len), Err(ENOSPC), "{offset} {len}");
            assert_eq!(run(CMD_WRITE_ZEROES, 0, offset, len), Err(ENOSPC));
            assert_eq!(run(CMD_READ, 0, offset, len), Err(EINVAL));
            assert_eq!(run(CMD_TRIM, 0, offset, len), Err(EINVAL));
        }
    }

    #[test]
    fn unaligned_empty_oversized_and_unknown_are_einval() {
        for command in [CMD_READ, CMD_WRITE, CMD_TRIM, CMD_WRITE_ZEROES] {
            for (offset, len) in [(1, 512), (0, 511), (0, 0)] {
                assert_eq!(run(command, 0, offset, len), Err(EINVAL), "{command} {offset} {len}");
            }
            assert_eq!(run(command, 1 << 5, 0, 512), Err(EINVAL), "unknown flag");
        }
        assert_eq!(run(CMD_READ, 0, 0, (32 << 20) + 512), Err(EINVAL));
        assert_eq!(run(CMD_WRITE, 0, 0, (32 << 20) + 512), Err(EINVAL));
        assert_eq!(run(CMD_READ, COMMAND_NO_HOLE, 0, 512), Err(EINVAL));
        assert_eq!(run(CMD_FLUSH, 0, 0, 512), Err(EINVAL));
        assert_eq!(run(8, 0, 0, 512), Err(EINVAL));
        assert_eq!(run(999, 0, 0, 512), Err(EINVAL));
    }

    #[test]
    fn a_read_only_device_refuses_changes_with_eperm() {
        for command in [CMD_WRITE, CMD_TRIM, CMD_WRITE_ZEROES] {
            let request = Request { flags: 0, command, cookie: 1, offset: 0, len_bytes: 512 };
            assert_eq!(check(&request, &info(true), Transmission::default()), Err(EPERM));
        }
        let request = Request { flags: 0, command: CMD_FLUSH, cookie: 1, offset: 0, len_bytes: 0 };
        assert_eq!(check(&request, &info(true), Transmission::default()), Ok(Checked::Flush));
    }

    proptest::proptest! {
        #[test]
        fn whatever_passes_is_inside_and_aligned(
            command in 0u16..9, flags in 0u16..64, structured: bool,
            offset in proptest::num::u64::ANY, len_bytes in proptest::num::u64::ANY, near in 0u64..4096,
        ) {
            let replies = if structured { Replies::Extended } else { Replies::Simple };
            let negotiated = Transmission { replies, allocation: structured };
            for offset in [offset, (1 << 20) - 2048 + near] {
                let request = Request { flags, command, cookie: 0, offset, len_bytes };
                match check(&request, &info(false), negotiated) {
                    Ok(Checked::Flush | Checked::Disconnect) | Err(_) => {}
                    Ok(_) => {
                        proptest::prop_assert!(offset + len_bytes <= 1 << 20);
                        proptest::prop_assert_eq!(offset % 512 + len_bytes % 512, 0);
                    }
                }
            }
        }
    }
}
