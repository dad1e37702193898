//! The embedder that is a command of the user's: one JSON string a line on its input, one JSON array of numbers a line on its output.
//!
//! The command is run by `sh -c` once and kept running. Lines are answered in order. A whole batch is written before the
//! first answer is waited for, by a thread of its own, so a command may read ahead as far as it likes (and batch), and neither side can block
//! the other. After any failure the command is ended and every later call fails with what it said.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use parking_lot::Mutex;

use super::{EmbedError, Embedder, Passage};

/// Longest answer line read: 16384 numbers of up to 32 characters.
const ANSWER_BYTES_MAX: usize = 16384 * 32;
/// What is kept of the end of the command's stderr.
const STDERR_BYTES_KEPT: usize = 1024;
/// How long a command may take to end by itself once its input is closed.
const GRACE: Duration = Duration::from_secs(2);

/// How to run the command.
#[derive(Clone, Debug)]
pub struct CommandOptions {
    /// For `sh -c`.
    pub command: String,
    /// Longest wait for one answer, in seconds.
    pub timeout_s: u64,
}

/// A running command. The dimension is what it gave for a first probe.
pub struct CommandEmbedder {
    options: CommandOptions,
    dim: usize,
    running: Mutex<Option<Running>>,
}

struct Running {
    child: Child,
    /// Dropped to close the command's input.
    requests: Option<Sender<Vec<u8>>>,
    answers: Receiver<std::io::Result<Vec<u8>>>,
    stderr_tail: Arc<Mutex<Vec<u8>>>,
    threads: Vec<JoinHandle<()>>,
}

impl CommandEmbedder {
    /// Starts the command and asks it for one vector, whose length becomes the dimension.
    ///
    /// # Errors
    /// The command cannot be started or does not keep to the protocol.
    pub fn start(options: CommandOptions) -> Result<Self, EmbedError> {
        let running = Running::start(&options.command)?;
        let mut embedder = Self { options, dim: 0, running: Mutex::new(Some(running)) };
        let probe = embedder.exchange(&[Passage { title: "", text: "probe" }])?;
        embedder.dim = probe.first().map_or(0, Vec::len);
        Ok(embedder)
    }

    fn exchange(&self, passages: &[Passage<'_>]) -> Result<Vec<Vec<f32>>, EmbedError> {
        let mut slot = self.running.lock();
        let Some(running) = slot.as_mut() else {
            return Err(self.died("was ended after an earlier failure".into(), String::new()));
        };
        let result = self.exchange_with(running, passages);
        if let Err(failure) = result {
            let failed = slot.take().map(Running::end).unwrap_or_default();
            return Err(self.explain(failure, failed));
        }
        result.map_err(|failure| self.explain(failure, Ended::default()))
    }

    fn exchange_with(
        &self,
        running: &mut Running,
        passages: &[Passage<'_>],
    ) -> Result<Vec<Vec<f32>>, Failure> {
        for passage in passages {
            let text = if passage.title.is_empty() {
                passage.text.to_owned()
            } else {
                format!("{}\n\n{}", passage.title, passage.text)
            };
            let mut line = serde_json::to_vec(&text).map_err(|error| Failure::Bad(error.to_string()))?;
            line.push(b'\n');
            running.requests.as_ref().and_then(|requests| requests.send(line).ok()).ok_or(Failure::Died)?;
        }
        let mut vectors = Vec::with_capacity(passages.len());
        for _ in passages {
            let line = match running.answers.recv_timeout(Duration::from_secs(self.options.timeout_s)) {
                Ok(Ok(line)) => line,
                Ok(Err(error)) => return Err(Failure::Bad(error.to_string())),
                Err(RecvTimeoutError::Timeout) => return Err(Failure::Silent),
                Err(RecvTimeoutError::Disconnected) => return Err(Failure::Died),
            };
            vectors.push(parse_answer(&line, self.dim).map_err(Failure::Bad)?);
        }
        Ok(vectors)
    }

    fn explain(&self, failure: Failure, ended: Ended) -> EmbedError {
        let command = self.options.command.clone();
        match failure {
            Failure::Died => self.died(ended.how(), ended.stderr),
            Failure::Silent => {
                EmbedError::Silent { command, timeout_s: self.options.timeout_s, stderr: ended.stderr }
            }
            Failure::Bad(problem) => EmbedError::BadAnswer { command, problem, stderr: ended.stderr },
        }
    }

    fn died(&self, how: String, stderr: String) -> EmbedError {
        EmbedError::Died { command: self.options.command.clone(), how, stderr }
    }
}

enum Failure {
    Died,
    Silent,
    Bad(String),
}

#[derive(Default)]
struct Ended {
    status: Option<ExitStatus>,
    stderr: String,
}

impl Ended {
    fn how(&self) -> String {
        match self.status {
            Some(status) if status.signal().is_some() => {
                format!("was killed by signal {}", status.signal().unwrap_or_default())
            }
            Some(status) => format!("ended with status {}", status.code().unwrap_or_default()),
            None => "closed its output and did not end".into(),
        }
    }
}

/// One answer line as a vector of `dim` numbers (any number of them if `dim` is 0: the probe).
fn parse_answer(line: &[u8], dim: usize) -> Result<Vec<f32>, String> {
    let vector: Vec<f64> = serde_json::from_slice(line).map_err(|error| {
        let shown: String = String::from_utf8_lossy(line).chars().take(60).collect();
        format!("`{}` is not an array of numbers ({error})", shown.trim_end())
    })?;
    if vector.is_empty() || (dim != 0 && vector.len() != dim) {
        return Err(format!("a vector of {} numbers, its first one had {dim}", vector.len()));
    }
    let vector: Vec<f32> = vector.into_iter().map(|x| x as f32).collect();
    match vector.iter().position(|x| !x.is_finite()) {
        Some(index) => Err(format!("number {index} of a vector does not fit a finite 32-bit float")),
        None => Ok(vector),
    }
}

impl Running {
    fn start(command: &str) -> Result<Self, EmbedError> {
        let start_error = |source| EmbedError::Start { command: command.to_owned(), source };
        let mut child = Command::new("sh")
            .args(["-c", command])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own: the shell's children end with it.
            .process_group(0)
            .spawn()
            .map_err(start_error)?;
        let (Some(mut stdin), Some(stdout), Some(stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(start_error(std::io::Error::other("no pipes")));
        };
        let (requests, to_write) = unbounded::<Vec<u8>>();
        let (from_command, answers) = bounded(256);
        let stderr_tail = Arc::new(Mutex::new(Vec::new()));
        let tail = Arc::clone(&stderr_tail);
        let threads = vec![
            thread::spawn(move || {
                for line in to_write {
                    // A closed pipe shows at the reading side as the command's end.
                    if stdin.write_all(&line).and_then(|()| stdin.flush()).is_err() {
                        break;
                    }
                }
            }),
            thread::spawn(move || read_answers(stdout, &from_command)),
            thread::spawn(move || keep_tail(stderr, &tail)),
        ];
        Ok(Self { child, requests: Some(requests), answers, stderr_tail, threads })
    }

    /// Closes the command's input, gives it a moment, then ends it and its group.
    fn end(mut self) -> Ended {
        self.requests = None;
        let deadline = Instant::now() + GRACE;
        let mut status = self.child.try_wait().ok().flatten();
        while status.is_none() && Instant::now() < deadline {
            // Answers still coming must not block the reader, which would block the command.
            while self.answers.try_recv().is_ok() {}
            thread::sleep(Duration::from_millis(10));
            status = self.child.try_wait().ok().flatten();
        }
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw) {
            // Without a process left in the group this fails, which is what we want.
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        // The command is gone or was just killed; its status is of interest only if it went by itself.
        let _ = self.child.wait();
        drop(self.answers);
        for thread in self.threads {
            // A panic of a pipe thread has nothing to add to the failure being reported.
            let _ = thread.join();
        }
        Ended { status, stderr: String::from_utf8_lossy(&self.stderr_tail.lock()).trim().to_owned() }
    }
}

fn read_answers(stdout: ChildStdout, answers: &Sender<std::io::Result<Vec<u8>>>) {
    let mut reader = BufReader::new(stdout);
    loop {
        let mut line = Vec::new();
        let answer = match reader.by_ref().take(ANSWER_BYTES_MAX as u64).read_until(b'\n', &mut line) {
            Ok(0) => return,
            Ok(_) if line.len() == ANSWER_BYTES_MAX => {
                Err(std::io::Error::other(format!("a line longer than {ANSWER_BYTES_MAX} bytes")))
            }
            Ok(_) => Ok(line),
            Err(error) => Err(error),
        };
        let last = answer.is_err();
        if answers.send(answer).is_err() || last {
            return;
        }
    }
}

fn keep_tail(mut stderr: ChildStderr, tail: &Mutex<Vec<u8>>) {
    let mut block = [0u8; 4096];
    while let Ok(len @ 1..) = stderr.read(&mut block) {
        let mut tail = tail.lock();
        tail.extend_from_slice(&block[..len]);
        let surplus = tail.len().saturating_sub(STDERR_BYTES_KEPT);
        tail.drain(..surplus);
    }
}

impl Embedder for CommandEmbedder {
    fn dim(&self) -> usize {
        self.dim
    }

    fn embed(&self, passages: &[Passage<'_>]) -> Result<Vec<Vec<f32>>, EmbedError> {
        self.exchange(passages)
    }
}

impl Drop for CommandEmbedder {
    fn drop(&mut self) {
        if let Some(running) = self.running.get_mut().take() {
            running.end();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(command: &str) -> Result<CommandEmbedder, EmbedError> {
        CommandEmbedder::start(CommandOptions { command: command.into(), timeout_s: 20 })
    }

    fn passage(text: &str) -> Passage<'_> {
        Passage { title: "", text }
    }

    /// Answers each line with its length in bytes (JSON quotes included) and its number.
    const COUNTER: &str = "n=0; while IFS= read -r line; do n=$((n+1)); echo \"[${#line}, $n, 0.5]\"; done";

    #[test]
    fn answers_come_in_order_and_the_command_is_kept() {
        let embedder = start(COUNTER).unwrap();
        assert_eq!(embedder.dim(), 3);
        let texts: Vec<String> = (0..200).map(|i| "x".repeat(i)).collect();
        let passages: Vec<_> = texts.iter().map(|t| passage(t)).collect();
        let vectors = embedder.embed(&passages).unwrap();
        for (i, vector) in vectors.iter().enumerate() {
            assert_eq!(vector, &[i as f32 + 2.0, i as f32 + 2.0, 0.5]);
        }
        assert_eq!(embedder.embed_query("a\nb").unwrap()[1], 202.0);
    }

    #[test]
    fn titles_stand_before_the_text() {
        let embedder = start(COUNTER).unwrap();
        let vector = embedder.embed(&[Passage { title: "ab", text: "c" }]).unwrap();
        assert_eq!(vector[0][0], r#""ab\n\nc""#.len() as f32);
    }

    #[test]
    fn a_batch_larger_than_the_pipes_does_not_block() {
        let embedder = start("while IFS= read -r line; do echo '[1, 2]'; done").unwrap();
        let big = "y".repeat(100_000);
        let vectors = embedder.embed(&vec![passage(&big); 20]).unwrap();
        assert_eq!(vectors.len(), 20);
    }

    #[test]
    fn a_command_that_is_not_there_is_named() {
        let message = start("no-such-embedder-command").err().unwrap().to_string();
        assert!(message.contains("no-such-embedder-command") && message.contains("status 127"), "{message}");
    }

    #[test]
    fn a_command_that_dies_is_reported_with_its_words() {
        let embedder = start("read -r x; echo '[1]'; read -r x; echo 'out of memory' >&2; exit 3").unwrap();
        let message = embedder.embed(&[passage("a"), passage("b")]).unwrap_err().to_string();
        assert!(message.contains("status 3") && message.contains("out of memory"), "{message}");
        assert!(matches!(embedder.embed(&[passage("a")]), Err(EmbedError::Died { .. })));
    }

    #[test]
    fn answers_that_are_no_vectors_are_refused() {
        for (answer, expected) in [
            ("hello", "not an array"),
            ("[]", "0 numbers"),
            ("[1, null]", "not an array"),
            ("{\"a\":1}", "not an array"),
            ("[1e39]", "finite"),
        ] {
            let message = start(&format!("read -r x; echo '{answer}'; cat")).err().unwrap().to_string();
            assert!(message.contains(expected), "{answer}: {message}");
        }
    }

    #[test]
    fn a_changed_dimension_is_refused() {
        let embedder = start("read -r x; echo '[1,2]'; read -r x; echo '[1,2,3]'").unwrap();
        let message = embedder.embed(&[passage("a")]).unwrap_err().to_string();
        assert!(message.contains("3 numbers") && message.contains("had 2"), "{message}");
    }

    #[test]
    fn an_endless_line_is_refused() {
        let message = start("read -r x; tr '\\0' 1 </dev/zero").err().unwrap().to_string();
        assert!(message.contains("longer than"), "{message}");
    }

    #[test]
    fn a_silent_command_is_given_up() {
        let options = CommandOptions { command: "cat >/dev/null".into(), timeout_s: 0 };
        assert!(matches!(CommandEmbedder::start(options), Err(EmbedError::Silent { .. })));
    }
}
