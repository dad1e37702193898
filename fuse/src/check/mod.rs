//! The check of a VexFS file system, and its repair: what fsck.vexfs does.
//!
//! [`source`]: opening what is checked. [`pool`]: its pages, read and changed; [`mapped`]: which are mapped. [`context`]: the
//! state of a check. Then the passes, one file each, in this order: [`superblock`], [`inodes`] (with [`mend`] and [`xattrs`]),
//! [`names`] (with [`tree`] and [`rebuild`]), [`unreachable`], [`orphans`], [`collections`], [`links`], [`rows`], [`numbers`], [`allocation`].
//!
//! Every pass repairs what it finds as it goes, so that the next one works on a volume without that fault. A repair goes
//! on in rounds until one finds nothing; then one commit makes all of it true. A check without repair is the same,
//! in one round, on changes that are never sent.
//!
//! Nothing read is trusted: there is no recursion, every loop is bounded by what is mapped, and memory is 6 bytes an inode,
//! 8 a window in use, 1 bit a live row, and what the largest damaged directory takes.

mod allocation;
mod bits;
mod census;
mod collections;
mod context;
mod finding;
mod inodes;
mod links;
mod mapped;
mod mend;
mod names;
mod numbers;
mod orphans;
mod pool;
mod rebuild;
mod rows;
pub mod source;
mod superblock;
#[cfg(test)]
mod tests;
mod tree;
mod unreachable;
mod windows;
mod xattrs;

use std::collections::{BTreeMap, BTreeSet};

use layout::addr::SUPERBLOCK_PAGE;

pub use finding::{Code, Finding, Weight};
pub use mapped::Walker;
pub use pool::{Pool, Stop};

use context::Check;

/// Rounds of a repair at most; each begins with what the one before left.
const ROUNDS_MAX: u32 = 8;

/// What a check may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Say what is wrong, change nothing.
    Look,
    /// Repair all that can be repaired.
    Repair,
    /// Repair what loses nothing; stop at anything else.
    Preen,
}

/// Who looks on.
pub trait Watch {
    /// Something was found (and is about to be repaired, unless only looked for).
    fn found(&mut self, finding: &Finding);
    /// A pass begins.
    fn pass(&mut self, number: u32, title: &'static str);
    /// How far it is; called often.
    fn progress(&mut self, done: u64, total: u64);
    /// The user wants to stop.
    fn is_cancelled(&self) -> bool;
}

/// What a check found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Outcome {
    /// Findings with a repair.
    pub findings: u64,
    /// Findings without one.
    pub unrepairable: u64,
    /// Wasted space and numbers.
    pub notes: u64,
    /// The repair was committed.
    pub repaired: bool,
    /// Rounds that it took.
    pub rounds: u32,
    /// Inodes in use.
    pub inodes: u64,
}

impl Outcome {
    /// Nothing is wrong, or nothing is any more.
    pub fn is_good(&self) -> bool {
        self.unrepairable == 0 && (self.findings == 0 || self.repaired)
    }

    /// The exit status of fsck(8).
    pub fn exit_code(&self) -> u8 {
        match (self.is_good(), self.repaired && self.findings > 0) {
            (true, false) => 0,
            (true, true) => 1,
            (false, _) => 4,
        }
    }
}

/// Number and title of the passes, for progress.
pub const PASSES: u32 = 9;

/// Checks a volume, and repairs it if the mode says so. `data`: reads the files' pages too.
///
/// # Errors
/// [`Stop`]; nothing was changed then.
pub fn run(pool: &mut Pool, mode: Mode, data: bool, watch: &mut dyn Watch) -> Result<Outcome, Stop> {
    let mut outcome = Outcome::default();
    loop {
        outcome.rounds += 1;
        let (round, image, mut superblock) = one_round(pool, mode, data && outcome.rounds == 1, watch)?;
        outcome.findings += round.findings;
        outcome.notes += round.notes;
        outcome.inodes = round.inodes;
        if outcome.rounds == 1 || round.unrepairable > 0 {
            outcome.unrepairable = outcome.unrepairable.max(round.unrepairable);
        }
        if mode == Mode::Look {
            return Ok(outcome);
        }
        if round.findings == 0 && (round.notes == 0 || outcome.rounds > 1) {
            if pool.is_touched() {
                superblock.epoch = superblock.epoch.wrapping_add(1);
                superblock.session = pool.session_number();
                superblock.clean = true;
                superblock.commit_time = crate::mount::now();
                pool.commit(&superblock.encode())?;
                outcome.repaired = true;
            }
            return Ok(outcome);
        }
        if outcome.rounds == ROUNDS_MAX {
            return Err(Stop::Unusable(format!(
                "the repair did not come to an end after {ROUNDS_MAX} rounds (a fault of fsck.vexfs); nothing was changed"
            )));
        }
        pool.write(SUPERBLOCK_PAGE, &image)?;
    }
}

type Round = (Outcome, layout::page_store::PageBytes, layout::superblock::Superblock);

fn one_round(pool: &mut Pool, mode: Mode, data: bool, watch: &mut dyn Watch) -> Result<Round, Stop> {
    watch.pass(1, "superblock and inodes");
    let (found, finding) = superblock::read(pool)?;
    let uuid = pool.device().info().uuid.into_bytes();
    let mut check = Check {
        pool,
        watch,
        mode,
        superblock: found,
        superblock_changed: finding.is_some(),
        census: census::Census::default(),
        windows: Default::default(),
        collections: BTreeMap::new(),
        rows_files: BTreeSet::new(),
        rows: BTreeMap::new(),
        numbers_changed: false,
        orphans_broken: false,
        repaired: 0,
        unrepaired: 0,
        notes: 0,
    };
    if let Some(finding) = finding {
        check.find(finding)?;
    }
    if check.superblock.uuid != uuid {
        check.find(Finding::new(Code::SbUuid).page(SUPERBLOCK_PAGE.0))?;
        check.superblock.uuid = uuid;
        check.superblock_changed = true;
    }
    type Pass = fn(&mut Check<'_>) -> Result<(), Stop>;
    let passes: [(&'static str, Pass); 9] = [
        ("inodes", |check| check.pass_inodes()),
        ("names", |check| check.pass_names()),
        ("lost inodes", |check| check.pass_unreachable()),
        ("unlinked inodes", |check| check.pass_orphans()),
        ("collections", |check| check.pass_collections()),
        ("link counts", |check| check.pass_links()),
        ("rows", |check| check.pass_rows()),
        ("free numbers", |check| check.pass_numbers()),
        ("space", |check| check.pass_allocation()),
    ];
    for (number, (title, pass)) in (1..).zip(passes) {
        if number > 1 {
            check.watch.pass(number, title);
        }
        pass(&mut check)?;
    }
    if data {
        check.watch.pass(PASSES + 1, "data");
        check.pass_data()?;
    }
    let outcome = Outcome {
        findings: check.repaired,
        unrepairable: check.unrepaired,
        notes: check.notes,
        repaired: false,
        rounds: 1,
        inodes: check.census.used(),
    };
    Ok((outcome, check.superblock.encode(), check.superblock))
}
