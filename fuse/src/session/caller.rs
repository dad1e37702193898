//! Who asks, with the supplementary groups that FUSE does not tell.

use layout::search::Credentials;

/// The process that a FUSE request comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caller {
    /// File system user id.
    pub uid: u32,
    /// File system group id.
    pub gid: u32,
    /// Thread id as this process sees it; 0 if it is not visible here.
    pub pid: u32,
}

/// A caller with all that permission checks need.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

impl Caller {
    /// Looks up the supplementary groups in /proc/PID/status.
    ///
    /// Fails closed: when they cannot be read, or the process there has other file system ids than
    /// the request (the number was used again, or it changed them since), there are none.
    pub fn identify(&self) -> Identity {
        let groups = if self.uid == 0 || self.pid == 0 { None } else { self.groups() };
        Identity { uid: self.uid, gid: self.gid, groups: groups.unwrap_or_default() }
    }

    fn groups(&self) -> Option<Vec<u32>> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        groups_in(&status, self.uid, self.gid)
    }
}

impl Identity {
    /// For checks of permission bits.
    pub fn credentials(&self) -> Credentials<'_> {
        Credentials { uid: self.uid, gid: self.gid, groups: &self.groups }
    }
}

/// The groups in a /proc/PID/status text (proc_pid_status(5)) whose file system ids are these.
fn groups_in(status: &str, uid: u32, gid: u32) -> Option<Vec<u32>> {
    let numbers = |name: &str| -> Option<Vec<u32>> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().map(|number| number.parse().ok()).collect()
    };
    // Uid and Gid: real, effective, saved, file system.
    let same = numbers("Uid:")?.get(3) == Some(&uid) && numbers("Gid:")?.get(3) == Some(&gid);
    if same { numbers("Groups:") } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str =
        "Name:\tsh\nUid:\t10\t10\t10\t1000\nGid:\t20\t20\t20\t2000\nFDSize:\t64\nGroups:\t4 27 100 \n";

    #[test]
    fn groups_are_taken_only_from_the_same_process() {
        assert_eq!(groups_in(STATUS, 1000, 2000), Some(vec![4, 27, 100]));
        assert_eq!(groups_in(STATUS, 10, 2000), None, "the file system uid counts");
        assert_eq!(groups_in(STATUS, 1000, 20), None);
        assert_eq!(groups_in("Name:\tsh\n", 1000, 2000), None);
        assert_eq!(groups_in(&STATUS.replace("27", "x"), 1000, 2000), None);
        assert_eq!(groups_in(&STATUS.replace("4 27 100", ""), 1000, 2000), Some(vec![]));
    }

    #[test]
    fn unknown_processes_have_no_groups() {
        let gone = Caller { uid: 1000, gid: 1000, pid: u32::MAX };
        assert!(gone.identify().credentials().groups.is_empty());
        let other_namespace = Caller { pid: 0, ..gone };
        assert!(other_namespace.identify().credentials().groups.is_empty());
    }
}
