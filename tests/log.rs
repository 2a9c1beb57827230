//! The log, and who reads it: a pipe that nobody empties stops nothing but the lines.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::support::{Connecting, DEADLINE, SECRET, get, in_time, user};

/// The real program at `debug`, with its standard error in a pipe.
struct Logging {
    child: Child,
    address: SocketAddr,
    metrics: SocketAddr,
}

impl Logging {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("fanwire.toml");
        let text = format!(
            "listen = \"127.0.0.1:0\"\nworkers = 1\nmetrics_listen = \"127.0.0.1:0\"\n[log]\nlevel = \"debug\"\n\
             [limits]\nframes_per_connection = \"\"\n[[app]]\nsecret = \"{SECRET}\"\n"
        );
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_fanwire"));
        command.args(["serve", "--config"]).arg(&file).env_clear();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let out = child.stdout.take().unwrap();
        let addresses = in_time("the program to say where it listens", move || {
            let mut lines = BufReader::new(out).lines().map_while(Result::ok);
            let mut after = |start: &str, end: &str| {
                lines.find_map(|line| line.strip_prefix(start)?.strip_suffix(end)?.parse::<SocketAddr>().ok())
            };
            let found = (after("listening on http://", "").unwrap(), after("metrics on http://", "/metrics").unwrap());
            // Read on, so that only the other pipe is full.
            std::thread::spawn(move || lines.count());
            found
        });
        Self { child, address: addresses.0, metrics: addresses.1 }
    }

    /// Has it say more than its queue and the pipe hold; answers come all the while.
    async fn overflow(&self) {
        let mut ann = Connecting::to(self.address).user("ann").connect().await;
        let (bad, good) =
            (json!({ "type": "auth", "token": "nonsense" }), json!({ "type": "auth", "token": user("ann") }));
        let mut turns = 0;
        while self.dropped().await == 0 {
            assert!(turns < 400, "{} lines fit into nothing", turns * 400);
            for _ in 0..100 {
                ann.send(&json!([bad, bad, bad, bad, good])).await;
            }
            let since = Instant::now();
            ann.expect("pong", json!({ "type": "ping" })).await;
            assert!(since.elapsed() < Duration::from_secs(10), "answers wait for no log");
            turns += 1;
        }
    }

    async fn dropped(&self) -> u64 {
        let text = get(self.metrics, "/metrics").await.body;
        let mut lines = text.lines();
        lines.find_map(|line| line.strip_prefix("fanwire_log_lines_dropped_total ")?.parse().ok()).unwrap()
    }

    fn terminate(&mut self) -> ExitStatus {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it ends in time");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Logging {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a line says of how many are missing.
fn missing(line: &str) -> Option<u64> {
    line.split_once(" log lines were dropped")?.0.rsplit(' ').next()?.parse().ok()
}

#[tokio::test]
async fn a_log_that_nobody_reads_stops_nothing_and_goes_on_with_how_much_is_missing() {
    let mut server = Logging::start();
    server.overflow().await;
    let mut lines = BufReader::new(server.child.stderr.take().unwrap()).lines().map(Result::unwrap);
    // The line that tells of it comes where there is room again, so that nothing is dropped after it.
    let (told, lines) = in_time("word of what was dropped", move || (lines.find_map(|line| missing(&line)), lines));
    let reading = std::thread::spawn(move || lines.collect::<Vec<_>>());
    let dropped = server.dropped().await;
    assert!(server.terminate().success());
    let rest = reading.join().unwrap();
    let told_again: u64 = rest.iter().filter_map(|line| missing(line)).sum();
    assert_eq!(told.unwrap() + told_again, dropped, "every line that is missing is counted once");
    assert!(rest.last().unwrap().contains("stopped"), "the last line is out: {:?}", rest.last());
}

#[tokio::test]
async fn a_log_that_nobody_reads_does_not_hold_up_the_end() {
    let mut server = Logging::start();
    server.overflow().await;
    assert!(server.terminate().success());
}
