//! FUSE node ids. A node id is the inode number, but for the root, which FUSE wants to be 1; the
//! virtual session directory has ids of its own above bit 63.

use layout::fs::Ino;

/// The name of the session directory in every directory.
pub const SESSION_DIR_NAME: &[u8] = b".vexfs";

const VIRTUAL_BIT: u64 = 1 << 63;
const FILE_SHIFT: u32 = 56;
const DIR_MASK: u64 = (1 << FILE_SHIFT) - 1;
const FUSE_ROOT: u64 = 1;
const ROOT: u64 = 2;

/// A file of the session directory, or the directory itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum SessionNode {
    /// `.vexfs`
    Dir = 0,
    /// `.vexfs/schema`
    Schema = 1,
    /// `.vexfs/put`
    Put = 2,
    /// `.vexfs/search`
    Search = 3,
    /// `.vexfs/stats`
    Stats = 4,
}

impl SessionNode {
    /// The files of the session directory.
    pub const FILES: [SessionNode; 4] =
        [SessionNode::Schema, SessionNode::Put, SessionNode::Search, SessionNode::Stats];

    /// The name in the session directory.
    pub const fn name(self) -> &'static [u8] {
        match self {
            SessionNode::Dir => SESSION_DIR_NAME,
            SessionNode::Schema => b"schema",
            SessionNode::Put => b"put",
            SessionNode::Search => b"search",
            SessionNode::Stats => b"stats",
        }
    }
}

/// What a node id stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Node {
    /// An inode of the volume.
    Real(Ino),
    /// A session file of the directory.
    Session(SessionNode, Ino),
}

impl Node {
    /// Decodes a node id from the kernel; none if it is not one of ours.
    pub fn from_id(id: u64) -> Option<Node> {
        if id & VIRTUAL_BIT == 0 {
            return Some(Node::Real(Ino(if id == FUSE_ROOT { ROOT } else { id })));
        }
        let dir = Ino(id & DIR_MASK);
        let code = (id & !VIRTUAL_BIT) >> FILE_SHIFT;
        let file = match code {
            0 => SessionNode::Dir,
            1 => SessionNode::Schema,
            2 => SessionNode::Put,
            3 => SessionNode::Search,
            4 => SessionNode::Stats,
            _ => return None,
        };
        Some(Node::Session(file, dir))
    }

    /// The node id.
    pub fn id(self) -> u64 {
        match self {
            Node::Real(Ino(ROOT)) => FUSE_ROOT,
            Node::Real(ino) => ino.0,
            Node::Session(file, dir) => VIRTUAL_BIT | (file as u64) << FILE_SHIFT | dir.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_ids_round_trip() {
        let mut nodes = vec![Node::Real(Ino(2)), Node::Real(Ino(3)), Node::Real(Ino((1 << 36) - 1))];
        for file in SessionNode::FILES.into_iter().chain([SessionNode::Dir]) {
            nodes.push(Node::Session(file, Ino(77)));
        }
        for node in nodes {
            assert_eq!(Node::from_id(node.id()), Some(node));
        }
        assert_eq!(Node::Real(Ino(2)).id(), 1);
        assert_eq!(Node::from_id(VIRTUAL_BIT | 9 << FILE_SHIFT | 5), None);
    }
}
