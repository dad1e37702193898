//! Search through a mount, by vexctl, against an oracle of a few lines that knows nothing of the implementation.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::Command;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use vexfs_tests::process;
use vexfs_tests::programs::{self, ours};
use vexfs_tests::settings;
use vexfs_tests::stage::{Mount, Stage};

const DIM: usize = 384;
const ROWS: usize = 50_000;
const ROWS_IN_FILE: usize = 12_500;
const K: usize = 20;

/// Rows around 64 centres, with elements that each element type stores exactly: multiples of `step` up to `reach`.
fn clustered(rows: usize, step: f32, reach: i32, rng: &mut StdRng) -> Vec<Vec<f32>> {
    let centres: Vec<Vec<i32>> =
        (0..64).map(|_| (0..DIM).map(|_| rng.random_range(-reach / 2..=reach / 2)).collect()).collect();
    let row = |_| {
        let centre = &centres[rng.random_range(0..centres.len())];
        centre.iter().map(|c| (c + rng.random_range(-reach / 4..=reach / 4)) as f32 * step).collect()
    };
    (0..rows).map(row).collect()
}

/// The definitions of FORMAT.md 6.1, in f64.
fn distance(metric: &str, a: &[f32], b: &[f32]) -> f64 {
    let pairs = || a.iter().zip(b).map(|(x, y)| (f64::from(*x), f64::from(*y)));
    let dot: f64 = pairs().map(|(x, y)| x * y).sum();
    let square = |v: &[f32]| v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
    match metric {
        "l2" => pairs().map(|(x, y)| (x - y).powi(2)).sum(),
        "ip" => -dot,
        "cosine" => 1.0 - dot / (square(a).sqrt() * square(b).sqrt()),
        _ => unreachable!("three metrics"),
    }
}

/// A two-dimensional .npy array of f32 (numpy.lib.format, version 1.0).
fn write_npy(path: &Path, rows: &[Vec<f32>]) {
    let mut header =
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, {}), }}", rows.len(), rows[0].len());
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut file = BufWriter::new(File::create(path).unwrap());
    file.write_all(b"\x93NUMPY\x01\x00").unwrap();
    file.write_all(&u16::try_from(header.len()).unwrap().to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    for value in rows.iter().flatten() {
        file.write_all(&value.to_le_bytes()).unwrap();
    }
    file.flush().unwrap();
}

struct Collection<'a> {
    stage: &'a Stage,
    path: std::path::PathBuf,
}

impl<'a> Collection<'a> {
    fn create(stage: &'a Stage, mount: &Mount, name: &str, dim: usize, metric: &str, element: &str) -> Self {
        let path = mount.join(name);
        let mut command = ours("vexctl");
        command.args(["collection", "create"]).arg(&path);
        command.args(["--dim", &dim.to_string(), "--metric", metric, "--element", element]);
        process::ok(&mut command);
        Self { stage, path }
    }

    fn put(&self, file: &str, rows: &[Vec<f32>]) {
        let npy = self.stage.path("put.npy");
        write_npy(&npy, rows);
        fs::write(self.path.join(file), format!("content of {file}")).unwrap();
        process::ok(ours("vexctl").arg("put").arg(self.path.join(file)).arg("--vector-file").arg(&npy));
    }

    fn search_command(&self, query: &[f32], k: usize) -> Command {
        let npy = self.stage.path("query.npy");
        write_npy(&npy, &[query.to_vec()]);
        let mut command = ours("vexctl");
        command.arg("search").arg(&self.path).arg("--vector-file").arg(npy).args([
            "--json",
            "-k",
            &k.to_string(),
        ]);
        command
    }

    fn search(&self, query: &[f32], k: usize) -> Value {
        results(&process::ok(&mut self.search_command(query, k)))
    }
}

fn results(text: &str) -> Value {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text}"));
    assert!(value["results"].is_array(), "no results in {text}");
    value
}

fn names(reply: &Value) -> Vec<String> {
    let results = reply["results"].as_array().unwrap();
    results.iter().map(|result| result["path"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn exact_search_equals_the_oracle_for_each_metric_and_element() {
    let stage = Stage::vexfs(2048);
    let mut rng = StdRng::seed_from_u64(settings::seed());
    let mount = stage.mount();
    for (element, step, reach) in [("f32", 0.001, 2000), ("f16", 1.0 / 512.0, 1000), ("i8", 1.0, 120)] {
        let rows = clustered(ROWS, step, reach, &mut rng);
        for metric in ["cosine", "l2", "ip"] {
            let collection =
                Collection::create(&stage, &mount, &format!("{element}-{metric}"), DIM, metric, element);
            for (number, block) in rows.chunks(ROWS_IN_FILE).enumerate() {
                collection.put(&format!("file-{number}"), block);
            }
            for query in clustered(2, step, reach, &mut rng).iter().chain([&rows[ROWS / 3]]) {
                compare(&collection.search(query, K), metric, query, &rows);
            }
            fs::remove_dir_all(&collection.path).unwrap();
        }
    }
    mount.unmount();
}

fn compare(reply: &Value, metric: &str, query: &[f32], rows: &[Vec<f32>]) {
    assert_eq!(reply["rows_scanned"], rows.len());
    let mut expected: Vec<f64> = rows.iter().map(|row| distance(metric, query, row)).collect();
    let by_row = expected.clone();
    expected.sort_by(f64::total_cmp);
    let found = reply["results"].as_array().unwrap();
    assert_eq!(found.len(), K);
    // Sums in f32 round; what is asked is that none nearer is missed beyond that.
    let scale = by_row.iter().fold(1.0, |scale: f64, d| scale.max(d.abs()));
    let close = |a: f64, b: f64| (a - b).abs() <= scale * 2e-5;
    for (rank, result) in found.iter().enumerate() {
        let got = result["distance"].as_f64().unwrap();
        let number: usize = result["path"].as_str().unwrap().strip_prefix("file-").unwrap().parse().unwrap();
        let row = result["row"].as_u64().unwrap() as usize;
        assert_eq!(row / ROWS_IN_FILE, number, "row {row} is not of that file");
        assert!(close(got, by_row[row]), "{metric}: row {row} is at {} and not at {got}", by_row[row]);
        assert!(
            close(got, expected[rank]),
            "{metric}: rank {rank} should be at {} and not at {got}",
            expected[rank]
        );
    }
    if metric == "cosine" && by_row.iter().any(|d| d.abs() < 1e-12) {
        assert!(found[0]["distance"].as_f64().unwrap().abs() < 1e-3, "a row is not nearest to itself");
    }
}

#[test]
fn search_follows_the_files() {
    let stage = Stage::vexfs(128);
    let mount = stage.mount();
    let collection = Collection::create(&stage, &mount, "c", 4, "l2", "f32");
    for (number, name) in ["a", "b", "c"].into_iter().enumerate() {
        collection.put(name, &[vec![number as f32, 1.0, 0.0, 0.0]]);
    }
    let ask = || names(&collection.search(&[0.0; 4], 10));
    assert_eq!(ask(), ["a", "b", "c"]);

    fs::remove_file(collection.path.join("b")).unwrap();
    assert_eq!(ask(), ["a", "c"], "a row dies with its file");

    fs::rename(collection.path.join("a"), mount.join("outside")).unwrap();
    assert_eq!(ask(), ["c"], "a file that was moved out is not found");
    fs::rename(mount.join("outside"), collection.path.join("back")).unwrap();
    assert_eq!(ask(), ["back", "c"], "and found again when it comes back");

    let stale = |reply: Value| -> Vec<bool> {
        reply["results"].as_array().unwrap().iter().map(|result| result["stale"].as_bool().unwrap()).collect()
    };
    fs::write(collection.path.join("c"), "edited").unwrap();
    assert_eq!(stale(collection.search(&[0.0; 4], 10)), [false, true], "an edit makes rows stale");
    let listed = process::ok(ours("vexctl").arg("stale").arg(&collection.path));
    let (file, sum) = listed.split_once('\n').unwrap();
    assert!(Path::new(file).starts_with(&collection.path) && Path::new(file).is_file(), "{listed}");
    assert_eq!(sum, "1 of 2 vectors are stale, in 1 files\n");
    collection.put("c", &[vec![9.0; 4]]);
    assert_eq!(stale(collection.search(&[0.0; 4], 10)), [false, false], "a put makes them fresh");

    xattr::set(collection.path.join("back"), "user.vexfs.vector", &[5f32; 4].map(f32::to_le_bytes).concat())
        .unwrap();
    let nearest = collection.search(&[5.0; 4], 1);
    assert_eq!(names(&nearest), ["back"], "the xattr is a row");

    mount.unmount();
    let mount = stage.mount();
    assert_eq!(names(&collection.search(&[5.0; 4], 5)), ["back", "c"], "rows survive a remount");
    mount.unmount();
}

#[test]
fn what_is_no_vector_is_refused_with_a_sentence() {
    let stage = Stage::vexfs(128);
    let mount = stage.mount();
    let collection = Collection::create(&stage, &mount, "c", 4, "cosine", "f32");
    collection.put("good", &[vec![1.0, 0.0, 0.0, 0.0]]);
    fs::write(collection.path.join("file"), "text").unwrap();
    let bad: [(&[f32], &[&str]); 4] = [
        (&[1.0; 3], &["dim", "element"]),
        (&[f32::NAN, 1.0, 1.0, 1.0], &["finite", "nan"]),
        (&[f32::INFINITY, 1.0, 1.0, 1.0], &["finite", "inf"]),
        (&[0.0; 4], &["zero", "norm", "length 0"]),
    ];
    for (vector, words) in bad {
        let npy = stage.path("bad.npy");
        write_npy(&npy, &[vector.to_vec()]);
        let mut put = ours("vexctl");
        put.arg("put").arg(collection.path.join("file")).arg("--vector-file").arg(&npy);
        for command in [&mut put, &mut collection.search_command(vector, 3)] {
            let message = process::fails(command).to_lowercase();
            assert!(
                words.iter().any(|word| message.contains(word)),
                "{vector:?}: none of {words:?} in {message}"
            );
        }
    }
    let mut empty = ours("vexctl");
    empty.arg("put").arg(collection.path.join("file")).args(["--vector", "[]"]);
    process::fails(&mut empty);
    let mut elsewhere = ours("vexctl");
    elsewhere.arg("search").arg(mount.path()).args(["--vector", "[1]"]);
    assert!(process::fails(&mut elsewhere).to_lowercase().contains("collection"));

    assert_eq!(names(&collection.search(&[1.0; 4], 10)), ["good"], "what was refused left nothing");
    mount.unmount();
}

#[test]
fn a_search_never_returns_what_the_caller_may_not_read() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root, to be somebody else");
        return;
    }
    let stage = Stage::vexfs(128);
    // The target directory may be out of reach for others.
    let public = tempfile::tempdir().unwrap();
    set_mode(public.path(), 0o755);
    let vexctl = public.path().join("vexctl");
    fs::copy(ours("vexctl").get_program(), &vexctl).unwrap();
    let mount = stage.mount_at(&public.path().join("mnt"));
    let collection = Collection::create(&stage, &mount, "c", 4, "l2", "f32");
    fs::create_dir(collection.path.join("closed")).unwrap();
    for (number, (name, mode)) in
        [("secret", 0o600), ("group", 0o640), ("open", 0o644), ("closed/open", 0o644)].into_iter().enumerate()
    {
        collection.put(name, &[vec![number as f32, 1.0, 0.0, 0.0]]);
        fs::set_permissions(collection.path.join(name), std::os::unix::fs::PermissionsExt::from_mode(mode))
            .unwrap();
    }
    std::os::unix::fs::chown(collection.path.join("group"), Some(0), Some(4242)).unwrap();
    set_mode(&collection.path.join("closed"), 0o700);

    let ask = |groups: &str| {
        let mut somebody = programs::tool("setpriv");
        somebody.args(["--reuid", "12345", "--regid", "12345", groups, "--"]).arg(&vexctl);
        somebody.arg("search").arg(&collection.path).args(["--vector", "[0,0,0,0]", "--json"]);
        names(&results(&process::ok(&mut somebody)))
    };
    assert_eq!(ask("--clear-groups"), ["open"]);
    assert_eq!(ask("--groups=4242"), ["group", "open"], "supplementary groups count");
    assert_eq!(
        names(&collection.search(&[0.0; 4], 10)),
        ["secret", "group", "open", "closed/open"],
        "root sees all"
    );
    mount.unmount();
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
}
