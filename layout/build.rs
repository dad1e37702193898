//! Makes the Rust side of `uapi/vexfs.h`.
//!
//! `__le16/32/64` become zerocopy's little-endian integers, which have alignment 1: a request can
//! be viewed in place in any byte slice, on any host, without `unsafe` in our code.

use std::path::PathBuf;

use bindgen::callbacks::{DeriveInfo, DeriveTrait, ImplementsTrait, ParseCallbacks};

const HEADER: &str = "uapi/vexfs.h";

#[derive(Debug)]
struct ZerocopyDerives;

impl ParseCallbacks for ZerocopyDerives {
    fn add_derives(&self, _info: &DeriveInfo<'_>) -> Vec<String> {
        ["FromBytes", "IntoBytes", "Immutable", "KnownLayout", "Unaligned"]
            .iter()
            .map(|name| format!("zerocopy::{name}"))
            .collect()
    }

    fn blocklisted_type_implements_trait(&self, name: &str, _derive: DeriveTrait) -> Option<ImplementsTrait> {
        name.starts_with("__le").then_some(ImplementsTrait::Yes)
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed={HEADER}");
    let bindings = bindgen::Builder::default()
        .header(HEADER)
        .use_core()
        .layout_tests(false)
        .generate_comments(true)
        .allowlist_type("vexfs_.*")
        .allowlist_var("VEXFS_.*")
        .blocklist_type("__le(16|32|64)")
        .raw_line("pub type __le32 = zerocopy::little_endian::U32;")
        .raw_line("pub type __le64 = zerocopy::little_endian::U64;")
        .formatter(bindgen::Formatter::None)
        .parse_callbacks(Box::new(ZerocopyDerives))
        .generate()?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?).join("uapi.rs");
    bindings.write_to_file(out)?;
    Ok(())
}
