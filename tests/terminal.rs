//! A person in a terminal with `websocat`, a client that knows nothing of us.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, channel},
};

use serde_json::{Value, json};

use crate::support::{DEADLINE, TestServer};

/// One terminal: lines in, lines out.
struct Terminal {
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Terminal {
    fn open(url: &str) -> Self {
        let mut child = Command::new("websocat")
            .arg(url)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take(), child.stdout.take().unwrap());
        let (tx, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                // Nobody may be looking any more.
                let _ = tx.send(line);
            }
        });
        Self { child, input, lines }
    }

    fn types(&mut self, line: &str) {
        let input = self.input.as_mut().unwrap();
        input.write_all(line.as_bytes()).unwrap();
        input.write_all(b"\n").unwrap();
        input.flush().unwrap();
    }

    fn sees(&self) -> Value {
        let line = self.lines.recv_timeout(DEADLINE).expect("another line");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It ends by itself once its input has ended.
        self.input = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn two_people_talk_with_nothing_but_websocat() {
    assert!(
        Command::new("websocat").arg("--version").stdout(Stdio::null()).status().is_ok_and(|status| status.success()),
        "websocat is missing: `make tools` brings it, and `make rust` finds it there"
    );
    let server = TestServer::development().await;
    let url = format!("ws://{}/v1/ws", server.address());
    let (mut ann, mut bob) = (Terminal::open(&url), Terminal::open(&url));
    assert_eq!(ann.sees()["type"], "welcome");
    assert_eq!(bob.sees()["type"], "welcome");
    ann.types(r#"{"type":"subscribe","channel":"room:1","id":1}"#);
    let subscribed = ann.sees();
    assert_eq!(
        (&subscribed["type"], &subscribed["id"], &subscribed["offset"]),
        (&json!("subscribed"), &json!(1), &json!(0))
    );
    bob.types(r#"{"type":"publish","channel":"room:1","data":"hello","id":"x"}"#);
    assert_eq!(bob.sees()["type"], "published");
    let message = ann.sees();
    assert_eq!(
        (&message["type"], &message["data"], &message["offset"]),
        (&json!("message"), &json!("hello"), &json!(1))
    );
    bob.types("what is this?");
    assert_eq!(bob.sees()["code"], "bad_request");
    bob.types(r#"{"type":"history","channel":"room:1"}"#);
    assert_eq!(bob.sees()["messages"][0]["data"], "hello");
    // The end of its input is how a person hangs up.
    drop(bob);
    server.until("one connection to be left", |node| node.hub().connections() == 1).await;
    ann.types(r#"{"type":"ping"}"#);
    assert_eq!(ann.sees(), json!({ "type": "pong" }));
}
