//! A configuration as text: the effective one, commented and with secrets masked; the example file; the reference.
//!
//! All three are written from the table of keys, so that a key cannot be missing in one of them.

use std::fmt::{self, Write};

use serde::Serialize;
use toml::Value;

use super::{
    ApiKeyConfig, AppConfig, BrokerConfig, Config, NamespaceConfig, NarrowApiKey,
    environment::name_of,
    keys::{Key, Kind, ROOT, Shape},
};

/// What stands in place of a secret.
pub const MASK: &str = "********";

impl Config {
    /// The whole effective configuration as TOML, each key with its effect and unit, secrets masked.
    pub fn commented(&self) -> String {
        let mut text = String::from("# The effective configuration of this server. Secrets are masked.\n\n");
        match Value::try_from(self) {
            Ok(Value::Table(values)) => Printer { out: &mut text, example: false }.table(ROOT, Some(&values), ""),
            // Every type in it serialises to TOML; the tests below hold that.
            _ => text.push_str("# cannot be shown\n"),
        }
        ended(text)
    }

    /// A complete commented file: every key with its default; what has none stands as an example after `#`.
    pub fn example() -> String {
        let mut text = String::from(
            "# Fanwire's settings: every key with its default. What is absent by default stands as an example behind `#`.\n\
             # Environment variables go over this file: FANWIRE_CONNECTION__PING=20s sets connection.ping.\n\
             # `fanwire check --config FILE` tells every fault at once; docs/configuration.md says more.\n\n",
        );
        if let Ok(Value::Table(values)) = Value::try_from(Self::default()) {
            Printer { out: &mut text, example: true }.table(ROOT, Some(&values), "");
        }
        ended(text)
    }

    /// The tables of `docs/configuration.md`, in Markdown.
    pub fn reference() -> String {
        let mut text = String::new();
        if let Ok(Value::Table(values)) = Value::try_from(Self::default()) {
            reference(ROOT, Some(&values), "", "", &mut text);
        }
        ended(text)
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.commented())
    }
}

impl fmt::Debug for BrokerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BrokerConfig")
            .field("url", &mask_url(&self.url))
            .field("prefix", &self.prefix)
            .field("replica_acks", &self.replica_acks)
            .field("queue_while_away", &self.queue_while_away)
            .field("queue_deadline", &self.queue_deadline)
            .field("max_memory", &self.max_memory)
            .finish()
    }
}

impl fmt::Debug for AppConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AppConfig")
            .field("id", &self.id)
            .field("key", &self.key)
            .field("secret", &self.secret.as_ref().map(|_| MASK))
            .field("api_keys", &self.api_keys)
            .field("tokens", &self.tokens)
            .finish()
    }
}

impl fmt::Debug for ApiKeyConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full(_) => f.write_str(MASK),
            Self::Narrow(narrow) => narrow.fmt(f),
        }
    }
}

impl fmt::Debug for NarrowApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NarrowApiKey").field("key", &MASK).field("allow", &self.allow).finish()
    }
}

/// `url` without the password that it may hold.
pub(super) fn mask_url(url: &str) -> String {
    let masked = url.split_once("://").and_then(|(scheme, rest)| {
        let authority = match scheme.starts_with("redis") {
            // No part of a Redis URL but the password holds an `@`, wherever it stands.
            true => rest,
            false => rest.split(['/', '?', '#']).next().unwrap_or_default(),
        };
        let at = authority.rfind('@')?;
        let user = rest[..at].split(':').next().unwrap_or_default();
        Some(format!("{scheme}://{user}:{MASK}{}", &rest[at..]))
    });
    match (masked, url.rfind('@')) {
        (Some(masked), _) => masked,
        // No address at all; what stands before the `@` may still be meant as a password.
        (None, Some(at)) if !url.contains("://") => format!("{MASK}{}", &url[at..]),
        (None, _) => url.into(),
    }
}

/// `text` with one line end after it.
fn ended(text: String) -> String {
    format!("{}\n", text.trim_end())
}

type Table = toml::map::Map<String, Value>;

/// Writes tables as TOML. `example`: what is absent is written too, behind `#`.
struct Printer<'a> {
    out: &'a mut String,
    example: bool,
}

impl Printer<'_> {
    /// Writes the keys of one table: values first, then the tables below it. Without `values` all of it is an example.
    fn table(&mut self, keys: &[Key], values: Option<&Table>, path: &str) {
        let of = |key: &Key| values.and_then(|values| values.get(key.name));
        for key in keys.iter().filter(|key| is_inline(&key.shape)) {
            self.comment(key.doc);
            match (of(key), values) {
                (Some(value), _) => self.line("", key.name, &literal(value, &key.shape)),
                (None, Some(_)) if !self.example => self.raw(&format!("# {}: absent\n", key.name)),
                (None, _) => self.line("#", key.name, key.example.unwrap_or("\"\"")),
            }
        }
        self.raw("\n");
        for key in keys.iter().filter(|key| !is_inline(&key.shape)) {
            let path = if path.is_empty() { key.name.into() } else { format!("{path}.{}", key.name) };
            self.below(key, of(key), &path);
        }
    }

    fn below(&mut self, key: &Key, value: Option<&Value>, path: &str) {
        let keys = key.shape.keys().unwrap_or_default();
        self.comment(key.doc);
        match (&key.shape, value) {
            (Shape::Named(_), Some(Value::Table(groups))) if !groups.is_empty() => {
                for (name, group) in groups {
                    let path = super::keys::join(path, name);
                    self.group(&format!("[{path}]"), keys, group.as_table(), &path);
                }
            }
            (Shape::Groups(_), Some(Value::Array(groups))) if !groups.is_empty() => {
                for group in groups {
                    self.group(&format!("[[{path}]]"), keys, group.as_table(), path);
                }
            }
            (Shape::Group(_) | Shape::Optional(_), Some(Value::Table(group))) => {
                self.group(&format!("[{path}]"), keys, Some(group), path);
            }
            _ if !self.example => self.raw(&format!("# {path}: absent\n\n")),
            (Shape::Named(_), _) => {
                let path = format!("{path}.room");
                self.sample(&format!("#[{path}]"), keys, sample(&NamespaceConfig::default()), &path);
            }
            (Shape::Groups(_), _) if path == "app" => {
                self.sample("#[[app]]", keys, sample(&AppConfig::default()), path);
            }
            (Shape::Groups(_), _) => self.sample(&format!("#[[{path}]]"), keys, None, path),
            _ => self.sample(&format!("#[{path}]"), keys, None, path),
        }
    }

    fn group(&mut self, head: &str, keys: &[Key], values: Option<&Table>, path: &str) {
        self.raw(&format!("{head}\n"));
        self.table(keys, values, path);
    }

    /// Writes a group that is absent, with `defaults` where its keys have some.
    fn sample(&mut self, head: &str, keys: &[Key], defaults: Option<Table>, path: &str) {
        self.raw(&format!("{head}\n"));
        for key in keys.iter().filter(|key| is_inline(&key.shape)) {
            let default = defaults.as_ref().and_then(|values| values.get(key.name));
            let shown = match (key.example, default) {
                (Some(example), _) => example.into(),
                (None, Some(value)) => literal(value, &key.shape),
                (None, None) => "\"\"".into(),
            };
            self.comment(key.doc);
            self.line("#", key.name, &shown);
        }
        self.raw("\n");
        for key in keys.iter().filter(|key| !is_inline(&key.shape)) {
            let below = format!("{path}.{}", key.name);
            let head =
                if matches!(key.shape, Shape::Groups(_)) { format!("#[[{below}]]") } else { format!("#[{below}]") };
            let defaults = defaults.as_ref().and_then(|values| values.get(key.name)).and_then(Value::as_table).cloned();
            self.comment(key.doc);
            self.sample(&head, key.shape.keys().unwrap_or_default(), defaults, &below);
        }
    }

    fn comment(&mut self, doc: &str) {
        let mut width = 0;
        for word in doc.split_whitespace() {
            if width == 0 || 110 < width + 1 + word.len() {
                let start = if width == 0 { "#" } else { "\n#" };
                self.raw(start);
                width = 1;
            }
            self.raw(" ");
            self.raw(word);
            width += 1 + word.len();
        }
        self.raw("\n");
    }

    fn line(&mut self, mark: &str, name: &str, value: &str) {
        self.raw(&format!("{mark}{name} = {value}\n"));
    }

    fn raw(&mut self, text: &str) {
        self.out.push_str(text);
    }
}

fn sample<T: Serialize>(value: &T) -> Option<Table> {
    Value::try_from(value).ok().and_then(|value| value.as_table().cloned())
}

/// Whether a key stands on a line of its own in its table, and not in a table below.
fn is_inline(shape: &Shape) -> bool {
    matches!(shape, Shape::One(_) | Shape::Many { .. } | Shape::Secrets(_))
}

/// `value` as TOML, masked where it is a secret.
fn literal(value: &Value, shape: &Shape) -> String {
    match (shape, value) {
        (Shape::One(Kind::Secret) | Shape::Many { of: Kind::Secret, .. } | Shape::Secrets(_), value) => masked(value),
        (_, Value::String(text)) => Value::String(mask_url(text)).to_string(),
        (_, value) => value.to_string(),
    }
}

/// A secret, a list of them, or the table of a narrow key, of which only what it may do is shown.
fn masked(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("[{}]", items.iter().map(masked).collect::<Vec<_>>().join(", ")),
        Value::Table(table) => match table.get("allow") {
            Some(allow) => format!("{{ key = \"{MASK}\", allow = {allow} }}"),
            None => format!("{{ key = \"{MASK}\" }}"),
        },
        _ => format!("\"{MASK}\""),
    }
}

/// Writes a Markdown table for the keys at `path`, then those below it.
fn reference(keys: &[Key], defaults: Option<&Table>, path: &str, head: &str, out: &mut String) {
    if keys.iter().any(|key| is_inline(&key.shape)) {
        let head = if head.is_empty() { "At the top".into() } else { format!("`{head}`") };
        // Writing to a `String` cannot fail, here and below.
        let _ = writeln!(
            out,
            "### {head}\n\n| key | default | takes | effect | variable |\n| --- | --- | --- | --- | --- |"
        );
        for key in keys.iter().filter(|key| is_inline(&key.shape)) {
            let full = join_plain(path, key.name);
            let default = defaults.and_then(|values| values.get(key.name)).map(|value| literal(value, &key.shape));
            let default = match default {
                Some(value) => format!("`{value}`"),
                None if key.required => "required".into(),
                None => "absent".into(),
            };
            let (takes, doc, variable) = (takes(&key.shape), key.doc, name_of(&full));
            let row = format!("`{}` | {default} | {takes} | {doc} | `{variable}`", key.name);
            let _ = writeln!(out, "| {row} |");
        }
        out.push('\n');
    }
    for key in keys.iter().filter(|key| key.shape.keys().is_some()) {
        let full = join_plain(path, key.name);
        let (path, head) = match key.shape {
            Shape::Groups(_) | Shape::Secrets(_) => (format!("{full}[]"), format!("[[{}]]", full.replace("[]", ""))),
            Shape::Named(_) => (format!("{full}.NAME"), format!("[{full}.NAME]")),
            _ => (full.clone(), format!("[{}]", full.replace("[]", ""))),
        };
        let found = match full.as_str() {
            "app" => sample(&AppConfig::default()),
            "namespace" => sample(&NamespaceConfig::default()),
            _ => defaults.and_then(|values| values.get(key.name)).and_then(Value::as_table).cloned(),
        };
        reference(key.shape.keys().unwrap_or_default(), found.as_ref(), &path, &head, out);
    }
}

fn join_plain(path: &str, name: &str) -> String {
    if path.is_empty() { name.into() } else { format!("{path}.{name}") }
}

fn takes(shape: &Shape) -> String {
    match shape {
        Shape::One(kind) => kind.expected(),
        Shape::Many { of, bare: true } => format!("{}; or a list of such", of.expected()),
        Shape::Many { of, .. } => format!("a list, each {}", of.expected()),
        _ => "a list of secret texts or tables".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ApiScope, HistoryConfig, PublicKeyConfig, Span, TlsConfig, keys};

    /// A configuration in which everything is set.
    fn full() -> Config {
        let mut config = Config { admin_keys: vec!["hunter2-admin".into()], ..Config::default() };
        config.tls = Some(TlsConfig { cert: "cert".into(), key: "key".into() });
        config.broker.url = "redis://user:hunter2-url@host/0".into();
        let narrow = NarrowApiKey { key: "hunter2-narrow".into(), allow: vec![ApiScope::Publish] };
        let mut app = AppConfig { secret: Some("hunter2-secret".into()), ..AppConfig::default() };
        app.api_keys = vec![ApiKeyConfig::Full("hunter2-full".into()), ApiKeyConfig::Narrow(narrow)];
        app.tokens.jwks_url = "https://host/keys".into();
        app.tokens.public_keys =
            vec![PublicKeyConfig { kid: "k".into(), algorithm: "ES256".into(), file: "file".into() }];
        config.apps = vec![app];
        let history = Some(HistoryConfig { size: 1, ttl: Span(std::time::Duration::from_secs(60)) });
        config.namespaces.insert("a b\"".into(), NamespaceConfig { history, ..NamespaceConfig::default() });
        config
    }

    #[test]
    fn the_table_of_keys_is_what_the_settings_are() {
        fn compare(keys: &[Key], values: &Value, path: &str) {
            let values = values.as_table().unwrap_or_else(|| panic!("{path} is no table"));
            let mut written: Vec<_> = values.keys().map(String::as_str).collect();
            let mut known: Vec<_> = keys.iter().map(|key| key.name).collect();
            written.sort_unstable();
            known.sort_unstable();
            assert_eq!(written, known, "at {path}");
            for key in keys {
                let Some(below) = key.shape.keys() else { continue };
                let value = &values[key.name];
                let value = match key.shape {
                    Shape::Named(_) => value.as_table().unwrap().values().next().unwrap(),
                    Shape::Groups(_) | Shape::Secrets(_) => value.as_array().unwrap().last().unwrap(),
                    _ => value,
                };
                compare(below, value, &format!("{path}.{}", key.name));
            }
        }
        compare(ROOT, &Value::try_from(full()).unwrap(), "");
    }

    #[test]
    fn secrets_are_masked_everywhere() {
        let config = full();
        for text in
            [config.commented(), format!("{config:?}"), format!("{:?}", config.apps), format!("{:#?}", config.broker)]
        {
            assert!(!text.contains("hunter2"), "{text}");
            assert!(text.contains(MASK));
        }
        assert_eq!(mask_url("redis://:pw@h:1/0"), format!("redis://:{MASK}@h:1/0"));
        assert_eq!(mask_url("redis://u:p@w@h"), format!("redis://u:{MASK}@h"));
        assert_eq!(mask_url("redis://u:p/w@h/0"), format!("redis://u:{MASK}@h/0"));
        assert_eq!(mask_url("redis+sentinel://u:a@h1,u:b@h2/m"), format!("redis+sentinel://u:{MASK}@h2/m"));
        assert_eq!(mask_url("https://h/@x"), "https://h/@x");
        assert_eq!(mask_url("user:pw@h"), format!("{MASK}@h"));
    }

    #[test]
    fn what_is_printed_is_what_is_set() {
        let shown = Config { broker: Default::default(), ..full() };
        let mut read: Config = toml::from_str(&shown.commented()).unwrap();
        read.admin_keys.clone_from(&shown.admin_keys);
        read.apps[0].secret.clone_from(&shown.apps[0].secret);
        read.apps[0].api_keys.clone_from(&shown.apps[0].api_keys);
        assert!(read == shown, "{}", shown.commented());
        assert!(toml::from_str::<Config>(&Config::example()).unwrap() == Config::default());
    }

    #[test]
    fn the_example_shows_every_key() {
        let example = Config::example();
        let mut all = Vec::new();
        keys::collect(ROOT, "", &mut all);
        for (full, key) in all.iter().filter(|(full, key)| is_inline(&key.shape) && !full.contains("api_keys[]")) {
            let shown =
                example.lines().any(|line| line.trim_start_matches('#').starts_with(&format!("{} = ", key.name)));
            assert!(shown, "{full}");
        }
        let uncommented: String = example
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(rest) if !rest.starts_with(' ') => format!("{rest}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        let config = toml::from_str::<Config>(&uncommented).unwrap();
        assert!(config.tls.is_some() && config.namespaces["room"].history.is_some() && config.apps.len() == 1);
    }

    #[test]
    fn the_documents_in_the_repository_are_these() {
        let root = env!("CARGO_MANIFEST_DIR");
        let read = |name: &str| std::fs::read_to_string(format!("{root}/{name}")).unwrap();
        assert!(read("fanwire.example.toml") == Config::example(), "write it: fanwire config --default");
        assert!(read("docs/configuration.md").contains(&Config::reference()), "write it: fanwire config --reference");
    }
}
