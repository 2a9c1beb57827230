//! What was found wrong with a configuration: always the key's full name, and where the value was written.

use std::{collections::BTreeMap, fmt};

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In the file, on this line, counted from 1.
    Line(usize),
    /// In this environment variable.
    Variable(String),
    /// On the command line, by this flag.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(line) => write!(f, "line {line}"),
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

/// One thing that is wrong, or worth a warning. Never holds the value of a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The key's full name, such as `app[1].tokens.algorithms`; `""` where it is about the file as a whole.
    pub key: String,
    /// What is wrong with it, and what to do.
    pub problem: String,
    /// The known name that is nearest to an unknown one.
    pub nearest: Option<String>,
    /// Where it was written; `None` for a default or for something missing.
    pub origin: Option<Origin>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.problem)?;
        if let Some(nearest) = &self.nearest {
            write!(f, "; nearest known: `{nearest}`")?;
        }
        self.origin.as_ref().map_or(Ok(()), |origin| write!(f, " ({origin})"))
    }
}

/// Every fault of a configuration at once, one a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<Finding>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, fault) in self.0.iter().enumerate() {
            let end = if at + 1 < self.0.len() { "\n" } else { "" };
            write!(f, "{fault}{end}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// What has been found so far, and where each value was written.
#[derive(Default)]
pub(super) struct Report {
    pub faults: Vec<Finding>,
    pub warnings: Vec<Finding>,
    pub origins: BTreeMap<String, Origin>,
}

impl Report {
    pub fn fault(&mut self, key: impl Into<String>, problem: impl Into<String>) {
        let finding = self.finding(key.into(), problem.into());
        self.faults.push(finding);
    }

    /// A fault of an unknown name.
    pub fn unknown(&mut self, key: String, problem: String, nearest: Option<String>) {
        let finding = Finding { nearest, ..self.finding(key, problem) };
        self.faults.push(finding);
    }

    pub fn warn(&mut self, key: impl Into<String>, problem: impl Into<String>) {
        let finding = self.finding(key.into(), problem.into());
        self.warnings.push(finding);
    }

    /// Whether nothing is wrong at or below any of `keys`. A rule across keys asks this first: what it would say of a
    /// key that fell back to its default would only mislead.
    pub fn sound(&self, keys: &[&str]) -> bool {
        let below = |fault: &Finding, key: &str| {
            fault.key.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        !self.faults.iter().any(|fault| keys.iter().any(|key| below(fault, key)))
    }

    fn finding(&self, key: String, problem: String) -> Finding {
        let origin = self.origin(&key).cloned();
        Finding { key, problem, nearest: None, origin }
    }

    /// Where `key` was written, or the table or list that it stands in.
    fn origin(&self, key: &str) -> Option<&Origin> {
        let mut key = key;
        loop {
            match self.origins.get(key) {
                Some(origin) => return Some(origin),
                None => key = &key[..key.rfind(['.', '['])?],
            }
        }
    }
}
