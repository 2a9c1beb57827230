//! The table of refused tokens, and the good ones beside it.

mod claims;

use serde_json::{Value, json};

use super::*;
use crate::gateway::{
    jwks::Pace,
    testing::{FakeServer, Issuer, PUBLIC_ALGORITHMS, SECRET, base64url, hmac_token},
};

/// When every token here is checked.
const NOW: u64 = 1_764_000_000;

fn app(rules: TokenRules) -> App {
    App::new("default".parse().unwrap(), rules, Arc::default())
}

fn secret_rules(names: &[&str]) -> TokenRules {
    let algorithms: Vec<_> = names.iter().map(|name| key::algorithm(name).unwrap()).collect();
    let keys = algorithms.iter().map(|algorithm| Arc::new(Key::from_secret(SECRET, *algorithm).unwrap())).collect();
    TokenRules { algorithms, keys, ..TokenRules::default() }
}

/// An app with a secret for HS256 and nothing else: what most have.
fn secret_app() -> App {
    app(secret_rules(&["HS256"]))
}

/// An app with a key of each public kind, called by its algorithm; RS256, say, is `key-RS256`.
fn public_app(names: &[&str]) -> App {
    let algorithms: Vec<_> = names.iter().map(|name| key::algorithm(name).unwrap()).collect();
    let load = |name: &&str| {
        let algorithm = key::algorithm(name).unwrap();
        Arc::new(Key::from_pem(&format!("key-{name}"), algorithm, &Issuer::shared().pem(name)).unwrap())
    };
    app(TokenRules { algorithms, keys: names.iter().map(load).collect(), ..TokenRules::default() })
}

fn hs256(claims: &str) -> String {
    hmac_token("HS256", SECRET.as_bytes(), r#"{"alg":"HS256","typ":"JWT"}"#, claims)
}

fn with_header(header: &str) -> String {
    hmac_token("HS256", SECRET.as_bytes(), header, &claims(json!({})).to_string())
}

/// Good claims of a connection token, with these changes; `null` takes one away.
fn claims(changes: Value) -> Value {
    let mut claims = json!({"sub": "alice", "exp": NOW + 3600});
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
            value => claims[name] = value.clone(),
        }
    }
    claims
}

/// Checks that `token` is refused for the reason that `why` is a part of, and that a client is told nothing of it.
async fn refused(app: &App, name: &str, token: &str, why: &str) {
    let error = app.verify_at(token, NOW).await.expect_err(name);
    assert!(error.to_string().contains(why), "{name}: {error}");
    let refusal = error.refusal();
    match error.is_over() {
        true => assert_eq!(refusal.code, ErrorCode::TokenExpired, "{name}"),
        false => {
            assert_eq!((refusal.code, refusal.message.as_str()), (ErrorCode::Unauthorized, "the token was refused"))
        }
    }
}

#[tokio::test]
async fn every_algorithm_takes_its_own_tokens() {
    for name in ["HS256", "HS384", "HS512"] {
        let header = json!({"alg": name}).to_string();
        let token = hmac_token(name, SECRET.as_bytes(), &header, &claims(json!({})).to_string());
        assert!(app(secret_rules(&[name])).verify_at(&token, NOW).await.is_ok(), "{name}");
        let weaker = if name == "HS256" { "HS512" } else { "HS256" };
        refused(&app(secret_rules(&[weaker])), name, &token, "is not among").await;
    }
    let all = public_app(&PUBLIC_ALGORITHMS);
    for name in PUBLIC_ALGORITHMS {
        for header in [json!({"alg": name, "kid": format!("key-{name}")}), json!({"alg": name})] {
            let token = Issuer::shared().token(&header, &claims(json!({})));
            assert!(public_app(&[name]).verify_at(&token, NOW).await.is_ok(), "{header}");
            assert!(all.verify_at(&token, NOW).await.is_ok(), "{header} among all");
        }
        let other = Issuer::shared().token(&json!({"alg": name}), &claims(json!({"sub": "bob"})));
        let (message, _) = other.rsplit_once('.').unwrap();
        let good = Issuer::shared().token(&json!({"alg": name}), &claims(json!({})));
        let (_, signature) = good.rsplit_once('.').unwrap();
        refused(&all, "another token's signature", &format!("{message}.{signature}"), "signature").await;
    }
}

#[tokio::test]
async fn an_algorithm_is_never_taken_from_the_token() {
    let (hs, rs, all) = (secret_app(), public_app(&["RS256"]), public_app(&PUBLIC_ALGORITHMS));
    let body = base64url(claims(json!({})).to_string());
    for alg in ["none", "None", "nOnE", "NONE", "", "HS257", "hs256", "HS256 ", "RS256\0", "ES256K", "ES512", "dir"] {
        let header = base64url(json!({ "alg": alg }).to_string());
        for app in [&hs, &rs, &all] {
            refused(app, alg, &format!("{header}.{body}.x"), "is not among").await;
            refused(app, alg, &format!("{header}.{body}."), "it has no signature").await;
        }
        let tag = hmac_token("HS256", SECRET.as_bytes(), &json!({ "alg": alg }).to_string(), "{\"sub\":\"a\"}");
        refused(&hs, alg, &tag, "is not among").await;
    }
    // The public key, which everybody has, as the secret of an HMAC; in each form in which a server might hold it.
    let text = Issuer::shared().pem("RS256");
    for (name, secret) in [("PEM", text.clone()), ("PEM without its last line break", text.trim_end().to_owned())] {
        for header in [r#"{"alg":"HS256"}"#, r#"{"alg":"HS256","kid":"key-RS256"}"#] {
            let token = hmac_token("HS256", secret.as_bytes(), header, &claims(json!({})).to_string());
            refused(&rs, name, &token, "is not among").await;
            let why = if header.contains("kid") { "no key has" } else { "signature" };
            refused(&hs, name, &token, why).await;
            let mut both = secret_rules(&["HS256"]);
            both.algorithms.push(key::algorithm("RS256").unwrap());
            both.keys.extend(rs.rules.load().keys.iter().cloned());
            refused(&app(both), name, &token, why).await;
        }
    }
    for (alg, kid) in [("RS256", "key-PS256"), ("PS256", "key-RS256"), ("RS512", "key-RS256"), ("ES256", "key-ES384")] {
        let token = Issuer::shared().token(&json!({"alg": alg, "kid": kid}), &claims(json!({})));
        refused(&all, "a key with another algorithm than its own", &token, "no key has").await;
    }
}

#[tokio::test]
async fn a_signature_is_whole_and_of_this_very_text() {
    let app = secret_app();
    let good = hs256(&claims(json!({})).to_string());
    assert!(app.verify_at(&good, NOW).await.is_ok());
    let parts: Vec<&str> = good.split('.').collect();
    let [header, payload, signature] = parts[..] else { panic!() };
    let other_payload = base64url(claims(json!({"sub": "root"})).to_string());
    let other_header = base64url(r#"{"typ":"JWT","alg":"HS256"}"#);
    let tag = base64url([0; 32]);
    let long = base64url([1; 64]);
    for (name, token, why) in [
        ("empty signature", format!("{header}.{payload}."), "no signature"),
        ("two parts", format!("{header}.{payload}"), "three parts"),
        ("one part", header.to_owned(), "three parts"),
        ("nothing", String::new(), "three parts"),
        ("two dots", "..".to_owned(), "no signature"),
        ("dots", "....".to_owned(), "three parts"),
        ("four parts", format!("{good}.x"), "three parts"),
        ("five parts, as an encrypted token has", format!("{good}.x.y"), "three parts"),
        ("a dot before", format!(".{good}"), "three parts"),
        ("truncated by one", good[..good.len() - 1].to_owned(), "signature"),
        ("truncated by half", format!("{header}.{payload}.{}", &signature[..20]), "signature"),
        ("all zeros", format!("{header}.{payload}.{tag}"), "signature"),
        ("twice as long", format!("{header}.{payload}.{long}"), "signature"),
        ("padded", format!("{good}="), "signature"),
        ("with a blank after it", format!("{good} "), "signature"),
        ("with a line break after it", format!("{good}\n"), "signature"),
        ("with a blank before it", format!(" {good}"), "header"),
        ("in the other alphabet", format!("{header}.{payload}.+/{}", &signature[2..]), "signature"),
        ("no base64", format!("{header}.{payload}.!!!"), "signature"),
        ("payload exchanged", format!("{header}.{other_payload}.{signature}"), "signature"),
        ("header exchanged", format!("{other_header}.{payload}.{signature}"), "signature"),
        ("header and payload exchanged", format!("{payload}.{header}.{signature}"), "header"),
        ("another secret", hmac_token("HS256", b"wrong", r#"{"alg":"HS256"}"#, r#"{"sub":"a"}"#), "signature"),
        ("an empty secret", hmac_token("HS256", b"", r#"{"alg":"HS256"}"#, r#"{"sub":"a"}"#), "signature"),
        ("8 KiB and one byte", format!("{good}{}", "x".repeat(8193 - good.len())), "it has 8193 bytes"),
        ("a megabyte", "x".repeat(1 << 20), "it has 1048576 bytes"),
        ("a megabyte of dots", ".".repeat(1 << 20), "it has 1048576 bytes"),
    ] {
        refused(&app, name, &token, why).await;
    }
    // The last character of 43 holds two bits that must be zero: another one there is another text for the same bytes.
    for last in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_".chars() {
        let token = format!("{}{last}", &good[..good.len() - 1]);
        assert_eq!(app.verify_at(&token, NOW).await.is_ok(), token == good, "{last}");
    }
}

#[tokio::test]
async fn signatures_of_public_keys_are_checked_in_their_one_form() {
    let all = public_app(&PUBLIC_ALGORITHMS);
    let other = Issuer::new();
    for name in PUBLIC_ALGORITHMS {
        let header = json!({"alg": name, "kid": format!("key-{name}")});
        let message = format!("{}.{}", base64url(header.to_string()), base64url(claims(json!({})).to_string()));
        let signature = Issuer::shared().sign(name, &message);
        let changed = |at: usize| {
            let mut changed = signature.clone();
            changed[at] ^= 1;
            changed
        };
        for (what, bytes) in [
            ("zeros (r = s = 0 for ES256)", vec![0; signature.len()]),
            ("ones", vec![0xff; signature.len()]),
            ("one byte", vec![0]),
            ("a byte less", signature[1..].to_vec()),
            ("a byte more", [&signature[..], &[0]].concat()),
            ("a bit changed at the front", changed(0)),
            ("a bit changed at the end", changed(signature.len() - 1)),
            ("by another issuer", other.sign(name, &message)),
            ("for another text", Issuer::shared().sign(name, "x")),
            ("an HMAC with the public key", base64url(Issuer::shared().pem(name)).into_bytes()),
        ] {
            refused(&all, &format!("{name}, {what}"), &format!("{message}.{}", base64url(bytes)), "signature").await;
        }
        refused(&all, name, &format!("{message}."), "no signature").await;
    }
    let message = format!("{}.{}", base64url(r#"{"alg":"ES256"}"#), base64url(r#"{"sub":"a"}"#));
    let order = "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551";
    let order: Vec<u8> = (0..32).map(|at| u8::from_str_radix(&order[2 * at..2 * at + 2], 16).unwrap()).collect();
    let one = [&[0; 31][..], &[1]].concat();
    for (r, s) in [([0; 32].to_vec(), one.clone()), (one, [0; 32].to_vec()), (order.clone(), order)] {
        let token = format!("{message}.{}", base64url([r, s].concat()));
        refused(&public_app(&["ES256"]), "r or s at the edge", &token, "signature").await;
    }
    // Two integers in DER are how X.509 writes an ECDSA signature; in a token they stand bare (RFC 7518, 3.4).
    let raw = Issuer::shared().sign("ES256", &message);
    let integer = |bytes: &[u8]| [&[2, 33, 0][..], bytes].concat();
    let der = [&[0x30, 70][..], &integer(&raw[..32]), &integer(&raw[32..])].concat();
    let token = format!("{message}.{}", base64url(der));
    refused(&public_app(&["ES256"]), "DER", &token, "signature").await;
}

#[tokio::test]
async fn urls_and_keys_inside_a_token_are_never_looked_at() {
    let attacker = Issuer::new();
    let trap = FakeServer::with_keys(&[attacker.jwk("RS256", "evil")]).await;
    let own = FakeServer::with_keys(&[Issuer::shared().jwk("RS256", "own")]).await;
    let jwks = Jwks::start(&own.url(), &tokio::runtime::Handle::current(), Pace::DEFAULT).unwrap();
    let algorithms = vec![key::algorithm("RS256").unwrap()];
    let app = app(TokenRules { algorithms, jwks: Some(Arc::new(jwks)), ..TokenRules::default() });
    let good = Issuer::shared().token(&json!({"alg": "RS256", "kid": "own", "jku": trap.url()}), &claims(json!({})));
    assert!(app.verify_at(&good, NOW).await.is_ok());
    for (name, extra) in [
        ("jku", json!({"jku": trap.url()})),
        ("x5u", json!({"x5u": trap.url()})),
        ("jwk", json!({"jwk": attacker.jwk("RS256", "evil")})),
        ("x5c", json!({"x5c": ["MIIB"]})),
        ("all of them", json!({"jku": trap.url(), "x5u": trap.url(), "jwk": attacker.jwk("RS256", "evil")})),
    ] {
        for kid in [json!("evil"), json!("own"), json!(trap.url()), Value::Null] {
            let mut header = json!({"alg": "RS256"});
            header.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            if !kid.is_null() {
                header["kid"] = kid.clone();
            }
            let token = attacker.token(&header, &claims(json!({})));
            let known = kid.is_null() || kid == "own";
            refused(&app, name, &token, if known { "signature" } else { "no key has" }).await;
        }
    }
    assert_eq!(trap.requests(), 0, "nobody asked the attacker's server");
    assert!(own.requests() <= 2);
}

#[tokio::test]
async fn keys_from_a_url_are_for_the_configured_algorithms_only() {
    let mut bare = Issuer::shared().jwk("RS256", "k");
    bare.as_object_mut().unwrap().remove("alg");
    let server = FakeServer::with_keys(&[bare]).await;
    let jwks = Arc::new(Jwks::start(&server.url(), &tokio::runtime::Handle::current(), Pace::DEFAULT).unwrap());
    let algorithms = vec![key::algorithm("HS256").unwrap(), key::algorithm("PS256").unwrap()];
    let app = app(TokenRules { algorithms, jwks: Some(jwks), ..TokenRules::default() });
    let token = |alg: &str| Issuer::shared().token(&json!({"alg": alg, "kid": "k"}), &claims(json!({})));
    assert!(app.verify_at(&token("PS256"), NOW).await.is_ok());
    refused(&app, "not configured", &token("RS256"), "is not among").await;
    let pem = Issuer::shared().pem("RS256");
    let confused = hmac_token("HS256", pem.as_bytes(), r#"{"alg":"HS256","kid":"k"}"#, &claims(json!({})).to_string());
    refused(&app, "the public key as secret", &confused, "no key has").await;
    assert_eq!(server.requests(), 1, "an algorithm with a shared secret is nothing to ask the URL for");
}

#[tokio::test]
async fn a_token_that_names_no_key_is_tried_with_few() {
    let five: Vec<Value> = (0..5).map(|n| Issuer::shared().jwk("ES256", &format!("k{n}"))).collect();
    for (count, expected) in [(4, Ok(())), (5, Err(TokenError::ManyKeys))] {
        let server = FakeServer::with_keys(&five[..count]).await;
        let jwks = Arc::new(Jwks::start(&server.url(), &tokio::runtime::Handle::current(), Pace::DEFAULT).unwrap());
        let algorithms = vec![key::algorithm("ES256").unwrap()];
        let app = app(TokenRules { algorithms, jwks: Some(jwks), ..TokenRules::default() });
        let token = Issuer::shared().token(&json!({"alg": "ES256"}), &claims(json!({})));
        assert_eq!(app.verify_at(&token, NOW).await.map(|_| ()), expected);
    }
}

#[tokio::test]
async fn keys_that_cannot_be_fetched_are_no_fault_of_the_token() {
    let server = FakeServer::start(crate::gateway::testing::Answer::Close).await;
    let jwks = Arc::new(Jwks::start(&server.url(), &tokio::runtime::Handle::current(), Pace::DEFAULT).unwrap());
    let algorithms = vec![key::algorithm("ES256").unwrap()];
    let app = app(TokenRules { algorithms, jwks: Some(jwks), ..TokenRules::default() });
    let token = Issuer::shared().token(&json!({"alg": "ES256", "kid": "k"}), &claims(json!({})));
    let error = app.verify_at(&token, NOW).await.unwrap_err();
    assert_eq!(error.refusal().code, ErrorCode::Unavailable);
    assert!(error.refusal().code.is_temporary());
    assert_eq!(TokenError::KeysTimeout.refusal().code, ErrorCode::Timeout);
}

#[tokio::test]
async fn an_app_without_keys_takes_no_token() {
    let app = app(TokenRules { algorithms: vec![key::algorithm("HS256").unwrap()], ..TokenRules::default() });
    for secret in ["", "default", SECRET] {
        let token = hmac_token("HS256", secret.as_bytes(), r#"{"alg":"HS256"}"#, r#"{"sub":"a"}"#);
        refused(&app, secret, &token, "no key to check tokens with").await;
    }
}

#[test]
fn minting_makes_what_checking_takes() {
    assert_eq!(mint("", &json!({})), Err(MintError::EmptySecret));
    assert_eq!(mint("x", &json!([])), Err(MintError::NoObject));
    let token = mint(SECRET, &json!({"sub": "alice"})).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    assert_eq!(runtime.block_on(secret_app().authenticate(&token)).unwrap().user.as_str(), "alice");
}

proptest::proptest! {
    #[test]
    fn no_text_is_a_token_by_chance_and_none_panics(text in "\\PC{0,200}|[A-Za-z0-9._-]{0,300}", claims in "\\PC{0,60}") {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let app = secret_app();
        proptest::prop_assert!(runtime.block_on(app.verify_at(&text, NOW)).is_err());
        // Signed nonsense reaches the parsers behind the signature.
        let _ = runtime.block_on(app.verify_at(&hs256(&claims), NOW));
    }
}
