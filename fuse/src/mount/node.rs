//! FUSE node ids. A node id is the inode number, but for the root, which FUSE wants to be 1; the
//! virtual session directory has ids of its own with bit 63 set: `1 << 63 | file << 56 | directory`.

use layout::fs::Ino;

use crate::session::SessionKind;

const VIRTUAL_BIT: u64 = 1 << 63;
const FILE_SHIFT: u32 = 56;
const DIR_MASK: u64 = (1 << FILE_SHIFT) - 1;
const FUSE_ROOT: u64 = 1;
const ROOT: u64 = 2;

/// What a node id stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Node {
    /// An inode of the volume.
    Real(Ino),
    /// The session directory of a directory.
    SessionDir(Ino),
    /// A session file of a directory.
    SessionFile(SessionKind, Ino),
}

impl Node {
    /// Decodes a node id from the kernel; none if it is not one of ours.
    pub fn from_id(id: u64) -> Option<Node> {
        if id & VIRTUAL_BIT == 0 {
            return Some(Node::Real(Ino(if id == FUSE_ROOT { ROOT } else { id })));
        }
        let dir = Ino(id & DIR_MASK);
        let file = usize::try_from((id & !VIRTUAL_BIT) >> FILE_SHIFT).ok()?;
        match file.checked_sub(1) {
            None => Some(Node::SessionDir(dir)),
            Some(i) => SessionKind::ALL.get(i).map(|kind| Node::SessionFile(*kind, dir)),
        }
    }

    /// The node id.
    pub fn id(self) -> u64 {
        match self {
            Node::Real(Ino(ROOT)) => FUSE_ROOT,
            Node::Real(ino) => ino.0,
            Node::SessionDir(dir) => VIRTUAL_BIT | dir.0,
            Node::SessionFile(kind, dir) => {
                let at = SessionKind::ALL.iter().position(|k| *k == kind).map_or(0, |i| i as u64 + 1);
                VIRTUAL_BIT | at << FILE_SHIFT | dir.0
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_ids_round_trip() {
        let mut nodes = vec![Node::Real(Ino(2)), Node::Real(Ino(3)), Node::Real(Ino((1 << 36) - 1))];
        nodes.push(Node::SessionDir(Ino(77)));
        nodes.extend(SessionKind::ALL.map(|kind| Node::SessionFile(kind, Ino(77))));
        for node in nodes {
            assert_eq!(Node::from_id(node.id()), Some(node));
        }
        assert_eq!(Node::Real(Ino(2)).id(), 1);
        assert_eq!(Node::from_id(VIRTUAL_BIT | 9 << FILE_SHIFT | 5), None);
    }
}
