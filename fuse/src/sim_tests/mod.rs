//! The simulator of the mount: everything below the FUSE adapter ([`Mounted`](crate::mount::Mounted), the file system
//! logic, the engine) over blockd's real volume, over a simulated disk, against a tree in memory, by seeds.
//!
//! After each crash the mount must show the tree as it was when some epoch was closed, no older than the last fsync
//! that succeeded: names, attributes, xattrs, rows and bytes, all of one commit (FORMAT.md 5.8); and the volume must be
//! sound ([`check`]). When the daemon alone dies, the mount must lose nothing.
//!
//! [`world`]: the mount with its model. [`names`], [`bytes`], [`rows`], [`listing`]: operations on both. [`compare`]: everything
//! compared. [`check`]: a committed volume's structures. [`amid`]: operations while a commit is under way. [`life`]: lives
//! of random steps. [`ace`]: all short sequences, with a crash after each. `VEXFS_SIM_SEED` and so on: see
//! [`blockd::storage::sim::script`].

mod ace;
mod amid;
mod bytes;
mod check;
pub(crate) mod clock;
mod compare;
mod life;
mod listing;
mod names;
mod rows;
mod world;
