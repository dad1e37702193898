//! Text to vectors: the plug that `vexctl ingest` and `vexctl search --text` use.
//!
//! An [`Embedder`] turns passages and queries into vectors of one dimension. Two exist:
//! [`LexicalEmbedder`] is built in and needs no model (it compares *words and parts of words*, not
//! meanings), and [`CommandEmbedder`] keeps a command of the user's running.
//! A collection remembers in an ordinary file which one made its vectors ([`Identity`]), since vectors of two
//! embedders must never be compared.
//!
//! Order of dependency: `identity` -> `lexical` -> `idf` -> `features` -> `hash`; `command` stands by itself.

mod command;
mod features;
mod hash;
mod identity;
mod idf;
mod lexical;

pub use command::{CommandEmbedder, CommandOptions};
pub use hash::hash_bytes;
pub use identity::{EMBEDDER_FILE, Identity, Kind};
pub use idf::{IdfTable, Trainer};
pub use lexical::{LEXICAL_DIM, LexicalEmbedder};

/// A piece of text to embed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passage<'a> {
    /// What the passage stands under: words of its path and its heading. Empty for queries.
    pub title: &'a str,
    /// The passage itself.
    pub text: &'a str,
}

/// Turns text into vectors.
pub trait Embedder: Send + Sync {
    /// Elements of each vector.
    fn dim(&self) -> usize;

    /// One vector of [`Embedder::dim`] finite elements for each passage, in order. A passage in which the embedder
    /// finds nothing to go by gives a vector of zeros, which the caller must not store under the cosine metric.
    ///
    /// # Errors
    /// [`EmbedError`] when the embedder can't do its work; nothing of the batch is usable then.
    fn embed(&self, passages: &[Passage<'_>]) -> Result<Vec<Vec<f32>>, EmbedError>;

    /// The vector of a search text.
    ///
    /// # Errors
    /// As [`Embedder::embed`].
    fn embed_query(&self, text: &str) -> Result<Vec<f32>, EmbedError> {
        let mut vectors = self.embed(&[Passage { title: "", text }])?;
        vectors.pop().ok_or(EmbedError::WrongCount { expected: 1, found: 0 })
    }
}

/// Why text could not be embedded, or an embedder not be set up.
#[derive(Debug, thiserror::Error)]
pub enum EmbedError {
    /// The command could not be started.
    #[error(
        "the embedding command `{command}` could not be started; check that it exists and may be executed"
    )]
    Start {
        /// The command line.
        command: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The command ended, or closed its input or output, while work was left.
    #[error("the embedding command `{command}` {how}{}; run it by hand with one JSON string a line on its input", said(.stderr))]
    Died {
        /// The command line.
        command: String,
        /// How it ended.
        how: String,
        /// The end of what it wrote to stderr.
        stderr: String,
    },
    /// The command gave no answer in time.
    #[error(
        "the embedding command `{command}` gave no answer for {timeout_s} s{}; it must write one line for each line it reads \
         and flush its output (--embed-timeout sets the limit)", said(.stderr)
    )]
    Silent {
        /// The command line.
        command: String,
        /// The limit in seconds.
        timeout_s: u64,
        /// The end of what it wrote to stderr.
        stderr: String,
    },
    /// The command answered with something that is not a vector.
    #[error("the embedding command `{command}` gave a bad answer: {problem}; each line must be one JSON array of numbers{}", said(.stderr))]
    BadAnswer {
        /// The command line.
        command: String,
        /// What was wrong.
        problem: String,
        /// The end of what it wrote to stderr.
        stderr: String,
    },
    /// An embedder gave another number of vectors than it got passages.
    #[error("the embedder gave {found} vectors for {expected} passages")]
    WrongCount {
        /// Passages given.
        expected: usize,
        /// Vectors got.
        found: usize,
    },
    /// The collection's embedder file cannot be used.
    #[error("{path}: {problem}; `vexctl ingest --retrain` writes it anew")]
    BadFile {
        /// The file.
        path: String,
        /// What was wrong.
        problem: String,
    },
    /// The file system refused the embedder file.
    #[error("{path}: cannot be {action}")]
    Io {
        /// The file.
        path: String,
        /// `read` or `written`.
        action: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

fn said(stderr: &str) -> String {
    if stderr.is_empty() {
        String::new()
    } else {
        format!(" (it said: {})", stderr.trim().replace('\n', " / "))
    }
}
