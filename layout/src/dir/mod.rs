//! The pages of a directory's B+-tree (FORMAT.md section 5.3), without the store around them:
//! [`page`] has the header, [`leaf`] the entries, [`branch`] the internal pages.
//!
//! The functions here work on one page's bytes. Each access is checked, so that a hostile page gives
//! [`crate::error::Error::Corrupt`] and never a panic.

pub mod branch;
pub mod leaf;
pub mod page;
