//! The command line, driven as a person would: the real program, its output and its exit code.

mod client;
mod doctor;
mod real;

use std::{
    io::Write,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

/// What a run left behind.
struct Run {
    code: i32,
    out: String,
    err: String,
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("the program writes UTF-8");
        Self { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
    }
}

/// The program with `args` and nothing of ours in its environment but `env`.
fn command(args: &[&str], env: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fanwire"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("FANWIRE_")) {
        command.env_remove(name);
    }
    command.args(args).envs(env.iter().copied()).stdin(Stdio::null());
    command
}

fn fanwire(args: &[&str], env: &[(&str, &str)]) -> Run {
    command(args, env).output().unwrap().into()
}

/// The program with `input` on its standard input.
fn fanwire_reading(args: &[&str], env: &[(&str, &str)], input: &str) -> Run {
    let mut child =
        command(args, env).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap().into()
}

/// A file that lives as long as the test.
struct Config {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl Config {
    fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fanwire.toml");
        std::fs::write(&path, text).unwrap();
        Self { _folder: folder, path }
    }

    fn path(&self) -> &str {
        self.path.to_str().unwrap()
    }
}

const SECRET: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

#[test]
fn every_subcommand_explains_itself() {
    let help = fanwire(&["--help"], &[]);
    assert_eq!(help.code, 0);
    for name in ["serve", "check", "config", "token", "publish", "subscribe", "doctor"] {
        assert!(help.out.contains(name), "{name}");
        let help = fanwire(&[name, "--help"], &[]);
        assert_eq!((help.code, help.err.as_str()), (0, ""), "{name}");
        assert!(help.out.contains("Usage:"), "{name}");
    }
    for wrong in [&["sevre"][..], &["--lisen", "x"], &["publish"], &["subscribe"], &["token"], &["check", "a", "b"]] {
        let run = fanwire(wrong, &[]);
        assert_eq!(run.code, 2, "{wrong:?}: {}", run.err);
    }
    assert!(fanwire(&["--version"], &[]).out.starts_with("fanwire "));
}

#[test]
fn many_faults_are_told_in_one_run() {
    let config = Config::new(
        "worker = 2\n[connection]\nping = '0s'\nsend_queue = '1KiB'\n[broker]\nurl = 'redis://u:hunter2@h:x'\n\
         [namespace.room]\nhistory = { size = 0, ttl = '1h' }\n\
         [[app]]\nid = 'a'\nsecret = 'hunter2-hunter2-hunter2-hunter2-hunter2'\n\
         [[app]]\nid = 'a'\nkey = 'b'\ntokens = { algorithms = ['HS265'] }\n",
    );
    let run = fanwire(&["check", "--config", config.path()], &[("FANWIRE_LOG__FORMAT", "xml")]);
    assert_eq!((run.code, run.out.as_str()), (1, ""));
    for expected in [
        "worker: unknown key; nearest known: `workers` (line 1)",
        "connection.ping: ",
        "connection.send_queue: ",
        "broker.url: ",
        "namespace.room.history.size: ",
        "app[1].id: ",
        "app[1].tokens.algorithms[0]: ",
        "nearest known: `HS256` (line 15)",
        "log.format: ",
        "(environment variable FANWIRE_LOG__FORMAT)",
    ] {
        assert!(run.err.contains(expected), "{expected} in {}", run.err);
    }
    assert!(!run.err.contains("hunter2"), "{}", run.err);
    let served = fanwire(&["serve", "--config", config.path()], &[]);
    assert_eq!(served.code, 1);
    assert!(served.err.contains("worker: unknown key"));
}

#[test]
fn broken_files_are_refused_without_being_shown() {
    let config = Config::new("[[app]]\nsecret = \"hunter2\nid = = 'x'\n");
    let run = fanwire(&["check", "--config", config.path()], &[]);
    assert_eq!(run.code, 1);
    assert!(run.err.contains("not TOML") && run.err.contains("line 2") && !run.err.contains("hunter2"), "{}", run.err);
    let run = fanwire(&["check", "--config", "/nowhere/fanwire.toml"], &[]);
    assert!(run.code == 1 && run.err.contains("cannot read /nowhere/fanwire.toml"), "{}", run.err);
}

#[test]
fn the_default_file_is_good_and_means_the_defaults() {
    let file = fanwire(&["config", "--default"], &[]);
    let config = Config::new(&file.out);
    let check = fanwire(&["check", "--config", config.path()], &[]);
    assert_eq!((check.code, check.err.as_str()), (0, ""));
    let with = fanwire(&["config", "--config", config.path()], &[]);
    assert_eq!(with.out, fanwire(&["config"], &[]).out);
}

#[test]
fn what_config_prints_is_the_environment_over_the_file() {
    let config = Config::new("node_name = 'file'\n[connection]\nping = '10s'\nmax_subscriptions = 7\n");
    let env =
        [("FANWIRE_CONNECTION__PING", "20s"), ("FANWIRE_NAMESPACE__ROOM__PRESENCE", "true"), ("FANWIRE_PORT", "x")];
    let run = fanwire(&["config", "--config", config.path()], &env);
    assert_eq!(run.code, 0);
    let set: toml::Table = run.out.parse().unwrap();
    assert_eq!(set["node_name"].as_str(), Some("file"));
    assert_eq!(set["connection"]["ping"].as_str(), Some("20s"));
    assert_eq!(set["connection"]["max_subscriptions"].as_integer(), Some(7));
    assert_eq!(set["namespace"]["room"]["presence"].as_bool(), Some(true));
    assert!(run.err.contains("warning: FANWIRE_PORT: unknown environment variable"), "{}", run.err);
}

#[test]
fn secrets_appear_in_no_output() {
    let config = Config::new(
        "[[app]]\nsecret = 'hunter2-hunter2-hunter2-hunter2-hunter2'\n\
         api_keys = ['hunter2-full-api-key', { key = 'hunter2-narrow-api-key', allow = ['publish'] }]\n",
    );
    for args in [
        &["config", "--config", config.path()][..],
        &["check", "--config", config.path()],
        &["doctor", "--config", config.path()],
        &["token", "--user", "alice", "--config", config.path()],
        &["token", "--verify", "hunter2", "--config", config.path()],
    ] {
        let run = fanwire(args, &[]);
        assert!(!(run.out.clone() + &run.err).contains("hunter2"), "{args:?}: {} {}", run.out, run.err);
    }
    let shown = fanwire(&["config", "--config", config.path()], &[]).out;
    assert!(shown.contains("secret = \"********\"") && shown.contains("allow = [\"publish\"]"), "{shown}");
    // What is masked is no configuration to run.
    let masked = fanwire(&["check", "--config", Config::new(&shown).path()], &[]);
    assert!(masked.code == 1 && masked.err.contains("app[0].secret: is the mask"), "{}", masked.err);
}

#[test]
fn a_token_that_was_made_here_is_good_here() {
    let env = [("FANWIRE_SECRET", SECRET)];
    let made = fanwire(&["token", "--user", "alice", "--allow", "room:*=subscribe,publish"], &env);
    assert_eq!((made.code, made.err.as_str()), (0, ""));
    let token = made.out.trim();
    assert_eq!((made.out.lines().count(), token.split('.').count()), (1, 3));
    let read = fanwire(&["token", "--verify", token], &env);
    assert_eq!(read.code, 0, "{}", read.err);
    assert!(read.out.contains("connection of alice") && read.out.contains("room:*=subscribe,publish"), "{}", read.out);
    assert_eq!(fanwire_reading(&["token", "--verify", "-"], &env, &made.out).code, 0);
    let other = [("FANWIRE_SECRET", "another-secret-of-more-than-thirty-two-bytes")];
    let refused = fanwire(&["token", "--verify", token], &other);
    assert!(refused.code == 1 && refused.err.contains("signature"), "{}", refused.err);
}

#[test]
fn a_subscription_token_names_its_channel() {
    let env = [("FANWIRE_SECRET", SECRET)];
    let args = ["token", "--user", "bob", "--channel", "room:1", "--allow", "subscribe,presence", "--ttl", "5m"];
    let made = fanwire(&args, &env);
    assert_eq!(made.code, 0, "{}", made.err);
    let read = fanwire(&["token", "--verify", made.out.trim()], &env);
    assert!(read.out.contains("channel room:1 for bob") && read.out.contains("subscribe,presence"), "{}", read.out);
}

#[test]
fn a_refused_token_is_told_why() {
    let env = [("FANWIRE_SECRET", SECRET)];
    let made = fanwire(&["token", "--user", "alice", "--ttl", "0s"], &env);
    let expired = fanwire(&["token", "--verify", made.out.trim()], &env);
    assert!(expired.code == 1 && expired.err.contains("expired"), "{}", expired.err);
    let nonsense = fanwire(&["token", "--verify", "nonsense"], &env);
    assert!(nonsense.code == 1 && nonsense.err.starts_with("refused: "), "{}", nonsense.err);
}

#[test]
fn claims_that_make_no_sense_are_refused_by_name() {
    let env = [("FANWIRE_SECRET", SECRET)];
    for (args, expected) in [
        (["--allow", "room:*"], "write a channel pattern and actions"),
        (["--allow", "room:*=subscibe"], "\"subscibe\" is no action"),
        (["--allow", "=publish"], "a channel pattern has"),
        (["--channel", "a b"], "--channel: "),
        (["--info", "{"], "--info is no JSON"),
        (["--ttl", "soon"], "is not a duration"),
    ] {
        let run = fanwire(&[&["token", "--user", "alice"][..], &args].concat(), &env);
        assert!(run.code == 2 && run.err.contains(expected), "{args:?}: {}", run.err);
    }
}

#[test]
fn development_mode_says_how_to_set_a_secret() {
    let run = fanwire(&["token", "--user", "alice"], &[]);
    assert_eq!((run.code, run.out.as_str()), (1, ""));
    assert!(run.err.contains("export FANWIRE_SECRET="), "{}", run.err);
}

#[test]
fn development_mode_does_not_leave_the_machine_by_accident() {
    let run = fanwire(&["serve", "--listen", "0.0.0.0:0"], &[]);
    assert_eq!(run.code, 1);
    assert!(run.err.contains("--insecure") && run.err.contains("(flag --listen)"), "{}", run.err);
}

#[test]
fn the_doctor_says_what_to_do() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let env = [
        ("FANWIRE_LISTEN", address.as_str()),
        ("FANWIRE_METRICS_LISTEN", ""),
        ("FANWIRE_APP__0__TOKENS__JWKS_URL", "http://127.0.0.1:1/jwks"),
        ("FANWIRE_APP__0__TOKENS__ALGORITHMS", "ES256"),
        ("FANWIRE_APP__0__API_KEYS", "changeme-changeme"),
    ];
    let run = fanwire(&["doctor"], &env);
    assert_eq!(run.code, 1);
    let line = |start: &str| run.out.lines().any(|line| line.starts_with(start));
    assert!(line(&format!("fail  listen: {address} is taken")), "{}", run.out);
    assert!(line("fail  keys: app[0].tokens.jwks_url: "), "{}", run.out);
    assert!(line("fail  secrets: app[0].api_keys[0] can be guessed"), "{}", run.out);
    assert!(run.out.lines().all(|line| ["ok ", "war", "fai"].contains(&&line[..3])), "{}", run.out);
    let faulty = fanwire(&["doctor"], &[("FANWIRE_CONNECTION__PING", "0s")]);
    assert!(faulty.code == 1 && faulty.out.contains("fail  configuration: connection.ping: "), "{}", faulty.out);
}
