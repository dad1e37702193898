//! CPU time of processes, from /proc.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// User and system time of process `pid` since its start: all its threads (ended ones too), its waited-for
/// children, and its living descendants. Resolution: one clock tick (10 ms).
///
/// # Errors
/// The process is gone.
pub fn of_process_tree(pid: u32) -> Result<Duration> {
    let own = read_stat(pid).with_context(|| format!("process {pid} ended while it was measured"))?;
    let mut ticks = own.ticks;
    let mut tree = vec![pid];
    let others = all_stats();
    while let Some(parent) = tree.pop() {
        for (&child, stat) in others.iter().filter(|(_, stat)| stat.parent == parent) {
            ticks += stat.ticks;
            tree.push(child);
        }
    }
    Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

/// CPU time of the calling thread, with nanosecond resolution.
///
/// # Errors
/// /proc is not mounted, or the kernel has no schedstat.
pub fn of_this_thread() -> Result<Duration> {
    let path = "/proc/thread-self/schedstat";
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    let nanos = text.split_whitespace().next().and_then(|n| n.parse().ok());
    Ok(Duration::from_nanos(nanos.with_context(|| format!("{path} has an unknown form: {text:?}"))?))
}

struct Stat {
    parent: u32,
    /// utime + stime + cutime + cstime
    ticks: u64,
}

fn all_stats() -> HashMap<u32, Stat> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| Some((pid, read_stat(pid)?))).collect()
}

fn read_stat(pid: u32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// proc_pid_stat(5): the name in parentheses may hold spaces and parentheses, so fields count from the last `)`.
fn parse_stat(text: &str) -> Option<Stat> {
    let fields: Vec<&str> = text.get(text.rfind(')')? + 1..)?.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some(Stat {
        parent: u32::try_from(number(1)?).ok()?,
        ticks: number(11)? + number(12)? + number(13)? + number(14)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_with_a_hostile_name_is_parsed() {
        let stat = parse_stat("7 (a ) R (b) S 3 7 7 0 -1 4194304 1 2 3 4 10 20 30 40 20 0 1 0 5 6").unwrap();
        assert_eq!((stat.parent, stat.ticks), (3, 100));
        assert!(parse_stat("7 (cut off) S 3").is_none());
    }

    #[test]
    fn work_shows_in_both_clocks() {
        let (thread, process) = (of_this_thread().unwrap(), of_process_tree(std::process::id()).unwrap());
        let mut x = 1u64;
        while of_this_thread().unwrap() - thread < Duration::from_millis(50) {
            x = std::hint::black_box(x.wrapping_mul(3));
        }
        assert!(of_process_tree(std::process::id()).unwrap() - process >= Duration::from_millis(30));
    }

    #[test]
    fn a_process_that_is_not_there_is_an_error() {
        assert!(of_process_tree(u32::MAX).is_err());
    }
}
