//! `fanwire doctor`: looks at what bites in production, one line for each thing: ok, warn or fail, and what to do.

mod host;
mod reach;

use std::{fmt, path::PathBuf, process::ExitCode};

use clap::Args;

use super::{DONE, FAULT, block_on, terminal};
use crate::config::{ApiKeyConfig, Config, Flags, Sources};

#[derive(Args)]
#[command(after_help = "Exit codes: 0 nothing failed, 1 something did.")]
pub(super) struct DoctorArgs {
    /// The configuration file; environment variables (FANWIRE_…) go over it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Look at it as `serve --insecure` would.
    #[arg(long)]
    insecure: bool,
}

/// How bad something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Ok,
    Warn,
    Fail,
}

/// One thing that was looked at.
#[derive(Debug)]
struct Finding {
    level: Level,
    /// What was looked at.
    what: &'static str,
    /// What was seen, and what to do.
    text: String,
}

impl Finding {
    fn ok(what: &'static str, text: impl Into<String>) -> Self {
        Self { level: Level::Ok, what, text: text.into() }
    }

    fn warn(what: &'static str, text: impl Into<String>) -> Self {
        Self { level: Level::Warn, what, text: text.into() }
    }

    fn fail(what: &'static str, text: impl Into<String>) -> Self {
        Self { level: Level::Fail, what, text: text.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Ok => "ok  ",
            Level::Warn => "warn",
            Level::Fail => "fail",
        };
        write!(f, "{level}  {}: {}", self.what, self.text)
    }
}

pub(super) fn run(args: DoctorArgs) -> ExitCode {
    let sources = Sources::of_this_process(args.config, Flags { listen: Vec::new(), insecure: args.insecure });
    block_on(async move {
        let mut failed = false;
        // What was read is shown before the slow part, which waits for others, begins.
        let (config, mut findings) = configuration(&sources);
        findings.extend(host::look(&config));
        failed |= show(&findings);
        failed |= show(&reach::look(&config).await);
        ExitCode::from(if failed { FAULT } else { DONE })
    })
}

/// Prints `findings`; whether one of them is a failure.
fn show(findings: &[Finding]) -> bool {
    for finding in findings {
        // Without a reader the exit code still tells.
        let _ = terminal::print(&terminal::escape(&finding.to_string()));
    }
    findings.iter().any(|finding| finding.level == Level::Fail)
}

/// The configuration, or the default one where it is faulty, and what is to be said of it.
fn configuration(sources: &Sources) -> (Config, Vec<Finding>) {
    match Config::load(sources) {
        Ok(loaded) => {
            let mut findings: Vec<_> =
                loaded.warnings.iter().map(|warning| Finding::warn("configuration", warning.to_string())).collect();
            if findings.is_empty() {
                findings.push(Finding::ok("configuration", "no faults"));
            }
            findings.extend(secrets(&loaded.config));
            (loaded.config, findings)
        }
        Err(errors) => {
            let faults = errors.0.iter().map(|fault| Finding::fail("configuration", fault.to_string())).collect();
            (Config::default(), faults)
        }
    }
}

/// How hard the secrets are to guess. Shortness is already warned of by the configuration's check.
fn secrets(config: &Config) -> Vec<Finding> {
    const ADVICE: &str = "can be guessed: `openssl rand -hex 32` makes one that cannot";
    if config.is_development() {
        let text = "development mode: no app has a key, everybody may do everything. For production set FANWIRE_SECRET";
        return vec![Finding::warn("secrets", text)];
    }
    let mut findings = Vec::new();
    for (at, app) in config.apps.iter().enumerate() {
        let keys = app.api_keys.iter().enumerate().map(|(number, key)| match key {
            ApiKeyConfig::Full(key) => (format!("app[{at}].api_keys[{number}]"), key),
            ApiKeyConfig::Narrow(narrow) => (format!("app[{at}].api_keys[{number}]"), &narrow.key),
        });
        let secret = app.secret.as_ref().map(|secret| (format!("app[{at}].secret"), secret));
        for (key, secret) in secret.into_iter().chain(keys) {
            if is_guessable(secret) {
                findings.push(Finding::fail("secrets", format!("{key} {ADVICE}")));
            }
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok("secrets", "none that is easily guessed"));
    }
    findings
}

/// Whether `secret` is a word that people put where a secret should be, or holds too few different characters.
fn is_guessable(secret: &str) -> bool {
    const WORDS: [&str; 9] =
        ["secret", "password", "changeme", "change-me", "example", "default", "test", "fanwire", "at-least-32"];
    let lower = secret.to_lowercase();
    let mut different: Vec<char> = secret.chars().collect();
    different.sort_unstable();
    different.dedup();
    // Sixteen hexadecimal digits drawn at random have fewer than 6 different ones about once in ten thousand times.
    let rest = WORDS.iter().fold(lower.clone(), |rest, word| rest.replace(word, ""));
    different.len() < 6 || (rest.len() < 12 && rest.len() < lower.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_for_a_secret_is_recognised() {
        for bad in
            ["secret", "changeme123", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "my-fanwire-secret", "abababababab"]
        {
            assert!(is_guessable(bad), "{bad}");
        }
        for good in ["9f86d081884c7d659a2feaa0c55ad015", "correct horse battery staple test"] {
            assert!(!is_guessable(good), "{good}");
        }
    }
}
