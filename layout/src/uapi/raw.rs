//! The structures and constants of `uapi/vexfs.h`, as bindgen gives them.
#![allow(missing_docs, non_camel_case_types, reason = "made from a C header, documented there")]
#![allow(clippy::all, unused_qualifications, reason = "generated code")]

include!(concat!(env!("OUT_DIR"), "/uapi.rs"));
