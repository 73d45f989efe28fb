//! Over sockets in memory: what is heard, however it is cut, and what ends a connection.

use super::*;
use proptest::prelude::*;
use std::future::poll_fn;
use tokio::io::duplex;

const REPLY: &str = "_INBOX.x.2.";
const STORED: &[u8] = b"{\"stream\":\"OUTBOX\",\"seq\":7}";

fn answer(subject: &str) -> Vec<u8> {
    [format!("MSG {subject} 1 {}\r\n", STORED.len()).as_bytes(), STORED, b"\r\n"].concat()
}

#[tokio::test]
async fn answers_are_told_apart_by_the_end_of_their_subject_however_they_are_cut() {
    let all = [
        &b"INFO {\"max_payload\":1024}\r\n+OK\r\nPING\r\n"[..],
        &answer("_INBOX.x.2.7"),
        &answer("_INBOX.x.1.6"),
        b"HMSG _INBOX.x.2.8 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n-ERR 'Permissions Violation'\r\n",
    ]
    .concat();
    for cut in 1..all.len() {
        let (ours, mut server) = duplex(1 << 16);
        let mut wire = Wire::over(ours);
        let parts = [all[..cut].to_vec(), all[cut..].to_vec()];
        let sending = tokio::spawn(async move {
            for part in parts {
                server.write_all(&part).await.unwrap();
                tokio::task::yield_now().await;
            }
            server
        });
        let mut heard = Vec::new();
        while heard.len() < 4 {
            heard.push(poll_fn(|cx| wire.poll(cx, REPLY)).await.unwrap());
        }
        let expected = [
            Heard::Answer(Some(7), Answer::Stored(7)),
            Heard::Answer(None, Answer::Stored(7)),
            Heard::Answer(Some(8), Answer::NoResponders),
            Heard::Complaint("Permissions Violation".to_owned()),
        ];
        assert_eq!(heard, expected, "cut at {cut}");
        assert_eq!(wire.max_payload, 1024);
        let mut server = sending.await.unwrap();
        wire.poll_send(&mut Context::from_waker(std::task::Waker::noop()));
        drop(wire);
        let mut sent = String::new();
        server.read_to_string(&mut sent).await.unwrap();
        assert!(sent.contains("PONG\r\n"), "{sent}");
    }
}

#[tokio::test]
async fn what_ends_a_connection_is_told() {
    for (said, why) in [
        (&b""[..], "the server closed the connection"),
        (b"INFO {\"ldm\":true}\r\n", "lame duck"),
        (b"INFO nonsense\r\n", "protocol violation"),
        (b"MSG a 1 x\r\n", "protocol violation"),
        (b"HMSG a 1 9 4\r\nabcd\r\n", "protocol violation"),
        (b"MSG a 1 4\r\nabcdef", "protocol violation"),
        (b"MSG a 1 99999999999\r\n", "protocol violation"),
        (b"WHAT\r\n", "protocol violation"),
    ] {
        let (ours, mut server) = duplex(1 << 16);
        let mut wire = Wire::over(ours);
        server.write_all(said).await.unwrap();
        drop(server);
        let broken = poll_fn(|cx| wire.poll(cx, REPLY)).await.unwrap_err().to_string();
        assert!(broken.contains(why), "{}: {broken}", String::from_utf8_lossy(said));
    }
}

/// Takes what is written, and sends it only when it is flushed for the second time.
struct Holding {
    inner: tokio::io::DuplexStream,
    held: Vec<u8>,
    flushes: u32,
}

impl AsyncRead for Holding {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for Holding {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.held.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.flushes += 1;
        if self.flushes == 1 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let held = std::mem::take(&mut self.held);
        Pin::new(&mut self.inner).poll_write(cx, &held).map_ok(|_| ())
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn what_tls_has_taken_is_sent_though_its_first_flush_must_wait() {
    let (ours, mut server) = duplex(1 << 16);
    let mut wire = Wire::over(duplex(1).0);
    wire.io = Box::new(Holding { inner: ours, held: Vec::new(), flushes: 0 });
    wire.write.extend_from_slice(b"HPUB");
    wire.poll_send(&mut Context::from_waker(std::task::Waker::noop()));
    assert!(wire.write.is_empty() && wire.unflushed);
    let mut sent = [0; 4];
    tokio::select! {
        heard = poll_fn(|cx| wire.poll(cx, REPLY)) => panic!("{heard:?}"),
        read = server.read_exact(&mut sent) => { read.unwrap(); }
    }
    assert_eq!(&sent, b"HPUB");
}

#[tokio::test]
async fn what_the_server_said_before_it_closed_is_heard_though_writing_fails() {
    let (ours, mut server) = duplex(1 << 16);
    let mut wire = Wire::over(ours);
    let said = [&answer("_INBOX.x.2.7")[..], b"-ERR 'Maximum Payload Violation'\r\n"].concat();
    server.write_all(&said).await.unwrap();
    drop(server);
    wire.write.extend_from_slice(b"HPUB");
    let stored = poll_fn(|cx| wire.poll(cx, REPLY)).await.unwrap();
    assert_eq!(stored, Heard::Answer(Some(7), Answer::Stored(7)));
    let complaint = poll_fn(|cx| wire.poll(cx, REPLY)).await.unwrap();
    assert_eq!(complaint, Heard::Complaint("Maximum Payload Violation".to_owned()));
    assert!(poll_fn(|cx| wire.poll(cx, REPLY)).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_answers_no_pings_is_given_up() {
    let (ours, _server) = duplex(1 << 16);
    let mut wire = Wire::over(ours);
    let broken = poll_fn(|cx| wire.poll(cx, REPLY)).await.unwrap_err();
    assert!(matches!(broken, Broken::Silent), "{broken}");
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let mut wire = Wire::over(duplex(1).0);
            wire.read.extend_from_slice(&bytes);
            let _ = wire.take(REPLY);
        });
    }

    #[test]
    fn lines_of_arbitrary_words_never_panic(
        text in "(MSG|HMSG|INFO|-ERR|PING)( [a-z0-9.]{0,5}){0,5}\r\n[a-z\r\n]{0,20}",
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let mut wire = Wire::over(duplex(1).0);
            wire.read.extend_from_slice(text.as_bytes());
            let _ = wire.take(REPLY);
        });
    }
}
