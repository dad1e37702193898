//! A directory is listed in small pieces while it changes: each name that is there all the time is given once.

use std::collections::BTreeSet;

use rand::Rng;

use super::world::World;

impl World {
    pub(super) fn list_while_it_changes(&mut self) {
        let dir = self.some_dir();
        if self.tree.names.get(dir).kind != layout::inode::Kind::Dir {
            return;
        }
        self.note(format!("  listing of {} in pieces", dir.0));
        let names = |world: &World| -> BTreeSet<Vec<u8>> {
            let node = world.tree.names.nodes.get(&dir);
            node.map(|node| node.children.keys().cloned().collect()).unwrap_or_default()
        };
        let mut always = names(self);
        let mut ever = always.clone();
        let mut seen = BTreeSet::new();
        let mut after = 0;
        loop {
            let most = self.rng.random_range(1..6);
            let mut given = 0;
            let listed = self.mounted.readdir(dir, after, false, &mut |entry, _| {
                if given == most {
                    return false;
                }
                given += 1;
                after = entry.cookie;
                if entry.cookie >= 16 {
                    assert!(seen.insert(entry.name.to_vec()), "a name is listed twice");
                }
                true
            });
            match listed {
                // The directory itself was removed meanwhile.
                Err(_) if !self.tree.names.nodes.contains_key(&dir) => return,
                Err(error) => {
                    assert!(self.is_explained(error), "a listing: {error}");
                    return;
                }
                Ok(()) => {}
            }
            if given < most {
                break;
            }
            for _ in 0..self.rng.random_range(0..3) {
                self.change_names();
                let now = names(self);
                always.retain(|name| now.contains(name));
                ever.extend(now);
            }
            if self.broken {
                return;
            }
        }
        assert!(seen.is_subset(&ever), "a name was listed that never was there");
        assert!(always.is_subset(&seen), "names were not listed: {:?}", always.difference(&seen));
    }
}
