//! What the configuration says, made ready to be asked; every problem of it at once.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::Read,
    path::Path,
    sync::{Arc, atomic::AtomicBool},
    time::Instant,
};

use aws_lc_rs::digest;
use tokio::runtime::Handle;

use super::{
    ApiScopes, App, GatewayError,
    address::Proxies,
    auth::{
        TokenRules,
        key::{self, Algorithm, Key},
    },
    jwks::{Jwks, Pace},
    limit::AddressLimit,
    origin::Origins,
    revocations::Revocations,
};
use crate::{
    config::{ApiKeyConfig, AppConfig, Config, NamespaceConfig, Rate},
    domain::AppId,
};

/// The largest key file, in bytes.
const MAX_KEY_FILE_BYTES: u64 = 64 * 1024;

type Table<V> = HashMap<Box<str>, V, foldhash::fast::RandomState>;

/// One version of everything that the gateway is asked about.
pub(super) struct Settings {
    pub(super) development: bool,
    pub(super) apps: Vec<Arc<App>>,
    pub(super) by_key: Table<Arc<App>>,
    pub(super) api_keys: Vec<ApiKey>,
    pub(super) weak_secrets: Vec<AppId>,
    pub(super) namespaces: Table<Arc<NamespaceConfig>>,
    /// What the namespaces are like that nobody configured; `None`: they do not exist.
    pub(super) other_namespaces: Option<Arc<NamespaceConfig>>,
    pub(super) origins: Origins,
    pub(super) proxies: Proxies,
    pub(super) warned_of_proxy: AtomicBool,
    pub(super) addresses: Arc<AddressLimit>,
    pub(super) frames_per_connection: Rate,
    /// One for all versions of the settings.
    pub(super) revocations: Arc<Revocations>,
    /// By URL.
    jwks: HashMap<String, Arc<Jwks>>,
}

/// An API key, of which only the digest is kept.
pub(super) struct ApiKey {
    pub(super) digest: [u8; 32],
    /// Its place among [`Settings::apps`].
    pub(super) app: usize,
    pub(super) scopes: ApiScopes,
}

impl Settings {
    /// The settings, and each app's rules if they are to replace those of an app in `old`; new apps have theirs already.
    pub(super) fn new(
        config: &Config,
        old: Option<&Self>,
        background: &Handle,
    ) -> Result<(Self, Vec<TokenRules>), GatewayError> {
        let mut loader = Loader { old, background, problems: Vec::new(), jwks: HashMap::new() };
        let development = config.is_development();
        if development && old.is_some_and(|old| !old.development) {
            let problem = "no app has a key any more: development mode, which only a start can enter";
            loader.problems.push(problem.into());
        }
        let default = [AppConfig::default()];
        let apps = if config.apps.is_empty() { &default[..] } else { &config.apps };
        let ids = loader.ids(apps);
        let rules: Vec<_> = apps.iter().map(|app| loader.rules(app)).collect();
        let api_keys = loader.api_keys(apps);
        // With `--insecure` development mode may listen elsewhere; then the names that lead there are as good.
        let only_loopback = development && config.listen.iter().all(|address| address.ip().is_loopback());
        let origins = Origins::new(&config.http.allowed_origins, only_loopback).map_err(|wrong| {
            let problem = |text| format!("http.allowed_origins: {text:?} is no origin such as \"https://example.com\"");
            loader.problems.extend(wrong.iter().map(problem));
        });
        let (Ok(origins), true) = (origins, loader.problems.is_empty()) else {
            return Err(GatewayError { problems: loader.problems });
        };
        let jwks = loader.jwks;
        let revocations = old.map(|old| old.revocations.clone()).unwrap_or_default();
        let known = |id: &AppId| old.and_then(|old| old.apps.iter().find(|app| app.id == *id)).cloned();
        let apps_and_rules = ids.into_iter().zip(rules).map(|(id, rules)| match known(&id) {
            Some(app) => (app, rules),
            None => (Arc::new(App::new(id, rules.clone(), revocations.clone())), rules),
        });
        let (ready, rules): (Vec<_>, Vec<_>) = apps_and_rules.unzip();
        let by_key = apps.iter().zip(&ready).map(|(app, ready)| (app.key.as_str().into(), Arc::clone(ready))).collect();
        let weak = apps.iter().zip(&ready).filter(|(app, _)| has_weak_secret(app));
        let settings = Self {
            development,
            by_key,
            api_keys,
            weak_secrets: weak.map(|(_, ready)| ready.id.clone()).collect(),
            apps: ready,
            namespaces: namespaces(config, development),
            other_namespaces: development.then(|| Arc::new(NamespaceConfig::development(""))),
            origins,
            proxies: Proxies::new(&config.http),
            warned_of_proxy: AtomicBool::new(false),
            addresses: addresses(config, old),
            frames_per_connection: config.limits.frames_per_connection,
            revocations,
            jwks,
        };
        Ok((settings, rules))
    }
}

fn namespaces(config: &Config, development: bool) -> Table<Arc<NamespaceConfig>> {
    let unnamed = if development { NamespaceConfig::development("") } else { NamespaceConfig::default() };
    let mut namespaces = Table::from_iter([("".into(), Arc::new(unnamed))]);
    if development {
        namespaces.insert("room".into(), Arc::new(NamespaceConfig::development("room")));
    }
    namespaces.extend(config.namespaces.iter().map(|(name, own)| (name.as_str().into(), Arc::new(own.clone()))));
    namespaces
}

fn addresses(config: &Config, old: Option<&Settings>) -> Arc<AddressLimit> {
    let rate = config.limits.connections_per_address;
    match old.filter(|old| old.addresses.rate() == rate) {
        Some(old) => Arc::clone(&old.addresses),
        None => Arc::new(AddressLimit::new(rate, Instant::now())),
    }
}

fn has_weak_secret(app: &AppConfig) -> bool {
    let algorithms = app.tokens.algorithms.iter().filter_map(|name| key::algorithm(name));
    let longest = algorithms.filter(|algorithm| key::is_symmetric(*algorithm)).map(key::strong_secret_bytes).max();
    app.secret.as_ref().is_some_and(|secret| longest.is_some_and(|bytes| secret.len() < bytes))
}

/// Reads the apps' part of a configuration and collects what is wrong with it.
struct Loader<'a> {
    old: Option<&'a Settings>,
    background: &'a Handle,
    problems: Vec<String>,
    jwks: HashMap<String, Arc<Jwks>>,
}

impl Loader<'_> {
    /// The apps' ids; fewer than there are apps if some are wrong.
    fn ids(&mut self, apps: &[AppConfig]) -> Vec<AppId> {
        let (mut ids, mut keys) = (HashSet::new(), HashSet::new());
        for app in apps {
            if !ids.insert(&app.id) {
                self.problems.push(format!("app `{}`: id: another app has the same", app.id));
            }
            if !keys.insert(&app.key) {
                self.problems.push(format!("app `{}`: key: another app has the same, `{}`", app.id, app.key));
            }
        }
        let mut parsed = Vec::new();
        for app in apps {
            match app.id.parse() {
                Ok(id) => parsed.push(id),
                Err(error) => self.problems.push(format!("app `{}`: id: {error}", app.id.escape_debug())),
            }
        }
        parsed
    }

    fn rules(&mut self, app: &AppConfig) -> TokenRules {
        let algorithms = self.algorithms(app);
        let mut keys = self.secrets(app, &algorithms);
        keys.extend(self.public_keys(app, &algorithms));
        let named = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        TokenRules {
            keys: keys.into_iter().map(Arc::new).collect(),
            jwks: self.jwks(app, &algorithms),
            algorithms,
            audience: named(&app.tokens.audience),
            issuer: named(&app.tokens.issuer),
        }
    }

    fn algorithms(&mut self, app: &AppConfig) -> Vec<Algorithm> {
        let mut algorithms = Vec::new();
        for name in &app.tokens.algorithms {
            match key::algorithm(name) {
                Some(algorithm) => algorithms.push(algorithm),
                None => self.problem(app, "tokens.algorithms", &format!("`{}` is not known", name.escape_debug())),
            }
        }
        algorithms
    }

    /// The secret as a key for each algorithm that it may be used with.
    fn secrets(&mut self, app: &AppConfig, algorithms: &[Algorithm]) -> Vec<Key> {
        let Some(secret) = &app.secret else { return Vec::new() };
        let symmetric = algorithms.iter().filter(|algorithm| key::is_symmetric(**algorithm));
        let keys: Result<Vec<_>, _> = symmetric.map(|algorithm| Key::from_secret(secret, *algorithm)).collect();
        match keys {
            Ok(keys) if keys.is_empty() => {
                self.problem(app, "secret", "is of no use: `tokens.algorithms` lists no HS256, HS384 or HS512");
                keys
            }
            Ok(keys) => keys,
            Err(error) => {
                self.problem(app, "secret", &error.to_string());
                Vec::new()
            }
        }
    }

    fn public_keys(&mut self, app: &AppConfig, algorithms: &[Algorithm]) -> Vec<Key> {
        let (mut keys, mut seen) = (Vec::new(), HashSet::new());
        for public in &app.tokens.public_keys {
            let name = format!("tokens.public_keys `{}`", public.kid.escape_debug());
            if !seen.insert(&public.kid) {
                self.problem(app, &name, "there is another one with this kid");
            }
            let algorithm = key::algorithm(&public.algorithm).filter(|algorithm| algorithms.contains(algorithm));
            let Some(algorithm) = algorithm else {
                let problem =
                    format!("its algorithm `{}` is not in tokens.algorithms", public.algorithm.escape_debug());
                self.problem(app, &name, &problem);
                continue;
            };
            let key = read_key_file(&public.file).map_err(|error| format!("cannot be read: {error}"));
            match key.and_then(|pem| Key::from_pem(&public.kid, algorithm, &pem).map_err(|error| error.to_string())) {
                Ok(key) => keys.push(key),
                Err(problem) => self.problem(app, &name, &format!("{}: {problem}", public.file.display())),
            }
        }
        keys
    }

    fn jwks(&mut self, app: &AppConfig, algorithms: &[Algorithm]) -> Option<Arc<Jwks>> {
        let url = &app.tokens.jwks_url;
        if url.is_empty() {
            return None;
        }
        if algorithms.iter().all(|algorithm| key::is_symmetric(*algorithm)) {
            self.problem(app, "tokens.jwks_url", "is of no use: `tokens.algorithms` lists no RS, PS, ES or EdDSA");
        }
        if let Some(known) = self.jwks.get(url).or_else(|| self.old?.jwks.get(url)).cloned() {
            self.jwks.insert(url.clone(), Arc::clone(&known));
            return Some(known);
        }
        match Jwks::start(url, self.background, Pace::DEFAULT) {
            Ok(jwks) => Some(Arc::clone(self.jwks.entry(url.clone()).or_insert(Arc::new(jwks)))),
            Err(error) => {
                self.problem(app, "tokens.jwks_url", &error.to_string());
                None
            }
        }
    }

    fn api_keys(&mut self, apps: &[AppConfig]) -> Vec<ApiKey> {
        let (mut keys, mut seen) = (Vec::new(), HashSet::new());
        for (at, app) in apps.iter().enumerate() {
            for entry in &app.api_keys {
                let (text, scopes) = match entry {
                    ApiKeyConfig::Full(key) => (key, ApiScopes::ALL),
                    ApiKeyConfig::Narrow(narrow) => (&narrow.key, narrow.allow.iter().copied().collect()),
                };
                if text.is_empty() {
                    self.problem(app, "api_keys", "a key is empty");
                }
                if !seen.insert(text) {
                    self.problem(app, "api_keys", "a key is there twice");
                }
                if apps.iter().any(|app| app.secret.as_ref() == Some(text)) {
                    self.problem(app, "api_keys", "a key is also a secret, which must never travel");
                }
                let mut digest = [0; 32];
                digest.copy_from_slice(digest::digest(&digest::SHA256, text.as_bytes()).as_ref());
                keys.push(ApiKey { digest, app: at, scopes });
            }
        }
        keys
    }

    fn problem(&mut self, app: &AppConfig, key: &str, problem: &str) {
        self.problems.push(format!("app `{}`: {key}: {problem}", app.id.escape_debug()));
    }
}

/// A file's text, if it is not too long for a key.
fn read_key_file(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_KEY_FILE_BYTES).read_to_string(&mut text)?;
    Ok(text)
}
