//! The gateway as the other modules see it.

use std::{path::PathBuf, time::Duration};

use serde_json::json;

use super::{
    testing::{FakeServer, Issuer, SECRET},
    *,
};
use crate::config::{
    Access, ApiKeyConfig, AppConfig, HttpConfig, LimitsConfig, NarrowApiKey, PublicKeyConfig, Rate, TokensConfig,
};

fn with_apps(apps: Vec<AppConfig>) -> Config {
    Config { apps, ..Config::default() }
}

/// An app called `id`, with the key `id-key` and a secret of its own.
fn app(id: &str) -> AppConfig {
    AppConfig {
        id: id.into(),
        key: format!("{id}-key"),
        secret: Some(format!("{SECRET} {id}")),
        ..AppConfig::default()
    }
}

fn with_key(id: &str, key: &str) -> AppConfig {
    AppConfig { api_keys: vec![ApiKeyConfig::Full(key.into())], ..app(id) }
}

/// A gateway whose keys are fetched on a runtime that ends with the test.
async fn gateway(config: &Config) -> Arc<Gateway> {
    Gateway::new(config, Handle::current()).unwrap()
}

async fn problems(config: &Config) -> Vec<String> {
    Gateway::new(config, Handle::current()).err().map_or_else(Vec::new, |error| error.problems)
}

fn token(id: &str) -> String {
    mint(&format!("{SECRET} {id}"), &json!({"sub": "alice"})).unwrap()
}

fn channel(name: &str) -> ChannelName {
    name.parse().unwrap()
}

#[tokio::test]
async fn the_app_is_the_one_that_is_named_or_the_only_one_or_the_default() {
    let found = |gateway: &Gateway, key| gateway.app(key).map(|app| app.id.to_string());
    let one = gateway(&with_apps(vec![app("shop")])).await;
    assert_eq!(found(&one, None).as_deref(), Some("shop"));
    assert_eq!(found(&one, Some("shop-key")).as_deref(), Some("shop"));
    for other in ["shop", "", "default", "SHOP-KEY"] {
        assert_eq!(found(&one, Some(other)), None, "{other}");
    }
    let two = gateway(&with_apps(vec![app("shop"), app("blog")])).await;
    assert_eq!(found(&two, None), None);
    assert_eq!(found(&two, Some("blog-key")).as_deref(), Some("blog"));
    let default = AppConfig { key: "default".into(), ..app("main") };
    let three = gateway(&with_apps(vec![app("shop"), default])).await;
    assert_eq!(found(&three, None).as_deref(), Some("main"));
    assert_eq!(three.app_by_id("shop").unwrap().id.as_str(), "shop");
    assert!(three.app_by_id("shop-key").is_none());
}

#[tokio::test]
async fn a_token_is_checked_with_its_own_app_s_keys_only() {
    let gateway = gateway(&with_apps(vec![app("shop"), app("blog")])).await;
    let (shop, blog) = (gateway.app_by_id("shop").unwrap(), gateway.app_by_id("blog").unwrap());
    assert!(shop.authenticate(&token("shop")).await.is_ok() && blog.authenticate(&token("blog")).await.is_ok());
    assert_eq!(shop.authenticate(&token("blog")).await, Err(TokenError::Signature));
    assert_eq!(blog.authenticate(&token("shop")).await, Err(TokenError::Signature));
}

#[tokio::test]
async fn an_api_key_says_whose_channels_are_meant_and_what_it_may_do() {
    let narrow = NarrowApiKey { key: "narrow".into(), allow: vec![ApiScope::Publish, ApiScope::Read] };
    let blog = AppConfig { api_keys: vec![ApiKeyConfig::Narrow(narrow)], ..app("blog") };
    let gateway = gateway(&with_apps(vec![with_key("shop", "full"), blog])).await;
    let full = gateway.api_caller(Some("full")).unwrap();
    assert_eq!((full.app.id.as_str(), full.scopes), ("shop", ApiScopes::ALL));
    let narrow = gateway.api_caller(Some("narrow")).unwrap();
    assert_eq!(narrow.app.id.as_str(), "blog");
    let allowed = [ApiScope::Publish, ApiScope::Read, ApiScope::Manage].map(|scope| narrow.scopes.contains(scope));
    assert_eq!(allowed, [true, true, false]);
    for wrong in [None, Some(""), Some("ful"), Some("full "), Some("FULL"), Some(SECRET), Some("shop-key")] {
        let refusal = gateway.api_caller(wrong).err().unwrap();
        assert_eq!(refusal.code, ErrorCode::Unauthorized, "{wrong:?}");
    }
}

#[tokio::test]
async fn without_any_key_anybody_may_do_everything_on_loopback_only() {
    let gateway = gateway(&Config::default()).await;
    assert!(gateway.is_development());
    for bearer in [None, Some("anything")] {
        let caller = gateway.api_caller(bearer).unwrap();
        assert_eq!((caller.app.id.as_str(), caller.scopes), ("default", ApiScopes::ALL));
    }
    let settings = gateway.namespace(&channel("whatever:1")).unwrap();
    assert_eq!((settings.subscribe, settings.history.is_some()), (Access::Anyone, false));
    let room = gateway.namespace(&channel("room:1")).unwrap();
    assert!(room.history.is_some() && room.presence);
    let host = |host| http::HeaderMap::from_iter([(http::header::HOST, http::HeaderValue::from_static(host))]);
    assert!(gateway.check_origin(&host("localhost:8080"), false).is_ok());
    let refusal = gateway.check_origin(&host("rebound.example:8080"), false).unwrap_err();
    assert_eq!(refusal.code, ErrorCode::Forbidden);

    let mut insecure = Config { listen: vec!["0.0.0.0:8080".parse().unwrap()], ..Config::default() };
    insecure.namespaces.insert("room".into(), NamespaceConfig::default());
    let gateway = self::gateway(&insecure).await;
    assert!(gateway.check_origin(&host("chat.example:8080"), false).is_ok(), "meant to be reached from elsewhere");
    assert_eq!(*gateway.namespace(&channel("room:1")).unwrap(), NamespaceConfig::default(), "what is configured stays");
}

#[tokio::test]
async fn with_a_key_only_configured_namespaces_exist_and_the_unnamed_one() {
    let mut config = with_apps(vec![app("shop")]);
    config.namespaces.insert("room".into(), NamespaceConfig { presence: true, ..NamespaceConfig::default() });
    let gateway = gateway(&config).await;
    assert!(!gateway.is_development());
    assert!(gateway.namespace(&channel("room:1:2")).unwrap().presence);
    assert_eq!(*gateway.namespace(&channel("plain")).unwrap(), NamespaceConfig::default());
    assert_eq!(*gateway.namespace(&channel(":x")).unwrap(), NamespaceConfig::default());
    assert!(gateway.namespace(&channel("rooms:1")).is_none());
    assert!(gateway.namespace(&channel("Room:1")).is_none());
    let foreign = http::HeaderMap::from_iter([(http::header::HOST, http::HeaderValue::from_static("chat.example"))]);
    assert!(gateway.check_origin(&foreign, false).is_ok());
    let public = NamespaceConfig { subscribe: Access::Anyone, ..NamespaceConfig::default() };
    config.namespaces.insert(String::new(), public.clone());
    assert_eq!(*self::gateway(&config).await.namespace(&channel("plain")).unwrap(), public);
}

/// An app with the public key file `file`.
fn with_file(algorithm: &str, file: PathBuf) -> AppConfig {
    let key = PublicKeyConfig { kid: "k".into(), algorithm: algorithm.into(), file };
    let tokens = TokensConfig { algorithms: vec![algorithm.into()], public_keys: vec![key], ..TokensConfig::default() };
    AppConfig { secret: None, tokens, ..app("shop") }
}

#[tokio::test]
async fn keys_come_from_files_and_urls() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key.pem");
    std::fs::write(&file, Issuer::shared().pem("PS384")).unwrap();
    let token =
        |alg: &str| Issuer::shared().token(&json!({"alg": alg, "kid": "k"}), &json!({"sub": "a", "channel": "c"}));
    let from_file = gateway(&with_apps(vec![with_file("PS384", file)])).await.app(None).unwrap();
    assert!(from_file.authorize(&token("PS384"), &channel("c"), Some(&"a".parse().unwrap())).await.is_ok());
    let server = FakeServer::with_keys(&[Issuer::shared().jwk("EdDSA", "k")]).await;
    let from_url = gateway(&with_apps(vec![with_url("EdDSA", &server)])).await.app(None).unwrap();
    assert!(matches!(from_url.verify(&token("EdDSA")).await, Ok(Verified::Subscription { .. })));
}

fn with_url(algorithm: &str, server: &FakeServer) -> AppConfig {
    let tokens = TokensConfig { algorithms: vec![algorithm.into()], jwks_url: server.url(), ..TokensConfig::default() };
    AppConfig { secret: None, tokens, ..app("shop") }
}

#[tokio::test]
async fn every_problem_is_told_at_once_and_no_secret_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let (pem, private) = (folder.path().join("key.pem"), folder.path().join("private.pem"));
    std::fs::write(&pem, Issuer::shared().pem("ES256")).unwrap();
    std::fs::write(&private, Issuer::shared().private_pem()).unwrap();
    let keys = ["RS256", "ES256", "RS256", "RS256", "PS256"].into_iter().zip([&pem, &pem, &private, &pem, &pem]);
    let mut public_keys: Vec<_> = keys
        .enumerate()
        .map(|(n, (algorithm, file))| PublicKeyConfig {
            kid: format!("k{n}"),
            algorithm: algorithm.into(),
            file: file.clone(),
        })
        .collect();
    public_keys[3].file = folder.path().join("missing.pem");
    public_keys[4].kid = "k0".into();
    let tokens = TokensConfig {
        algorithms: ["RS256", "ES256", "HS999", "none"].map(Into::into).to_vec(),
        jwks_url: "http://issuer.example/keys".into(),
        public_keys,
        ..TokensConfig::default()
    };
    let pem_secret = AppConfig { secret: Some(Issuer::shared().pem("RS256")), ..app("pem") };
    let url = TokensConfig { jwks_url: "https://user:hunter2@issuer.example/".into(), ..TokensConfig::default() };
    let apps = vec![
        AppConfig { tokens, ..app("shop") },
        pem_secret,
        AppConfig { secret: Some(String::new()), ..app("empty") },
        AppConfig { tokens: url, ..app("url") },
        AppConfig { api_keys: vec![ApiKeyConfig::Full(format!("{SECRET} url"))], ..app("secret-as-key") },
        AppConfig { api_keys: vec![ApiKeyConfig::Full("same".into()), ApiKeyConfig::Full(String::new())], ..app("a") },
        with_key("b", "same"),
        AppConfig { key: "b-key".into(), ..app("b") },
        app("a:b"),
    ];
    let mut config = with_apps(apps);
    config.http.allowed_origins = vec!["example.com".into()];
    let problems = problems(&config).await.join("\n");
    for expected in [
        "app `shop`: tokens.algorithms: `HS999` is not known",
        "app `shop`: tokens.algorithms: `none` is not known",
        "app `shop`: secret: is of no use",
        "app `shop`: tokens.public_keys `k0`: ",
        "is no key for RS256, or a weak one",
        "app `shop`: tokens.public_keys `k2`: ",
        "is a private key",
        "app `shop`: tokens.public_keys `k3`: ",
        "missing.pem: cannot be read",
        "tokens.public_keys `k0`: there is another one with this kid",
        "its algorithm `PS256` is not in tokens.algorithms",
        "app `shop`: tokens.jwks_url: must be https",
        "app `pem`: secret: is a PEM document",
        "app `empty`: secret: is empty",
        "app `url`: tokens.jwks_url: is of no use",
        "app `url`: tokens.jwks_url: must not hold a name or a password",
        "app `secret-as-key`: api_keys: a key is also a secret",
        "app `a`: api_keys: a key is empty",
        "app `b`: api_keys: a key is there twice",
        "app `b`: id: another app has the same",
        "app `b`: key: another app has the same",
        "app `a:b`: id: an app id has",
        "http.allowed_origins: \"example.com\" is no origin",
    ] {
        assert!(problems.contains(expected), "{expected}\n in\n{problems}");
    }
    assert!(!problems.contains(SECRET) && !problems.contains("hunter2") && !problems.contains("BEGIN PUBLIC"));
}

#[tokio::test]
async fn secrets_that_are_easier_to_guess_than_their_tags_are_named() {
    let tokens = TokensConfig { algorithms: vec!["HS256".into(), "HS512".into()], ..TokensConfig::default() };
    let weak = AppConfig { secret: Some("x".repeat(31)), ..app("weak") };
    let strong = AppConfig { secret: Some("x".repeat(32)), ..app("strong") };
    let weak_for_512 = AppConfig { secret: Some("x".repeat(63)), tokens, ..app("weak-for-512") };
    let gateway = gateway(&with_apps(vec![weak, strong, weak_for_512])).await;
    let ids: Vec<_> = gateway.weak_secrets().iter().map(ToString::to_string).collect();
    assert_eq!(ids, ["weak", "weak-for-512"]);
}

#[tokio::test]
async fn a_reload_gives_the_same_apps_new_keys() {
    let gateway = gateway(&with_apps(vec![with_key("shop", "one"), app("blog")])).await;
    let (shop, blog) = (gateway.app_by_id("shop").unwrap(), gateway.app_by_id("blog").unwrap());
    let changed = AppConfig { secret: Some(format!("{SECRET} new")), ..with_key("shop", "two") };
    gateway.reload(&with_apps(vec![changed, app("wiki")])).unwrap();

    assert!(Arc::ptr_eq(&shop, &gateway.app_by_id("shop").unwrap()), "a session may hold on to its app");
    assert_eq!(shop.authenticate(&token("shop")).await, Err(TokenError::Signature));
    assert!(shop.authenticate(&token("new")).await.is_ok());
    assert!(gateway.app_by_id("blog").is_none());
    assert_eq!(blog.authenticate(&token("blog")).await, Err(TokenError::NoKeys), "who is gone takes nobody any more");
    assert!(gateway.app_by_id("wiki").unwrap().authenticate(&token("wiki")).await.is_ok());
    assert!(gateway.api_caller(Some("one")).is_err() && gateway.api_caller(Some("two")).is_ok());
}

#[tokio::test]
async fn a_faulty_reload_changes_nothing() {
    let gateway = gateway(&with_apps(vec![with_key("shop", "one")])).await;
    let faulty = AppConfig { secret: Some(String::new()), ..app("blog") };
    let new_shop = AppConfig { secret: Some("new".into()), ..with_key("shop", "two") };
    let error = gateway.reload(&with_apps(vec![new_shop, faulty])).unwrap_err();
    assert_eq!(error.problems, ["app `blog`: secret: is empty"]);
    assert!(gateway.app_by_id("blog").is_none() && gateway.api_caller(Some("one")).is_ok());
    assert!(gateway.app(None).unwrap().authenticate(&token("shop")).await.is_ok());

    let error = gateway.reload(&Config::default()).unwrap_err();
    assert!(error.to_string().contains("development mode"), "{error}");
    assert!(!gateway.is_development() && gateway.api_caller(None).is_err());

    let development = self::gateway(&Config::default()).await;
    development.reload(&with_apps(vec![app("shop")])).unwrap();
    assert!(!development.is_development() && development.api_caller(None).is_err(), "the other way is open");
}

#[tokio::test]
async fn a_reload_keeps_fetched_keys_where_their_url_stays() {
    let first = FakeServer::with_keys(&[Issuer::shared().jwk("ES256", "k")]).await;
    let second = FakeServer::with_keys(&[Issuer::shared().jwk("ES256", "other")]).await;
    let token = |kid: &str| Issuer::shared().token(&json!({"alg": "ES256", "kid": kid}), &json!({"sub": "a"}));
    let config = with_apps(vec![with_url("ES256", &first)]);
    let gateway = gateway(&config).await;
    let app = gateway.app(None).unwrap();
    assert!(app.authenticate(&token("k")).await.is_ok());
    for _ in 0..10 {
        gateway.reload(&config).unwrap();
        assert!(app.authenticate(&token("k")).await.is_ok());
    }
    assert_eq!(first.requests(), 1);
    gateway.reload(&with_apps(vec![with_url("ES256", &second)])).unwrap();
    assert!(app.authenticate(&token("other")).await.is_ok());
    assert_eq!(app.authenticate(&token("k")).await, Err(TokenError::UnknownKey), "keys of the old URL are gone");
}

#[tokio::test]
async fn addresses_are_counted_behind_proxies_and_across_reloads() {
    let mut config = Config {
        http: HttpConfig { trusted_proxies: vec!["10.0.0.0/8".parse().unwrap()], ..HttpConfig::default() },
        limits: LimitsConfig { connections_per_address: "2/1h".parse().unwrap(), ..LimitsConfig::default() },
        ..with_apps(vec![app("shop")])
    };
    let gateway = gateway(&config).await;
    let headers = |value| {
        let name = http::HeaderName::from_static("x-forwarded-for");
        http::HeaderMap::from_iter([(name, http::HeaderValue::from_static(value))])
    };
    let peer = "10.0.0.1".parse().unwrap();
    let (ann, bob) = ("192.0.2.1, 192.0.2.2", "192.0.2.3");
    let admit = |headers: &http::HeaderMap| gateway.admit(gateway.client_address(peer, headers));
    assert!(admit(&headers(ann)).is_ok() && admit(&headers(ann)).is_ok() && admit(&headers(bob)).is_ok());
    let refusal = admit(&headers("203.0.113.9, 192.0.2.2")).unwrap_err();
    assert_eq!(refusal.code, ErrorCode::RateLimited, "what the client adds at the left changes nothing");
    let wait = refusal.retry_after.unwrap();
    assert!(Duration::from_secs(1700) < wait && wait <= Duration::from_secs(1800), "{wait:?}");
    gateway.reload(&config).unwrap();
    assert!(admit(&headers(ann)).is_err(), "the same rate keeps its counts");
    config.limits.connections_per_address = Rate::NONE;
    gateway.reload(&config).unwrap();
    assert!((0..100).all(|_| admit(&headers(ann)).is_ok()));
    let untrusted = "192.0.2.77".parse().unwrap();
    assert_eq!(gateway.client_address(untrusted, &headers(ann)), untrusted);
}

/// With an early return the first of 400 keys would take a 400th of the last one's time; with one over bytes instead of
/// digests, a wrong key's time would tell how much of it is right. Medians, since this machine has other work too.
#[tokio::test]
async fn an_api_key_takes_the_same_time_wherever_it_stands() {
    let keys: Vec<String> = (0..400).map(|n| format!("key-{n:028}")).collect();
    let api_keys = keys.iter().cloned().map(ApiKeyConfig::Full).collect();
    let gateway = gateway(&with_apps(vec![AppConfig { api_keys, ..app("shop") }])).await;
    let probes =
        [keys[0].as_str(), keys[399].as_str(), "key-000000000000000000000000000x", "xxx-0000000000000000000000000000"];
    let mut samples = probes.map(|_| Vec::with_capacity(5_000));
    for _ in 0..5_000 {
        for (probe, samples) in probes.iter().zip(&mut samples) {
            let began = Instant::now();
            let found = gateway.api_caller(Some(probe)).is_ok();
            samples.push(began.elapsed());
            assert_eq!(found, keys.iter().any(|key| key == probe));
        }
    }
    let medians = samples.map(|mut samples| {
        samples.sort_unstable();
        samples[samples.len() / 2]
    });
    let (fastest, slowest) = (medians.iter().min().unwrap(), medians.iter().max().unwrap());
    assert!(*slowest < fastest.mul_f64(1.25) + Duration::from_micros(2), "{medians:?}");
}
