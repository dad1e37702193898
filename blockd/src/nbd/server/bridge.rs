//! Carries bytes between a TLS stream and a socket pair, whose other end is served as any connection is: the
//! path of requests has one form.
//!
//! Each direction has one buffer, so a side that does not take its bytes holds the other back. Each direction ends
//! by itself: a client that closes its writing half still gets its answers; when the server is done its end is
//! passed on, and the client has a moment to close too.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Bytes of each direction's buffer: a few TLS records of 16 KiB.
const BUFFER_BYTES: usize = 64 << 10;
/// How long a client may take to close its side after the server has closed.
const LINGER: Duration = Duration::from_secs(5);

/// Runs until both directions have ended, or one has failed.
pub async fn run(tls: impl AsyncRead + AsyncWrite, clear: impl AsyncRead + AsyncWrite) {
    let (mut from_client, mut to_client) = tokio::io::split(tls);
    let (mut from_server, mut to_server) = tokio::io::split(clear);
    let inward = carry(&mut from_client, &mut to_server);
    let outward = carry(&mut from_server, &mut to_client);
    tokio::pin!(inward, outward);
    tokio::select! {
        ended = &mut inward => {
            // The end was passed on; or the client is gone, and nobody takes the answers.
            if report("from the client", ended) {
                report("to the client", outward.await);
            }
        }
        ended = &mut outward => {
            if report("to the client", ended) {
                // What a client says after the end is not for us, but it should not be told of a reset.
                let _ = tokio::time::timeout(LINGER, inward).await;
            }
        }
    }
}

/// Copies until the end of `from`, and passes the end on.
async fn carry(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let n = match from.read(&mut buffer).await {
            Ok(n) => n,
            // A client that closed its connection without closing TLS first: NBD's own framing shows whether
            // something is missing.
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => 0,
            Err(e) => return Err(e),
        };
        if n == 0 {
            return to.shutdown().await;
        }
        to.write_all(buffer.get(..n).unwrap_or_default()).await?;
        to.flush().await?;
    }
}

fn report(direction: &str, ended: io::Result<()>) -> bool {
    match ended {
        Ok(()) => true,
        Err(error) => {
            tracing::debug!(direction, %error, "a TLS connection broke");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
    }

    #[test]
    fn a_half_closed_client_still_gets_its_answers() {
        block_on(async {
            let (mut client, tls) = duplex(1000);
            let (mut server, clear) = duplex(1000);
            let bridge = tokio::spawn(run(tls, clear));
            client.write_all(b"question").await.unwrap();
            client.shutdown().await.unwrap();
            let mut asked = Vec::new();
            server.read_to_end(&mut asked).await.unwrap();
            assert_eq!(asked, b"question");
            server.write_all(b"answer").await.unwrap();
            server.shutdown().await.unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            assert_eq!(answer, b"answer");
            bridge.await.unwrap();
        });
    }

    #[test]
    fn a_client_that_takes_nothing_holds_the_server_back() {
        block_on(async {
            let (mut client, tls) = duplex(1000);
            let (mut server, clear) = duplex(1000);
            tokio::spawn(run(tls, clear));
            let bytes = vec![7; 1 << 20];
            let writing = tokio::spawn(async move {
                let mut sent = 0;
                for part in bytes.chunks(1000) {
                    // The bridge has had a hundred turns to take it.
                    let turns = async {
                        for _ in 0..100 {
                            tokio::task::yield_now().await;
                        }
                    };
                    tokio::select! {
                        biased;
                        written = server.write_all(part) => written.unwrap(),
                        () = turns => break,
                    }
                    sent += part.len();
                }
                (sent, server)
            });
            let (sent, _server) = writing.await.unwrap();
            assert!(sent <= BUFFER_BYTES + 3000, "{sent} bytes were taken of a client that takes none");
            let mut got = vec![0; sent];
            client.read_exact(&mut got).await.unwrap();
            assert!(got.iter().all(|&b| b == 7));
        });
    }

    #[test]
    fn a_gone_client_ends_the_server_side() {
        block_on(async {
            let (client, tls) = duplex(10);
            let (mut server, clear) = duplex(1 << 20);
            let bridge = tokio::spawn(run(tls, clear));
            server.write_all(&[1; 1000]).await.unwrap();
            drop(client);
            bridge.await.unwrap();
            let mut rest = Vec::new();
            server.read_to_end(&mut rest).await.unwrap();
            assert_eq!(rest, b"");
        });
    }
}
