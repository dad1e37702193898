//! The command line, and its help, which is the manual.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Parser, Subcommand};

use crate::schema::{Element, Metric};
use crate::snapshot::cli::{ReceiveArgs, SendArgs, SnapshotCommand};

const AFTER_HELP: &str = "\
EXIT STATUS
  0    done
  1    failed; the message on stderr names cause and remedy
  2    the command line is wrong
  3    ingest finished, but left files out that it could not read or would not overwrite
  4    scrub found damage that remains
  130  interrupted; what was stored until then is whole

EXAMPLES
  vexctl ingest /usr/share/doc --into /mnt/vex/doc
  vexctl search /mnt/vex/doc --text \"how do I rotate log files\"
  vexctl collection create /mnt/vex/images --dim 512 --metric l2 --element f16
  vexctl put /mnt/vex/images/cat.png --vector-file cat.npy
  vexctl search /mnt/vex/images --vector-file dog.npy -k 5 --json
  vexctl status
  vexctl stats --watch 5
  vexctl stale /mnt/vex/doc
  vexctl scrub docs.img
  vexctl snapshot create docs.img monday
  vexctl send docs.img --from monday --to tuesday | ssh host vexctl receive copy.img
  vexctl scrub --export docs --rate 50M
  vexctl compact docs
  vexctl resize docs.img --size 20G

resize, and scrub of an image, want that nothing else has it open. status, scrub without IMAGE, checkpoint, tune, compact, drain and stats without DIR ask
daemons by their control sockets: /run/vexfs/NAME.sock (for users other than root $XDG_RUNTIME_DIR/vexfs/NAME.sock; $VEXFS_RUN_DIR names
another directory). All else uses the session files DIR/.vexfs/{schema,put,search,stats,stale} of a mounted volume, with the rights of the user
who runs it.";

/// Vectors and search on mounted VexFS volumes; the daemons that serve them; care for images.
#[derive(Parser)]
#[command(name = "vexctl", version, max_term_width = 110, after_help = AFTER_HELP)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Make and show collections: directories whose files have vectors.
    #[command(subcommand)]
    Collection(CollectionCommand),
    /// Give a file below a collection its vectors.
    Put(PutArgs),
    /// Find the passages nearest to a text or a vector.
    Search(SearchArgs),
    /// Show numbers about a collection, or what a daemon did.
    ///
    /// With DIR: the numbers of the collection there. Without: what the clients of a daemon asked of it and what it did
    /// for them, since its start, or with --watch over each interval.
    Stats(StatsArgs),
    /// Name the files of a collection that changed after their vectors were made.
    ///
    /// Search still finds them, and marks them stale. Give them new vectors (vexctl put, vexctl ingest).
    Stale(StaleArgs),
    /// Show how the daemons stand: volumes, space, where they listen.
    ///
    /// Without --daemon: all daemons of this user.
    Status(StatusArgs),
    /// Have a daemon write a checkpoint, so that its next start has nothing to replay.
    Checkpoint(CheckpointArgs),
    /// Have a daemon give dead space back now, rather than when space is needed.
    ///
    /// What is alive in segments that have dead space is copied together, and the segments are free afterwards: discarded in the
    /// image, if the daemon discards. Dead space costs nothing while the image has room, since the cleaner makes room when it is
    /// needed; compact before a time when writes must be fast, before an image is copied, or after much was deleted. It goes on beside
    /// all other work, at the rate of the cleaner (vexctl tune cleaner_mib_per_s=N), and leaves alone what becomes dead meanwhile.
    /// Ctrl-C stops it; what was moved until then stays where it is. What snapshots hold is alive.
    Compact(CompactArgs),
    /// Change how a daemon keeps house, while it serves; without KEY=VALUE, show it.
    ///
    /// Keys: cleaner_mib_per_s (what the cleaner moves at most while nobody waits for space; 0 for no limit), checkpoint_mib (log
    /// between checkpoints: bounds what a start replays; 0 chooses), free_segments (what the cleaner aims for; 0 chooses), dead_percent_max (the
    /// cleaner goes on while more than this part of the filled space is dead; 100 for never). A change holds until the daemon ends.
    Tune(TuneArgs),
    /// Have a daemon take no more clients, finish what is under way, write everything and end.
    ///
    /// Waits for its end.
    Drain(DrainArgs),
    /// Copy a tree of text files into a collection, cut into passages with a vector each.
    ///
    /// Text, Markdown, HTML (its tags are not searched) and whatever else has no NUL bytes is taken; FILE.gz is
    /// stored decompressed under the name FILE, since a passage is a range of the stored bytes. Binary files, files
    /// that are too large, symbolic links and special files are skipped and counted by reason. Mode and mtime are
    /// kept; files belong to the user who runs this.
    ///
    /// Each file is written under a temporary name and appears together with its passages in one commit: a search
    /// never sees the one without the other, and after a crash either all of a file is there or its former
    /// version. Left-over temporary names are removed by the next run.
    ///
    /// Run again, it copies what changed (size and mtime are remembered in the xattr user.vexfs.ingest of each file) and embeds
    /// anew what is stale. A file that was edited in the collection is not overwritten: its passages are made anew from the
    /// edited text. A file that is gone from DIR is reported, and removed with --prune.
    ///
    /// Embedders: the built-in one needs no model and is lexical: hashed words, word pairs and character n-grams in 384
    /// dimensions, weighted by how rare they are. The rarities are counted in a first pass over DIR and kept in
    /// COLLECTION/.vexfs-embedder, so that later runs and searches use the same; --retrain counts them again
    /// (worthwhile when a collection has grown several times over). Or --embed-cmd, for any model.
    Ingest(IngestArgs),
    /// Read an image whole and check every checksum.
    ///
    /// Each bad page is named: its device page, its place in the image, the checksum expected and found, and, on a
    /// VexFS volume, the inode and the bytes of the file. What nothing refers to any more does not count. The image
    /// is only read; what a live session has not committed yet is not looked at. A daemon does it beside everything else.
    Scrub(ScrubArgs),
    /// Snapshots: named states of a volume, kept beside it.
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Write a snapshot, or what changed between two, as a stream to standard output.
    ///
    /// The stream carries its own checksums; vexctl receive verifies it as a whole before it takes it over.
    Send(SendArgs),
    /// Take a stream in from standard input: the image then has the snapshot of the same name.
    ///
    /// The stream must continue the image's last snapshot, and the volume must not have been changed since. If it breaks
    /// off or is damaged, the volume stays as it was. A raw volume gets the size of the snapshot.
    Receive(ReceiveArgs),
    /// Make an image larger or smaller.
    ///
    /// A VexFS volume fills its image. A raw volume has a size of its own: its image needs about a quarter more. An image grows at
    /// once. Before it shrinks, what stands past the new end is moved; a size that does not hold the data is refused. Whatever
    /// breaks a resize off leaves the old size or the new one, with all data: run it again. Snapshots of a raw volume keep their size.
    Resize(ResizeArgs),
}

#[derive(Args)]
pub struct ResizeArgs {
    /// The image or block device; nothing else may have it open.
    pub image: PathBuf,
    /// Bytes of the image; suffixes K, M, G, T are powers of 1024 [default: what the file or device has, or what a raw
    /// volume that grows needs].
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub size: Option<u64>,
    /// Bytes of a raw volume.
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub volume_size: Option<u64>,
    /// Cut a raw volume together with the data in the part cut off, or make an image too small to be filled by its volume.
    #[arg(long)]
    pub force: bool,
    /// Print JSON: {"image","old":{"image_bytes","volume_bytes"},"new":{..}}; volume_bytes is 0 for VexFS.
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct ScrubArgs {
    /// The image or block device, which nothing else may have open for writing; without it, a daemon is asked.
    pub image: Option<PathBuf>,
    #[command(flatten)]
    pub daemon: DaemonArgs,
    /// The daemon's export [default: the only one].
    #[arg(long, short = 'x', value_name = "NAME", conflicts_with = "image")]
    pub export: Option<String>,
    /// Write a bad superblock slot anew from its twin (a daemon does it anyway).
    #[arg(long, requires = "image")]
    pub repair: bool,
    /// Most bytes to read a second; suffixes K, M, G are powers of 1024.
    #[arg(long, value_name = "SIZE", value_parser = parse_rate)]
    pub rate: Option<u64>,
    /// Print JSON: {"image","kind","clean","data_pages","meta_pages","bytes_read","bad_count","bad":[{"what","name","snapshot","device_page","segment",
    /// "segment_page","image_byte","crc_expected","crc_found","why"}],"superblock_repaired","stopped"}.
    #[arg(long)]
    pub json: bool,
}

#[derive(Subcommand)]
pub enum CollectionCommand {
    /// Make a directory a collection (and the directory, if it is missing).
    Create(CreateArgs),
    /// Show a collection's schema and embedder.
    Show(ShowArgs),
}

#[derive(Args)]
pub struct CreateArgs {
    /// The directory, on a VexFS mount. A collection cannot lie inside another one.
    pub dir: PathBuf,
    /// Elements of each vector, 1 to 16384.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16384))]
    pub dim: u32,
    /// How distance is computed; smaller is nearer.
    #[arg(long, value_enum, default_value = "cosine")]
    pub metric: Metric,
    /// Type of the stored elements.
    #[arg(long, value_enum, default_value = "f32")]
    pub element: Element,
}

#[derive(Args)]
pub struct ShowArgs {
    /// A directory in the collection.
    pub dir: PathBuf,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct StatsArgs {
    /// A directory in a collection; a daemon is asked if it is left out.
    pub dir: Option<PathBuf>,
    /// Print JSON, as the file system or the daemon gives it.
    #[arg(long)]
    pub json: bool,
    /// Go on, and show what was done in every interval of so many seconds.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1", conflicts_with = "dir",
        value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub watch: Option<u64>,
    #[command(flatten)]
    pub daemon: DaemonArgs,
}

#[derive(Args)]
pub struct StaleArgs {
    /// The collection, or a directory in it.
    pub dir: PathBuf,
    /// Print JSON: {"rows","rows_stale","files_stale","files":[{"path","ino","rows_stale"}],"more"}.
    #[arg(long)]
    pub json: bool,
}

/// Which daemon.
#[derive(Args)]
pub struct DaemonArgs {
    /// The daemon: its name, or the path of its control socket [default: the only one].
    #[arg(long, short = 'd', value_name = "NAME|PATH")]
    pub daemon: Option<String>,
}

#[derive(Args)]
pub struct StatusArgs {
    #[command(flatten)]
    pub daemon: DaemonArgs,
    /// Print JSON, an object for each daemon.
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct CheckpointArgs {
    /// Only this export.
    pub export: Option<String>,
    #[command(flatten)]
    pub daemon: DaemonArgs,
}

#[derive(Args)]
pub struct CompactArgs {
    /// The export [default: the only one].
    #[arg(value_name = "NAME")]
    pub export: Option<String>,
    #[command(flatten)]
    pub daemon: DaemonArgs,
    /// Print JSON: {"copied_bytes","cleaned_segments","freed_segments","freed_bytes","stopped"}.
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct TuneArgs {
    /// What to change.
    #[arg(value_name = "KEY=VALUE", value_parser = setting)]
    pub set: Vec<(String, u64)>,
    /// Only this export.
    #[arg(long, short = 'e', value_name = "NAME")]
    pub export: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub daemon: DaemonArgs,
}

fn setting(text: &str) -> Result<(String, u64), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE, such as cleaner_mib_per_s=50")?;
    let value = value.parse().map_err(|_| format!("{value:?} is not a whole number"))?;
    Ok((key.to_owned(), value))
}

#[derive(Args)]
pub struct DrainArgs {
    #[command(flatten)]
    pub daemon: DaemonArgs,
}

#[derive(Args)]
#[command(group = ArgGroup::new("vectors").required(true).args(["vector_file", "vector", "rows"]))]
pub struct PutArgs {
    /// The file, on a VexFS mount below a collection.
    pub file: PathBuf,
    #[command(flatten)]
    pub vector: VectorArgs,
    /// Rows with a range each, from a file or - (stdin): [{"vector":[..],"offset":0,"length":10,"tag":0},..]
    #[arg(long, value_name = "FILE.json")]
    pub rows: Option<PathBuf>,
    /// First byte of the passage that the vectors stand for.
    #[arg(long, value_name = "BYTES", default_value_t = 0, conflicts_with = "rows")]
    pub offset: u64,
    /// Bytes of the passage [default: to the end of the file].
    #[arg(long, value_name = "BYTES", conflicts_with = "rows")]
    pub length: Option<u64>,
    /// 64 bits for searches with --tags-any; decimal, or hexadecimal after 0x.
    #[arg(long, value_name = "BITS", default_value = "0", value_parser = parse_mask, conflicts_with = "rows")]
    pub tag: u64,
    /// Add to the file's vectors instead of replacing them.
    #[arg(long)]
    pub append: bool,
    /// Rename the file to NAME (in the same directory) in the same commit, replacing what has that name.
    #[arg(long, value_name = "NAME")]
    pub publish_as: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct VectorArgs {
    /// A .npy array, or raw little-endian elements of the collection's type; - is stdin.
    #[arg(long, value_name = "FILE")]
    pub vector_file: Option<PathBuf>,
    /// One vector as a JSON array.
    #[arg(long, value_name = "[X,..]", allow_hyphen_values = true)]
    pub vector: Option<String>,
}

#[derive(Args)]
#[command(group = ArgGroup::new("query").required(true).args(["vector_file", "vector", "text"]))]
pub struct SearchArgs {
    /// The collection, or a directory in it to search below.
    pub dir: PathBuf,
    /// Search by a text, which the collection's embedder makes a vector. The built-in embedder is lexical: it
    /// finds passages with the same words or parts of words, not the same meaning in other words.
    #[arg(long, allow_hyphen_values = true)]
    pub text: Option<String>,
    #[command(flatten)]
    pub vector: VectorArgs,
    /// Results wanted, 1 to 10000.
    #[arg(short, long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10000))]
    pub k: u32,
    /// Only files below this directory, relative to DIR.
    #[arg(long, value_name = "D")]
    pub subdir: Option<PathBuf>,
    /// Leave passages out whose file changed after its vectors were made.
    #[arg(long)]
    pub fresh_only: bool,
    /// Only rows whose tag has one of these bits; decimal, or hexadecimal after 0x.
    #[arg(long, value_name = "MASK", default_value = "0", value_parser = parse_mask)]
    pub tags_any: u64,
    /// Print whole passages instead of their best lines.
    #[arg(long)]
    pub full: bool,
    /// Print JSON: {"epoch","rows_scanned","results":[{"rank","path","line","offset","length","distance","row","ino","tag","stale","text"}]}.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub embedder: EmbedderArgs,
}

#[derive(Args)]
pub struct EmbedderArgs {
    /// The embedder: a command run by `sh -c` and kept running. Each line it reads is one JSON string; for each it writes, in
    /// order, one line with a JSON array of numbers (and flushes). Without it the built-in lexical embedder is used.
    #[arg(long, value_name = "CMD")]
    pub embed_cmd: Option<String>,
    /// The name by which the collection remembers the command [default: CMD itself]. Name the model, so that the command may be
    /// moved or change its options.
    #[arg(long, value_name = "NAME", requires = "embed_cmd")]
    pub embed_name: Option<String>,
    /// Longest wait for one answer of the command, in seconds.
    #[arg(long, value_name = "S", default_value_t = 300, requires = "embed_cmd")]
    pub embed_timeout: u64,
}

#[derive(Args)]
pub struct IngestArgs {
    /// The tree to copy.
    pub dir: PathBuf,
    /// The collection, on a VexFS mount; it is made if it is missing (cosine, f32).
    #[arg(long, value_name = "MOUNT/COLLECTION")]
    pub into: PathBuf,
    /// Files worked on at a time [default: number of CPUs].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub jobs: Option<u16>,
    /// Take only files whose path below DIR, or whose name if GLOB has no slash, matches; may be repeated.
    #[arg(long, value_name = "GLOB")]
    pub include: Vec<String>,
    /// Skip files (after decompression) larger than this; suffixes K, M, G are powers of 1024.
    #[arg(long, value_name = "SIZE", default_value = "8M", value_parser = parse_size)]
    pub max_file_size: u64,
    /// Remove from the collection what an earlier run copied from DIR and is not there any more.
    #[arg(long)]
    pub prune: bool,
    /// Overwrite files of the collection that were edited there, or came from elsewhere.
    #[arg(long)]
    pub overwrite: bool,
    /// Set the embedder up anew, from all ingested files, and embed them again if that changed it.
    #[arg(long)]
    pub retrain: bool,
    /// Print the summary as JSON.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub embedder: EmbedderArgs,
}

fn parse_mask(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| "a number of 64 bits is wanted, decimal or hexadecimal after 0x".to_owned())
}

fn parse_size(text: &str) -> Result<u64, String> {
    // Larger files would not fit the memory of every worker anyway.
    parse_bytes(text)
        .and_then(|n| if n <= 1 << 30 { Ok(n) } else { Err("at most 1G is possible".to_owned()) })
}

fn parse_rate(text: &str) -> Result<u64, String> {
    parse_bytes(text).and_then(|n| if n > 0 { Ok(n) } else { Err("nothing would ever be read".to_owned()) })
}

pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
        Some(b'T' | b't') => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| "a number is wanted, with K, M, G or T after it if you like".to_owned())?;
    number.checked_shl(shift).filter(|n| n >> shift == number).ok_or("that is beyond 64 bits".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_and_masks() {
        assert_eq!(parse_size("8M"), Ok(8 << 20));
        assert_eq!(parse_size("17"), Ok(17));
        assert!(
            parse_size("").is_err()
                && parse_size("2G").is_err()
                && parse_size("99999999999999999999K").is_err()
        );
        assert_eq!(parse_mask("0xff"), Ok(255));
        assert!(parse_mask("-1").is_err());
    }

    #[test]
    fn a_search_needs_exactly_one_query() {
        assert!(Cli::try_parse_from(["vexctl", "search", "d"]).is_err());
        assert!(Cli::try_parse_from(["vexctl", "search", "d", "--text", "a", "--vector", "[1]"]).is_err());
        assert!(Cli::try_parse_from(["vexctl", "search", "d", "--vector", "[-1]", "-k", "3"]).is_ok());
    }
}
