//! The terminal clients and the server itself, as two people at two terminals would use them.

use std::{
    net::{TcpListener, TcpStream},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use super::{SECRET, client::Lines, command, fanwire, fanwire_reading};
use crate::support::DEADLINE;

/// A server in a process of its own, on a port that it can be started on again.
struct Server {
    child: Child,
    port: u16,
    env: Vec<(&'static str, &'static str)>,
}

impl Server {
    fn start(env: &[(&'static str, &'static str)]) -> Self {
        Self::start_on(free_port(), env)
    }

    fn start_on(port: u16, env: &[(&'static str, &'static str)]) -> Self {
        let address = format!("127.0.0.1:{port}");
        let mut child = command(&["serve", "--listen", &address], env)
            .env("FANWIRE_METRICS_LISTEN", "")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + DEADLINE;
        while TcpStream::connect(&address).is_err() {
            assert!(child.try_wait().unwrap().is_none(), "the server ended");
            assert!(Instant::now() < deadline, "the server does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        Self { child, port, env: env.to_vec() }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Ends it without a goodbye, and starts another one in its place.
    fn replace(mut self) -> Self {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        Self::start_on(self.port, &self.env.clone())
    }
}

/// A port below those that the kernel gives to whoever names none: nobody else gets it while its server is away, not even
/// a client that tries to connect to it.
fn free_port() -> u16 {
    let mut ports = std::iter::repeat_with(|| rand::random_range(10_000..30_000));
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).expect("it goes on until it finds one")
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself, or by `replace`.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn what_one_terminal_publishes_another_prints() {
    let server = Server::start(&[]);
    let url = server.url();
    let reader = Lines::start(&["subscribe", "room:1", "--presence", "--url", &url]);
    reader.told("subscribed to room:1 after ");
    let one =
        fanwire(&["publish", "room:1", "{\"n\": 12345678901234567890123}", "--event", "chat", "--url", &url], &[]);
    assert_eq!((one.code, one.err.as_str()), (0, ""));
    assert!(one.out.starts_with("published ") && one.out.trim_end().ends_with(":1"), "{}", one.out);
    let many = fanwire_reading(&["publish", "room:1", "-", "--key", "job", "--url", &url], &[], "two\n3\n");
    assert_eq!(many.code, 0, "{}", many.err);
    // The same keys again: stored once.
    let again = fanwire_reading(&["publish", "room:1", "-", "--key", "job", "--url", &url], &[], "two\n3\n");
    assert_eq!(again.out, many.out);
    for expected in
        ["room:1 #1 chat {\"n\":12345678901234567890123}", "room:1 #2 message \"two\"", "room:1 #3 message 3"]
    {
        assert_eq!(Lines::next(&reader.out).replace("\"n\": 1", "\"n\":1"), expected);
    }
    let last = fanwire(&["subscribe", "room:1", "--last", "2", "--count", "2", "--url", &url], &[]);
    assert_eq!(last.out, "room:1 #2 message \"two\"\nroom:1 #3 message 3\n");
    let resume = last.err.lines().find_map(|line| line.strip_prefix("resume room:1 with --after ")).unwrap();
    let from = format!("{}:1", resume.split(':').next().unwrap());
    let rest = fanwire(&["subscribe", "room:1", "--after", &from, "--count", "2", "--json", "--url", &url], &[]);
    assert_eq!((rest.code, rest.out.lines().count()), (0, 2), "{}", rest.err);
    assert!(rest.out.lines().all(|frame| frame.starts_with("{\"type\":\"message\"")), "{}", rest.out);
    reader.stop();
}

#[test]
fn a_reader_survives_the_death_of_its_server_and_tells_of_the_gap() {
    let server = Server::start(&[]);
    let url = server.url();
    let reader = Lines::start(&["subscribe", "room:1", "--url", &url]);
    reader.told("subscribed to room:1 after ");
    assert_eq!(fanwire(&["publish", "room:1", "1", "--url", &url], &[]).code, 0);
    assert_eq!(Lines::next(&reader.out), "room:1 #1 message 1");
    let server = server.replace();
    reader.told("connection lost");
    reader.told("subscribed to room:1 after ");
    reader.told("gap: the history no longer has everything after #1");
    assert_eq!(fanwire(&["publish", "room:1", "2", "--url", &server.url()], &[]).code, 0);
    assert_eq!(Lines::next(&reader.out), "room:1 #1 message 2");
    reader.stop();
}

#[test]
fn with_a_secret_a_token_opens_what_it_names_and_nothing_else() {
    let env = [("FANWIRE_SECRET", SECRET), ("FANWIRE_NAMESPACE__ROOM__PRESENCE", "true")];
    let server = Server::start(&env);
    let url = server.url();
    let anonymous = fanwire(&["publish", "room:1", "1", "--url", &url], &[]);
    assert!(anonymous.code == 1 && anonymous.err.contains("unauthorized"), "{}", anonymous.err);
    let token = fanwire(&["token", "--user", "alice", "--allow", "room:*=publish"], &env);
    let token = [("FANWIRE_TOKEN", token.out.trim())];
    let named = fanwire(&["publish", "room:1", "1", "--url", &url], &token);
    assert_eq!(named.code, 0, "{}", named.err);
    let other = fanwire(&["subscribe", "room:1", "--url", &url], &token);
    assert!(other.code == 1 && other.err.contains("forbidden"), "{}", other.err);
    let expired = fanwire(&["token", "--user", "alice", "--ttl", "0s"], &env);
    let expired = fanwire(&["publish", "room:1", "1", "--url", &url], &[("FANWIRE_TOKEN", expired.out.trim())]);
    assert!(expired.code == 1 && expired.err.contains("token_expired"), "{}", expired.err);
    let stranger = fanwire(&["publish", "room:1", "1", "--app", "nobody", "--url", &url], &token);
    assert!(stranger.code == 1 && stranger.err.contains("unknown_app"), "{}", stranger.err);
}
