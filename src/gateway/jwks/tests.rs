use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::*;
use crate::gateway::{
    auth::key::algorithm,
    testing::{Answer, FakeServer, Issuer, base64url},
};

/// So slow that nothing is fetched again by itself, and so impatient that no test takes long.
const PACE: Pace = Pace {
    every: Duration::from_secs(3600),
    retry: Duration::from_secs(3600),
    pause: Duration::from_secs(3600),
    deadline: Duration::from_millis(600),
    patience: Duration::from_secs(5),
};

fn start(server: &FakeServer, pace: Pace) -> Jwks {
    Jwks::start(&server.url(), &Handle::current(), pace).unwrap()
}

async fn find(jwks: &Jwks, name: &str, kid: &str) -> Result<usize, TokenError> {
    jwks.find(algorithm(name).unwrap(), Some(kid)).await.map(|keys| keys.len())
}

fn key(kid: &str) -> Value {
    Issuer::shared().jwk("ES256", kid)
}

#[tokio::test]
async fn the_first_token_waits_for_the_first_fetch_and_asks_for_no_second() {
    let server = FakeServer::with_keys(&[key("a")]).await;
    let jwks = start(&server, PACE);
    assert_eq!(find(&jwks, "ES256", "a").await, Ok(1));
    assert_eq!(find(&jwks, "ES256", "a").await, Ok(1));
    assert_eq!(server.requests(), 1);
}

#[tokio::test]
async fn a_new_key_is_found_by_the_first_token_that_names_it_and_an_unlisted_one_is_gone() {
    let server = FakeServer::with_keys(&[key("a")]).await;
    let jwks = start(&server, PACE);
    assert_eq!(find(&jwks, "ES256", "a").await, Ok(1));
    server.set_keys(&[key("b")]);
    assert_eq!(find(&jwks, "ES256", "a").await, Ok(1), "no reason to fetch yet");
    assert_eq!(find(&jwks, "ES256", "b").await, Ok(1));
    assert_eq!(find(&jwks, "ES256", "a").await, Err(TokenError::UnknownKey));
    assert_eq!(server.requests(), 2);
}

#[tokio::test]
async fn ten_thousand_unknown_kids_cost_two_fetches_at_most() {
    let server = FakeServer::with_keys(&[key("a")]).await;
    let jwks = start(&server, PACE);
    let all_at_once = join_all((0..5_000).map(async |n| find(&jwks, "ES256", &format!("unknown-{n}")).await)).await;
    assert!(all_at_once.iter().all(|result| *result == Err(TokenError::UnknownKey)));
    for n in 0..5_000 {
        assert_eq!(find(&jwks, "RS256", &format!("other-{n}")).await, Err(TokenError::UnknownKey));
    }
    assert!(server.requests() <= 2, "{}", server.requests());
    assert_eq!(find(&jwks, "ES256", "a").await, Ok(1));
}

#[tokio::test]
async fn after_the_pause_an_unknown_kid_may_ask_again() {
    let server = FakeServer::with_keys(&[key("a")]).await;
    let jwks = start(&server, Pace { pause: Duration::ZERO, ..PACE });
    assert_eq!(find(&jwks, "ES256", "a").await, Ok(1));
    server.set_keys(&[key("b")]);
    assert_eq!(find(&jwks, "ES256", "b").await, Ok(1));
    server.set_keys(&[key("c")]);
    assert_eq!(find(&jwks, "ES256", "c").await, Ok(1));
    assert_eq!(server.requests(), 3);
}

#[tokio::test]
async fn keys_are_fetched_again_by_themselves() {
    let server = FakeServer::with_keys(&[key("a")]).await;
    let _jwks = start(&server, Pace { every: Duration::from_millis(10), ..PACE });
    server.wait_for_requests(4).await;
}

#[tokio::test]
async fn every_kind_of_failure_keeps_the_last_good_set() {
    let elsewhere = FakeServer::with_keys(&[key("b")]).await;
    let redirect = |status| {
        Answer::Raw(format!("HTTP/1.1 {status}\r\nLocation: {}\r\nContent-Length: 0\r\n\r\n", elsewhere.url()))
    };
    let many: Vec<Value> = (0..65).map(|n| key(&format!("k{n}"))).collect();
    let whole = json!({ "keys": [key("b")] }).to_string();
    let failures = [
        ("nothing", Answer::Close),
        ("silence", Answer::Hang),
        ("no end", Answer::Endless),
        ("10 MB", Answer::Body(format!("{}{whole}", " ".repeat(10_000_000)))),
        ("not found", Answer::Raw(format!("HTTP/1.1 404 Not Found\r\nContent-Length: {}\r\n\r\n{whole}", whole.len()))),
        ("an error", Answer::Raw("HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n".into())),
        ("moved", redirect("301 Moved Permanently")),
        ("found", redirect("302 Found")),
        ("temporarily", redirect("307 Temporary Redirect")),
        ("no HTTP", Answer::Raw("220 smtp.example ESMTP\r\n\r\n".into())),
        ("half", Answer::Raw(format!("HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n{whole}"))),
        ("no JSON", Answer::Body("<html>maintenance</html>".into())),
        ("no set", Answer::Body("[]".into())),
        ("no keys", Answer::Body("{}".into())),
        ("keys of another shape", Answer::Body(r#"{"keys":{"b":{}}}"#.into())),
        ("65 keys", Answer::Body(json!({ "keys": many }).to_string())),
        ("100k brackets", Answer::Body(format!("{{\"keys\":{}", "[".repeat(100_000)))),
    ];
    for (name, failure) in failures {
        let server = FakeServer::with_keys(&[key("a")]).await;
        let jwks = start(&server, PACE);
        assert_eq!(find(&jwks, "ES256", "a").await, Ok(1), "{name}");
        server.set(failure);
        assert_eq!(find(&jwks, "ES256", "b").await, Err(TokenError::KeysUnavailable), "{name}");
        assert_eq!(find(&jwks, "ES256", "a").await, Ok(1), "{name}");
        assert_eq!(find(&jwks, "ES256", "b").await, Err(TokenError::KeysUnavailable), "in the pause, {name}");
        assert_eq!(server.requests(), 2, "{name}");
    }
    assert_eq!(elsewhere.requests(), 0, "no redirect was followed");
}

#[tokio::test]
async fn a_server_that_was_away_at_the_start_is_tried_again() {
    let server = FakeServer::start(Answer::Close).await;
    let jwks = start(&server, Pace { retry: Duration::from_millis(10), ..PACE });
    server.wait_for_requests(2).await;
    server.set_keys(&[key("a")]);
    server.wait_for_requests(server.requests() + 1).await;
    assert_eq!(find(&jwks, "ES256", "a").await, Ok(1));
}

#[tokio::test]
async fn nobody_waits_longer_than_patience() {
    let server = FakeServer::start(Answer::Hang).await;
    let patience = Duration::from_millis(100);
    let jwks = start(&server, Pace { patience, deadline: Duration::from_secs(60), ..PACE });
    let began = Instant::now();
    let all = join_all((0..100).map(async |_| find(&jwks, "ES256", "a").await)).await;
    assert!(all.iter().all(|result| *result == Err(TokenError::KeysTimeout)));
    assert!(began.elapsed() < Duration::from_secs(8), "not one after the other: {:?}", began.elapsed());
    assert_eq!(server.requests(), 1, "all of them waited for the same one");
}

#[tokio::test]
async fn the_task_ends_with_its_owner() {
    let server = FakeServer::with_keys(&[key("a")]).await;
    let jwks = start(&server, Pace { every: Duration::from_millis(10), ..PACE });
    server.wait_for_requests(2).await;
    let shared = Arc::downgrade(&jwks.shared);
    drop(jwks);
    let gone = async {
        while shared.strong_count() != 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(60), gone).await.expect("the task let go of what it held");
}

#[test]
fn only_https_and_loopback_are_places_to_fetch_keys_from() {
    for good in ["http://127.0.0.1:1/keys", "http://localhost/keys", "http://[::1]:80/keys"] {
        assert!(Source::new(good).is_ok(), "{good}");
    }
    for bad in [
        "http://example.com/keys",
        "http://192.168.0.1/keys",
        "http://0.0.0.0/keys",
        "http://127.0.0.1.evil.com/",
        "http://localhost.evil.com/",
        "ftp://127.0.0.1/keys",
        "file:///etc/passwd",
        "/keys",
        "127.0.0.1/keys",
        "https://",
        "",
        "https://user:password@example.com/keys",
        "http://evil.com@127.0.0.1/",
    ] {
        assert!(Source::new(bad).is_err(), "{bad}");
    }
}

/// How many keys stand in a set of just `jwk`.
fn usable(jwk: &Value) -> usize {
    read(json!({ "keys": [jwk] }).to_string().as_bytes()).unwrap().len()
}

fn with(mut jwk: Value, changes: Value) -> Value {
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(jwk.as_object_mut().unwrap().remove(name)),
            value => jwk[name] = value.clone(),
        }
    }
    jwk
}

#[test]
fn keys_of_every_kind_are_read() {
    let issuer = Issuer::shared();
    for name in crate::gateway::testing::PUBLIC_ALGORITHMS {
        assert_eq!(usable(&issuer.jwk(name, "a")), 1, "{name}");
    }
    let rsa = issuer.jwk("RS256", "a");
    assert_eq!(usable(&with(rsa.clone(), json!({"alg": null}))), 6, "one for each algorithm that may be configured");
    assert_eq!(usable(&with(rsa.clone(), json!({"use": null, "kid": null}))), 1);
    assert_eq!(usable(&with(rsa, json!({"use": null, "key_ops": ["verify", "sign"], "x5c": ["…"]}))), 1);
}

#[test]
fn keys_that_must_not_be_used_are_passed_over() {
    let issuer = Issuer::shared();
    let (rsa, ec, ed) = (issuer.jwk("RS256", "a"), issuer.jwk("ES256", "a"), issuer.jwk("EdDSA", "a"));
    let p384 = issuer.jwk("ES384", "a");
    let short = base64url([0xc1; 128]);
    let huge = base64url([0xc1; 1024]);
    let off_curve = base64url([7; 32]);
    for (name, jwk) in [
        ("a shared secret", json!({"kty": "oct", "k": base64url("secret"), "alg": "HS256", "kid": "a"})),
        ("a shared secret as RSA", with(rsa.clone(), json!({"k": base64url("secret")}))),
        ("a private key", with(rsa.clone(), json!({"d": "AQ"}))),
        ("for encryption", with(rsa.clone(), json!({"use": "enc"}))),
        ("for signing only", with(rsa.clone(), json!({"use": null, "key_ops": ["sign"]}))),
        ("for nothing", with(rsa.clone(), json!({"use": null, "key_ops": []}))),
        ("RSA for HS256", with(rsa.clone(), json!({"alg": "HS256"}))),
        ("RSA for ES256", with(rsa.clone(), json!({"alg": "ES256"}))),
        ("RSA for none", with(rsa.clone(), json!({"alg": "none"}))),
        ("RSA for OAEP", with(rsa.clone(), json!({"alg": "RSA-OAEP"}))),
        ("RSA with 1024 bits", with(rsa.clone(), json!({"n": short}))),
        ("RSA with 8192 bits", with(rsa.clone(), json!({"n": huge}))),
        ("RSA without modulus", with(rsa.clone(), json!({"n": null}))),
        ("RSA without exponent", with(rsa.clone(), json!({"e": null}))),
        ("a modulus that is no base64url", with(rsa.clone(), json!({"n": "+/=="}))),
        ("a number as modulus", with(rsa.clone(), json!({"n": 7}))),
        ("a kid of 129 bytes", with(rsa.clone(), json!({"kid": "k".repeat(129)}))),
        ("an empty kid", with(rsa.clone(), json!({"kid": ""}))),
        ("a number as kid", with(rsa.clone(), json!({"kid": 1}))),
        ("no type", with(rsa, json!({"kty": null}))),
        ("a point off the curve", with(ec.clone(), json!({"x": off_curve}))),
        ("a short coordinate", with(ec.clone(), json!({"x": base64url([1; 31])}))),
        ("no y", with(ec.clone(), json!({"y": null}))),
        ("P-256 for ES384", with(ec.clone(), json!({"alg": "ES384"}))),
        ("P-256 called P-384", with(ec.clone(), json!({"crv": "P-384", "alg": "ES384"}))),
        ("P-384 called P-256", with(p384, json!({"crv": "P-256", "alg": "ES256"}))),
        ("secp256k1", with(ec.clone(), json!({"crv": "secp256k1"}))),
        ("P-521", with(ec, json!({"crv": "P-521"}))),
        ("Ed25519 for ES256", with(ed.clone(), json!({"alg": "ES256"}))),
        ("X25519", with(ed.clone(), json!({"crv": "X25519"}))),
        ("Ed25519 with 31 bytes", with(ed, json!({"x": base64url([1; 31])}))),
        ("a list", json!(["RSA", "a"])),
        ("a text", json!("RSA")),
        ("nothing", Value::Null),
    ] {
        assert_eq!(usable(&jwk), 0, "{name}");
    }
}

#[test]
fn one_odd_key_does_not_spoil_the_set() {
    let set = json!({"keys": [{"kty": "new", "kid": 7}, key("a"), "?"], "more": true}).to_string();
    assert_eq!(read(set.as_bytes()).unwrap().len(), 1);
    assert!(read(&[0xff; 16]).is_err());
}
