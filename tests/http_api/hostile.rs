//! What no well-meaning caller sends: each gets a clear problem, and nobody else notices.

use std::time::Duration;

use fanwire::config::ByteSize;
use serde_json::json;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::support::{Answer, exchange, two_apps::TwoApps, within};

#[tokio::test]
async fn a_body_that_is_not_what_is_asked_for_is_named() {
    let server = TwoApps::start().await;
    let deep = |depth: usize| format!(r#"{{"channel":"plain","data":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
    for (body, part) in [
        ("", "not JSON"),
        ("nonsense", "not JSON"),
        ("[]", "not what is asked for"),
        ("null", "not what is asked for"),
        (r#"{"channel":"plain","data":1} x"#, "not JSON"),
        (r#"{"data":1}"#, "`channel` or `channels` is missing"),
        (r#"{"channel":"plain"}"#, "`data` is missing"),
        (r#"{"channel":"a","channels":["b"],"data":1}"#, "exclude each other"),
        (r#"{"channels":[],"data":1}"#, "`channels` has 1 to 1000"),
        (r#"{"channel":"a b","data":1}"#, "`channel`: a channel name has no white space"),
        (r#"{"channel":"plain","channel":"plain","data":1}"#, "duplicate field `channel`"),
        (r#"{"channel":"plain","data":1,"data":2}"#, "duplicate field `data`"),
        (r#"{"channel":"plain","data":1,"event":""}"#, "`event` has 1 to 200 bytes"),
        (r#"{"channel":"plain","data":1,"key":""}"#, "`key` has 1 to 64 bytes"),
        (r#"{"channel":"plain","data":1,"tags":{"a":1}}"#, "`tags` is a flat object of strings"),
        (r#"{"channel":"plain","data":1,"exclude":"c_1"}"#, "`exclude` is the id of a connection"),
        (r#"{"channel":5,"data":1}"#, "not what is asked for"),
        (&deep(32), "more than 32 deep"),
        (&"[".repeat(100_000), "more than 32 deep"),
        (&"{\"a\":".repeat(100_000), "more than 32 deep"),
    ] {
        let answer = server.post("/v1/publish", body).key("shop-full").send().await;
        assert_eq!(answer.problem(), (400, "bad_request".into()), "{:.80}", body);
        assert!(answer.body.contains(part), "{:.80}: {}", body, answer.body);
    }
    let latin =
        server.post("/v1/publish", b"{\"channel\":\"plain\",\"data\":\"\xff\"}".to_vec()).key("shop-full").send();
    assert_eq!(latin.await.problem(), (400, "bad_request".into()));
    let deepest = server.post("/v1/publish", deep(31)).key("shop-full").send().await;
    assert_eq!(deepest.status, 200, "{deepest:?}");
    let batch = format!(r#"{{"publications":[{}]}}"#, deep(31));
    let batch = server.post("/v1/batch", batch).key("shop-full").send().await.json();
    assert!(batch["results"][0].get("error").is_none(), "as deep as alone: {batch}");
}

#[tokio::test]
async fn a_body_or_data_that_is_too_large_is_refused() {
    let server = TwoApps::with(|config| config.http.max_body = ByteSize::kibibytes(256)).await;
    let of = |bytes: usize| json!({"channel": "plain", "data": "x".repeat(bytes)}).to_string();
    let data = server.post("/v1/publish", of(65 << 10)).key("shop-full").send().await;
    assert_eq!(data.problem(), (413, "too_large".into()));
    assert!(data.body.contains("`data` has 66562 bytes, the most is 65536"), "{}", data.body);
    let body = server.post("/v1/publish", of(300 << 10)).key("shop-full").send().await;
    assert_eq!(body.problem(), (413, "too_large".into()));
    assert!(body.body.contains("http.max_body"), "{}", body.body);
    // The same without saying so before.
    let mut chunked = b"POST /v1/publish HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer shop-full\r\n\
        Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        .to_vec();
    for _ in 0..300 {
        chunked.extend_from_slice(b"400\r\n");
        chunked.extend_from_slice(&[b' '; 1024]);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    assert_eq!(exchange(server.address(), &chunked).await.problem(), (413, "too_large".into()));
    let several = json!({"channels": ["plain", "room:1"], "data": "x".repeat(65 << 10)}).to_string();
    let several = server.post("/v1/publish", several).key("shop-full").send().await.json();
    assert_eq!(several["results"][0]["error"]["code"], "too_large");
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for_long() {
    let server = TwoApps::start().await;
    let mut socket = TcpStream::connect(server.address()).await.unwrap();
    let head =
        "POST /v1/publish HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer shop-full\r\nContent-Length: 100\r\n\r\n{";
    socket.write_all(head.as_bytes()).await.unwrap();
    let started = std::time::Instant::now();
    let mut answer = Vec::new();
    let reading = tokio::io::AsyncReadExt::read_to_end(&mut socket, &mut answer);
    within("an answer to half a body", reading).await.unwrap();
    assert_eq!(Answer::parse(&answer).problem(), (408, "timeout".into()));
    assert!(started.elapsed() < Duration::from_secs(25), "{:?}", started.elapsed());
}

#[tokio::test]
async fn json_is_taken_by_any_of_its_names_and_nothing_else_is() {
    let server = TwoApps::start().await;
    let body = r#"{"channel":"plain","data":1}"#;
    for (kind, status) in [
        (Some("application/json"), 200),
        (Some("application/json; charset=utf-8"), 200),
        (Some("application/x-www-form-urlencoded"), 200),
        (None, 200),
        (Some("text/plain"), 415),
        (Some("multipart/form-data; boundary=x"), 415),
        (Some("application/json; charset=utf-16"), 415),
    ] {
        let call = server.post("/v1/publish", body).key("shop-full");
        let answer = kind.map_or(call.clone(), |kind| call.header("Content-Type", kind)).send().await;
        assert_eq!(answer.status, status, "{kind:?}");
        if status == 415 {
            assert_eq!(answer.problem(), (415, "bad_request".into()));
        }
    }
}

#[tokio::test]
async fn paths_and_methods_that_do_not_exist_are_problems_too() {
    let server = TwoApps::start().await;
    for path in ["/v1/nothing", "/nothing", "/v1/channels/a/b/c", "/v1/channels/room:1/history/more", "/v1"] {
        assert_eq!(server.get(path).key("shop-full").send().await.problem(), (404, "unknown_method".into()), "{path}");
    }
    for (method, path, allowed) in [
        ("GET", "/v1/publish", "POST"),
        ("PUT", "/v1/channels/a/history", "GET,HEAD,DELETE"),
        ("OPTIONS", "/v1/channels/a/publish", "POST"),
        ("POST", "/v1/events", "GET,HEAD"),
        ("DELETE", "/healthz", "GET,HEAD"),
        ("POST", "/", "GET,HEAD"),
    ] {
        let answer = server.call(method, path).send().await;
        assert_eq!(answer.problem(), (405, "bad_request".into()), "{method} {path}");
        assert_eq!(answer.header("allow"), Some(allowed), "{method} {path}");
    }
}

#[tokio::test]
async fn paths_and_queries_that_cannot_be_read_are_named() {
    let server = TwoApps::start().await;
    for (path, part) in [
        ("/v1/channels/a%zzb", "`%` without two hexadecimal digits"),
        ("/v1/channels/a%", "`%` without two hexadecimal digits"),
        ("/v1/channels/%ff", "the path is not UTF-8"),
        ("/v1/channels/a%20b", "`channel`: a channel name has no white space"),
        ("/v1/channels/a%00", "`channel`: a channel name has no white space and no control characters"),
        (&format!("/v1/channels/{}", "x".repeat(256)), "at most 255 bytes"),
        ("/v1/channels?limit=0", "`limit` is a whole number from 1 to 1000"),
        ("/v1/channels?limit=many", "`limit` is a whole number from 1 to 1000"),
        ("/v1/channels?prefix=a&prefix=b", "`prefix` is there twice"),
        ("/v1/channels?prefix=%ff", "not percent-encoded UTF-8"),
        ("/v1/channels/room%3A1/history?limit=1001", "`limit` is a whole number from 0 to 1000"),
        ("/v1/channels/room%3A1/history?after=-1", "`after` is a whole number"),
        ("/v1/channels/room%3A1/history?reverse=1", "`reverse` is `true` or `false`"),
        ("/v1/connections?user=", "`user`: not an id"),
    ] {
        let answer = server.get(path).key("shop-full").send().await;
        assert_eq!(answer.problem(), (400, "bad_request".into()), "{path}");
        assert!(answer.body.contains(part), "{path}: {}", answer.body);
    }
    for name in ["a%2Fb", "r%C3%A4ume%3A%F0%9F%8E%89", "%25%23%3F%26", "a+b", "a;b=c", "..", "%2E%2E%2F"] {
        let name = name.replace("r%C3%A4ume%3A", "r%C3%A4ume-");
        let answer = server.get(&format!("/v1/channels/{name}")).key("shop-full").send().await;
        let decoded = percent_encoding::percent_decode_str(&name).decode_utf8().unwrap();
        assert_eq!((answer.status, &answer.json()["channel"]), (200, &json!(decoded)), "{name}");
    }
}

#[tokio::test]
async fn each_answer_has_a_request_id_and_a_sane_one_is_kept() {
    let server = TwoApps::start().await;
    let kept = server.get("/v1/nodes").header("X-Request-Id", "Root=1-abc").send().await;
    assert_eq!((kept.status, kept.header("x-request-id")), (401, Some("Root=1-abc")));
    let replaced = server.get("/nothing").header("X-Request-Id", "a b\"c").send().await;
    assert_eq!(replaced.header("x-request-id").map(str::len), Some(32));
    assert_eq!(server.get("/healthz").send().await.header("x-request-id").map(str::len), Some(32));
}

#[tokio::test]
async fn pages_of_other_origins_may_do_what_the_list_lets_them() {
    let listed = "https://app.example";
    let server = TwoApps::with(|config| config.http.allowed_origins = vec![listed.into()]).await;
    let own = format!("http://{}", server.address());
    let publish = || server.post("/v1/publish", r#"{"channel":"plain","data":1}"#).key("shop-full");
    let client = || server.post("/v1/channels/plain/publish?app=shop", r#"{"data":1}"#);
    let preflight = |path: &str, origin: &str| {
        let call =
            server.call("OPTIONS", path).header("Origin", origin).header("Access-Control-Request-Method", "POST");
        call.header("Access-Control-Request-Headers", "authorization,content-type")
    };
    for (origin, allowed) in [
        (listed, true),
        ("HTTPS://APP.example:443", true),
        (&own, true),
        ("https://app.example.evil.example", false),
        ("https://evil-app.example", false),
        ("http://app.example", false),
        ("https://app.example:444", false),
        ("null", false),
        ("file://", false),
        ("nonsense", false),
    ] {
        let call = client().header("Origin", origin).send().await;
        let asked = preflight("/v1/channels/plain/publish", origin).send().await;
        let read = server.get("/v1/channels/room%3A1/history?app=shop").header("Origin", origin).send().await;
        match allowed {
            true => {
                assert_eq!((call.status, asked.status, read.status), (200, 204, 200), "{origin}");
                assert_eq!(asked.header("access-control-max-age"), Some("7200"));
                assert_eq!(asked.header("access-control-allow-methods"), Some("GET, POST"));
                assert!(asked.header("access-control-allow-headers").unwrap().contains("Authorization"));
                for answer in [&call, &asked, &read] {
                    assert_eq!(answer.header("access-control-allow-origin"), Some(origin));
                    assert_eq!(answer.header("vary"), Some("Origin"));
                    assert_eq!(answer.header("access-control-allow-credentials"), None);
                }
            }
            false => {
                for answer in [call, asked, read] {
                    assert_eq!(answer.problem(), (403, "forbidden".into()), "{origin}");
                    assert_eq!(answer.header("access-control-allow-origin"), None, "{origin}");
                }
            }
        }
        // The server API is for servers: no page reads it, and none of another origin changes anything there.
        let server_call = publish().header("Origin", origin).send().await;
        assert_eq!(server_call.status, if allowed { 200 } else { 403 }, "{origin}");
        assert_eq!(server_call.header("access-control-allow-origin"), None, "{origin}");
        assert_eq!(preflight("/v1/publish", origin).send().await.header("access-control-allow-origin"), None);
    }
    let refused = client().header("Origin", listed).key("a.b.c").send().await;
    assert_eq!(refused.problem(), (401, "unauthorized".into()));
    assert_eq!(refused.header("access-control-allow-origin"), Some(listed), "the page reads why");
    let twice = client().header("Origin", listed).header("Origin", &own).send().await;
    assert_eq!(twice.problem(), (403, "forbidden".into()));
}

#[tokio::test]
async fn any_origin_is_let_in_only_where_that_is_written() {
    let server = TwoApps::with(|config| config.http.allowed_origins = vec!["*".into()]).await;
    let call = server.post("/v1/channels/plain/publish?app=shop", r#"{"data":1}"#);
    let answer = call.header("Origin", "https://anywhere.example").send().await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, Some("https://anywhere.example")));
    assert_eq!(answer.header("access-control-allow-credentials"), None);
}
