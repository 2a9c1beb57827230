//! The real program in a process of its own, for what a signal or a kill does.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::{Answer, Client, Connecting, DEADLINE, in_time, token};

/// A server process. Dropping it kills it.
pub struct ChildServer {
    child: Child,
    address: SocketAddr,
    folder: tempfile::TempDir,
}

impl ChildServer {
    /// The program with this configuration, in TOML; address, metrics and the app's secret come by themselves.
    pub fn start(config: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("fanwire.toml");
        let secret = token::SECRET;
        let text = format!(
            "listen = \"127.0.0.1:0\"\nworkers = 2\nmetrics_listen = \"\"\n{config}\n[[app]]\nsecret = \"{secret}\"\n"
        );
        std::fs::write(&file, text).expect("the folder takes files");
        let log = File::create(folder.path().join("log")).expect("the folder takes files");
        let mut command = Command::new(env!("CARGO_BIN_EXE_fanwire"));
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("FANWIRE_")) {
            command.env_remove(name);
        }
        command.args(["serve", "--config"]).arg(&file).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().expect("the program is there");
        let out = child.stdout.take().expect("it is piped");
        let address = in_time("the program to say where it listens", move || {
            let mut lines = BufReader::new(out);
            let address = lines.by_ref().lines().map_while(Result::ok).find_map(|line| listening_on(&line));
            // Read on, so that the program never waits for its output to be taken.
            std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
            address
        });
        let mut server = Self { child, address: SocketAddr::from(([0; 4], 0)), folder };
        server.address = address.unwrap_or_else(|| panic!("the program ended: {}", server.log()));
        server
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// A client of this user, welcomed.
    pub async fn connect(&self, user: &str) -> Client {
        self.client().user(user).connect().await
    }

    /// A client that is still to be dressed.
    pub fn client(&self) -> Connecting {
        Connecting::to(self.address)
    }

    /// What a plain GET of `path` answers.
    pub async fn get(&self, path: &str) -> Answer {
        super::get(self.address, path).await
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a process has an id");
        kill_process(pid, signal).expect("the process is ours");
    }

    /// Its memory's high-water mark, in bytes.
    pub fn peak_memory(&self) -> usize {
        self.status("VmHWM:")
    }

    /// Its memory now, in bytes.
    pub fn memory(&self) -> usize {
        self.status("VmRSS:")
    }

    fn status(&self, key: &str) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("the process lives");
        let line = status.lines().find_map(|line| line.strip_prefix(key)).expect("Linux says so");
        line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") << 10
    }

    /// How it ended, once it has.
    pub async fn exit(&mut self) -> ExitStatus {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().expect("the process is ours") {
                return status;
            }
            assert!(Instant::now() < deadline, "waited {DEADLINE:?} for the program to end: {}", self.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for ChildServer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The address in the line that says it.
fn listening_on(line: &str) -> Option<SocketAddr> {
    line.strip_prefix("listening on http://")?.trim().parse().ok()
}
