//! `vexfs-blockd check-config`.

use std::io::Write;

use anyhow::{Context, Result};

use crate::args::CheckConfig;
use crate::settings::{Control, Settings};
use crate::{config, nbd};

/// Checks a file and says what it would serve.
///
/// # Errors
/// It cannot be read or is wrong.
pub fn run(args: &CheckConfig) -> Result<()> {
    let file = config::read(&args.file)?;
    let wrong = || format!("the configuration {} is wrong", args.file.display());
    let settings = Settings::from_file(file).with_context(wrong)?;
    // Reads certificates and keys.
    settings.listen.iter().try_for_each(|listen| nbd::security(listen).map(drop)).with_context(wrong)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{} is good; the daemon {} would", args.file.display(), settings.name)?;
    for export in &settings.exports {
        let (image, name) = (export.image.display(), &export.name);
        match &export.snapshot {
            Some(snapshot) => {
                writeln!(out, "  serve snapshot {snapshot:?} of {image} as {name:?}, read-only")?
            }
            None if export.read_only => writeln!(out, "  serve {image} as {name:?}, read-only")?,
            None => writeln!(
                out,
                "  serve {image} as {name:?}, and its snapshots as {:?}",
                format!("{name}@SNAPSHOT")
            )?,
        }
    }
    for listen in &settings.listen {
        let tls = if listen.tls_cert.is_some() { ", with TLS" } else { "" };
        writeln!(out, "  listen at {}{tls}", listen.address)?;
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
