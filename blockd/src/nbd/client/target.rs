//! Where a server is: `nbd+unix:///EXPORT?socket=PATH` ("The NBD URI specification",
//! <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md>).

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::nbd::proto::STRING_BYTES_MAX;

const SCHEME: &str = "nbd+unix://";

/// A server's socket and one of its exports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// The unix socket.
    pub socket: PathBuf,
    /// The export's name; empty for the default one.
    pub export: String,
}

/// Why a text is no target; the text says what is expected.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{uri:?} is not an NBD address: {why}; write nbd+unix:///?socket=/PATH (or nbd+unix:///EXPORT?socket=/PATH)"
)]
pub struct TargetError {
    uri: String,
    why: &'static str,
}

impl Target {
    /// The default export behind a socket.
    pub fn socket(path: &Path) -> Self {
        Target { socket: path.into(), export: String::new() }
    }

    /// Whether a source given by a user is meant to be an NBD address.
    pub fn looks_like(source: &str) -> bool {
        source.starts_with("nbd:") || source.starts_with("nbd+") || source.starts_with("nbds")
    }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(uri: &str) -> Result<Self, TargetError> {
        let fail = |why| TargetError { uri: uri.into(), why };
        let rest = uri.strip_prefix(SCHEME).ok_or_else(|| fail("only nbd+unix:// is supported"))?;
        let (authority_and_path, query) = rest.split_once('?').ok_or_else(|| fail("it names no socket"))?;
        let path = match authority_and_path.split_once('/') {
            Some(("", path)) => path,
            None if authority_and_path.is_empty() => "",
            _ => return Err(fail("a unix address has no host")),
        };
        let export = String::from_utf8(unescape(path).ok_or_else(|| fail("a % escape is malformed"))?)
            .map_err(|_| fail("the export's name is not UTF-8"))?;
        if export.len() > STRING_BYTES_MAX {
            return Err(fail("the export's name is too long"));
        }
        let mut socket = None;
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("socket", path)) => {
                    socket = Some(unescape(path).ok_or_else(|| fail("a % escape is malformed"))?);
                }
                _ => return Err(fail("only the parameter socket= is supported")),
            }
        }
        match socket {
            Some(path) if !path.is_empty() => Ok(Target { socket: OsString::from_vec(path).into(), export }),
            _ => Err(fail("it names no socket")),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let export = escape(self.export.as_bytes());
        write!(f, "{SCHEME}/{export}?socket={}", escape(self.socket.as_os_str().as_bytes()))
    }
}

fn escape(bytes: &[u8]) -> String {
    use fmt::Write;
    let mut out = String::with_capacity(bytes.len());
    for &b in bytes {
        if b.is_ascii_alphanumeric() || b"/-._~:@,".contains(&b) {
            out.push(char::from(b));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "%{b:02X}");
        }
    }
    out
}

fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&b, tail)) = rest.split_first() {
        rest = tail;
        if b != b'%' {
            out.push(b);
            continue;
        }
        let (digits, tail) = rest.split_first_chunk::<2>()?;
        let digit = |d: u8| char::from(d).to_digit(16);
        // Two hexadecimal digits fit a byte.
        out.push((digit(digits[0])? * 16 + digit(digits[1])?) as u8);
        rest = tail;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(uri: &str) -> Option<(String, String)> {
        let target: Target = uri.parse().ok()?;
        Some((target.socket.to_str()?.into(), target.export))
    }

    #[test]
    fn addresses_of_the_specification() {
        let pair = |a: &str, b: &str| Some((a.to_string(), b.to_string()));
        assert_eq!(parse("nbd+unix:///?socket=/run/a.sock"), pair("/run/a.sock", ""));
        assert_eq!(parse("nbd+unix:///disk%201?socket=/run/a%25b"), pair("/run/a%b", "disk 1"));
        assert_eq!(parse("nbd+unix://?socket=a"), pair("a", ""));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (uri, why) in [
            ("nbd://host", "only nbd+unix"),
            ("nbd+unix:///x", "no socket"),
            ("nbd+unix:///?socket=", "no socket"),
            ("nbd+unix://host/?socket=/a", "no host"),
            ("nbd+unix:///?socket=/a&tls=1", "only the parameter"),
            ("nbd+unix:///?socket=%4", "escape"),
            ("nbd+unix:///%ff?socket=/a", "UTF-8"),
        ] {
            let message = uri.parse::<Target>().unwrap_err().to_string();
            assert!(message.contains(why) && message.contains("socket=/PATH"), "{uri}: {message}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_socket_and_name_round_trip(socket in "[^\0]{1,40}", export in "\\PC{0,20}") {
            let target = Target { socket: socket.into(), export };
            proptest::prop_assert_eq!(target.to_string().parse::<Target>().unwrap(), target);
        }
    }
}
