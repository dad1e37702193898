//! A mount on a simulated machine, the tree that it should show, and the trees that a crash may leave.

use std::collections::BTreeMap;
use std::sync::Arc;

use blockd::device::{Device, IoOp, blocking};
use blockd::session::{GrantCell, OpenMode, Session};
use blockd::storage::sim::Crash;
use blockd::storage::sim::timeline::Timeline;
use blockd::volume::simulated::{Death, SimDaemon};
use layout::error::{Error, Result};
use layout::fs::{FormatParams, Fs, Ino, MountOptions, SetAttr, format};
use layout::inode::ROOT_INO;
use layout::testing::format_params;
use layout::testing::model::{Answer, Model};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::rows::Collection;
use super::{amid, check, clock};
use crate::engine::{Engine, EngineOptions, Pages};
use crate::mount::Mounted;
use crate::session::FsAccess;

/// What the volume should hold.
#[derive(Clone)]
pub(super) struct Tree {
    pub(super) names: Model,
    /// Collections by their directories.
    pub(super) rows: BTreeMap<Ino, Collection>,
}

impl Tree {
    /// An inode is freed, and its rows with it.
    pub(super) fn forget(&mut self, ino: Ino) {
        self.names.nodes.remove(&ino);
        self.rows.remove(&ino);
        for collection in self.rows.values_mut() {
            collection.live.retain(|_, (file, _)| *file != ino);
        }
    }

    /// As the next mount finds it.
    fn without_orphans(mut self) -> Tree {
        for ino in self.names.orphans() {
            self.forget(ino);
        }
        self
    }
}

pub(super) struct World {
    /// Of the current step.
    pub(super) rng: StdRng,
    pub(super) daemon: Arc<SimDaemon>,
    grant: GrantCell,
    pub(super) mounted: Arc<Mounted>,
    pub(super) tree: Tree,
    /// Handles that programs hold.
    pub(super) handles: Vec<Ino>,
    pub(super) timeline: Timeline,
    /// The open epoch, as of the last change of the tree.
    epoch: u64,
    /// The tree at the close of each epoch that a crash may go back to.
    closed: BTreeMap<u64, Tree>,
    /// What was acknowledged as durable: the end of this epoch.
    durable: u64,
    /// An error came that has a cause: what the mount holds is not known any more.
    pub(super) broken: bool,
    cache_bytes: u64,
    /// The epoch in which data was last written out before the commit.
    pub(super) sent_early: Option<u64>,
}

impl World {
    /// A new volume, mounted.
    pub(super) fn new(seed: u64, image_bytes: usize, timeline: Timeline) -> Self {
        clock::begin();
        let mut rng = StdRng::seed_from_u64(seed);
        let grant = GrantCell::default();
        let daemon =
            SimDaemon::new(image_bytes, rng.random(), timeline.clone(), grant.clone(), amid::during_requests);
        mkfs(&daemon, &grant);
        let names = Model::new(format_params().root_perm, format_params().now);
        let tree = Tree { names, rows: BTreeMap::new() };
        // The smallest cache, a small one, one for all.
        let cache_bytes = [0, 200 << 12, 64 << 20][rng.random_range(0..3)];
        let closed = BTreeMap::from([(0, tree.clone())]);
        let (mounted, tree, epoch) = mount(&daemon, &grant, cache_bytes, &closed, 0, true);
        World {
            rng,
            daemon,
            grant,
            mounted,
            tree,
            handles: Vec::new(),
            timeline,
            epoch,
            closed,
            durable: 0,
            broken: false,
            cache_bytes,
            sent_early: None,
        }
    }

    pub(super) fn once_in(&mut self, n: u32) -> bool {
        self.rng.random_ratio(1, n)
    }

    pub(super) fn note(&self, text: impl Into<String>) {
        self.timeline.note(text);
    }

    pub(super) fn open_epoch(&self) -> u64 {
        FsAccess::read(&self.mounted, |fs| fs.open_epoch())
    }

    /// Before the tree changes: what closed meanwhile closed with the tree as it was.
    pub(super) fn catch_up(&mut self) {
        let open = self.open_epoch();
        for epoch in self.epoch..open {
            self.closed.insert(epoch, self.tree.clone());
        }
        self.epoch = open;
    }

    /// The answer of the mount to a change, and what the model says of it: both do it, or both refuse it for the
    /// same reason. Gives what both gave.
    pub(super) fn agree<T, X>(
        &mut self,
        what: &str,
        real: Result<T>,
        model: impl FnOnce(&mut Model) -> Answer<X>,
    ) -> Option<(T, X)> {
        self.catch_up();
        let mut after = self.tree.names.clone();
        match (real, model(&mut after)) {
            (Ok(real), Ok(expected)) => {
                self.tree.names = after;
                Some((real, expected))
            }
            (Err(real), Err(expected)) if real.errno() == expected.errno() => None,
            // A collection may not come to lie in another one.
            (Err(Error::CrossDevice), _) if self.tree.rows.len() > 1 => None,
            (Err(error), _) if self.is_explained(error) => None,
            (real, expected) => {
                panic!("{what}: {:?}, expected {:?}", real.err(), expected.err())
            }
        }
    }

    /// Whether something happened that makes this error right.
    pub(super) fn is_explained(&mut self, error: Error) -> bool {
        self.note(format!("  gives: {error}"));
        if error == Error::NoSpace {
            return self.is_nearly_full();
        }
        let disk = self.daemon.disk();
        let explained = disk.crashed() || disk.fault_fired() || self.daemon.is_cut();
        self.broken |= explained;
        explained
    }

    /// Whether a large operation may be told that there is no space.
    pub(super) fn is_nearly_full(&self) -> bool {
        self.mounted.engine().free_and_usable_pages().1 < 400
    }

    /// The last number given by a commit that began now has to be at least the present epoch.
    pub(super) fn epoch_now(&mut self) -> u64 {
        self.catch_up();
        self.epoch
    }

    /// What is dirty was charged, and nothing else, unless something of this epoch was sent early.
    pub(super) fn check_credits(&self) {
        let (charged, dirty) = self.mounted.engine().charged_and_dirty();
        let right =
            if self.sent_early == Some(self.open_epoch()) { charged >= dirty } else { charged == dirty };
        assert!(right, "{charged} pages are charged to the open epoch, {dirty} are dirty");
    }

    /// A commit that began in epoch `began` ended.
    pub(super) fn committed(&mut self, began: u64, result: Result<()>) -> bool {
        self.catch_up();
        self.note(format!("  commit of epoch {began}: {result:?}"));
        match result {
            Ok(()) => {
                // Where nothing had changed, the last one was as good.
                let upto = if self.epoch > began { began } else { began.saturating_sub(1) };
                assert!(upto >= self.durable, "epochs go back");
                self.durable = upto;
                self.closed = self.closed.split_off(&upto);
                true
            }
            Err(error) => {
                assert!(
                    error != Error::NoSpace && self.is_explained(error),
                    "a commit fails, and nothing is wrong: {error} ({:?})",
                    self.mounted.engine().free_and_usable_pages()
                );
                false
            }
        }
    }

    /// Everything dies, or has died; it starts again at the last commit.
    pub(super) fn crash(&mut self, crash: Crash) {
        self.catch_up();
        self.note(format!("  {crash:?} of everything"));
        self.daemon.restart(crash);
        self.remount();
    }

    /// The mounter alone dies; another one comes.
    pub(super) fn lose_mounter(&mut self) {
        self.catch_up();
        if self.daemon.disk().crashed() {
            return self.crash(Crash::ProcessDeath);
        }
        self.note("  the mounter dies");
        self.daemon.cut_mounter_after(None);
        self.remount();
    }

    /// The last commit, the end of the session, and a new mount.
    pub(super) fn leave_and_come_back(&mut self) {
        while let Some(ino) = self.handles.pop() {
            self.mounted.release(ino);
            self.released(ino);
        }
        let began = self.epoch_now();
        clock::tick();
        let engine = Arc::clone(self.mounted.engine());
        let result = engine.commit_clean(&*self.mounted);
        if !self.committed(began, result) {
            return;
        }
        engine.health().end();
        engine.close_session().expect("a session is closed");
        self.remount();
    }

    fn remount(&mut self) {
        self.broken = false;
        self.sent_early = None;
        self.handles.clear();
        self.daemon.set_death(Death::Everything);
        clock::tick();
        let check = self.once_in(3);
        let (mounted, tree, epoch) =
            mount(&self.daemon, &self.grant, self.cache_bytes, &self.closed, self.durable, check);
        (self.mounted, self.epoch) = (mounted, epoch);
        let found = epoch - 1;
        self.note(format!("  found the end of epoch {found}"));
        self.closed.retain(|epoch, _| *epoch == found);
        self.durable = found;
        self.tree = tree;
    }

    fn touch_root(&mut self) {
        let set = SetAttr { atime: Some(clock::tick()), ..SetAttr::default() };
        let real = self.mounted.setattr(ROOT_INO, set, false);
        self.agree("setattr", real, |m| m.setattr(ROOT_INO, set, clock::now().unwrap_or_default()));
    }

    /// A committed volume's structures, and its space.
    pub(super) fn check(&mut self) {
        // So that there is something to commit, and the numbers are of now.
        self.touch_root();
        let began = self.epoch_now();
        let result = self.mounted.sync();
        if self.committed(began, result) {
            check::committed(&self.daemon);
            let status = self.mounted.engine().status().expect("the status page");
            let (free, _) = self.mounted.engine().free_and_usable_pages();
            assert_eq!(free, status.available_pages.get(), "free pages after a commit");
        }
    }
}

/// An empty file system, as mkfs.vexfs makes it.
fn mkfs(daemon: &Arc<SimDaemon>, grant: &GrantCell) {
    let client = daemon.connect();
    let device = Arc::clone(daemon) as Arc<dyn Device>;
    let session = Session::open(Arc::clone(&device), client, OpenMode::ReadWrite, daemon.boot_id(), grant)
        .expect("a new volume takes a session");
    let params = FormatParams { uuid: device.info().uuid.into_bytes(), ..format_params() };
    format(params, &mut |page, bytes| {
        let buf = blockd::buf::AlignedBuf::from_slice(bytes);
        let op = IoOp::Write { offset: page.byte(), buf, fua: page == layout::addr::SUPERBLOCK_PAGE };
        blocking(&*device, client, op).expect("a new volume has room");
    });
    session.close().expect("the session is closed");
}

/// Mounts what is there: the mount, its tree, and the open epoch.
fn mount(
    daemon: &Arc<SimDaemon>,
    grant: &GrantCell,
    cache_bytes: u64,
    closed: &BTreeMap<u64, Tree>,
    durable: u64,
    check: bool,
) -> (Arc<Mounted>, Tree, u64) {
    let client = daemon.connect();
    let device = Arc::clone(daemon) as Arc<dyn Device>;
    let session = Session::open(Arc::clone(&device), client, OpenMode::ReadWrite, daemon.boot_id(), grant)
        .expect("the volume takes a session");
    let number = session.number();
    if check {
        check::committed(daemon);
    }
    let options = EngineOptions { cache_bytes, dirty_bytes: 1 << 40, read_only: false };
    let engine = Engine::new(device, client, Some(session), options).expect("the volume has a status");
    let read_only = MountOptions { read_only: true, session: 0, now: clock::tick() };
    let found = Fs::mount(Pages(Arc::clone(&engine)), read_only).expect("the file system mounts");
    let found = found.superblock().epoch;
    let text = |epochs: Vec<&u64>| format!("{epochs:?}");
    assert!(found >= durable, "epoch {found} was found, but {durable} was acknowledged");
    let tree = closed.get(&found);
    let tree = tree
        .unwrap_or_else(|| panic!("epoch {found} was found, closed were {}", text(closed.keys().collect())));
    let mounted = Mounted::new(engine, number, false).expect("the file system mounts");
    (mounted, tree.clone().without_orphans(), found + 1)
}
