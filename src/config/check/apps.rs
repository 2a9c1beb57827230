//! The rules of `[[app]]`: ids, secrets, API keys, and algorithms with keys of their own type.

use std::{collections::BTreeMap, fs};

use super::{super::MASK, pem_file};
use crate::{
    config::{
        ApiKeyConfig, AppConfig, TokensConfig,
        finding::Report,
        keys::{EXAMPLE_SECRET, PUBLIC_ALGORITHMS},
    },
    domain::AppId,
};

/// Checks the apps, each alone and all together.
pub(super) fn check(apps: &[AppConfig], report: &mut Report) {
    let mut seen = Seen::default();
    for (at, app) in apps.iter().enumerate() {
        let key = format!("app[{at}]");
        names(app, &key, &mut seen, report);
        secrets(app, &key, &mut seen, report);
        tokens(app, &key, report);
        if 1 < apps.len() && !app.has_keys() && report.sound(&[key.as_str()]) && apps.iter().any(AppConfig::has_keys) {
            report.warn(key, "has no key of any kind: nobody can prove who they are there");
        }
    }
}

/// What must be there once only, and the key that had it first.
#[derive(Default)]
struct Seen<'a> {
    ids: BTreeMap<&'a str, String>,
    keys: BTreeMap<&'a str, String>,
    api_keys: BTreeMap<&'a str, String>,
}

fn names<'a>(app: &'a AppConfig, key: &str, seen: &mut Seen<'a>, report: &mut Report) {
    if let Err(problem) = app.id.parse::<AppId>() {
        report.fault(format!("{key}.id"), problem.to_string());
    }
    if app.key.is_empty() || 128 < app.key.len() || !app.key.bytes().all(|byte| byte.is_ascii_graphic()) {
        report.fault(format!("{key}.key"), "takes 1 to 128 visible ASCII characters");
    }
    for (field, value, seen) in [("id", &app.id, &mut seen.ids), ("key", &app.key, &mut seen.keys)] {
        let own = format!("{key}.{field}");
        match seen.get(value.as_str()) {
            Some(first) => {
                let hint = if value == "default" { ": it is \"default\" where it is left out" } else { "" };
                report.fault(own, format!("is that of {first} too{hint}"));
            }
            None => drop(seen.insert(value, own)),
        }
    }
}

fn secrets<'a>(app: &'a AppConfig, key: &str, seen: &mut Seen<'a>, report: &mut Report) {
    let secret_key = format!("{key}.secret");
    if let Some(secret) = &app.secret {
        if secret.contains("-----BEGIN") {
            let problem = "is a PEM: whoever has the public key could sign tokens with it; public keys go into \
                           tokens.public_keys, and the secret is random text (openssl rand -hex 32)";
            report.fault(secret_key.clone(), problem);
        } else if let Some(problem) = no_secret(secret) {
            report.fault(secret_key.clone(), problem);
        } else if secret.len() < 32 {
            let problem =
                "has fewer than 32 bytes, which can be guessed (RFC 7518, 3.2): openssl rand -hex 32 makes one";
            report.warn(secret_key.clone(), problem);
        }
    }
    for (at, api_key) in app.api_keys.iter().enumerate() {
        let own = format!("{key}.api_keys[{at}]");
        let text = match api_key {
            ApiKeyConfig::Full(text) => text,
            ApiKeyConfig::Narrow(narrow) => {
                if narrow.allow.is_empty() {
                    report.fault(format!("{own}.allow"), "is empty: the key could be used for nothing");
                }
                &narrow.key
            }
        };
        if let Some(problem) = no_secret(text) {
            report.fault(own.clone(), problem);
        } else if app.secret.as_ref() == Some(text) {
            report.fault(own.clone(), format!("is {secret_key} too: the secret that signs tokens must never travel"));
        } else if let Some(first) = seen.api_keys.get(text.as_str()) {
            report.fault(own.clone(), format!("is {first} too: an API key says which app is meant"));
        } else if text.len() < 16 {
            report.warn(own.clone(), "has fewer than 16 bytes, which can be guessed: openssl rand -hex 32 makes one");
        }
        seen.api_keys.insert(text, own);
    }
}

/// Why `text` cannot be a secret at all.
fn no_secret(text: &str) -> Option<&'static str> {
    match text {
        "" => Some("is empty: leave it out to have none"),
        MASK => Some("is the mask that `fanwire config` shows in place of a secret"),
        text if text == EXAMPLE_SECRET.trim_matches('"') => Some("is that of the example file, which everybody knows"),
        text if text.trim() != text => Some("begins or ends with white space"),
        text if text.contains(char::is_control) => Some("has a control character in it"),
        _ => None,
    }
}

fn tokens(app: &AppConfig, key: &str, report: &mut Report) {
    let (tokens, key) = (&app.tokens, format!("{key}.tokens"));
    public_keys(tokens, &key, report);
    if !tokens.jwks_url.is_empty() {
        jwks_url(&tokens.jwks_url, format!("{key}.jwks_url"), report);
    }
    let own = key.strip_suffix(".tokens").unwrap_or_default();
    if report.sound(&[&format!("{own}.secret"), &format!("{key}.algorithms"), &format!("{key}.public_keys")]) {
        algorithms(app, &key, report);
    }
}

fn public_keys(tokens: &TokensConfig, key: &str, report: &mut Report) {
    let mut kids: Vec<&str> = Vec::new();
    for (at, public) in tokens.public_keys.iter().enumerate() {
        let key = format!("{key}.public_keys[{at}]");
        if public.kid.is_empty() || 128 < public.kid.len() || public.kid.contains(char::is_control) {
            report.fault(format!("{key}.kid"), "takes 1 to 128 bytes, without control characters");
        } else if kids.contains(&public.kid.as_str()) {
            report.fault(format!("{key}.kid"), format!("{:?} is there twice", public.kid));
        }
        kids.push(&public.kid);
        if fs::read_to_string(&public.file).is_ok_and(|text| text.contains("PRIVATE KEY-----")) {
            let problem =
                "holds a private key: the server needs the public one only, so keep the other to whoever signs";
            report.fault(format!("{key}.file"), problem);
        } else {
            pem_file(&format!("{key}.file"), &public.file, &["PUBLIC KEY", "RSA PUBLIC KEY", "CERTIFICATE"], report);
        }
    }
}

fn jwks_url(url: &str, key: String, report: &mut Report) {
    let parsed = url.parse::<http::Uri>().ok();
    let host = parsed.as_ref().and_then(http::Uri::host).unwrap_or_default();
    let scheme = parsed.as_ref().and_then(http::Uri::scheme_str).unwrap_or_default();
    let local = ["localhost", "127.0.0.1", "[::1]"].contains(&host);
    let authority = parsed.as_ref().and_then(http::Uri::authority).map_or("", |authority| authority.as_str());
    match scheme {
        _ if authority.contains('@') => report.fault(key, "holds a user name or password: keys are public, drop it"),
        "https" | "http" if host.is_empty() => report.fault(key, "names no host"),
        "https" => {}
        "http" if local => {}
        "http" => report.warn(key, "is http: whoever is on the way can put keys of their own there; use https"),
        _ => report.fault(key, "takes an address such as \"https://id.example.com/.well-known/jwks.json\""),
    }
}

/// Each algorithm needs keys of its type, and each key an algorithm that uses it.
fn algorithms(app: &AppConfig, key: &str, report: &mut Report) {
    let tokens = &app.tokens;
    let (own, jwks) = (format!("{key}.algorithms"), !tokens.jwks_url.is_empty());
    let is_public = |algorithm: &str| PUBLIC_ALGORITHMS.contains(&algorithm);
    let has_file = |algorithm: &str| tokens.public_keys.iter().any(|public| public.algorithm == algorithm);
    let any_key = app.secret.is_some() || jwks || !tokens.public_keys.is_empty();
    if tokens.algorithms.is_empty() && any_key {
        report.fault(own.clone(), "is empty, so that no token could pass: name those that your keys are for");
    }
    let left_out = tokens.algorithms == TokensConfig::default().algorithms;
    for algorithm in &tokens.algorithms {
        let problem = match is_public(algorithm) {
            false if app.secret.is_some() || (left_out && !any_key) => continue,
            false if any_key => format!(
                "{algorithm} needs a secret, and there are only public keys: name their algorithms in its place, such as \
                 [{}]",
                example(tokens)
            ),
            false => format!("{algorithm} needs app.secret (or FANWIRE_SECRET)"),
            true if jwks || has_file(algorithm) => continue,
            true => format!("{algorithm} needs a public key: one in tokens.public_keys, or tokens.jwks_url"),
        };
        report.fault(own.clone(), problem);
    }
    if app.secret.is_some() && !tokens.algorithms.is_empty() && tokens.algorithms.iter().all(|name| is_public(name)) {
        report.fault(
            own.clone(),
            "has no HS algorithm, so that the secret is for nothing: add \"HS256\" or drop the secret",
        );
    }
    if jwks && app.secret.is_some() && !tokens.algorithms.iter().any(|name| is_public(name)) {
        let problem =
            "is for nothing: tokens.algorithms names none that its keys are for; add theirs, such as \"RS256\"";
        report.fault(format!("{key}.jwks_url"), problem);
    }
    for (at, public) in tokens.public_keys.iter().enumerate() {
        if report.sound(&[own.as_str()]) && !tokens.algorithms.contains(&public.algorithm) {
            let problem = format!("is for {}, which tokens.algorithms does not name: add it", public.algorithm);
            report.fault(format!("{key}.public_keys[{at}].algorithm"), problem);
        }
    }
}

/// The algorithms that an app with public keys most likely means.
fn example(tokens: &TokensConfig) -> String {
    let mut names: Vec<_> = tokens.public_keys.iter().map(|public| format!("\"{}\"", public.algorithm)).collect();
    names.dedup();
    if names.is_empty() { "\"RS256\"] or [\"EdDSA\"".into() } else { names.join(", ") }
}
