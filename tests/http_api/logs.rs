//! What the log says of a call, and what it must not.

use std::{
    io::Read,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use crate::support::{Call, DEADLINE, exchange, two_apps::token};

const CONFIG: &str = r#"
listen = "127.0.0.1:0"
metrics_listen = ""
[log]
format = "json"
level = "trace"
[[app]]
id = "shop"
key = "shop"
secret = "the secret of shop, which is long enough to be one"
api_keys = ["shop-full-key-of-some-length"]
[namespace.""]
publish = "token"
subscribe = "user"
"#;

/// A server process, ended with the test.
struct Process(std::process::Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_call_leaves_one_line_without_its_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let [config, log, said] = ["fanwire.toml", "log", "said"].map(|name| folder.path().join(name));
    std::fs::write(&config, CONFIG).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_fanwire"));
    command.args(["serve", "--config"]).arg(&config).env_clear().stdout(std::fs::File::create(&said).unwrap());
    let mut process = Process(command.stderr(std::fs::File::create(&log).unwrap()).spawn().unwrap());
    let until = async |file: &Path, what: &str, fact: &dyn Fn(&str) -> bool| {
        let read = || std::fs::read_to_string(file).unwrap();
        let started = Instant::now();
        while !fact(&read()) {
            assert!(started.elapsed() < DEADLINE, "{what}: {}", read());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    until(&said, "an address", &|said| said.lines().any(|line| line.contains("127.0.0.1:"))).await;
    let port = std::fs::read_to_string(&said)
        .unwrap()
        .split("127.0.0.1:")
        .nth(1)
        .unwrap()
        .chars()
        .take_while(char::is_ascii_digit)
        .collect::<String>();
    let address = format!("127.0.0.1:{port}").parse().unwrap();
    let (ann, payload) = (token("shop", "ann"), "a-payload-that-nobody-logs");
    let body = format!(r#"{{"data":"{payload}"}}"#);
    let publish = Call::new(address, "POST", &format!("/v1/channels/a%0Ab/publish?token={ann}")).body(body.as_str());
    assert_eq!(publish.header("X-Request-Id", "named-by-me").send().await.status, 400);
    let path = format!("/v1/channels/plain/publish?app=shop&token={ann}");
    assert_eq!(Call::new(address, "POST", &path).body(body.as_str()).send().await.status, 403);
    assert_eq!(Call::new(address, "GET", "/v1/channels").key("shop-full-key-of-some-length").send().await.status, 200);
    assert_eq!(Call::new(address, "GET", "/v1/channels").key("a-wrong-key-of-some-length").send().await.status, 401);
    let mut stream = Call::new(address, "GET", &format!("/v1/events?channel=plain&token={ann}")).stream().await;
    stream.expect("subscribed").await;
    drop(stream);
    let smuggled = exchange(address, b"GET /v1/\x1b[31m HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert_eq!(smuggled.status, 400);
    until(&log, "the end of the stream", &|log| log.contains("session ended")).await;
    process.0.kill().unwrap();
    let mut output = String::new();
    std::fs::File::open(&log).unwrap().read_to_string(&mut output).unwrap();
    for secret in [ann.as_str(), payload, "shop-full-key-of-some-length", "a-wrong-key", "long enough to be one"] {
        assert!(!output.contains(secret), "{secret} is in the log:\n{output}");
    }
    let lines: Vec<serde_json::Value> = output.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let answered: Vec<_> = lines.iter().filter(|line| line["message"] == "request answered").collect();
    assert_eq!(answered.len(), 5, "{output}");
    let first = answered[0];
    assert_eq!((&first["request"], &first["path"]), (&"named-by-me".into(), &"/v1/channels/a%0Ab/publish".into()));
    assert_eq!(
        (&first["status"], &first["code"], &first["method"]),
        (&400.into(), &"bad_request".into(), &"POST".into())
    );
    assert_eq!((&answered[1]["app"], &answered[1]["status"]), (&"shop".into(), &403.into()));
    assert!(answered[1]["ms"].is_number() && answered[3].get("app").is_none());
}
