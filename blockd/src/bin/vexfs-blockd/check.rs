//! `vexfs-blockd check-config`.

use std::io::Write;

use anyhow::{Context, Result};

use crate::args::CheckConfig;
use crate::config;
use crate::settings::{Control, Settings};

/// Checks a file and says what it would serve.
///
/// # Errors
/// It cannot be read or is wrong.
pub fn run(args: &CheckConfig) -> Result<()> {
    let file = config::read(&args.file)?;
    let settings = Settings::from_file(file)
        .with_context(|| format!("the configuration {} is wrong", args.file.display()))?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{} is good; the daemon {} would", args.file.display(), settings.name)?;
    for export in &settings.exports {
        let mode = if export.read_only { ", read-only" } else { "" };
        writeln!(out, "  serve {} as {:?}{mode}", export.image.display(), export.name)?;
    }
    for listen in &settings.listen {
        writeln!(out, "  listen at {}", listen.address)?;
    }
    if settings.listen.is_empty() {
        writeln!(out, "  listen at the sockets that systemd passes, or not at all")?;
    }
    match &settings.control {
        Control::Off => writeln!(out, "  have no control socket")?,
        Control::Default(path) | Control::At(path) => {
            writeln!(out, "  have its control socket at {}", path.display())?;
        }
    }
    for address in &settings.metrics {
        writeln!(out, "  serve metrics at {address}")?;
    }
    Ok(())
}
