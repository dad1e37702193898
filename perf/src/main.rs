//! Interleaved side-by-side measurements.
fn main() {}
