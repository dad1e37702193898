//! `vexctl resize`: an image that nothing has open gets another size.

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use blockd::device::VolumeKind;
use blockd::store::resize::Sizes;
use blockd::volume::resize::{ResizeOptions, resize};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use serde_json::json;

use crate::cli::ResizeArgs;
use crate::output::print;

/// Resizes.
///
/// # Errors
/// The size is not possible, or the image cannot be read or written.
pub fn run(args: &ResizeArgs) -> Result<ExitCode> {
    let options = ResizeOptions { image_bytes: args.size, volume_bytes: args.volume_size, force: args.force };
    let bar = std::io::stderr().is_terminal().then(|| {
        let bar = ProgressBar::new(0);
        // The template is fixed; if indicatif refused it, its default style would show.
        if let Ok(style) =
            ProgressStyle::with_template("moving [{bar:40}] {pos}/{len} pages  {per_sec}  {eta} left")
        {
            bar.set_style(style.progress_chars("=> "));
        }
        bar
    });
    let resized = resize(&args.image, &options, &mut |p| {
        if let Some(bar) = &bar {
            bar.set_length(p.total_pages);
            bar.set_position(p.moved_pages);
        }
    });
    if let Some(bar) = &bar {
        bar.finish_and_clear();
    }
    let resized =
        resized.map_err(|e| anyhow!("{}: {}", args.image.display(), blockd::report::one_line(&e)))?;
    if args.json {
        let sizes = |s: Sizes| json!({"image_bytes": s.backing_bytes, "volume_bytes": s.raw_bytes});
        print(&format!(
            "{}\n",
            json!({"image": args.image, "old": sizes(resized.old), "new": sizes(resized.new)})
        ))?;
        return Ok(ExitCode::SUCCESS);
    }
    let sizes = |s: Sizes| match resized.kind {
        VolumeKind::VexFs => HumanBytes(s.backing_bytes).to_string(),
        VolumeKind::Raw => format!("{} (volume: {})", HumanBytes(s.backing_bytes), HumanBytes(s.raw_bytes)),
    };
    let text = if resized.old == resized.new {
        format!("has {} already", sizes(resized.new))
    } else {
        format!("{} -> {}", sizes(resized.old), sizes(resized.new))
    };
    print(&format!("{}: {text}\n", args.image.display()))?;
    Ok(ExitCode::SUCCESS)
}
