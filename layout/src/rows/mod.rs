//! Rows as they stand in a collection's rows file, and as they travel; what is done with them is in
//! [`crate::fs`].

mod header;
pub mod set;

pub use header::{RawRow, Row, headers, headers_mut};
