//! Exact search against an oracle.
