//! `vexctl snapshot`, `send` and `receive`.

pub mod backup;
pub mod cli;
pub mod meter;
mod target;
mod time;

use std::process::ExitCode;

use anyhow::Result;
use blockd::volume::snapshot::SnapshotList;
use indicatif::HumanBytes;

use crate::output::{print, tame};
use cli::{ListArgs, OneSnapshot, SnapshotCommand};
use meter::Meter;
use target::Target;

/// Carries a command out.
///
/// # Errors
/// The image cannot be opened, or the volume refuses.
pub fn run(command: &SnapshotCommand) -> Result<ExitCode> {
    match command {
        SnapshotCommand::Create(args) => create(args),
        SnapshotCommand::List(args) => list(args),
        SnapshotCommand::Delete(args) => delete(args),
        SnapshotCommand::Rollback(args) => rollback(args),
    }
}

fn create(args: &OneSnapshot) -> Result<ExitCode> {
    Target::open(&args.image, false)?.create(&args.name)?;
    Ok(ExitCode::SUCCESS)
}

fn delete(args: &OneSnapshot) -> Result<ExitCode> {
    let mut meter = Meter::pages("delete");
    Target::open(&args.image, false)?.delete(&args.name, &mut |left| meter.left(left))?;
    Ok(ExitCode::SUCCESS)
}

fn rollback(args: &OneSnapshot) -> Result<ExitCode> {
    let mut meter = Meter::pages("rollback");
    Target::open(&args.image, false)?.rollback(&args.name, &mut |left| meter.left(left))?;
    Ok(ExitCode::SUCCESS)
}

fn list(args: &ListArgs) -> Result<ExitCode> {
    let list = Target::open(&args.image, true)?.list()?;
    if args.json {
        print(&format!("{}\n", serde_json::to_string(&list)?))?;
    } else {
        print(&table(&list))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn table(list: &SnapshotList) -> String {
    let names: Vec<String> =
        list.snapshots.iter().map(|s| tame(&s.name).replace(['\n', '\t'], " ")).collect();
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0).max(4);
    let mut out = format!("{:width$}  {:20}  {:>12}  {:>12}\n", "NAME", "TAKEN", "HELD", "CHANGED");
    for (name, s) in names.iter().zip(&list.snapshots) {
        let open = if s.open_count > 0 { "  open" } else { "" };
        out += &format!(
            "{name:width$}  {:20}  {:>12}  {:>12}{open}\n",
            time::utc(s.time_ns),
            HumanBytes(s.held_bytes).to_string(),
            HumanBytes(s.changed_bytes).to_string(),
        );
    }
    if list.deleting > 0 {
        out += &format!("{} deleted, their space not yet given back\n", list.deleting);
    }
    for why in &list.stuck {
        out += &format!("one cannot be given back before older snapshots are deleted: {}\n", tame(why));
    }
    if list.lost_bytes > 0 {
        out += &format!(
            "{} are in use and of no use until the cleaner finds them: of deleted snapshots, by a leaf of the map that could not be read\n",
            HumanBytes(list.lost_bytes)
        );
    }
    out += &format!("{} held in all\n", HumanBytes(list.held_bytes));
    out
}

#[cfg(test)]
mod tests {
    use blockd::volume::snapshot::SnapshotInfo;

    use super::*;

    #[test]
    fn a_table_is_aligned_and_tame() {
        let snapshot = |name: &str, held_bytes| SnapshotInfo {
            id: 1,
            name: name.into(),
            time_ns: 0,
            epoch: 0,
            volume_bytes: 0,
            held_bytes,
            changed_bytes: 4096,
            open_count: 0,
        };
        let snapshots = vec![snapshot("monday", 0), snapshot("e\u{9b}vil", 1 << 30)];
        let text =
            table(&SnapshotList { snapshots, deleting: 1, held_bytes: 1 << 30, ..SnapshotList::default() });
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], "monday  1970-01-01 00:00:00Z           0 B      4.00 KiB");
        assert!(lines[2].starts_with("e\u{fffd}vil"), "{text}");
        assert!(
            text.ends_with("1 deleted, their space not yet given back\n1.00 GiB held in all\n"),
            "{text}"
        );
    }
}
