//! The load order: defaults, then the file, then the environment, then flags.
//!
//! Everything lands in one tree, which is checked as a whole; then the rules across keys are. Start at [`Config::load`].

use std::{collections::BTreeMap, fs, path::PathBuf};

use serde::Deserialize;

use super::{
    Config,
    check::check,
    environment,
    finding::{ConfigErrors, Finding, Origin, Report},
    keys::ROOT,
    tree::{self, Node, Value},
    validate::validate_table,
};

/// Where settings come from besides the defaults. Kept by a running server, which loads anew from it on SIGHUP.
#[derive(Clone, Default)]
pub struct Sources {
    /// The TOML file.
    pub file: Option<PathBuf>,
    /// The environment: names and values. Only names that begin with `FANWIRE_` are looked at.
    pub env: Vec<(String, String)>,
    /// What the command line says.
    pub flags: Flags,
}

/// What the command line says, over file and environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// `--listen`, in place of `listen`; empty for what file and environment say.
    pub listen: Vec<String>,
    /// `--insecure`: development mode on any address, and it is meant.
    pub insecure: bool,
}

/// A configuration that may be run, and what is odd about it.
#[derive(Debug)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// What the operator should be told: unknown `FANWIRE_` variables, and settings that are allowed but weak.
    pub warnings: Vec<Finding>,
}

impl Sources {
    /// From `file`, this process's environment and `flags`.
    pub fn of_this_process(file: Option<PathBuf>, flags: Flags) -> Self {
        let text = |os: std::ffi::OsString| os.to_string_lossy().into_owned();
        let ours = |(name, value)| {
            let name = text(name);
            name.starts_with(environment::PREFIX).then(|| (name, text(value)))
        };
        Self { file, env: std::env::vars_os().filter_map(ours).collect(), flags }
    }
}

impl Config {
    /// Loads the configuration.
    ///
    /// # Errors
    /// Every fault at once: of the file's syntax, or else of unknown keys, wrong values and rules across keys.
    pub fn load(sources: &Sources) -> Result<Loaded, ConfigErrors> {
        let mut root = match &sources.file {
            Some(file) => read(file)?,
            None => BTreeMap::new(),
        };
        let mut report = Report::default();
        environment::apply(&mut root, &sources.env, &mut report);
        if !sources.flags.listen.is_empty() {
            let origin = Origin::Flag("--listen");
            let node = |value| Node { value, origin: origin.clone() };
            let addresses = sources.flags.listen.iter().map(|address| node(Value::Text(address.clone()))).collect();
            root.insert("listen".into(), node(Value::List(addresses)));
        }
        validate_table(&mut root, ROOT, "", &mut report);
        match Self::deserialize(toml::Value::from(&Value::Table(root))) {
            Ok(mut config) => {
                config.insecure = sources.flags.insecure;
                check(&config, &mut report);
                match report.faults.is_empty() {
                    true => Ok(Loaded { config, warnings: report.warnings }),
                    false => Err(ConfigErrors(report.faults)),
                }
            }
            Err(error) => {
                report.fault("", error.message().lines().next().unwrap_or_default());
                Err(ConfigErrors(report.faults))
            }
        }
    }
}

/// The largest file that is read: what is larger is not a configuration.
const MAX_FILE: u64 = 4 << 20;

fn read(file: &PathBuf) -> Result<BTreeMap<String, Node>, ConfigErrors> {
    let fault = |problem: String| {
        let problem = format!("cannot read {}: {problem}", file.display());
        ConfigErrors(vec![Finding { key: String::new(), problem, nearest: None, origin: None }])
    };
    let size = fs::metadata(file).map_err(|error| fault(error.to_string()))?.len();
    if MAX_FILE < size {
        return Err(fault(format!("it has {size} bytes, more than {MAX_FILE}")));
    }
    let text = fs::read_to_string(file).map_err(|error| fault(error.to_string()))?;
    tree::parse(&text).map_err(ConfigErrors)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::{Access, Rate};

    fn load(file: &str, env: &[(&str, &str)]) -> Result<Loaded, ConfigErrors> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fanwire.toml");
        fs::write(&path, file).unwrap();
        let env = env.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        Config::load(&Sources { file: Some(path), env, flags: Flags::default() })
    }

    fn faults(file: &str, env: &[(&str, &str)]) -> Vec<String> {
        load(file, env).expect_err("has faults").0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn nothing_written_is_the_default() {
        let loaded = Config::load(&Sources::default()).unwrap();
        assert_eq!(loaded.config, Config::default());
        assert!(loaded.warnings.is_empty());
    }

    #[test]
    fn the_environment_goes_over_the_file_and_flags_over_both() {
        let file = "listen = '127.0.0.1:1'\nnode_name = 'file'\n[connection]\nping = '10s'\nmax_subscriptions = 7\n";
        let env = [("FANWIRE_LISTEN", "127.0.0.1:2"), ("FANWIRE_CONNECTION__PING", "20s")];
        let config = load(file, &env).unwrap().config;
        assert_eq!(config.listen, ["127.0.0.1:2".parse().unwrap()]);
        assert_eq!((config.connection.ping.to_string(), config.connection.max_subscriptions), ("20s".into(), 7));
        assert_eq!(config.node_name, "file");
        let flags = Flags { listen: vec!["[::1]:3".into()], insecure: false };
        let env = vec![("FANWIRE_LISTEN".into(), "127.0.0.1:2".into())];
        let config = Config::load(&Sources { file: None, env, flags }).unwrap().config;
        assert_eq!(config.listen, ["[::1]:3".parse().unwrap()]);
    }

    #[test]
    fn the_environment_reaches_lists_maps_and_groups() {
        let file = "[namespace.Room]\npresence = true\n[[app]]\nid = 'a'\nkey = 'a'\n";
        let env = [
            ("FANWIRE_LISTEN", "127.0.0.1:8080, [::1]:8080"),
            ("FANWIRE_HTTP__ALLOWED_ORIGINS", "[\"https://a.example\", \"https://b.example\"]"),
            ("FANWIRE_NAMESPACE__ROOM__SUBSCRIBE", "anyone"),
            ("FANWIRE_NAMESPACE__ROOM__HISTORY__SIZE", "5"),
            ("FANWIRE_NAMESPACE__ROOM__HISTORY__TTL", "1m"),
            ("FANWIRE_NAMESPACE____PUBLISH_RATE", "5/1s"),
            ("FANWIRE_NAMESPACE__NEWS__HISTORY", "{ size = 1, ttl = '1h' }"),
            ("FANWIRE_SECRET", "a-secret-of-more-than-thirty-two-bytes"),
            ("FANWIRE_APP__1__ID", "b"),
            ("FANWIRE_APP__1__KEY", "b"),
            ("FANWIRE_APP__1__API_KEYS", "key-number-one-of-b, key-number-two-of-b"),
        ];
        let config = load(file, &env).unwrap().config;
        assert_eq!((config.listen.len(), config.http.allowed_origins.len(), config.apps.len()), (2, 2, 2));
        let room = &config.namespaces["Room"];
        assert!(room.presence && room.subscribe == Access::Anyone && room.history.unwrap().size == 5);
        assert_eq!(config.namespaces[""].publish_rate, Rate::per_second(5));
        assert_eq!(config.namespaces["news"].history.unwrap().size, 1);
        assert_eq!(config.apps[0].secret.as_deref(), Some("a-secret-of-more-than-thirty-two-bytes"));
        assert_eq!(config.apps[1].api_keys.len(), 2);
    }

    #[test]
    fn an_unknown_variable_is_a_warning_and_a_wrong_value_is_a_fault() {
        let env = [("FANWIRE_PORT", "tcp://10.0.0.1:80"), ("FANWIRE_CONNECTION__PIGN", "hunter2"), ("HOME", "/")];
        let warnings = load("", &env).unwrap().warnings;
        let text: Vec<_> = warnings.iter().map(ToString::to_string).collect();
        assert_eq!(text.len(), 2, "{text:?}");
        assert!(
            text[0].contains("FANWIRE_CONNECTION__PIGN") && text[0].contains("FANWIRE_CONNECTION__PING"),
            "{text:?}"
        );
        assert!(text[1].ends_with("FANWIRE_PORT: unknown environment variable, ignored"), "{text:?}");
        assert!(!text.concat().contains("hunter2"));
        let found = faults("", &[("FANWIRE_CONNECTION__PING", "soon"), ("FANWIRE_APP__4__ID", "x")]);
        assert!(found.iter().any(|fault| fault.starts_with("connection.ping: takes a duration")
            && fault.ends_with("(environment variable FANWIRE_CONNECTION__PING)")));
        assert!(found.iter().any(|fault| fault.starts_with("app[4]: ")), "{found:?}");
    }

    #[test]
    fn every_fault_is_told_at_once_with_its_full_name() {
        let file = "worker = 2\n[connection]\nping = 25\nmax_bodi = '1MiB'\n[broker]\nurl = 'redis://u:hunter2@h:x'\n\
                    [namespace.room]\nhistory = { size = 0, ttl = '1h' }\nsubscribe = 'anyon'\n\
                    [[app]]\n[[app]]\ntokens = { algorithms = ['HS265'] }\nsecret = 5\n";
        let found = faults(file, &[]);
        for expected in [
            "worker: unknown key; nearest known: `workers` (line 1)",
            "connection.ping: takes a duration such as \"25s\" (ms, s, m, h, d), not 25 (line 3)",
            "connection.max_bodi: unknown key; nearest known: `http.max_body` (line 4)",
            "broker.url: ",
            "namespace.room.history.size: ",
            "app[1].tokens.algorithms[0]: takes one of",
            "app[1].secret: takes a secret text, not a number (line 13)",
        ] {
            assert!(found.iter().any(|fault| fault.starts_with(expected)), "{expected} in {found:#?}");
        }
        assert!(found.iter().any(|fault| fault.contains("nearest known: `HS256`")));
        assert!(found.iter().any(|fault| fault.contains("nearest known: `anyone`")));
        assert!(!found.concat().contains("hunter2"));
    }

    #[test]
    fn what_a_later_version_brings_is_an_unknown_key_now() {
        for file in ["[[upstream]]\nname = 'u'", "[[app]]\n[app.pusher]\nenabled = true"] {
            assert!(faults(file, &[])[0].contains("unknown key"), "{file}");
        }
    }

    proptest! {
        #[test]
        fn no_file_and_no_variable_panics(
            file in "(\\PC{0,40}\n|(listen|app|namespace|log|tls)( = |\\.)(\\PC{0,20})\n|\\[\\[?(app|namespace\\.x|tls|app\\.tokens)\\]\\]?\n){0,6}",
            name in "(LISTEN|SECRET|APP|NAMESPACE|TLS|CONNECTION|_){1}(__[A-Z0-9_]{0,12}){0,4}|\\PC{0,20}",
            value in "\\PC{0,40}",
        ) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("fanwire.toml");
            fs::write(&path, &file).unwrap();
            let env = vec![(format!("FANWIRE_{name}"), value)];
            let result = Config::load(&Sources { file: Some(path), env, flags: Flags::default() });
            if let Err(errors) = result {
                prop_assert!(!errors.0.is_empty() && !errors.to_string().is_empty());
            }
        }

        #[test]
        fn any_variable_of_a_known_key_is_taken_or_refused_by_name(
            at in 0usize..1000,
            value in "\\PC{0,30}|[0-9]{1,30}|\\[.{0,20}\\]|\\{.{0,20}\\}|true|\"\"",
        ) {
            let names = environment::names();
            let name = names[at % names.len()].replace("NAME", "ROOM").replace("<N>", "0");
            let env = vec![(name, value)];
            if let Err(errors) = Config::load(&Sources { env, ..Sources::default() }) {
                prop_assert!(errors.0.iter().all(|fault| !fault.key.is_empty()), "{errors}");
            }
        }
    }
}
