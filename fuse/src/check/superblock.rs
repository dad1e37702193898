//! Pass 0: the superblock. A damaged one is put together again: all it says but label, creation time and name key can
//! be found out from the rest of the volume, and the passes do.

use layout::addr::{INO_LIMIT, SUPERBLOCK_PAGE};
use layout::error::Error;
use layout::inode::{Ino, Kind, ROOT_INO, Slot, WINDOW_LIMITS, slot};
use layout::page_store::{PageBytes, Timespec};
use layout::superblock::{
    KNOWN_INCOMPAT, KNOWN_RO_COMPAT, RawSuperblock, STACK_DEPTH_LIMIT, SUPERBLOCK_MAGIC, Superblock,
};
use zerocopy::transmute_ref;

use super::finding::{Code, Finding};
use super::pool::{Pool, Run, Stop};

/// Reads the superblock; with it what is wrong with it.
///
/// # Errors
/// [`Stop::Unusable`] where there is no VexFS file system, or one that this version does not know.
pub fn read(pool: &mut Pool) -> Run<(Superblock, Option<Finding>)> {
    let page = pool.read(SUPERBLOCK_PAGE)?;
    let uuid = pool.device().info().uuid.into_bytes();
    let (bytes, why) = match page {
        Ok(bytes) => match Superblock::decode(&bytes, true) {
            Ok(found) if found.ro_compat & !KNOWN_RO_COMPAT == 0 => return Ok((found, None)),
            Ok(_) => return Err(unknown("features that this version can only read")),
            Err(Error::Invalid(what)) => return Err(unknown(what)),
            Err(error) => (**bytes, Finding::new(Code::SbDamaged).of(&error)),
        },
        Err(why) => ([0; layout::addr::PAGE], Finding::new(Code::SbDamaged).detail(why.0)),
    };
    if !has_root(pool)? {
        return Err(Stop::Unusable(
            "neither a superblock nor a root directory: no VexFS file system is here, or nothing of it is left; \
             restore a backup (vexctl receive) or a snapshot"
                .into(),
        ));
    }
    Ok((salvage(&bytes, uuid), Some(why.page(SUPERBLOCK_PAGE.0))))
}

fn unknown(what: &str) -> Stop {
    Stop::Unusable(format!("this version of fsck.vexfs cannot check the volume: {what}"))
}

/// Whether the root's slot holds a directory.
fn has_root(pool: &mut Pool) -> Run<bool> {
    let Some(page) = ROOT_INO.page() else { return Ok(false) };
    let Ok(bytes) = pool.read(page)? else { return Ok(false) };
    let decoded = slot(&bytes, ROOT_INO).decode(page, ROOT_INO);
    Ok(matches!(decoded, Ok(Slot::Used(inode)) if inode.kind == Kind::Dir))
}

/// What of a damaged superblock can be believed.
fn salvage(page: &PageBytes, uuid: [u8; 16]) -> Superblock {
    let raw: &RawSuperblock = transmute_ref!(page);
    let is_ours = raw.magic == SUPERBLOCK_MAGIC;
    let label = if std::str::from_utf8(&raw.label).is_ok() { raw.label } else { [0; 32] };
    let below = |value: u64, limit: u64, otherwise: u64| if value < limit { value } else { otherwise };
    let next_ino = raw.next_ino.get().clamp(ROOT_INO.0 + 1, INO_LIMIT);
    let mut next_window = raw.next_window.map(|n| n.get());
    for (next, limit) in next_window.iter_mut().zip(WINDOW_LIMITS) {
        *next = (*next).min(limit);
    }
    Superblock {
        uuid,
        label,
        compat: if is_ours { raw.compat.get() } else { 0 },
        ro_compat: raw.ro_compat.get() & KNOWN_RO_COMPAT,
        incompat: raw.incompat.get() & KNOWN_INCOMPAT,
        epoch: below(raw.epoch.get(), 1 << 62, 0),
        session: raw.session.get(),
        clean: false,
        root: Ino(ROOT_INO.0),
        next_ino,
        next_window,
        stack_depth: raw.stack_depth.map(|d| below(d.get(), STACK_DEPTH_LIMIT, 0)),
        orphan_head: below(raw.orphan_head.get(), next_ino, 0),
        inodes_used: below(raw.inodes_used.get(), next_ino, 1),
        hash_key: raw.hash_key,
        created_secs: raw.created_secs.get(),
        mount_count: raw.mount_count.get(),
        commit_time: Timespec { secs: raw.commit_secs.get().cast_signed(), nanos: 0 },
    }
}
