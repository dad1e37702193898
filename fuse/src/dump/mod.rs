//! Shows the structures of a volume by address: what vexfs-dump does. Nothing is changed, and nothing is believed: what
//! does not decode is shown with the reason and its first bytes.
//!
//! [`node`]: what is shown, as text or JSON. [`volume`]: superblock, status, inodes, paths, allocation. [`directory`]: trees.
//! [`page`]: any page, by what its address says. [`store`]: the store below, read from the image itself.

mod directory;
mod node;
mod page;
pub mod store;
mod volume;

pub use node::Node;
pub use volume::{DumpError, Target, Volume};
