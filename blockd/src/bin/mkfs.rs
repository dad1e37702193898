//! `mkfs.vexfs` (cargo cannot put the dot into a binary's name, so it is built as `mkfs-vexfs`): makes a VexFS volume, or a raw one, in a file or block device.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use blockd::buf::AlignedBuf;
use blockd::device::{Device, IoOp, VolumeKind, blocking};
use blockd::store::create;
use blockd::volume::{CreateOptions, OpenOptions, Volume, boot_id};
use clap::Parser;
use layout::addr::PAGE;
use layout::command::{CMD_CLOSE, CMD_OPEN, COMMAND_MAGIC, Command, CommandReply};
use layout::fs::{FormatParams, format};
use layout::page_store::Timespec;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

const AFTER_HELP: &str = "\
Exit status:
  0   The volume is there and durable.
  1   An error; standard error says what and what to do. Nothing that was refused is changed.
  2   A wrong command line.

Examples:
  mkfs.vexfs docs.img --size 10G        then: vexfs-fuse docs.img /mnt
  mkfs.vexfs disk.img --raw --size 10G  then: vexfs-blockd serve disk.img --nbd unix:/run/disk.sock";

/// Make a VexFS volume (or, with --raw, a plain log-structured disk) in an image file or block device.
#[derive(Parser)]
#[command(name = "mkfs.vexfs", version, after_help = AFTER_HELP)]
struct Args {
    /// Image file or block device; a file that does not exist is made with --size.
    image: PathBuf,
    /// Size: of the image; with --raw, of the volume, to which the image adds what the log needs. As 10G, 512M, ...
    #[arg(long, value_parser = parse_size)]
    size: Option<u64>,
    /// Make a raw volume: a plain disk without a file system.
    #[arg(long)]
    raw: bool,
    /// Name of the volume, at most 32 bytes of UTF-8.
    #[arg(long, short = 'L', default_value = "")]
    label: String,
    /// The volume's uuid, as 01234567-89ab-cdef-0123-456789abcdef; random by default.
    #[arg(long, short = 'U')]
    uuid: Option<uuid::Uuid>,
    /// Bytes of a log segment, a power of two from 64K to 256M; chosen by the image's size by default.
    #[arg(long, value_parser = parse_size)]
    segment_size: Option<u64>,
    /// Write all of an image file once, so that its space is there and syncs are fast from the first write on.
    #[arg(long)]
    prealloc: bool,
    /// Overwrite an image or device that holds something: any VexFS store, a file system, partition table, RAID or LVM member, or
    /// anything but zeros in its first MiB. What is mounted or locked is never overwritten.
    #[arg(short, long)]
    force: bool,
    /// Say nothing when all went well.
    #[arg(short, long)]
    quiet: bool,
}

fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        unit => return Err(format!("unknown unit {unit:?}: use K, M, G or T (powers of 1024)")),
    };
    let number: u64 = digits.parse().map_err(|_| format!("{text:?} is not a size"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text:?} is too large"))
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("mkfs.vexfs: {}", blockd::report::one_line(e.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    let mut label = [0; 32];
    let Some(room) = label.get_mut(..args.label.len()) else {
        bail!("the label has {} bytes, at most 32 are allowed", args.label.len());
    };
    room.copy_from_slice(args.label.as_bytes());
    let uuid = args.uuid.unwrap_or_else(uuid::Uuid::new_v4);
    if args.size.is_none() && !args.image.exists() {
        bail!("{} does not exist: give --size to make it", args.image.display());
    }
    let is_device = {
        use std::os::unix::fs::FileTypeExt;
        args.image.metadata().is_ok_and(|m| m.file_type().is_block_device())
    };
    let (kind, size_bytes, raw_size_bytes) = match (args.raw, args.size) {
        (false, Some(_)) if is_device => bail!("a block device has its size: leave --size out"),
        (false, size) => (VolumeKind::VexFs, size.unwrap_or(0), 0),
        (true, None) => bail!("a raw volume needs --size"),
        (true, Some(0)) => bail!("a raw volume of no bytes is of no use: give a larger --size"),
        (true, Some(size)) => {
            let size = size.checked_next_multiple_of(PAGE as u64).context("--size is too large")?;
            (VolumeKind::Raw, if is_device { 0 } else { create::backing_for_raw(size)? }, size)
        }
    };
    let options = CreateOptions {
        kind,
        uuid,
        size_bytes,
        raw_size_bytes,
        segment_bytes: args.segment_size.unwrap_or(0),
        force: args.force,
    };
    Volume::create(&args.image, &options)?;
    if args.prealloc && !is_device {
        Volume::preallocate(&args.image)?;
    }
    if kind == VolumeKind::VexFs {
        write_file_system(args, uuid, label).context("writing the empty file system")?;
    }
    if !args.quiet {
        let what = if args.raw { "raw volume" } else { "VexFS volume" };
        println!("{}: {what} {uuid}", args.image.display());
    }
    Ok(())
}

/// The pages of an empty file system, committed in a session of its own.
fn write_file_system(args: &Args, uuid: uuid::Uuid, label: [u8; 32]) -> anyhow::Result<()> {
    let volume = Volume::open(&args.image, &OpenOptions::default())?;
    let client = volume.connect();
    let session = command(&volume, client, CMD_OPEN, 0, 1)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let params = FormatParams {
        uuid: uuid.into_bytes(),
        label,
        hash_key: uuid::Uuid::new_v4().into_bytes(),
        now: Timespec { secs: now.as_secs().cast_signed(), nanos: now.subsec_nanos() },
        root_uid: rustix::process::getuid().as_raw(),
        root_gid: rustix::process::getgid().as_raw(),
        root_perm: 0o755,
    };
    let mut outcome = Ok(());
    format(params, &mut |page, bytes| {
        if outcome.is_ok() {
            // The superblock comes last; writing it commits.
            let buf = AlignedBuf::from_slice(bytes);
            let op = IoOp::Write { offset: page.byte(), buf, fua: page == layout::addr::SUPERBLOCK_PAGE };
            outcome = blocking(&*volume, client, op).map(|_| ());
        }
    });
    outcome?;
    command(&volume, client, CMD_CLOSE, session, 2)?;
    volume.shutdown()?;
    Ok(())
}

fn command(
    volume: &Volume,
    client: blockd::device::ClientId,
    op: u32,
    session: u64,
    id: u64,
) -> anyhow::Result<u64> {
    let mut command = Command::new_zeroed();
    command.magic = COMMAND_MAGIC;
    command.op = op.into();
    command.session = session.into();
    command.id = id.into();
    if op == CMD_OPEN {
        command.boot_id = boot_id();
    }
    let offset = layout::addr::COMMAND_PAGE.byte();
    let buf = AlignedBuf::from_slice(command.as_bytes());
    blocking(volume, client, IoOp::Write { offset, buf, fua: false })?;
    let Some(page) = blocking(volume, client, IoOp::Read { offset, buf: AlignedBuf::zeroed(PAGE) })? else {
        bail!("a read gave no buffer");
    };
    let Ok(reply) = CommandReply::read_from_bytes(&page) else { bail!("a reply of the wrong size") };
    if reply.errno.get() != 0 {
        let text = String::from_utf8_lossy(&reply.message);
        bail!("{} (errno {})", text.trim_end_matches('\0'), reply.errno.get());
    }
    Ok(reply.session.get())
}
