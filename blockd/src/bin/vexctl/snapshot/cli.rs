//! The command lines of snapshots and backups.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::cli::parse_bytes;

#[derive(Subcommand)]
pub enum SnapshotCommand {
    /// Take a snapshot.
    ///
    /// On a raw volume it has every write that was acknowledged; on a VexFS volume it is the last commit (`sync FILE`, for any file on it, makes one;
    /// sync without FILE does not reach a FUSE file system).
    /// It costs no space when it is taken; what is overwritten or deleted later stays for as long as a snapshot has it.
    Create(OneSnapshot),
    /// Show the snapshots of a volume, oldest first.
    ///
    /// HELD is data that only snapshots still have, counted where it was replaced: deleting a snapshot gives its share
    /// back unless an older one needs it too. CHANGED is how much of the volume was changed before the next newer snapshot,
    /// or until now.
    List(ListArgs),
    /// Delete a snapshot. Other snapshots are not touched.
    Delete(OneSnapshot),
    /// Make the volume what it was at a snapshot: newer changes, and newer snapshots, are gone for good.
    ///
    /// A raw volume gets the size back that it had then. Refused while a mounter's session lives or clients are connected.
    Rollback(OneSnapshot),
}

#[derive(Args)]
pub struct OneSnapshot {
    /// The image or block device; a daemon that serves it is asked.
    pub image: PathBuf,
    /// The snapshot's name: at most 255 bytes of UTF-8 without `/`, `@` and control characters.
    pub name: String,
}

#[derive(Args)]
pub struct ListArgs {
    /// The image or block device; a daemon that serves it is asked.
    pub image: PathBuf,
    /// Print JSON: {"snapshots":[{"id","name","time_ns","epoch","volume_bytes","held_bytes","changed_bytes","open_count"}],"deleting","held_bytes","stuck":[why],"lost_bytes"}.
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct SendArgs {
    /// The image or block device; a daemon that serves it is asked.
    pub image: PathBuf,
    /// Send what changed since this snapshot; without it, all of the volume.
    #[arg(long, value_name = "SNAPSHOT")]
    pub from: Option<String>,
    /// The snapshot to send.
    #[arg(long, value_name = "SNAPSHOT")]
    pub to: String,
}

#[derive(Args)]
pub struct ReceiveArgs {
    /// The image or block device; nothing else may have it open. A file that does not exist is made for a full stream.
    pub image: PathBuf,
    /// Size of a new image; suffixes K, M, G, T are powers of 1024. Without it: as large as the one that was sent.
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub size: Option<u64>,
}
