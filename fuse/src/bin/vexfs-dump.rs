//! `vexfs-dump SOURCE [WHAT]`: shows the structures of a volume. The work is in [`vexfs_fuse::dump`].

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand};
use layout::addr::PageNo;
use vexfs_fuse::dump::store::Store;
use vexfs_fuse::dump::{DumpError, Node, Target, Volume};
use vexfs_fuse::mount::Source;

const AFTER_HELP: &str = "\
The volume must not be in use: of one that a daemon serves look at a snapshot (--snapshot).
`store` and `segment` read the image file itself, in use or not.

Exit status:
  0   It was shown; what is damaged is shown as damaged.
  1   It could not be; standard error says why.
  2   A wrong command line.

Examples:
  vexfs-dump docs.img                      superblock and status
  vexfs-dump docs.img inode /a/b           an inode by its path, or by its number
  vexfs-dump docs.img dir 2                the tree of the root directory, page by page
  vexfs-dump docs.img page 0x400000000     whatever stands at that page
  vexfs-dump --json docs.img segment 3 | jq '.records[].entries'";

/// Show any structure of a VexFS volume by its address; changes nothing.
#[derive(Parser, Debug)]
#[command(version, max_term_width = 100, after_help = AFTER_HELP)]
struct Args {
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
    /// Look at this snapshot of the volume.
    #[arg(long, global = true, value_name = "NAME")]
    snapshot: Option<String>,
    /// An image file or block device, or nbd+unix:///EXPORT?socket=PATH.
    source: String,
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Subcommand, Debug)]
enum What {
    /// The superblock of the file system.
    Superblock,
    /// What the store says of the volume: session, epoch, pages.
    Status,
    /// An inode, by number or path.
    Inode {
        /// Number, or path from the root with /.
        target: Target,
    },
    /// The tree of a directory with the addresses of its pages.
    Dir {
        /// Number, or path from the root with /.
        target: Target,
    },
    /// What is mapped of a file, directory or rows file, and where.
    Map {
        /// Number, or path from the root with /.
        target: Target,
    },
    /// A page of the device by its number (byte address / 4096), decimal or 0x...
    Page {
        /// Page number.
        #[arg(value_parser = page_number)]
        number: u64,
    },
    /// The store in an image: superblock slots, checkpoint, segments, snapshots.
    Store,
    /// A segment of an image's log: its header and records.
    Segment {
        /// Number, from 0.
        number: u32,
    },
}

fn page_number(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    let number = parsed.map_err(|_| format!("{text:?} is no page number"))?;
    if number < layout::addr::DEVICE_PAGES { Ok(number) } else { Err("a device has 2^50 pages".into()) }
}

fn main() -> ExitCode {
    let args = Args::parse();
    tracing_subscriber::fmt().with_env_filter("off").init();
    match dump(&args) {
        Ok(node) => {
            let text = match args.json {
                true => serde_json::to_string_pretty(&node).unwrap_or_default() + "\n",
                false => node.to_string(),
            };
            // A reader that has seen enough (head) is no failure.
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(error) => {
            let why = blockd::report::one_line(error.as_ref());
            let about = if why.contains(&args.source) { String::new() } else { format!("{}: ", args.source) };
            eprintln!("vexfs-dump: {about}{why}");
            ExitCode::FAILURE
        }
    }
}

fn dump(args: &Args) -> anyhow::Result<Node> {
    let source = Source::parse(&args.source)?;
    if let Some(What::Store | What::Segment { .. }) = args.what {
        let Source::Image(path) = &source else {
            anyhow::bail!("only an image shows its store; give its path");
        };
        let store = Store::open(path)?;
        return Ok(match args.what {
            Some(What::Segment { number }) => store.segment(number)?,
            _ => store.overview()?,
        });
    }
    let opened = source.open(true, args.snapshot.as_deref())?;
    let shown = show(&Volume::new(Arc::clone(&opened.device))?, args.what.as_ref());
    opened.shutdown();
    Ok(shown?)
}

fn show(volume: &Volume, what: Option<&What>) -> Result<Node, DumpError> {
    match what {
        None => Ok(Node::Fields(vec![("superblock", volume.superblock()?), ("status", volume.status()?)])),
        Some(What::Superblock) => volume.superblock(),
        Some(What::Inode { target }) => volume.inode(volume.number(target)?),
        Some(What::Dir { target }) => volume.directory(volume.number(target)?),
        Some(What::Map { target }) => volume.allocation(volume.number(target)?),
        Some(What::Page { number }) => volume.page(PageNo(*number)),
        Some(What::Status | What::Store | What::Segment { .. }) => volume.status(),
    }
}
