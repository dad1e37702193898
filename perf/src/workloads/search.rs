//! Exact search: ten nearest of 50,000 x 384 f32 by cosine. Ours answers through the session file of a mount
//! (request, permission checks, paths and all); the rival is faiss, or numpy where faiss is not installed, on an
//! array in its own memory.

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::files::{make_image, path_text};
use crate::contender::{Contender, Prepared, Work, Workload};
use crate::cpu;
use crate::env::Env;
use crate::server::Server;

pub const CASES: &[&str] = &["exact-50k-384-f32"];

const ROWS: usize = 50_000;
const DIM: usize = 384;
const ROWS_IN_FILE: usize = 100;
const QUERIES: usize = 64;
const RIVAL: &str = include_str!("../../rivals/exact_search.py");

pub fn prepare(env: &Env) -> Prepared {
    env.tool("fusermount3")?;
    let ours = Ours {
        mkfs: env.program("mkfs.vexfs")?,
        fuse: env.program("vexfs-fuse")?,
        running: None,
        queries: Vec::new(),
    };
    let python = env.rival("venv/bin/python3").or_else(|_| env.tool("/usr/bin/python3"))?;
    let libraries = Command::new(&python).args(["-c", RIVAL, "--which"]).output();
    let library = libraries.map_err(|error| format!("cannot run {}: {error}", python.display()))?;
    if !library.status.success() {
        return Err("neither faiss nor numpy is installed: run perf/rivals/prepare.sh".to_owned());
    }
    let library = String::from_utf8_lossy(&library.stdout).trim().to_owned();
    Ok(Workload {
        name: "search",
        about: "One query at a time, k = 10; an operation is one row compared, so rate / 50,000 = queries per second, \
                and p99 is that of a query. The rival's CPU is in its server column, all threads."
            .to_owned(),
        cases: CASES.to_vec(),
        unit: "rows",
        contenders: vec![Box::new(ours), Box::new(Rival { python, library, child: None })],
        bars: Vec::new(),
        missing: Vec::new(),
    })
}

/// Random rows around 256 random centres, row-major.
fn clustered(rows: usize, seed: u64) -> Vec<f32> {
    let mut centres = StdRng::seed_from_u64(1);
    let centres: Vec<f32> = (0..256 * DIM).map(|_| centres.random_range(-1.0..1.0)).collect();
    let mut rng = StdRng::seed_from_u64(seed);
    let mut all = Vec::with_capacity(rows * DIM);
    for _ in 0..rows {
        let centre = rng.random_range(0..256) * DIM;
        all.extend(centres[centre..centre + DIM].iter().map(|c| c + rng.random_range(-0.3f32..0.3)));
    }
    all
}

struct Ours {
    mkfs: PathBuf,
    fuse: PathBuf,
    running: Option<(Server, PathBuf)>,
    /// Requests, ready to be written.
    queries: Vec<Vec<u8>>,
}

impl Contender for Ours {
    fn name(&self) -> String {
        "vexfs-fuse".to_owned()
    }

    fn start(&mut self, env: &Env) -> Result<()> {
        let (image, mount) = (env.scratch().join("search.vexfs"), env.scratch().join("search"));
        make_image(&self.mkfs, &image, &["--size", "1G"])?;
        fs::create_dir(&mount)?;
        let args = [path_text(&image)?, path_text(&mount)?, "-f"];
        let mut server = Server::spawn(&self.fuse, &args, mount.with_extension("log"))?;
        server.wait_for_mount(&mount)?;
        fill(&mount)?;
        self.queries = clustered(QUERIES, 3)
            .chunks(DIM)
            .map(|vector| json!({"vector": vector, "k": 10}).to_string().into_bytes())
            .collect();
        self.running = Some((server, mount));
        Ok(())
    }

    fn round(&mut self, _case: usize, time: Duration) -> Result<Work> {
        let (_, mount) = self.running.as_ref().context("not started")?;
        let session = mount.join(".vexfs/search");
        let cpu = cpu::of_this_thread()?;
        let start = Instant::now();
        let (mut latencies, mut rows, mut last) = (Vec::new(), 0, Duration::ZERO);
        while last < time {
            let reply = ask(&session, &self.queries[latencies.len() % QUERIES])?;
            let scanned = reply["rows_scanned"].as_u64().context("the reply has no rows_scanned")?;
            ensure!(scanned == ROWS as u64, "{scanned} rows scanned instead of {ROWS}");
            ensure!(reply["results"].as_array().is_some_and(|r| r.len() == 10), "not ten results: {reply}");
            rows += scanned;
            let now = start.elapsed();
            latencies.push(now - last);
            last = now;
        }
        latencies.sort();
        let p50 = latencies[latencies.len() / 2];
        let p99 = latencies[(latencies.len() * 99 / 100).min(latencies.len() - 1)];
        Ok(Work {
            operations: rows,
            elapsed: last,
            client_cpu: cpu::of_this_thread()? - cpu,
            p50: Some(p50),
            p99: Some(p99),
        })
    }

    fn server_pid(&self) -> Option<u32> {
        self.running.as_ref().map(|(server, _)| server.pid())
    }

    fn stop(&mut self) -> Result<()> {
        self.running.take().map_or(Ok(()), |(mut server, _)| server.stop())
    }
}

/// Makes the mount's root a collection of [`ROWS`] rows of files.
fn fill(mount: &Path) -> Result<()> {
    let schema = json!({"dim": DIM, "element": "f32", "metric": "cosine"}).to_string();
    fs::write(mount.join(".vexfs/schema"), schema).context("cannot make a collection")?;
    let vectors = clustered(ROWS, 2);
    for (index, block) in vectors.chunks(ROWS_IN_FILE * DIM).enumerate() {
        let name = format!("file-{index}");
        fs::write(mount.join(&name), vec![b'x'; ROWS_IN_FILE])?;
        let rows: Vec<Value> = block
            .chunks(DIM)
            .enumerate()
            .map(|(row, vector)| json!({"vector": vector, "offset": row, "length": 1, "tag": 0}))
            .collect();
        let request = json!({"file": name, "append": false, "rows": rows}).to_string();
        ask(&mount.join(".vexfs/put"), request.as_bytes())?;
    }
    Ok(())
}

/// Writes a request to a session file and reads the reply.
fn ask(session: &Path, request: &[u8]) -> Result<Value> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(session)
        .with_context(|| format!("cannot open {}", session.display()))?;
    file.write_all(request)?;
    let mut reply = Vec::new();
    file.read_to_end(&mut reply)?;
    let reply: Value = serde_json::from_slice(&reply).context("the reply is not JSON")?;
    match reply.get("error") {
        Some(error) => bail!("{} says {error}", session.display()),
        None => Ok(reply),
    }
}

struct Rival {
    python: PathBuf,
    library: String,
    child: Option<Child>,
}

impl Contender for Rival {
    fn name(&self) -> String {
        self.library.clone()
    }

    fn start(&mut self, env: &Env) -> Result<()> {
        let (rows, queries) = (env.scratch().join("rows.f32"), env.scratch().join("queries.f32"));
        write_f32(&rows, &clustered(ROWS, 2))?;
        write_f32(&queries, &clustered(QUERIES, 3))?;
        let dim = DIM.to_string();
        let child = vexfs_harness::command(&self.python)
            .args(["-c", RIVAL, path_text(&rows)?, path_text(&queries)?, &dim])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        self.child = Some(child.context("cannot start python")?);
        Ok(())
    }

    fn round(&mut self, _case: usize, time: Duration) -> Result<Work> {
        let child = self.child.as_mut().context("not started")?;
        let (input, output) = child.stdin.as_mut().zip(child.stdout.as_mut()).context("no pipe to python")?;
        writeln!(input, "{}", time.as_secs_f64())?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let reply: Value = serde_json::from_str(&line).context("python gave no result")?;
        let seconds =
            |name: &str| reply[name].as_f64().map(Duration::from_secs_f64).context("no such result");
        Ok(Work {
            operations: reply["rows"].as_u64().context("no rows in the result")?,
            elapsed: seconds("seconds")?,
            client_cpu: Duration::ZERO,
            p50: None,
            p99: Some(seconds("p99")?),
        })
    }

    fn server_pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    fn stop(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        drop(child.stdin.take());
        let status = child.wait()?;
        ensure!(status.success(), "python ended with {status}");
        Ok(())
    }
}

impl Drop for Rival {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn write_f32(path: &Path, values: &[f32]) -> Result<()> {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}
