//! The command line.

use std::path::PathBuf;

use blockd::control::listen::Address;
use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use serde::Deserialize;

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
    Serve(Box<Serve>),
    CheckConfig(CheckConfig),
}

/// Serves images over NBD, on unix sockets or TCP, in the foreground
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
    /// It is locked: only one process can have it open. With --config it takes the place of the
    /// exports there.
    #[arg(required_unless_present = "config")]
    pub image: Option<PathBuf>,

    /// A configuration file (TOML); flags override what stands in it
    ///
    /// Its keys are described in vexfs-blockd.md; `vexfs-blockd check-config FILE` checks one.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    #[command(flatten)]
    pub nbd: Nbd,

    /// Take over from the daemon that runs with this name and control socket, without its clients noticing
    ///
    /// It finishes what is under way, writes a checkpoint and hands over its sockets and live connections with their
    /// state. It goes on itself if this one cannot serve. Clients over TLS have to connect again.
    #[arg(long)]
    pub takeover: bool,

    /// How the image is read and written
    #[arg(long, value_enum, value_name = "ENGINE", requires = "image")]
    pub io: Option<Io>,

    /// What stands between the volume and its image
    ///
    /// Every page read is checked against its crc either way. Clients that cache on their own (a file
    /// system, a virtual machine) gain nothing from a second copy here.
    #[arg(long, value_enum, value_name = "WHAT", requires = "image")]
    pub cache: Option<Cache>,

    /// Take no writes, and change nothing in the image
    #[arg(long, requires = "image")]
    pub read_only: bool,

    /// Serve this snapshot of the volume, read-only, and not the live volume
    ///
    /// A daemon that serves the live volume exports its snapshots too, as EXPORT@SNAPSHOT.
    #[arg(long, value_name = "NAME", requires = "image")]
    pub snapshot: Option<String>,

    /// The daemon's name, after which its control socket is called [default: that of the image]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// The control socket, for vexctl: unix:PATH or none [default: /run/vexfs/NAME.sock]
    ///
    /// It gets mode 0600, and its directory, if it is missing, 0700. The default's directory is
    /// $VEXFS_RUN_DIR, else /run/vexfs for root, else $XDG_RUNTIME_DIR/vexfs.
    #[arg(long, value_name = "unix:PATH|none")]
    pub control: Option<String>,

    /// Serve metrics for Prometheus here, at /metrics: unix:PATH or tcp:ADDRESS:PORT
    ///
    /// Only loopback addresses are taken. May be repeated.
    #[arg(long, value_name = "ADDRESS", value_parser = str::parse::<Address>)]
    pub metrics: Vec<Address>,

    /// At the end: time for clients to take their replies, in seconds; then they are cut [default: 10]
    #[arg(long, value_name = "SECONDS")]
    pub drain_timeout: Option<u64>,

    /// NBD clients served at a time, over all exports; more are refused [default: 128]
    ///
    /// Each has two threads and two descriptors (four with TLS), and may hold 64 MiB of requests in flight.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub connections: Option<u32>,

    /// What to log: error, warn, info, debug, trace, or a filter such as blockd::nbd=debug [default: info]
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,

    /// How to log: lines for people, or an object a line [default: text]
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
}

/// Checks a configuration file, and says what it would serve
///
/// No image is opened and nothing is bound; certificates and keys are read. Exit status 0 if it is good, 1 if not.
#[derive(ClapArgs, Debug)]
pub struct CheckConfig {
    /// The file
    pub file: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize, Default, Debug)]
#[serde(rename_all = "lowercase")]
pub enum Io {
    /// io_uring where the kernel permits it and the image gains by it, else sync
    #[default]
    Auto,
    /// io_uring, or an error
    Uring,
    /// pread(2) and pwrite(2)
    Sync,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize, Default, Debug)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// Nothing (O_DIRECT)
    #[default]
    Direct,
    /// The kernel's page cache: a write is acknowledged when it is there, and durable after a flush
    Writeback,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize, Debug)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people
    Text,
    /// One JSON object a line
    Json,
}

const AFTER_HELP: &str = "\
Signals:
  SIGTERM, SIGINT   Take no more requests, finish and answer those in flight, write a checkpoint,
                    remove the sockets and exit with status 0. A second signal exits at once; then
                    the next start replays the log.
  SIGUSR2           Start this program's file anew, with the same arguments and --takeover.

systemd: the service type is notify (READY, STOPPING, STATUS, WATCHDOG, MAINPID); sockets that it passes are
listened on: those named control and metrics for that, all others for NBD.

Exit status:
  0   Stopped by a signal or by vexctl drain, everything written; or a successor serves.
  1   An error; standard error says what and what to do.
  2   A wrong command line.

Examples:
  vexfs-blockd serve disk.img --nbd unix:/run/disk.sock
  nbdinfo 'nbd+unix:///?socket=/run/disk.sock'
  vexfs-fuse 'nbd+unix:///?socket=/run/disk.sock' /mnt
  vexfs-blockd serve disk.img --export disk --nbd tcp:0.0.0.0 --tls-cert server.pem \\
      --tls-key server-key.pem --tls-client-ca clients.pem
  vexctl status";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }

    #[test]
    fn an_image_and_a_socket_or_a_configuration_are_needed() {
        let parse = |args: &[&str]| Args::try_parse_from([&["vexfs-blockd", "serve"], args].concat());
        assert!(parse(&["--config", "x"]).is_ok());
        assert!(parse(&["image", "--nbd", "unix:/x"]).is_ok());
        for bad in [&["image"][..], &["--nbd", "unix:/x"], &[], &["--config", "x", "--read-only"]] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
