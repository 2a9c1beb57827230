//! `publish` and `subscribe` against a server of the test's own, which plays one recorded part.

use std::{
    io::{BufRead, BufReader, Read},
    net::{TcpListener, TcpStream},
    process::{Child, Stdio},
    sync::mpsc,
    thread::JoinHandle,
};

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{
    self, Message, WebSocket,
    handshake::server::{ErrorResponse, Request, Response},
};

use super::{command, fanwire, fanwire_reading};
use crate::support::DEADLINE;

/// The server's end of one connection.
struct Peer {
    socket: WebSocket<TcpStream>,
    /// What the client asked with: path and query, token, sub-protocol.
    asked: (String, Option<String>, Option<String>),
}

impl Peer {
    #[allow(clippy::result_large_err)] // The signature is tungstenite's.
    fn accept(listener: &TcpListener) -> Self {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut asked = None;
        let read = |request: &Request, mut response: Response| -> Result<Response, ErrorResponse> {
            let header = |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
            asked = Some((request.uri().to_string(), header("Authorization"), header("Sec-WebSocket-Protocol")));
            response.headers_mut().insert("Sec-WebSocket-Protocol", "fanwire.v1".parse().unwrap());
            Ok(response)
        };
        let socket = tungstenite::accept_hdr(stream, read).unwrap();
        let mut peer = Self { socket, asked: asked.unwrap() };
        peer.say(json!({ "type": "welcome", "connection": "c_1", "node": "n_1", "ping": 25, "server": "test" }));
        peer
    }

    fn say(&mut self, frame: Value) {
        self.raw(&frame.to_string());
    }

    fn raw(&mut self, text: &str) {
        self.socket.send(Message::text(text)).unwrap();
    }

    fn hear(&mut self) -> Value {
        loop {
            if let Message::Text(text) = self.socket.read().unwrap() {
                return serde_json::from_str(&text).unwrap();
            }
        }
    }

    fn message(&mut self, offset: u64, data: Value) {
        self.say(json!({ "type": "message", "channel": "room:1", "event": "chat", "data": data, "id": "01", "offset": offset }));
    }

    fn close(mut self, code: u16, reason: &'static str) {
        let frame = tungstenite::protocol::CloseFrame { code: code.into(), reason: reason.into() };
        let _ = self.socket.close(Some(frame));
        while self.socket.read().is_ok() {}
    }
}

/// Runs `part` as a server; its address, and its thread.
fn server(part: impl FnOnce(TcpListener) + Send + 'static) -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    (url, std::thread::spawn(move || part(listener)))
}

/// A child process whose lines are awaited.
pub(super) struct Lines {
    child: Child,
    pub(super) out: mpsc::Receiver<String>,
    err: mpsc::Receiver<String>,
}

impl Lines {
    pub(super) fn start(args: &[&str]) -> Self {
        let mut child = command(args, &[]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        Self { child, out: lines(out), err: lines(err) }
    }

    pub(super) fn next(lines: &mpsc::Receiver<String>) -> String {
        lines.recv_timeout(DEADLINE).expect("a line in time")
    }

    /// Waits for a line on standard error that contains `text`.
    pub(super) fn told(&self, text: &str) -> String {
        loop {
            let line = Self::next(&self.err);
            if line.contains(text) {
                return line;
            }
        }
    }
}

impl Lines {
    /// Presses ctrl-c; the last line that it says.
    pub(super) fn stop(mut self) -> String {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
        self.err.iter().last().unwrap_or_default()
    }
}

fn lines(from: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (tx, rx) = mpsc::channel();
    std::thread::spawn(move || BufReader::new(from).lines().map_while(Result::ok).try_for_each(|line| tx.send(line)));
    rx
}

#[test]
fn publish_waits_until_the_server_has_it() {
    let (url, part) = server(|listener| {
        let mut peer = Peer::accept(&listener);
        assert_eq!(peer.asked.0, "/v1/ws?app=shop");
        assert_eq!(peer.asked.1.as_deref(), Some("Bearer a.b.c"), "a token never travels in the query");
        assert_eq!(peer.asked.2.as_deref(), Some("fanwire.v1"));
        let frame = peer.hear();
        assert_eq!(
            (&frame["channel"], &frame["event"], &frame["key"]),
            (&json!("room:1"), &json!("chat"), &json!("k"))
        );
        assert_eq!(frame["data"].to_string(), "{\"n\":1}");
        peer.message(42, json!("somebody else's"));
        peer.say(json!({ "type": "published", "id": frame["id"], "channel": "room:1", "publication": "01JD", "epoch": "k3f9", "offset": 43 }));
        let _ = peer.socket.read();
    });
    let args =
        ["publish", "room:1", "{\"n\":1}", "--url", &url, "--app", "shop", "--token", "a.b.c", "--event", "chat"];
    let run = fanwire(&[&args[..], &["--key", "k"]].concat(), &[]);
    assert_eq!((run.code, run.out.as_str(), run.err.as_str()), (0, "published 01JD at k3f9:43\n", ""));
    part.join().unwrap();
}

#[test]
fn publish_sends_each_line_and_repeats_what_was_not_answered() {
    let (url, part) = server(|listener| {
        let mut peer = Peer::accept(&listener);
        let first = peer.hear();
        assert_eq!((&first["data"], &first["key"]), (&json!("plain text"), &json!("job:1")));
        peer.say(json!({ "type": "error", "id": first["id"], "code": "rate_limited", "message": "slow down", "retry_after": 0.1 }));
        let again = peer.hear();
        assert_eq!((&again["data"], &again["key"]), (&first["data"], &first["key"]));
        peer.say(json!({ "type": "published", "id": again["id"], "channel": "c", "publication": "01" }));
        let second = peer.hear();
        assert_eq!(second["data"], json!({ "n": 2 }));
        drop(peer); // The answer to the second line never comes.
        let mut peer = Peer::accept(&listener);
        let second_again = peer.hear();
        assert_eq!(second_again["key"], json!("job:2"));
        peer.say(json!({ "type": "published", "id": second_again["id"], "channel": "c", "publication": "02" }));
        let third = peer.hear();
        peer.say(json!({ "type": "error", "id": third["id"], "code": "too_large", "message": "far too large" }));
        let fourth = peer.hear();
        peer.say(json!({ "type": "published", "id": fourth["id"], "channel": "c", "publication": "04" }));
        let _ = peer.socket.read();
    });
    let args = ["publish", "c", "-", "--key", "job", "--url", &url];
    let run = fanwire_reading(&args, &[], "plain text\n{\"n\": 2}\n3\n4\n");
    assert_eq!((run.code, run.out.as_str()), (1, "published 01\npublished 02\npublished 04\n"));
    assert_eq!(run.err, "line 3: refused: too_large: far too large\n");
    part.join().unwrap();
}

#[test]
fn exit_codes_tell_a_refusal_from_an_absence() {
    let run = fanwire(&["publish", "c", "1", "--url", "ws://127.0.0.1:1"], &[]);
    assert_eq!(run.code, 3, "{}", run.err);
    let run = fanwire(&["subscribe", "c", "--url", "ws://127.0.0.1:1"], &[]);
    assert_eq!(run.code, 3, "{}", run.err);
    let (url, part) = server(|listener| {
        for _ in 0..2 {
            let mut peer = Peer::accept(&listener);
            peer.say(json!({ "type": "disconnect", "code": "unauthorized", "message": "the token was refused", "reconnect": false }));
            peer.close(4100, "unauthorized");
        }
    });
    for args in [["publish", "c", "1"].as_slice(), &["subscribe", "c"]] {
        let run = fanwire(&[args, &["--url", &url]].concat(), &[]);
        assert_eq!((run.code, run.err.as_str()), (1, "refused: unauthorized: the token was refused\n"), "{args:?}");
    }
    part.join().unwrap();
    for wrong in [
        &["subscribe", "a", "b", "--after", "e:1"][..],
        &["subscribe", "a", "--after", "nonsense"],
        &["subscribe", "a", "a"],
        &["subscribe", "a", "--after", "e:1", "--last", "2"],
        &["publish", "a", "1", "--key", ""],
    ] {
        assert_eq!(fanwire(wrong, &[]).code, 2, "{wrong:?}");
    }
}

#[test]
fn subscribe_resumes_where_it_was_cut_off_and_tells_of_gaps() {
    let (url, part) = server(|listener| {
        let mut peer = Peer::accept(&listener);
        let asked = peer.hear();
        assert_eq!((&asked["channel"], &asked["last"], &asked["after"]), (&json!("room:1"), &json!(2), &Value::Null));
        peer.say(json!({ "type": "subscribed", "id": asked["id"], "channel": "room:1", "epoch": "e1", "offset": 6 }));
        peer.message(7, json!({ "text": "hi" }));
        peer.message(8, json!("\u{9b}2J"));
        drop(peer);
        let mut peer = Peer::accept(&listener);
        let asked = peer.hear();
        assert_eq!(asked["after"], json!({ "epoch": "e1", "offset": 8 }));
        assert_eq!(asked["last"], Value::Null);
        peer.say(json!({ "type": "subscribed", "id": asked["id"], "channel": "room:1", "epoch": "e2", "offset": 20, "recovered": false }));
        peer.message(21, json!(21));
        peer.message(23, json!(23));
        peer.message(23, json!("twice"));
        peer.message(24, json!(24));
        while peer.socket.read().is_ok() {}
    });
    let run = Lines::start(&["subscribe", "room:1", "--last", "2", "--count", "5", "--url", &url]);
    let printed: Vec<_> = (0..5).map(|_| Lines::next(&run.out)).collect();
    let expected = [
        "room:1 #7 chat {\"text\":\"hi\"}",
        "room:1 #8 chat \"\\u009b2J\"",
        "room:1 #21 chat 21",
        "room:1 #23 chat 23",
        "room:1 #24 chat 24",
    ];
    assert_eq!(printed, expected);
    run.told("subscribed to room:1 after e1:6");
    run.told("connection lost");
    run.told("subscribed to room:1 after e2:20");
    run.told("gap: the history no longer has everything after #8");
    run.told("gap: #22 to #22 did not come");
    run.told("resume room:1 with --after e2:24");
    let mut run = run;
    assert_eq!(run.child.wait().unwrap().code(), Some(0));
    part.join().unwrap();
}

#[test]
fn subscribe_prints_frames_as_they_came_and_shows_who_is_there() {
    let frame =
        r#"{"type":"message","channel":"room:1","data":{"b":1,"a":12345678901234567890123},"id":"01","offset":9}"#;
    let (url, part) = server(move |listener| {
        let mut peer = Peer::accept(&listener);
        let asked = peer.hear();
        assert_eq!((&asked["presence"], &asked["after"]), (&json!(true), &json!({ "epoch": "e", "offset": 8 })));
        let member = |user: &str| json!({ "connection": "c_1", "user": user });
        peer.say(json!({ "type": "subscribed", "id": asked["id"], "channel": "room:1", "epoch": "e", "offset": 8,
                         "recovered": true, "members": [member("ann"), member("bob")] }));
        peer.say(json!({ "type": "join", "channel": "room:1", "member": member("eve") }));
        peer.raw(frame);
        while peer.socket.read().is_ok() {}
    });
    let args = ["subscribe", "room:1", "--after", "e:8", "--presence", "--json", "--count", "1", "--url", &url];
    let run = fanwire(&args, &[]);
    assert_eq!(run.code, 0);
    let lines: Vec<_> = run.out.lines().collect();
    assert!(lines[0].contains("\"join\"") && lines[1] == frame, "{lines:?}");
    assert!(run.err.contains("here are ann (c_1), bob (c_1)"), "{}", run.err);
    part.join().unwrap();
}

#[test]
fn subscribe_ends_when_nobody_reads_any_more() {
    let (url, part) = server(|listener| {
        let mut peer = Peer::accept(&listener);
        let asked = peer.hear();
        peer.say(json!({ "type": "subscribed", "id": asked["id"], "channel": "room:1" }));
        let mut offset = 0;
        let text = json!({ "type": "message", "channel": "room:1", "data": 1, "id": "01" }).to_string();
        while peer.socket.send(Message::text(text.as_str())).is_ok() {
            offset += 1;
            assert!(offset < 10_000_000, "it ought to have ended");
        }
    });
    let mut child = command(&["subscribe", "room:1", "--url", &url], &[])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "room:1 message 1\n");
    drop(out);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    part.join().unwrap();
}

#[test]
fn subscribe_notices_a_closed_pipe_before_the_next_message() {
    let (url, part) = server(|listener| {
        let mut peer = Peer::accept(&listener);
        let asked = peer.hear();
        peer.say(json!({ "type": "subscribed", "id": asked["id"], "channel": "room:1" }));
        while peer.socket.read().is_ok() {}
    });
    let mut child = command(&["subscribe", "room:1", "--url", &url], &[])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let err = lines(child.stderr.take().unwrap());
    assert_eq!(Lines::next(&err), "subscribed to room:1");
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    part.join().unwrap();
}

#[test]
fn subscribe_ends_cleanly_by_interruption() {
    let (url, part) = server(|listener| {
        let mut peer = Peer::accept(&listener);
        let asked = peer.hear();
        peer.say(json!({ "type": "subscribed", "id": asked["id"], "channel": "room:1", "epoch": "e", "offset": 3 }));
        while peer.socket.read().is_ok() {}
    });
    let run = Lines::start(&["subscribe", "room:1", "--url", &url]);
    run.told("subscribed to room:1");
    assert!(run.stop().contains("resume room:1 with --after e:3"));
    part.join().unwrap();
}

#[test]
fn a_refused_channel_does_not_end_the_others() {
    let (url, part) = server(|listener| {
        let mut peer = Peer::accept(&listener);
        let (first, second) = (peer.hear(), peer.hear());
        peer.say(
            json!({ "type": "error", "id": first["id"], "code": "forbidden", "message": "not yours", "channel": "a" }),
        );
        peer.say(json!({ "type": "subscribed", "id": second["id"], "channel": "b" }));
        peer.say(json!({ "type": "message", "channel": "b", "event": "x", "data": null, "id": "01" }));
        peer.say(json!({ "type": "unsubscribed", "channel": "b", "code": "token_expired", "message": "it ended" }));
        while peer.socket.read().is_ok() {}
    });
    let run = fanwire(&["subscribe", "a", "b", "--url", &url], &[]);
    assert_eq!((run.code, run.out.as_str()), (1, "b x null\n"));
    assert!(run.err.contains("a: forbidden: not yours") && run.err.contains("refused: b: token_expired: it ended"));
    part.join().unwrap();
}
