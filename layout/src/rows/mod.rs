//! Rows as they stand in a collection's rows file; what is done with them is in [`crate::fs`].

mod header;

pub use header::{RawRow, Row, headers, headers_mut};
