//! Whether a file or device is free for a new volume: what mkfs.vexfs refuses to overwrite.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use layout::addr::PAGE;

use crate::buf::AlignedBuf;
use crate::storage::file::{FileStorage, OpenError};
use crate::storage::{IoEngine, Storage};
use crate::store::recover::read_superblock;
use crate::store::{StoreError, format};

/// Signatures stand within the first MiB, or near the end.
const HEAD_BYTES: u64 = 1 << 20;
const TAIL_BYTES: u64 = 64 << 10;

/// Where well-known formats have their signatures (byte offset, bytes), as the sources and documents of each say. The most
/// telling come first: a partition table's two bytes stand in many boot sectors.
const SIGNATURES: [(usize, &[u8], &str); 41] = [
    (0, b"LUKS\xba\xbe", "an encrypted (LUKS) device"),
    (0, b"XFSB", "an xfs file system"),
    (0x438, b"\x53\xef", "an ext file system"),
    (0x1_0040, b"_BHRfS_M", "a btrfs file system"),
    (0x400, b"\x10\x20\xf5\xf2", "an f2fs file system"),
    (0x400, b"\xe2\xe1\xf5\xe0", "an erofs file system"),
    (0x406, b"\x34\x34", "a nilfs2 file system"),
    (0x1018, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca", "a bcache device"),
    (0x1018, b"\xc6\x85\x73\xf6\x66\xce\x90\xa9", "a bcachefs file system"),
    (0x2_0000, b"\x0c\xb1\xba\x00\x00\x00\x00\x00", "a ZFS pool"),
    (0x2_0000, b"\x00\x00\x00\x00\x00\xba\xb1\x0c", "a ZFS pool"),
    (0x200, b"LABELONE", "an LVM physical volume"),
    (0, b"LABELONE", "an LVM physical volume"),
    (0x1000, b"\xfc\x4e\x2b\xa9", "a member of an md array"),
    (0, b"\xfc\x4e\x2b\xa9", "a member of an md array"),
    (4086, b"SWAPSPACE2", "swap space"),
    (4086, b"SWAP-SPACE", "swap space"),
    (0x1_0034, b"ReIsEr", "a reiserfs file system"),
    (0x8000, b"JFS1", "a jfs file system"),
    (0x1_0000, b"\x01\x16\x19\x70", "a gfs2 file system"),
    (0x2000, b"OCFSV2", "an ocfs2 file system"),
    (0, b"hsqs", "a squashfs file system"),
    (0, b"\x45\x3d\xcd\x28", "a cramfs file system"),
    (0x8001, b"CD001", "an ISO 9660 file system"),
    (0x8001, b"BEA01", "a UDF file system"),
    (0x410, b"\x7f\x13", "a minix file system"),
    (0x410, b"\x8f\x13", "a minix file system"),
    (0x400, b"H+", "an HFS+ file system"),
    (0x400, b"HX", "an HFS+ file system"),
    (32, b"NXSB", "an APFS container"),
    (3, b"NTFS    ", "an NTFS file system"),
    (3, b"EXFAT   ", "an exFAT file system"),
    (82, b"FAT32   ", "a FAT file system"),
    (54, b"FAT1", "a FAT file system"),
    (0, b"QFI\xfb", "a qcow2 image"),
    (0, b"KDMV", "a VMDK image"),
    (0, b"vhdxfile", "a VHDX image"),
    (0, b"bluestore block device", "a Ceph OSD"),
    (512, b"EFI PART", "a GPT partition table"),
    (4096, b"EFI PART", "a GPT partition table"),
    (510, b"\x55\xaa", "a partition table or boot sector"),
];

/// Refuses a device that is mounted, or that md, LVM, swap or a mount of a partition holds, and a file that a loop device
/// stands on: whatever the user forces.
pub(super) fn refuse_busy(path: &Path, is_device: bool) -> Result<(), StoreError> {
    let busy = |by: String| Err(StoreError::Busy { path: path.to_owned(), by });
    if is_device {
        // Linux gives a block device to one exclusive opener; a mount is one.
        let opened = OpenOptions::new().read(true).write(true).custom_flags(libc::O_EXCL).open(path);
        return match opened {
            Ok(_) => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                busy("mounted, or in use by md, LVM, device-mapper or swap".into())
            }
            Err(source) => Err(OpenError::Io { action: "open", path: path.to_owned(), source }.into()),
        };
    }
    match loop_device_on(path) {
        Some(device) => busy(format!("what {device} stands on")),
        None => Ok(()),
    }
}

/// The loop device whose backing is this file.
fn loop_device_on(path: &Path) -> Option<String> {
    let path = path.canonicalize().ok()?;
    let devices = std::fs::read_dir("/sys/block").ok()?;
    devices.filter_map(io::Result::ok).find_map(|entry| {
        let name = entry.file_name().to_str()?.to_owned();
        let backing = std::fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
        (Path::new(backing.trim_end()) == path).then(|| format!("/dev/{name}"))
    })
}

/// Refuses a file or device that looks as if something lived in it.
pub(super) fn refuse_used(path: &Path, len_bytes: u64, is_device: bool) -> Result<(), StoreError> {
    if !is_device && len_bytes == 0 {
        return Ok(());
    }
    let in_use = |what: &str| Err(StoreError::InUse { path: path.to_owned(), what: what.to_owned() });
    let storage = FileStorage::open(path, true, IoEngine::Sync)?;
    if read_superblock(&storage).is_ok() {
        return in_use("a VexFS store");
    }
    let whole_bytes = storage.len_bytes() & !(PAGE as u64 - 1);
    let read = |offset: u64, len: u64| {
        let mut bytes = AlignedBuf::zeroed(len as usize);
        let read = storage.read_exact(offset, &mut bytes);
        read.map(|()| bytes).map_err(|source| StoreError::Io {
            action: "looking at what is in the image",
            offset,
            source,
        })
    };
    let head = read(0, whole_bytes.min(HEAD_BYTES))?;
    if head.starts_with(&format::superblock::MAGIC) {
        return in_use("a damaged VexFS store");
    }
    if let Some(what) = signature(&head) {
        return in_use(what);
    }
    if head.iter().any(|&b| b != 0) || (!is_device && !len_bytes.is_multiple_of(PAGE as u64)) {
        return in_use("data that is not zeros");
    }
    // Backup partition tables and members of older md arrays stand at the end.
    let tail = whole_bytes.saturating_sub(TAIL_BYTES);
    if read(tail, whole_bytes - tail)?.iter().any(|&b| b != 0) {
        return in_use("data that is not zeros at its end");
    }
    Ok(())
}

/// What the first bytes of an image are those of.
fn signature(head: &[u8]) -> Option<&'static str> {
    let stands = |at: usize, bytes: &[u8]| head.get(at..at + bytes.len()) == Some(bytes);
    SIGNATURES.iter().find(|(at, bytes, _)| stands(*at, bytes)).map(|(_, _, what)| *what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_signature_is_known_by_its_name_and_lies_in_what_is_read() {
        for (at, bytes, what) in SIGNATURES {
            assert!(((at + bytes.len()) as u64) < HEAD_BYTES && !bytes.iter().all(|b| *b == 0));
            let mut head = vec![0; HEAD_BYTES as usize];
            head[at..at + bytes.len()].copy_from_slice(bytes);
            assert_eq!(signature(&head), Some(what));
        }
        assert_eq!(signature(&[0; 100]), None);
    }

    #[test]
    fn files_with_anything_in_them_are_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let refusal = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            let refused = refuse_used(&path, bytes.len() as u64, false);
            assert!(std::fs::read(&path).unwrap() == bytes);
            refused.err().map(|error| error.to_string())
        };
        let len = 4 << 20;
        assert_eq!(refusal(&vec![0; len]), None);
        assert_eq!(refusal(&[]), None);
        for (at, what) in [((1 << 20) - 1, "not zeros"), (len - 1, "at its end")] {
            let mut bytes = vec![0; len];
            bytes[at] = 1;
            assert!(refusal(&bytes).unwrap().contains(what));
        }
        let mut bytes = vec![0; len];
        bytes[0x438..0x43a].copy_from_slice(b"\x53\xef");
        assert!(refusal(&bytes).unwrap().contains("an ext file system; use -f"));
        assert!(refusal(&vec![0; len + 1]).is_some(), "no image has such a size");
    }
    /// A loop device on a file, gone when dropped.
    struct Loop(String);

    impl Loop {
        fn on(path: &Path) -> Option<Self> {
            let output =
                std::process::Command::new("losetup").args(["--show", "-f"]).arg(path).output().ok()?;
            let name = String::from_utf8(output.stdout).ok()?;
            output.status.success().then(|| Loop(name.trim().to_owned()))
        }
    }

    impl Drop for Loop {
        fn drop(&mut self) {
            let _ = std::process::Command::new("losetup").args(["-d", &self.0]).status();
        }
    }

    #[test]
    fn what_a_loop_device_stands_on_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, vec![0; 4 << 20]).unwrap();
        assert!(refuse_busy(&path, false).is_ok());
        let Some(device) = Loop::on(&path) else {
            eprintln!("skipped: loop devices need root and losetup");
            return;
        };
        let refused = refuse_busy(&path, false).unwrap_err().to_string();
        assert!(refused.contains(&device.0) && refused.contains("-f does not help"), "{refused}");
        assert!(refuse_busy(Path::new(&device.0), true).is_ok(), "nobody has the device itself");
        let _held = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(&device.0).unwrap();
        let refused = refuse_busy(Path::new(&device.0), true).unwrap_err().to_string();
        assert!(refused.contains("mounted"), "{refused}");
    }
}
