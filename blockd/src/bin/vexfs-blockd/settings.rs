//! What the daemon is to do: the configuration file with the flags over it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use blockd::control::listen::Address;
use blockd::control::paths;
use blockd::nbd::server::{Export as NbdExport, Limits};
use blockd::storage::identity::Identity;

use crate::args::{Io, LogFormat, Serve};
use crate::config::{self, Export, File, Listen};
use crate::{logging, nbd};

/// Time for clients at the end, unless it is set.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Everything decided.
#[derive(Debug)]
pub struct Settings {
    pub name: String,
    pub log: String,
    pub log_format: LogFormat,
    pub control: Control,
    pub metrics: Vec<Address>,
    pub drain_timeout: Duration,
    pub connections: usize,
    pub listen: Vec<Listen>,
    pub exports: Vec<Export>,
}

/// The control socket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Control {
    /// None.
    Off,
    /// Where it belongs by default; the daemon serves without it if it cannot be had.
    Default(PathBuf),
    /// Where somebody wants it, or not at all.
    At(PathBuf),
}

impl Settings {
    /// Reads the configuration, if there is one, and puts the flags over it.
    ///
    /// # Errors
    /// It cannot be read or is wrong.
    pub fn new(args: &Serve) -> Result<Settings> {
        let mut file = match &args.config {
            Some(path) => config::read(path)?,
            None => File::default(),
        };
        if let Some(image) = &args.image {
            file.export = vec![Export {
                image: image.clone(),
                name: args.nbd.export.clone().unwrap_or_default(),
                read_only: args.read_only,
                snapshot: args.snapshot.clone(),
                block_size: args.nbd.block_size,
                io: args.io.unwrap_or(Io::Auto),
                cache: args.cache.unwrap_or_default(),
                checkpoint_mib: None,
                map_mib: None,
                discard: false,
                cleaner_mib_per_s: None,
            }];
        }
        if !args.nbd.addresses.is_empty() {
            file.listen = args.nbd.listen()?;
        }
        file.name = args.name.clone().or(file.name);
        file.log = args.log.clone().or(file.log);
        file.log_format = args.log_format.or(file.log_format);
        file.control = args.control.clone().or(file.control);
        file.drain_timeout_s = args.drain_timeout.or(file.drain_timeout_s);
        file.connections = args.connections.or(file.connections);
        let mut settings = Self::from_file(file)?;
        if !args.metrics.is_empty() {
            settings.metrics.clone_from(&args.metrics);
        }
        Ok(settings)
    }

    /// As the file alone says.
    ///
    /// # Errors
    /// Its parts do not fit together.
    pub fn from_file(mut file: File) -> Result<Settings> {
        for export in &mut file.export {
            // What the daemon says of it must mean the same to others, who have another working directory.
            export.image = std::path::absolute(&export.image).context("image = \"\" is no path")?;
        }
        file.listen.iter().try_for_each(nbd::check)?;
        let Some(first) = file.export.first() else {
            bail!("nothing to serve: name an image, or put an [[export]] into the configuration");
        };
        for (i, export) in file.export.iter().enumerate() {
            let earlier = &file.export[..i];
            ensure!(
                export.name.len() <= blockd::nbd::proto::STRING_BYTES_MAX,
                "the name of the export of {} is too long: it has at most 4096 bytes",
                export.image.display()
            );
            if let Some(bytes) = export.block_size {
                ensure!(
                    NbdExport::BLOCK_BYTES.contains(&bytes) && bytes.is_power_of_two(),
                    "a block_size of {bytes} bytes for {} is none; write a power of two up to {}",
                    export.image.display(),
                    NbdExport::BLOCK_BYTES.end()
                );
            }
            ensure!(
                earlier.iter().all(|other| other.name != export.name),
                "two exports are called {:?}; give each a name of its own",
                export.name
            );
            ensure!(
                earlier.iter().all(|other| !is_same(&other.image, &export.image)),
                "{} is exported twice; an image can be opened once",
                export.image.display()
            );
        }
        let name = file.name.unwrap_or_else(|| paths::name_of_image(&first.image));
        paths::check_name(&name).map_err(anyhow::Error::msg)?;
        let control = match file.control.as_deref() {
            None => match paths::directory() {
                Some(directory) => Control::Default(paths::socket(&directory, &name)),
                None => Control::Off,
            },
            Some("none") => Control::Off,
            Some(text) => match text.parse() {
                Ok(Address::Unix(path)) => Control::At(path),
                _ => bail!("control = {text:?}: write \"none\" or \"unix:PATH\""),
            },
        };
        let metrics = file.metrics.iter().map(|text| {
            text.parse().map_err(anyhow::Error::msg).with_context(|| format!("metrics = {text:?}"))
        });
        let log = file.log.unwrap_or_else(|| "info".into());
        logging::filter(&log)?;
        Ok(Settings {
            name,
            log,
            log_format: file.log_format.unwrap_or(LogFormat::Text),
            control,
            metrics: metrics.collect::<Result<_>>()?,
            drain_timeout: file.drain_timeout_s.map_or(DRAIN_TIMEOUT, Duration::from_secs),
            connections: file
                .connections
                .map_or(Limits::default().connections, |n| usize::try_from(n).unwrap_or(usize::MAX)),
            listen: file.listen,
            exports: file.export,
        })
    }
}

/// Two paths lead to one file, as far as that can be told.
fn is_same(one: &Path, other: &Path) -> bool {
    one == other || matches!((Identity::at(one), Identity::at(other)), (Ok(one), Ok(other)) if one == other)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Args, Command};

    fn settings(args: &[&str]) -> Result<Settings> {
        let args = Args::parse_from([&["vexfs-blockd", "serve"], args].concat());
        let Command::Serve(serve) = args.command else { panic!("serve was asked for") };
        Settings::new(&serve)
    }

    #[test]
    fn flags_override_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        let text = "name = \"n\"\nlog = \"warn\"\ncontrol = \"none\"\ndrain_timeout_s = 3\nconnections = 7\n\
                    [[listen]]\naddress = \"unix:/run/a\"\n[[export]]\nimage = \"/a.img\"\nname = \"a\"\n";
        std::fs::write(&path, text).unwrap();
        let config = path.to_str().unwrap();
        let plain = settings(&["--config", config]).unwrap();
        assert_eq!((plain.name.as_str(), plain.log.as_str(), plain.exports.len()), ("n", "warn", 1));
        assert_eq!(plain.connections, 7);
        assert_eq!((plain.control, plain.drain_timeout), (Control::Off, Duration::from_secs(3)));
        let flags =
            ["--config", config, "b.img", "--nbd", "unix:/run/b", "--log", "debug", "--drain-timeout", "4"];
        let more = ["--control", "unix:/c", "--name", "m", "--connections", "9"];
        let over = settings(&[&flags[..], &more].concat()).unwrap();
        assert_eq!(over.connections, 9);
        assert_eq!(settings(&["c.img", "--nbd", "unix:/c"]).unwrap().connections, 128);
        assert_eq!((over.name.as_str(), over.log.as_str()), ("m", "debug"));
        assert_eq!(over.exports[0].image, std::env::current_dir().unwrap().join("b.img"));
        assert_eq!(over.listen[0].address.to_string(), "unix:/run/b");
        assert_eq!((over.control, over.drain_timeout), (Control::At("/c".into()), Duration::from_secs(4)));
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let export =
            |image: &str, name: &str| format!("[[export]]\nimage = \"{image}\"\nname = \"{name}\"\n");
        let listen = "[[listen]]\naddress = \"unix:/s\"\n";
        for (text, word) in [
            (listen.to_owned(), "nothing to serve"),
            (format!("{listen}{}{}", export("a", "x"), export("b", "x")), "a name of its own"),
            (format!("{listen}{}{}", export("a", "x"), export("a", "y")), "exported twice"),
            (format!("name = \"../x\"\n{listen}{}", export("a", "x")), "daemon's name"),
            (format!("control = \"tcp:127.0.0.1:1\"\n{listen}{}", export("a", "x")), "unix:PATH"),
            (format!("log = \"foo=bar=baz\"\n{listen}{}", export("a", "x")), "is no filter"),
            (format!("{listen}{}block_size = 777\n", export("a", "x")), "power of two"),
            (format!("{listen}{}block_size = 131072\n", export("a", "x")), "power of two"),
            (format!("{listen}{}", export("", "x")), "no path"),
            (
                format!("{listen}{}{}", export("/dev/null", "x"), export("/dev/../dev/null", "y")),
                "exported twice",
            ),
            (format!("{listen}insecure = true\n{}", export("a", "x")), "protected by its mode"),
            (format!("[[listen]]\naddress = \"tcp:[::1]\"\n{}", export("a", "x")), "insecure = true"),
            (format!("metrics = [\"tcp:0.0.0.0:1\"]\n{listen}{}", export("a", "x")), "other machines"),
        ] {
            let file = toml::from_str(&text).unwrap();
            let message = format!("{:#}", Settings::from_file(file).unwrap_err());
            assert!(message.contains(word), "{text}: {message}");
        }
    }

    #[test]
    fn flags_for_tcp_want_an_address_of_it() {
        let serve = |more: &[&str]| {
            let args =
                Args::try_parse_from([&["vexfs-blockd", "serve", "--config", "/nonexistent"], more].concat());
            args.map(|args| args.command)
        };
        for flags in [&["--insecure"][..], &["--tls-cert", "c", "--tls-key", "k"]] {
            let refused = serve(flags).unwrap_err().to_string();
            assert!(refused.contains("--nbd"), "{refused}");
            assert!(serve(&[&["--nbd", "tcp:[::1]"], flags].concat()).is_ok());
            let unix = settings(&[&["a.img", "--nbd", "unix:/s"], flags].concat()).unwrap_err().to_string();
            assert!(unix.contains("are for TCP"), "{unix}");
            let both = ["a.img", "--nbd", "unix:/s", "--nbd", "tcp:[::1]"];
            let both = settings(&[&both[..], flags].concat()).unwrap().listen;
            let protected = both.iter().map(|one| one.insecure || one.tls_cert.is_some());
            assert_eq!(protected.collect::<Vec<_>>(), [false, true]);
        }
    }
}
