//! Metrics over HTTP, as Prometheus scrapes them: `GET /metrics`, one request a connection.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::SocketFlags;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::stream::{Acceptor, Engine, Stream};

/// Connections at a time.
const CONNECTIONS_MAX: usize = 16;
/// Longest head of a request.
const HEAD_BYTES_MAX: usize = 8 << 10;
/// Time for a request to come, and for its answer to be taken.
const PATIENCE: Duration = Duration::from_secs(5);
/// The text format's type.
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Where metrics come from.
pub trait Metrics: Send + Sync {
    /// All of them, in the text format of Prometheus.
    fn text(&self) -> String;
}

/// Accepts and serves until `stop`.
pub(super) async fn serve(
    listener: Arc<OwnedFd>,
    engine: Engine,
    source: Arc<dyn Metrics>,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let acceptor = Acceptor::new(listener)?;
    let mut connections = JoinSet::new();
    loop {
        let room = connections.len() < CONNECTIONS_MAX;
        let accepted = tokio::select! {
            accepted = acceptor.accept(SocketFlags::empty()), if room => accepted,
            _ = connections.join_next(), if !connections.is_empty() => continue,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        match accepted.and_then(|fd| Stream::new(fd, engine)) {
            Ok(stream) => {
                let source = Arc::clone(&source);
                let mut stop = stop.clone();
                connections.spawn_local(async move {
                    let done = tokio::select! {
                        done = answer(&stream, &*source) => done,
                        _ = stop.wait_for(|stop| *stop) => Ok(()),
                    };
                    stream.shut_down();
                    if let Err(error) = done {
                        tracing::debug!(%error, "a metrics connection ended");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a metrics connection; trying again");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    while connections.join_next().await.is_some() {}
    Ok(())
}

async fn answer(stream: &Stream, source: &dyn Metrics) -> io::Result<()> {
    let mut head = Vec::new();
    // The whole head, so that closing the socket does not reset the connection before the answer is read.
    while !ends(&head) {
        let room = HEAD_BYTES_MAX - head.len();
        if room == 0 {
            return stream
                .write_within(response("431 Request Header Fields Too Large", "", ""), PATIENCE)
                .await;
        }
        if stream.read_within(&mut head, room, PATIENCE).await? == 0 {
            break;
        }
    }
    let bytes = match route(&head) {
        Route::Metrics { body } => {
            let text = source.text();
            let mut bytes = response("200 OK", CONTENT_TYPE, &text);
            if !body {
                bytes.truncate(bytes.len() - text.len());
            }
            bytes
        }
        Route::NotFound => response("404 Not Found", "text/plain", "metrics are at /metrics\n"),
        Route::NotAllowed => response("405 Method Not Allowed", "text/plain", "only GET and HEAD\n"),
        Route::Malformed => response("400 Bad Request", "text/plain", "not an HTTP request\n"),
    };
    stream.write_within(bytes, PATIENCE).await
}

fn ends(head: &[u8]) -> bool {
    head.windows(4).any(|w| w == b"\r\n\r\n") || head.windows(2).any(|w| w == b"\n\n")
}

#[derive(PartialEq, Eq, Debug)]
enum Route {
    Metrics { body: bool },
    NotFound,
    NotAllowed,
    Malformed,
}

/// What the request line asks (RFC 9112 section 3).
fn route(head: &[u8]) -> Route {
    let line = head.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let Ok(line) = std::str::from_utf8(line) else { return Route::Malformed };
    let parts: Vec<&str> = line.split_ascii_whitespace().collect();
    let [method, target, version] = parts[..] else { return Route::Malformed };
    if !version.starts_with("HTTP/1.") {
        return Route::Malformed;
    }
    let path = target.split('?').next().unwrap_or_default();
    match method {
        "GET" | "HEAD" if path == "/metrics" => Route::Metrics { body: method == "GET" },
        "GET" | "HEAD" => Route::NotFound,
        _ => Route::NotAllowed,
    }
}

fn response(status: &str, content_type: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
        .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_asked_properly_is_answered() {
        assert_eq!(route(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"), Route::Metrics { body: true });
        assert_eq!(route(b"HEAD /metrics?x=1 HTTP/1.0\n\n"), Route::Metrics { body: false });
        assert_eq!(route(b"GET / HTTP/1.1\r\n\r\n"), Route::NotFound);
        assert_eq!(route(b"POST /metrics HTTP/1.1\r\n\r\n"), Route::NotAllowed);
        for bad in [&b""[..], b"\r\n\r\n", b"GET /metrics\r\n\r\n", b"\xff\xfe", b"GET  HTTP/1.1\r\n\r\n"] {
            assert_eq!(route(bad), Route::Malformed, "{bad:?}");
        }
    }
}
