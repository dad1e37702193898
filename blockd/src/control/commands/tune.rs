//! `tune`: settings that can be changed while a volume is open.

use std::collections::BTreeMap;

use crate::control::host::Host;
use crate::store::clean::Tuning;

/// Bytes of the unit in which sizes are given.
const MIB: u64 = 1 << 20;

/// What a key is, and how it is read and written.
struct Key {
    name: &'static str,
    get: fn(&Tuning) -> u64,
    set: fn(&mut Tuning, u64) -> Result<(), u64>,
}

const KEYS: &[Key] = &[
    Key {
        name: "cleaner_mib_per_s",
        get: |t| t.cleaner_bytes_per_s / MIB,
        set: |t, mib| store(&mut t.cleaner_bytes_per_s, mib, u64::MAX / MIB, MIB),
    },
    Key {
        name: "checkpoint_mib",
        get: |t| t.checkpoint_bytes / MIB,
        set: |t, mib| store(&mut t.checkpoint_bytes, mib, u64::MAX / MIB, MIB),
    },
    Key {
        name: "free_segments",
        get: |t| t.free_segments.into(),
        set: |t, segments| {
            t.free_segments = segments.try_into().map_err(|_| u64::from(u32::MAX))?;
            Ok(())
        },
    },
    Key {
        name: "dead_percent_max",
        get: |t| t.dead_percent_max.into(),
        set: |t, percent| {
            t.dead_percent_max = percent.try_into().ok().filter(|p| *p <= 100).ok_or(100u64)?;
            Ok(())
        },
    },
];

fn store(slot: &mut u64, value: u64, max: u64, unit: u64) -> Result<(), u64> {
    if value > max {
        return Err(max);
    }
    *slot = value * unit;
    Ok(())
}

/// Changes what `set` names, in each volume meant or in none; gives what holds then, by export.
pub(super) fn run(
    host: &Host,
    export: Option<&str>,
    set: &BTreeMap<String, u64>,
) -> Result<BTreeMap<String, BTreeMap<&'static str, u64>>, String> {
    let meant = host.select(export)?;
    let mut changes = Vec::new();
    for served in &meant {
        let mut tuning = served.volume.tuning();
        for (name, value) in set {
            change(&mut tuning, name, *value)?;
        }
        changes.push((served, served.volume.tuning(), tuning));
    }
    for (i, (served, _, tuning)) in changes.iter().enumerate() {
        if set.is_empty() {
            continue;
        }
        if let Err(error) = served.volume.set_tuning(*tuning) {
            for (earlier, before, _) in &changes[..i] {
                // It held before, so it holds again.
                let _ = earlier.volume.set_tuning(*before);
            }
            return Err(format!("export {:?}: {error}; nothing was changed", served.name));
        }
        tracing::info!(export = served.name, ?tuning, "tuned");
    }
    let values = |tuning: Tuning| KEYS.iter().map(|key| (key.name, (key.get)(&tuning))).collect();
    Ok(meant.iter().map(|served| (served.name.clone(), values(served.volume.tuning()))).collect())
}

fn change(tuning: &mut Tuning, name: &str, value: u64) -> Result<(), String> {
    let Some(key) = KEYS.iter().find(|key| key.name == name) else {
        let names: Vec<_> = KEYS.iter().map(|key| key.name).collect();
        return Err(format!("{name:?} cannot be tuned; {} can", names.join(", ")));
    };
    (key.set)(tuning, value).map_err(|max| format!("{name}={value} is too much; at most {max}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_sets_what_it_gets_and_nothing_else() {
        for key in KEYS {
            let mut tuning = Tuning::default();
            change(&mut tuning, key.name, 77).unwrap();
            assert_eq!((key.get)(&tuning), 77, "{}", key.name);
            for other in KEYS.iter().filter(|other| other.name != key.name) {
                assert_eq!((other.get)(&tuning), (other.get)(&Tuning::default()), "{}", other.name);
            }
        }
    }

    #[test]
    fn unknown_keys_and_too_large_values_are_refused() {
        let mut tuning = Tuning::default();
        assert!(change(&mut tuning, "speed", 1).unwrap_err().contains("cleaner_mib_per_s"));
        for (name, value) in
            [("dead_percent_max", 101), ("free_segments", 1 << 40), ("checkpoint_mib", u64::MAX)]
        {
            assert!(change(&mut tuning, name, value).unwrap_err().contains("at most"), "{name}");
        }
        assert_eq!(tuning, Tuning::default());
    }
}
