//! Where control sockets are.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// The environment variable that names another directory for control sockets.
pub const DIRECTORY_VARIABLE: &str = "VEXFS_RUN_DIR";

/// Longest name of a daemon, in bytes: its socket's path must fit 107 bytes.
const NAME_BYTES_MAX: usize = 64;

/// The directory of control sockets: `$VEXFS_RUN_DIR`, else /run/vexfs for root, else `$XDG_RUNTIME_DIR/vexfs`; `None`
/// for a user without one.
pub fn directory() -> Option<PathBuf> {
    choose(
        std::env::var_os(DIRECTORY_VARIABLE),
        rustix::process::geteuid().is_root(),
        std::env::var_os("XDG_RUNTIME_DIR"),
    )
}

fn choose(named: Option<OsString>, root: bool, user: Option<OsString>) -> Option<PathBuf> {
    let set = |value: Option<OsString>| value.filter(|value| !value.is_empty()).map(PathBuf::from);
    match set(named) {
        Some(named) => Some(named),
        None if root => Some(PathBuf::from("/run/vexfs")),
        None => set(user).map(|user| user.join("vexfs")),
    }
}

/// The control socket of the daemon `name`.
pub fn socket(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.sock"))
}

/// Whether a daemon can be called so.
///
/// # Errors
/// A sentence that says what a name is.
pub fn check_name(name: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.@:+".contains(c);
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.starts_with('.') || !name.chars().all(plain) {
        return Err(format!(
            "{name:?} cannot be a daemon's name: 1 to {NAME_BYTES_MAX} letters, digits and -_.@:+, not beginning with a dot"
        ));
    }
    Ok(())
}

/// A name made of an image's path.
pub fn name_of_image(image: &Path) -> String {
    let stem = image.file_stem().unwrap_or_default().to_string_lossy();
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    let name: String = stem.trim_start_matches('.').chars().map(plain).take(NAME_BYTES_MAX).collect();
    if name.is_empty() { "vexfs".into() } else { name }
}

/// Makes the directory of a socket, open to its owner only, if it is missing; an existing one is left as it is.
///
/// # Errors
/// Those of mkdir(2); its own parent must exist.
pub fn make_directory(socket: &Path) -> io::Result<()> {
    let Some(parent) = socket.parent().filter(|parent| !parent.as_os_str().is_empty()) else { return Ok(()) };
    match std::fs::DirBuilder::new().mode(0o700).create(parent) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// The control sockets in the directory, by daemon's name, in order.
///
/// # Errors
/// Those of reading it; a missing one has none.
pub fn list(directory: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut out = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned);
        if let (Some(name), Some("sock")) = (stem, path.extension().and_then(|e| e.to_str())) {
            out.push((name, path));
        }
    }
    out.sort();
    Ok(out)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_directory_is_the_named_one_or_fits_the_user() {
        let os = |text: &str| Some(OsString::from(text));
        assert_eq!(choose(os("/x"), true, os("/run/user/7")), Some("/x".into()));
        assert_eq!(choose(os(""), true, None), Some("/run/vexfs".into()));
        assert_eq!(choose(None, false, os("/run/user/7")), Some("/run/user/7/vexfs".into()));
        assert_eq!(choose(None, false, None), None);
    }

    #[test]
    fn names_stay_in_their_directory() {
        for bad in ["", "a/b", "..", ".x", "a b", "a\n", &"x".repeat(65)] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
        for image in ["/a/disk.img", "..", "/x/.hidden.img", "/", "/a/b c\u{e4}.img", "/dev/mapper/vg-lv"] {
            let name = name_of_image(Path::new(image));
            assert_eq!(check_name(&name), Ok(()), "{image} gives {name:?}");
        }
        assert_eq!(name_of_image(Path::new("/a/disk.img")), "disk");
    }

    #[test]
    fn the_directory_is_private_and_sockets_are_found_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        assert!(list(&run).unwrap().is_empty());
        let path = socket(&run, "b");
        make_directory(&path).unwrap();
        assert_eq!(std::fs::metadata(&run).unwrap().permissions().mode() & 0o777, 0o700);
        make_directory(&path).unwrap();
        for name in ["b.sock", "a.sock", "a.nbd"] {
            std::fs::write(run.join(name), b"").unwrap();
        }
        let names: Vec<String> = list(&run).unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["a", "b"]);
    }
}
