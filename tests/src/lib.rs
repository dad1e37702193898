//! Helpers for the end-to-end tests, which drive the real programs as a user would.
//!
//! - [`programs`]: where our programs and the system's tools are
//! - [`process`]: processes that end with the test
//! - [`stage`]: images, daemons, mounts
//! - [`nbd`]: a client of the daemon
//! - [`tree`]: comparing trees of files
//! - [`load`]: load whose effect can be checked after a crash
//! - [`wait`], [`settings`]

pub mod load;
pub mod nbd;
pub mod process;
pub mod programs;
pub mod settings;
pub mod stage;
pub mod tree;
pub mod wait;
