//! The command line.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

use crate::nbd::Nbd;

/// Serves VexFS images as block devices
///
/// An image (a file or a block device) holds a log-structured store with one volume: raw, a plain
/// disk, or VexFS, the sparse device of a VexFS file system. mkfs.vexfs makes images.
#[derive(Parser, Debug)]
#[command(name = "vexfs-blockd", version)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    Serve(Serve),
}

/// Serves an image over NBD, on unix sockets or TCP, in the foreground
///
/// Prints one line to standard output when clients can connect; everything else is logged to
/// standard error. A write is acknowledged when it survives the daemon's death, and it survives a
/// power cut after a flush or with FUA. Clients that reconnect (vexfs-fuse does) lose nothing when
/// the daemon is stopped, or killed, and started again on the same image and socket.
#[derive(ClapArgs, Debug)]
#[command(after_long_help = AFTER_HELP)]
pub struct Serve {
    /// The image, made by mkfs.vexfs
    ///
    /// It is locked: only one process can have it open.
    pub image: PathBuf,

    #[command(flatten)]
    pub nbd: Nbd,

    /// How the image is read and written
    #[arg(long, value_enum, value_name = "ENGINE", default_value_t = Io::Auto)]
    pub io: Io,

    /// Take no writes, and change nothing in the image
    #[arg(long)]
    pub read_only: bool,

    /// What to log: error, warn, info, debug, trace, or a filter such as blockd::nbd=debug
    #[arg(long, value_name = "FILTER", default_value = "info")]
    pub log: String,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
pub enum Io {
    /// io_uring where the kernel permits it, else sync
    Auto,
    /// io_uring, or an error
    Uring,
    /// pread(2) and pwrite(2)
    Sync,
}

const AFTER_HELP: &str = "\
Signals:
  SIGTERM, SIGINT   Take no more requests, finish and answer those in flight, write a checkpoint,
                    remove the socket and exit with status 0. A second signal exits at once; then
                    the next start replays the log.

Exit status:
  0   Stopped by a signal, everything written.
  1   An error; standard error says what and what to do.
  2   A wrong command line.

Examples:
  vexfs-blockd serve disk.img --nbd unix:/run/disk.sock
  nbdinfo 'nbd+unix:///?socket=/run/disk.sock'
  vexfs-fuse 'nbd+unix:///?socket=/run/disk.sock' /mnt
  vexfs-blockd serve disk.img --export disk --nbd tcp:0.0.0.0 --tls-cert server.pem \\
      --tls-key server-key.pem --tls-client-ca clients.pem";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }
}
