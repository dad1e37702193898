//! `vexctl search`.

use std::fmt::Write;
use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use blockd::embed::Identity;

use crate::cli::SearchArgs;
use crate::embedder;
use crate::ingest::is_temporary;
use crate::npy::Vectors;
use crate::output::{print, tame};
use crate::session::{Found, Hit, Query, SessionDir};
use crate::snippet::{Quote, highlight, query_words, quote, snippet};
use crate::vectors;

/// Searches and prints.
///
/// # Errors
/// There is no collection, or the query does not fit it.
pub fn run(args: &SearchArgs) -> Result<ExitCode> {
    let session = SessionDir::open(&args.dir)?;
    let schema = session.collection_schema()?;
    let query = match (&args.text, vectors::given(&args.vector, &schema)?) {
        (Some(text), _) => embed_text(&session, text, args)?,
        (None, Some(vectors)) => vectors,
        (None, None) => bail!("no query is given; use --text, --vector-file or --vector"),
    };
    vectors::check("--text", &query, &schema)?;
    ensure!(query.count() == 1, "the query has {} vectors; give one (search once for each)", query.count());
    let mut found = session.search(&Query {
        vector: &query.elements,
        k: args.k,
        subdir: args.subdir.as_deref().unwrap_or(Path::new("")),
        tags_any: args.tags_any,
        fresh_only: args.fresh_only,
    })?;
    // Rows of a file that an ingest has not published yet.
    found.hits.retain(|hit| !is_temporary(&hit.path));
    let text = if args.json { as_json(&found, args)? } else { as_text(&found, args) };
    print(&text)?;
    let stale = found.hits.iter().filter(|hit| hit.stale).count();
    if stale > 0 && !args.json {
        eprintln!(
            "vexctl: {stale} of the passages are stale: their files changed after their vectors were made, so text and rank may be \
             wrong; refresh them with `vexctl ingest`, or leave them out with --fresh-only"
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn embed_text(session: &SessionDir, text: &str, args: &SearchArgs) -> Result<Vectors> {
    ensure!(!text.trim().is_empty(), "--text is empty; give some words");
    let root = session.collection_root()?;
    let identity = Identity::load(root.dir())?.with_context(|| {
        format!(
            "{}: remembers no embedder, so its vectors were not made by `vexctl ingest` and a text cannot be compared with \
             them; search with --vector-file, by the model that made them",
            root.dir().display()
        )
    })?;
    let elements = embedder::start(&identity, &args.embedder)?.embed_query(text)?;
    ensure!(elements.iter().any(|x| *x != 0.0), "--text has no word in it; give some words");
    Ok(Vectors { dim: elements.len(), elements })
}

fn quote_hit(hit: &Hit, args: &SearchArgs) -> std::io::Result<Quote> {
    quote(&args.dir.join(&hit.path), hit.offset, hit.length)
}

fn as_json(found: &Found, args: &SearchArgs) -> Result<String> {
    let results: Vec<_> = found
        .hits
        .iter()
        .enumerate()
        .map(|(i, hit)| {
            let quote = quote_hit(hit, args);
            serde_json::json!({
                "rank": i + 1, "path": hit.path.to_string_lossy(), "line": quote.as_ref().ok().map(|q| q.line),
                "offset": hit.offset, "length": hit.length, "distance": hit.distance, "row": hit.row, "ino": hit.ino,
                "tag": hit.tag, "stale": hit.stale, "text": quote.ok().map(|q| q.text),
            })
        })
        .collect();
    let value =
        serde_json::json!({ "epoch": found.epoch, "rows_scanned": found.rows_scanned, "results": results });
    Ok(format!("{}\n", serde_json::to_string(&value)?))
}

fn as_text(found: &Found, args: &SearchArgs) -> String {
    if found.hits.is_empty() {
        return format!("nothing found ({} vectors compared)\n", found.rows_scanned);
    }
    let color = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let words = args.text.as_deref().map(query_words).unwrap_or_default();
    let mut out = String::new();
    for (i, hit) in found.hits.iter().enumerate() {
        let path = tame(&hit.path.to_string_lossy()).replace('\n', "\u{fffd}");
        let (place, text) = match quote_hit(hit, args) {
            Ok(quote) => (format!("{path}:{}", quote.line), quote.text),
            Err(error) => (path, format!("(cannot be read: {error})")),
        };
        let stale = if hit.stale { "  STALE: the file changed since" } else { "" };
        let place = if color { format!("\x1b[36m{place}\x1b[0m") } else { place };
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{:>3}  {:.4}  {place}{stale}", i + 1, hit.distance);
        let shown = if args.full { text } else { snippet(&text, &words) };
        let shown = if color { highlight(&shown, &words) } else { shown };
        for line in shown.lines() {
            let _ = writeln!(out, "     | {line}");
        }
    }
    out
}
