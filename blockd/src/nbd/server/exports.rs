//! Which exports a server has: some are given by name, others are looked for when a client asks, such as
//! the snapshots of a volume. Both may change while the server runs; a connection keeps what it was given.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};

use super::export::{Export, ExportError};
use crate::device::Device;

/// So many names are said to a client that asks for one that there is not.
const NAMES_SAID: usize = 4;

/// Exports that are made when a client asks for them. Called from a thread that may wait.
pub trait ExportSource: Send + Sync {
    /// The export of this name; `None` if the name is not of this source.
    ///
    /// # Errors
    /// A sentence for the client: why there is no such export now.
    fn find(&self, name: &str) -> Result<Option<Arc<Export>>, String>;

    /// Names to be listed.
    fn names(&self) -> Vec<String>;
}

/// Why a client is not given an export.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NotFound {
    /// No export has the name. The sentence says which there are.
    Unknown(String),
    /// There is one, but it cannot be opened. The sentence says why.
    Failed(String),
}

/// Why an export is not taken into a server's.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("there is an export {0:?} already; choose another name")]
pub struct NameTaken(pub String);

#[derive(Default)]
struct Inner {
    by_name: BTreeMap<String, Arc<Export>>,
    default: Option<String>,
    sources: Vec<Arc<dyn ExportSource>>,
}

/// See the module.
#[derive(Default)]
pub struct Exports {
    inner: RwLock<Inner>,
}

impl Exports {
    /// None yet.
    pub fn new() -> Arc<Exports> {
        Arc::default()
    }

    /// One, also under the empty name.
    pub fn single(export: Export) -> Arc<Exports> {
        let exports = Self::default();
        exports.inner.write().by_name.insert(export.name().into(), Arc::new(export));
        Arc::new(exports)
    }

    /// Takes one more.
    ///
    /// # Errors
    /// [`NameTaken`].
    pub fn add(&self, export: Export) -> Result<(), NameTaken> {
        let mut inner = self.inner.write();
        if inner.by_name.contains_key(export.name()) {
            return Err(NameTaken(export.name().into()));
        }
        inner.by_name.insert(export.name().into(), Arc::new(export));
        Ok(())
    }

    /// Takes a source, to be asked after those before it.
    pub fn add_source(&self, source: Arc<dyn ExportSource>) {
        self.inner.write().sources.push(source);
    }

    /// No new client is given this export; gives whether there was one.
    pub fn remove(&self, name: &str) -> bool {
        self.inner.write().by_name.remove(name).is_some()
    }

    /// Which export the empty name means. Without this it is the only one given by name, if it is the only one.
    pub fn set_default(&self, name: impl Into<String>) {
        self.inner.write().default = Some(name.into());
    }

    /// The exports given by name.
    pub fn all(&self) -> Vec<Arc<Export>> {
        self.inner.read().by_name.values().cloned().collect()
    }

    /// The export given by this name; does not wait.
    pub(super) fn find_given(&self, name: &str) -> Option<Arc<Export>> {
        let inner = self.inner.read();
        if let Some(export) = inner.by_name.get(name) {
            return Some(Arc::clone(export));
        }
        if !name.is_empty() {
            return None;
        }
        let only = if inner.by_name.len() == 1 { inner.by_name.keys().next() } else { None };
        inner.default.as_ref().or(only).and_then(|name| inner.by_name.get(name)).cloned()
    }

    /// The export that a client means; may wait for a source.
    ///
    /// # Errors
    /// [`NotFound`].
    pub fn find(&self, name: &str) -> Result<Arc<Export>, NotFound> {
        if let Some(export) = self.find_given(name) {
            return Ok(export);
        }
        // Not under the lock: a source may take its time.
        let sources = self.inner.read().sources.clone();
        for source in sources {
            match source.find(name) {
                Ok(Some(export)) => return Ok(export),
                Ok(None) => {}
                Err(why) => return Err(NotFound::Failed(why)),
            }
        }
        let what = if name.is_empty() { "no default export".into() } else { format!("no export {name:?}") };
        let given: Vec<_> = self.inner.read().by_name.keys().take(NAMES_SAID).cloned().collect();
        Err(NotFound::Unknown(format!("this server has {what}, but for example {given:?}; its list has all")))
    }

    /// All names that a client may ask for, each once; may wait for a source.
    pub fn names(&self) -> Vec<String> {
        let (mut names, sources) = {
            let inner = self.inner.read();
            (inner.by_name.keys().cloned().collect::<Vec<_>>(), inner.sources.clone())
        };
        for source in sources {
            names.extend(source.names());
        }
        names.sort();
        names.dedup();
        names
    }
}

type OpenSnapshot = dyn Fn(&str) -> Result<Option<Arc<dyn Device>>, String> + Send + Sync;
type SnapshotNames = dyn Fn() -> Vec<String> + Send + Sync;

/// The snapshots of the volume exported as `NAME`: read-only exports `NAME@SNAPSHOT`. A snapshot is opened for
/// its first client and closed after its last one; its clients share it.
pub struct SnapshotExports {
    prefix: String,
    open: Box<OpenSnapshot>,
    names: Box<SnapshotNames>,
    opened: Mutex<BTreeMap<String, Weak<Export>>>,
}

impl SnapshotExports {
    /// `open` opens a snapshot by its own name (`None`: there is none), `names` lists them.
    pub fn new(
        volume_name: &str,
        open: impl Fn(&str) -> Result<Option<Arc<dyn Device>>, String> + Send + Sync + 'static,
        names: impl Fn() -> Vec<String> + Send + Sync + 'static,
    ) -> Arc<SnapshotExports> {
        Arc::new(SnapshotExports {
            prefix: format!("{volume_name}@"),
            open: Box::new(open),
            names: Box::new(names),
            opened: Mutex::default(),
        })
    }
}

impl ExportSource for SnapshotExports {
    fn find(&self, name: &str) -> Result<Option<Arc<Export>>, String> {
        let Some(snapshot) = name.strip_prefix(&self.prefix) else { return Ok(None) };
        // Held while one is opened, so that two clients that come at once share it.
        let mut opened = self.opened.lock();
        opened.retain(|_, export| export.strong_count() > 0);
        if let Some(export) = opened.get(snapshot).and_then(Weak::upgrade) {
            return Ok(Some(export));
        }
        let Some(device) = (self.open)(snapshot)? else { return Ok(None) };
        let export = Export::new(name, device).map_err(|e: ExportError| e.to_string())?;
        let export = Arc::new(export.read_only());
        opened.insert(snapshot.into(), Arc::downgrade(&export));
        Ok(Some(export))
    }

    fn names(&self) -> Vec<String> {
        (self.names)().into_iter().map(|name| format!("{}{name}", self.prefix)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::device::{ClientId, DeviceInfo, Done, IoError, IoOp, VolumeKind};

    /// Answers nothing but what it is.
    struct Nothing {
        uuid: u128,
    }

    impl Device for Nothing {
        fn info(&self) -> DeviceInfo {
            DeviceInfo {
                kind: VolumeKind::Raw,
                size_bytes: 1 << 20,
                block_bytes_min: 1,
                read_only: false,
                uuid: uuid::Uuid::from_u128(self.uuid),
            }
        }
        fn connect(&self) -> ClientId {
            ClientId(1)
        }
        fn disconnect(&self, _client: ClientId) {}
        fn submit(&self, _client: ClientId, _op: IoOp, done: Done) {
            done(Err(IoError::Shutdown));
        }
    }

    fn export(name: &str, uuid: u128) -> Export {
        Export::new(name, Arc::new(Nothing { uuid })).unwrap()
    }

    fn found(exports: &Exports, name: &str) -> Option<u128> {
        exports.find(name).ok().map(|export| export.info().uuid.as_u128())
    }

    #[test]
    fn the_empty_name_means_the_default_or_the_only_one() {
        let exports = Exports::single(export("a", 1));
        assert_eq!(
            (found(&exports, ""), found(&exports, "a"), found(&exports, "b")),
            (Some(1), Some(1), None)
        );
        exports.add(export("b", 2)).unwrap();
        assert_eq!(found(&exports, ""), None, "which of two?");
        exports.set_default("b");
        assert_eq!(found(&exports, ""), Some(2));
        assert_eq!(exports.add(export("b", 3)), Err(NameTaken("b".into())));
        assert!(exports.remove("b") && !exports.remove("b"));
        assert_eq!((found(&exports, ""), found(&exports, "b")), (None, None));
        exports.add(export("", 4)).unwrap();
        assert_eq!(found(&exports, ""), Some(4), "one whose name is empty goes first");
        assert_eq!(exports.names(), ["", "a"]);
    }

    #[test]
    fn a_snapshot_is_opened_once_for_all_its_clients_and_closed_after_the_last() {
        let opens = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&opens);
        let snapshots = SnapshotExports::new(
            "disk",
            move |name| match name {
                "monday" => {
                    let n = counted.fetch_add(1, Ordering::SeqCst);
                    Ok(Some(Arc::new(Nothing { uuid: u128::from(n) + 10 })))
                }
                "broken" => Err("its map cannot be read".into()),
                _ => Ok(None),
            },
            || vec!["monday".into(), "broken".into()],
        );
        let exports = Exports::single(export("disk", 1));
        exports.add_source(snapshots);
        assert_eq!(exports.names(), ["disk", "disk@broken", "disk@monday"]);
        let one = exports.find("disk@monday").unwrap();
        let two = exports.find("disk@monday").unwrap();
        assert!(Arc::ptr_eq(&one, &two));
        assert!(one.info().read_only);
        assert_eq!(opens.load(Ordering::SeqCst), 1);
        drop((one, two));
        assert_eq!(found(&exports, "disk@monday"), Some(11), "opened again");
        assert_eq!(
            exports.find("disk@broken").err(),
            Some(NotFound::Failed("its map cannot be read".into()))
        );
        assert!(matches!(exports.find("disk@tuesday"), Err(NotFound::Unknown(_))));
        assert!(matches!(exports.find("monday"), Err(NotFound::Unknown(_))));
    }

    #[test]
    fn block_sizes_fit_the_device_or_are_refused() {
        let with = |bytes| export("a", 1).with_block_size(bytes).map(|e| e.info().block_bytes_min);
        assert_eq!((with(1), with(512), with(4096), with(65536)), (Ok(1), Ok(512), Ok(4096), Ok(65536)));
        for bytes in [0, 3, 1000, 131_072] {
            assert!(with(bytes).unwrap_err().to_string().contains("power of two"), "{bytes}");
        }
        assert!(Export::new("n".repeat(5000), Arc::new(Nothing { uuid: 1 })).is_err());
    }
}
