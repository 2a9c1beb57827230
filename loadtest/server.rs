//! What is measured: a Fanwire or a floor that we start and stop, or a server that runs already.
//!
//! What we start is pinned to processor 0 and ended with us however we end: by [`Running::stop`], by dropping it (a
//! panic too), and by the kernel if we are killed.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    process::{Pid, Signal, kill_process},
    thread::{CpuSet, sched_setaffinity},
};

use crate::floor;

/// The processor of the server, and ours.
pub const SERVER_CPU: usize = 0;
pub const CLIENT_CPU: usize = 1;
/// How long a server may take to be ready, and to stop.
const READY_WITHIN: Duration = Duration::from_secs(10);
const STOPPED_WITHIN: Duration = Duration::from_secs(15);

/// What is to be measured.
#[derive(Clone, Debug)]
pub enum Target {
    /// The raw broadcaster, with so many publications to a send.
    Floor { frames_per_send: usize },
    /// A Fanwire of our own, with one worker.
    Fanwire { binary: PathBuf, history: usize },
    /// A server that runs already; its processor time and memory are only known with its `pid`.
    Elsewhere { address: SocketAddr, pid: Option<u32> },
}

/// A server that is ready.
#[derive(Debug)]
pub struct Running {
    pub address: SocketAddr,
    pub pid: Option<u32>,
    /// From starting the process to its first good answer from `/readyz`.
    pub ready_after: Option<Duration>,
    process: Option<Process>,
}

/// A child process with its scratch files; killed when dropped.
#[derive(Debug)]
struct Process {
    child: Child,
    is_floor: bool,
    log: Option<PathBuf>,
    directory: Option<PathBuf>,
}

/// Why a server could not be started or stopped.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("cannot start `{program}`; `cargo build --release --bins` builds the server")]
    Start { program: String, source: io::Error },
    #[error("the server ended, or was not ready within {READY_WITHIN:?}; it said:\n{said}")]
    NotReady { said: String },
    #[error("the server ended with {status} instead of 0 after SIGTERM; it said:\n{said}")]
    Ended { status: String, said: String },
    #[error("cannot prepare the server")]
    Prepare(#[from] io::Error),
}

impl Target {
    /// Starts it, or takes the running one, and waits until it is ready.
    pub fn start(&self) -> Result<Running, ServerError> {
        match self {
            Self::Floor { frames_per_send } => start_floor(*frames_per_send),
            Self::Fanwire { binary, history } => start_fanwire(binary, *history),
            Self::Elsewhere { address, pid } => {
                Ok(Running { address: *address, pid: *pid, ready_after: None, process: None })
            }
        }
    }
}

impl Running {
    /// Ends what we started with SIGTERM and checks that it ends well.
    pub fn stop(mut self) -> Result<(), ServerError> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        if let Some(pid) = Pid::from_raw(process.child.id() as i32) {
            kill_process(pid, Signal::TERM).map_err(io::Error::from)?;
        }
        let deadline = Instant::now() + STOPPED_WITHIN;
        let status = loop {
            match process.child.try_wait()? {
                Some(status) => break status.to_string(),
                None if deadline < Instant::now() => break format!("nothing for {STOPPED_WITHIN:?}"),
                None => thread::sleep(Duration::from_millis(5)),
            }
        };
        // The floor leaves SIGTERM to the kernel.
        match process.is_floor || status == "exit status: 0" {
            true => Ok(()),
            false => Err(ServerError::Ended { status, said: process.said() }),
        }
    }
}

impl Process {
    /// The end of what it wrote to its output.
    fn said(&self) -> String {
        let text = self.log.as_ref().and_then(|log| fs::read_to_string(log).ok()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(directory) = &self.directory {
            let _ = fs::remove_dir_all(directory);
        }
    }
}

/// Keeps the calling thread, and what it starts, on one processor; without effect on a machine that has only one.
pub fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    let _ = sched_setaffinity(None, &set);
}

/// What `loadtest floor` does: tells its address, serves, and ends with its parent.
pub fn run_floor(frames_per_send: usize) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?);
    floor::serve(listener, frames_per_send)
}

fn start_floor(frames_per_send: usize) -> Result<Running, ServerError> {
    let program = std::env::current_exe()?;
    let mut command = Command::new(&program);
    command.args(["floor", "--frames-per-send", &frames_per_send.to_string()]).stdout(Stdio::piped());
    let mut process = Process { child: spawn(&mut command)?, is_floor: true, log: None, directory: None };
    let mut line = String::new();
    if let Some(stdout) = process.child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line)?;
    }
    let address = line.trim().parse().map_err(|_| ServerError::NotReady { said: line })?;
    Ok(Running { address, pid: Some(process.child.id()), ready_after: None, process: Some(process) })
}

fn start_fanwire(binary: &Path, history: usize) -> Result<Running, ServerError> {
    if let Err(source) = fs::metadata(binary) {
        return Err(ServerError::Start { program: binary.display().to_string(), source });
    }
    let directory = tempfile::Builder::new().prefix("fanwire-loadtest-").tempdir()?.keep();
    let config = directory.join("fanwire.toml");
    let log = directory.join("log");
    fs::write(&config, configuration(history))?;
    let output = fs::File::create(&log)?;
    // `setpriv` (util-linux) asks the kernel to end the server with us, even if we are killed outright.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(binary).arg("serve").arg("--config").arg(&config);
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    let started = Instant::now();
    let child = spawn(&mut command)?;
    let mut process = Process { child, is_floor: false, log: Some(log.clone()), directory: Some(directory) };
    while started.elapsed() < READY_WITHIN && process.child.try_wait()?.is_none() {
        let said = fs::read_to_string(&log)?;
        if let Some(address) = addresses(&said).find(|&address| is_ready(address)) {
            let pid = Some(process.child.id());
            return Ok(Running { address, pid, ready_after: Some(started.elapsed()), process: Some(process) });
        }
        thread::sleep(Duration::from_millis(2));
    }
    Err(ServerError::NotReady { said: process.said() })
}

/// Starts a child on the server's processor: it inherits ours, so we go there for a moment.
fn spawn(command: &mut Command) -> Result<Child, ServerError> {
    pin(SERVER_CPU);
    let child = command.spawn();
    pin(CLIENT_CPU);
    child.map_err(|source| ServerError::Start { program: command.get_program().to_string_lossy().into_owned(), source })
}

/// Limits off, one worker, no metrics listener; `load` keeps no history, `kept` does.
fn configuration(history: usize) -> String {
    format!(
        r#"listen = "127.0.0.1:0"
workers = 1
metrics_listen = ""
[broker]
url = "memory:"
[limits]
frames_per_connection = ""
[shutdown]
drain = "1s"
[namespace.load]
subscribe = "anyone"
publish = "anyone"
publish_rate = ""
[namespace.kept]
subscribe = "anyone"
publish = "anyone"
publish_rate = ""
history = {{ size = {history}, ttl = "10m" }}
"#
    )
}

/// Every `127.0.0.1:port` in a text.
fn addresses(text: &str) -> impl Iterator<Item = SocketAddr> {
    const HOST: &str = "127.0.0.1:";
    text.match_indices(HOST).filter_map(|(at, _)| {
        let rest = &text[at + HOST.len()..];
        let digits = &rest[..rest.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(rest.len())];
        Some(SocketAddr::from(([127, 0, 0, 1], digits.parse().ok().filter(|&port| port != 0)?)))
    })
}

fn is_ready(address: SocketAddr) -> bool {
    let answer = || -> io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        let mut head = [0; 12];
        stream.read_exact(&mut head)?;
        Ok(String::from_utf8_lossy(&head).into_owned())
    };
    answer().is_ok_and(|head| head == "HTTP/1.1 200")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_found_in_what_a_server_says() {
        let said =
            "INFO listening address=127.0.0.1:40123 workers=1\nopen http://127.0.0.1:8080/ 127.0.0.1:0 127.0.0.1:";
        let found: Vec<_> = addresses(said).map(|address| address.port()).collect();
        assert_eq!(found, [40123, 8080]);
    }

    #[test]
    fn the_configuration_is_toml() {
        let table: toml::Table = configuration(500).parse().unwrap();
        assert_eq!(table["namespace"]["kept"]["history"]["size"].as_integer(), Some(500));
    }
}
