//! The side thread's sockets against honest and hostile clients, on io_uring and on epoll.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use blockd::control::client::{ClientError, ControlClient};
use blockd::control::listen::{Address, Listening};
use blockd::control::metrics::Metrics;
use blockd::control::protocol::{REQUEST_BYTES_MAX, Request};
use blockd::control::side::{Engine, Side, Work};
use blockd::control::{Handler, Replies};
use serde_json::{Value, json};

/// Answers with what the tests need of a daemon.
#[derive(Default)]
struct Fake {
    asked: AtomicUsize,
    gone: AtomicBool,
    stopped: AtomicBool,
}

impl Handler for Fake {
    fn handle(&self, request: Request, replies: &Replies) -> Result<Value, String> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        match request {
            Request::Status {} => Ok(json!({"fine": true})),
            Request::Stats {} => Err("no stats here; ask elsewhere".into()),
            Request::Checkpoint { export: None } => {
                for i in 0..3 {
                    replies.progress(json!({ "step": i })).map_err(|_| "gone".to_owned())?;
                }
                Ok(json!("done"))
            }
            // Until the client goes.
            Request::Checkpoint { export: Some(_) } => loop {
                if replies.progress(json!("x".repeat(10_000))).is_err() {
                    self.gone.store(true, Ordering::SeqCst);
                    return Err("gone".into());
                }
                if self.stopped.load(Ordering::SeqCst) {
                    return Ok(json!("stopped"));
                }
            },
            Request::Send { to, .. } => {
                let mut stream = replies.client_stream().map_err(|error| format!("no stream: {error}"))?;
                stream.write_all(to.repeat(50_000).as_bytes()).map_err(|error| error.to_string())?;
                replies.progress(json!("half")).map_err(|_| "gone".to_owned())?;
                Ok(json!("sent"))
            }
            _ => panic!("a bug in a command"),
        }
    }
}

impl Metrics for Fake {
    fn text(&self) -> String {
        "x_total 1\n".into()
    }
}

struct Place {
    _dir: tempfile::TempDir,
    path: PathBuf,
    metrics: PathBuf,
    fake: Arc<Fake>,
    side: Option<Side>,
    _sockets: [Listening; 2],
}

impl Drop for Place {
    fn drop(&mut self) {
        self.fake.stopped.store(true, Ordering::SeqCst);
    }
}

fn place(plain: bool) -> Place {
    let dir = tempfile::tempdir().unwrap();
    let (path, metrics) = (dir.path().join("run/x.sock"), dir.path().join("run/x.metrics"));
    let fake = Arc::new(Fake::default());
    let sockets = [&path, &metrics].map(|path| Listening::bind(&Address::Unix(path.clone())).unwrap());
    let work = Work {
        control: Some((sockets[0].fd(), fake.clone())),
        metrics: vec![(sockets[1].fd(), fake.clone())],
        plain,
        ..Work::default()
    };
    let side = Side::start(work).unwrap();
    if plain {
        assert_eq!(side.engine(), Engine::Epoll);
    }
    Place { _dir: dir, path, metrics, fake, side: Some(side), _sockets: sockets }
}

fn on_both_engines(test: impl Fn(Place)) {
    test(place(true));
    test(place(false));
}

fn connect(path: &Path) -> BufReader<UnixStream> {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    BufReader::new(stream)
}

fn send(stream: &BufReader<UnixStream>, bytes: &[u8]) {
    stream.get_ref().write_all(bytes).unwrap();
}

fn line(stream: &mut BufReader<UnixStream>) -> String {
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    line
}

fn error(stream: &mut BufReader<UnixStream>) -> String {
    let reply: Value = serde_json::from_str(&line(stream)).unwrap();
    reply["error"].as_str().expect("an error").to_owned()
}

#[test]
fn requests_are_answered_in_turn_with_progress_and_errors() {
    on_both_engines(|place| {
        let run = place.path.parent().unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(run), mode(&place.path)), (0o700, 0o600));
        let mut client = ControlClient::connect(&place.path).unwrap();
        assert_eq!(client.ask::<Value>(&Request::Status {}).unwrap(), json!({"fine": true}));
        let refused = client.ask::<Value>(&Request::Stats {}).unwrap_err();
        assert!(matches!(&refused, ClientError::Refused(why) if why.contains("elsewhere")), "{refused}");
        let mut steps = Vec::new();
        let all = Request::Checkpoint { export: None };
        let done: Value = client.ask_with_progress(&all, |step| steps.push(step["step"].clone())).unwrap();
        assert_eq!((done, steps), (json!("done"), vec![json!(0), json!(1), json!(2)]));
    });
}

#[test]
fn a_stream_comes_on_a_socket_that_the_client_sends() {
    on_both_engines(|place| {
        let mut client = ControlClient::connect(&place.path).unwrap();
        let request = Request::Send { export: None, from: None, to: "x".into() };
        for _ in 0..2 {
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            let reader = std::thread::spawn(move || {
                let mut text = String::new();
                ours.read_to_string(&mut text).map(|_| text)
            });
            let mut told = Vec::new();
            let sent: Value =
                client.ask_with_stream(&request, theirs.into(), |value| told.push(value)).unwrap();
            assert_eq!((sent, told), (json!("sent"), vec![json!("half")]));
            assert_eq!(reader.join().unwrap().unwrap(), "x".repeat(50_000));
        }
        // Not a socket.
        let file = std::fs::File::open("/dev/null").unwrap();
        let refused = client.ask_with_stream::<Value>(&request, file.into(), |_| {}).unwrap_err();
        assert!(refused.to_string().contains("no stream"), "{refused}");
        // Not a descriptor; and the connection is still good.
        let mut stream = connect(&place.path);
        send(&stream, b"{\"cmd\":\"send\",\"to\":\"x\"}\n");
        assert_eq!(line(&mut stream), "{\"progress\":{\"awaiting\":\"descriptor\"}}\n");
        send(&stream, b"F");
        assert!(error(&mut stream).contains("no stream"));
        send(&stream, b"{\"cmd\":\"status\"}\n");
        assert_eq!(line(&mut stream), "{\"result\":{\"fine\":true}}\n");
        // Gone instead of an answer.
        send(&stream, b"{\"cmd\":\"send\",\"to\":\"x\"}\n");
        assert!(line(&mut stream).contains("awaiting"));
        stream.get_ref().shutdown(Shutdown::Write).unwrap();
        assert!(error(&mut stream).contains("no stream"));
    });
}

#[test]
fn a_command_that_breaks_off_is_an_error_and_the_daemon_goes_on() {
    on_both_engines(|place| {
        let mut client = ControlClient::connect(&place.path).unwrap();
        let refused = client.ask::<Value>(&Request::Drain {}).unwrap_err().to_string();
        assert!(refused.contains("log"), "{refused}");
        assert_eq!(client.ask::<Value>(&Request::Status {}).unwrap(), json!({"fine": true}));
    });
}

#[test]
fn several_requests_at_once_and_one_without_a_newline_are_answered() {
    on_both_engines(|place| {
        let mut stream = connect(&place.path);
        send(&stream, b"{\"cmd\":\"status\"}\n\n  \n{\"cmd\":\"stats\"}\n{\"cmd\":\"sta");
        send(&stream, b"tus\"}");
        stream.get_ref().shutdown(Shutdown::Write).unwrap();
        assert_eq!(line(&mut stream), "{\"result\":{\"fine\":true}}\n");
        assert!(error(&mut stream).contains("elsewhere"));
        assert_eq!(line(&mut stream), "{\"result\":{\"fine\":true}}\n");
        assert_eq!(line(&mut stream), "", "then the daemon ends it");
    });
}

#[test]
fn nonsense_is_answered_with_an_error_and_goes_no_further() {
    on_both_engines(|place| {
        let mut stream = connect(&place.path);
        let deep = "[".repeat(50_000);
        for nonsense in [
            "x",
            "{}",
            "{\"cmd\":7}",
            "{\"cmd\":\"status\",\"x\":1}",
            "\u{0}\u{1}",
            deep.as_str(),
            "{\"cmd\":\"x\"}",
        ] {
            send(&stream, nonsense.as_bytes());
            send(&stream, b"\n");
            assert!(error(&mut stream).contains("not a request"), "{nonsense:.20}");
        }
        send(&stream, b"\xff\xfe\n");
        assert!(error(&mut stream).contains("not a request"));
        assert_eq!(place.fake.asked.load(Ordering::SeqCst), 0);
        send(&stream, b"{\"cmd\":\"status\"}\n");
        assert_eq!(line(&mut stream), "{\"result\":{\"fine\":true}}\n", "the connection is still good");
    });
}

#[test]
fn a_line_without_an_end_is_cut_off_and_costs_no_more_than_its_bound() {
    on_both_engines(|place| {
        let mut stream = connect(&place.path);
        // The daemon closes at the bound, so later bytes may find the socket closed.
        let mut sent = 0;
        while sent <= 10 * REQUEST_BYTES_MAX {
            match stream.get_ref().write(&[b'x'; 4096]) {
                Ok(n) => sent += n,
                Err(_) => break,
            }
        }
        assert!(sent < 10 * REQUEST_BYTES_MAX, "the daemon took {sent} bytes of one line");
        assert!(error(&mut stream).contains("at most 65536 bytes"));
        // The longest line that is taken.
        let mut stream = connect(&place.path);
        let mut long = b"{\"cmd\":\"status\"}".to_vec();
        long.resize(REQUEST_BYTES_MAX - 1, b' ');
        long.push(b'\n');
        send(&stream, &long);
        assert_eq!(line(&mut stream), "{\"result\":{\"fine\":true}}\n");
    });
}

#[test]
fn half_open_connections_are_counted_and_the_next_one_is_told() {
    on_both_engines(|place| {
        let silent: Vec<_> = (0..32).map(|_| connect(&place.path)).collect();
        for stream in &silent {
            send(stream, b"{\"cmd\"");
        }
        // Accepted in the order of the connects, so these 32 are in when the next one is.
        let mut refused = connect(&place.path);
        assert!(error(&mut refused).contains("too many"));
        assert_eq!(line(&mut refused), "", "and closed");
        drop(silent);
        // Room again as soon as the daemon has noticed.
        loop {
            let mut client = connect(&place.path);
            if client.get_ref().write_all(b"{\"cmd\":\"status\"}\n").is_ok()
                && line(&mut client).contains("fine")
            {
                break;
            }
            std::thread::yield_now();
        }
    });
}

#[test]
fn a_job_ends_when_its_client_goes() {
    on_both_engines(|place| {
        let mut stream = connect(&place.path);
        send(&stream, b"{\"cmd\":\"checkpoint\",\"export\":\"endless\"}\n");
        assert!(line(&mut stream).starts_with("{\"progress\":"));
        assert!(!place.fake.gone.load(Ordering::SeqCst));
        drop(stream);
        while !place.fake.gone.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
    });
}

#[test]
fn stopping_gives_the_answers_under_way_and_leaves_the_listener_open() {
    on_both_engines(|mut place| {
        let idle = connect(&place.path);
        let mut stream = connect(&place.path);
        send(&stream, b"{\"cmd\":\"checkpoint\",\"export\":\"endless\"}\n");
        assert!(line(&mut stream).starts_with("{\"progress\":"));
        let side = place.side.take().unwrap();
        let reader = std::thread::spawn(move || {
            loop {
                let line = line(&mut stream);
                if !line.starts_with("{\"progress\":") {
                    return line;
                }
            }
        });
        place.fake.stopped.store(true, Ordering::SeqCst);
        side.stop();
        assert_eq!(reader.join().unwrap(), "{\"result\":\"stopped\"}\n");
        // Nobody accepts, but the socket is there for a successor.
        let _waiting = connect(&place.path);
        assert!(place._sockets[0].fd().as_fd().try_clone_to_owned().is_ok());
        drop(idle);
    });
}

fn http(path: &Path, request: &[u8]) -> String {
    let mut stream = connect(path);
    // A server that has heard enough closes early.
    let _ = stream.get_ref().write_all(request);
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text);
    String::from_utf8(text).unwrap()
}

#[test]
fn metrics_are_served_over_http_and_nothing_else_is() {
    on_both_engines(|place| {
        let good = http(&place.metrics, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert!(good.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4"), "{good}");
        assert!(good.ends_with("Content-Length: 10\r\nConnection: close\r\n\r\nx_total 1\n"), "{good}");
        let head = http(&place.metrics, b"HEAD /metrics HTTP/1.1\r\n\r\n");
        assert!(head.ends_with("Content-Length: 10\r\nConnection: close\r\n\r\n"), "{head}");
        let status = |request: &[u8]| http(&place.metrics, request).get(9..12).unwrap_or_default().to_owned();
        assert_eq!(status(b"GET /etc/passwd HTTP/1.1\r\n\r\n"), "404");
        assert_eq!(status(b"DELETE /metrics HTTP/1.1\r\n\r\n"), "405");
        assert_eq!(status(b"\xff\r\n\r\n"), "400");
        let long = [b"GET /metrics HTTP/1.1\r\nX: ".to_vec(), vec![b'x'; 8167]].concat();
        assert_eq!(status(&long), "431");
    });
}
