//! The layout of a VexFS volume and the file system logic over it.
//!
//! `FORMAT.md` beside this crate is normative; the code here enforces it by assertion.
//! The crate is `no_std`, forbids `unsafe` and allocates nothing on hot paths, so that the kernel
//! half uses it unchanged. Every byte read from a volume is untrusted.
//!
//! Dependency order, lowest first: [`addr`], [`error`], [`access`] -> the on-disk structs -> [`page_store`] ->
//! the file system logic.
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

#[cfg(any(test, feature = "testing"))]
extern crate std;

pub mod access;
pub mod acl;
pub mod addr;
pub mod command;
mod cycle;
pub mod dir;
pub mod distance;
pub mod error;
pub mod fs;
pub mod inode;
pub mod name;
pub mod page_store;
pub mod rows;
pub mod schema;
pub mod search;
pub mod superblock;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod uapi;
pub mod vector;
pub mod windows;
pub mod xattr;
