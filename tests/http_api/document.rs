//! The OpenAPI document says what the server does: every route is in it, and every answer is as it says.

use std::{collections::BTreeSet, fs, path::Path};

use serde_json::{Value, json};

use crate::support::{
    Answer, Call,
    two_apps::{TwoApps, token},
};

async fn document(server: &TwoApps) -> Value {
    let answer = server.get("/v1/openapi.json").send().await;
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
    answer.json()
}

/// The paths in the source that are routes, but for static files.
fn routes() -> BTreeSet<String> {
    let source = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src"));
    let mut routes = BTreeSet::new();
    for file in ["api/mod.rs", "http/router.rs"] {
        let text = fs::read_to_string(source.join(file)).unwrap();
        let found = text.split(".route(\"").skip(1).filter_map(|rest| rest.split_once('"'));
        routes.extend(found.map(|(path, _)| path.to_owned()));
    }
    // It is on a listener of its own.
    routes.remove("/metrics");
    routes
}

#[tokio::test]
async fn every_route_is_documented_and_everything_documented_is_a_route() {
    let server = TwoApps::start().await;
    let document = document(&server).await;
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1."));
    let paths = document["paths"].as_object().unwrap();
    assert_eq!(paths.keys().cloned().collect::<BTreeSet<_>>(), routes());
    for (path, item) in paths {
        // A method that no route has tells those that it has.
        let real = path.replace("{channel}", "a").replace("{user}", "u").replace("{connection}", "c");
        let answer = server.call("TRACE", &real).send().await;
        assert_eq!(answer.status, 405, "{path}");
        let allowed = answer.header("allow").unwrap().split(',').filter(|method| *method != "HEAD");
        let allowed: BTreeSet<_> = allowed.map(str::to_lowercase).collect();
        assert_eq!(item.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>(), allowed, "{path}");
    }
}

#[tokio::test]
async fn every_operation_says_all_that_a_caller_needs() {
    let server = TwoApps::start().await;
    let document = document(&server).await;
    let mut ids = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let name = format!("{method} {path}");
            assert!(ids.insert(operation["operationId"].as_str().unwrap().to_owned()), "{name}: the id is taken");
            assert!(operation["summary"].is_string() && operation["tags"][0].is_string(), "{name}");
            for part in path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')) {
                let parameters = operation["parameters"].as_array().unwrap();
                let named = |each: &&Value| each["name"] == part && each["in"] == "path" && each["required"] == true;
                assert!(parameters.iter().any(|each| named(&each)), "{name}: {part}");
            }
            if path.starts_with("/v1/") && path != "/v1/openapi.json" {
                assert!(operation["security"].is_array(), "{name}: who may call it");
                for status in ["400", "401", "403"] {
                    let problem = &operation["responses"][status]["content"]["application/problem+json"]["schema"];
                    assert_eq!(problem["$ref"], "#/components/schemas/Problem", "{name}: {status}");
                }
            }
        }
    }
    examples_fit(&document, &document["components"]["schemas"]);
}

/// Every schema's examples fit the schema.
fn examples_fit(document: &Value, schemas: &Value) {
    for (name, schema) in schemas.as_object().unwrap() {
        for example in schema["examples"].as_array().into_iter().flatten() {
            check(document, schema, example, &format!("the example of {name}"));
        }
    }
}

#[tokio::test]
async fn real_answers_are_as_the_document_says() {
    let server = TwoApps::start().await;
    let document = document(&server).await;
    let ann = token("shop", "ann");
    let mut stream =
        server.get(&format!("/v1/events?channel=token:1&channel=room:1&app=shop&token={ann}")).stream().await;
    for _ in 0..2 {
        stream.expect("subscribed").await;
    }
    let mut seen = BTreeSet::new();
    let mut judge = |operation: &str, answer: Answer| {
        judge(&document, operation, &answer);
        seen.insert(operation.to_owned());
    };
    let full = |call: Call| call.key("shop-full");
    let body =
        |channel: &str| json!({"channel": channel, "data": {"n": 1}, "tags": {"a": "b"}, "key": "k"}).to_string();
    let history = "/v1/channels/room%3A1/history";
    for (operation, call) in [
        ("publish", full(server.post("/v1/publish", body("room:1")))),
        ("publish", full(server.post("/v1/publish", body("plain")))),
        ("publish", full(server.post("/v1/publish", body("nowhere:1")))),
        ("publish", full(server.post("/v1/publish", "nonsense"))),
        ("publish", server.post("/v1/publish", body("plain")).key("shop-read")),
        ("publish", full(server.post("/v1/publish", body("plain")).header("Content-Type", "text/plain"))),
        (
            "publish",
            full(server.post("/v1/publish", json!({"channels": ["room:1", "nowhere:1"], "data": 1}).to_string())),
        ),
        ("batch", full(server.post("/v1/batch", format!(r#"{{"publications":[{},5]}}"#, body("room:2"))))),
        ("publishAsClient", server.post("/v1/channels/token%3A1/publish?app=shop", r#"{"data":1}"#).key(&ann)),
        ("publishAsClient", server.post("/v1/channels/token%3A1/publish?app=shop", r#"{"data":1}"#)),
        ("listChannels", full(server.get("/v1/channels"))),
        ("listChannels", full(server.get("/v1/channels?limit=x"))),
        ("channel", full(server.get("/v1/channels/room%3A1"))),
        ("channel", full(server.get("/v1/channels/plain"))),
        ("channel", full(server.get("/v1/channels/nowhere%3A1"))),
        ("history", full(server.get(history))),
        ("history", full(server.get("/v1/channels/token%3A1/history"))),
        ("history", full(server.get("/v1/channels/plain/history"))),
        ("revokeUser", full(server.post("/v1/users/nobody/revoke?until=4102444800", ""))),
        ("revokeUser", full(server.post("/v1/users/nobody/revoke?before=x", ""))),
        ("revokeToken", full(server.post("/v1/tokens/revoke", r#"{"jti":"5e0c1d7a","exp":4102444800}"#))),
        ("revokeToken", full(server.post("/v1/tokens/revoke", r#"{"jti":"5e0c1d7a"}"#))),
        ("presence", full(server.get("/v1/channels/token%3A1/presence"))),
        ("presence", full(server.get("/v1/channels/plain/presence"))),
        ("dropHistory", full(server.delete(history))),
        ("dropHistory", server.delete(history)),
        ("listConnections", full(server.get("/v1/connections"))),
        ("subscribeUser", full(server.post("/v1/users/ann/subscribe", r#"{"channel":"plain"}"#))),
        ("unsubscribeUser", full(server.post("/v1/users/ann/unsubscribe", r#"{"channel":"plain"}"#))),
        ("listNodes", full(server.get("/v1/nodes"))),
        ("disconnectUser", full(server.post("/v1/users/bob/disconnect", ""))),
        ("disconnect", full(server.delete("/v1/connections/c_0000000000000000000001"))),
        ("events", server.get("/v1/events?app=shop")),
        ("events", server.get("/v1/events?app=shop&channel=user:1")),
        ("events", server.get("/v1/events?app=shop&channel=nowhere:1")),
        ("channelEvents", server.get("/v1/channels/nobody%3A1/events?app=shop").key(&ann)),
        ("connect", server.get("/v1/ws")),
        ("healthz", server.get("/healthz")),
        ("readyz", server.get("/readyz")),
        ("openapi", server.get("/v1/openapi.json")),
    ] {
        judge(operation, call.send().await);
    }
    let paths = document["paths"].as_object().unwrap().values();
    let ids =
        paths.flat_map(|item| item.as_object().unwrap().values()).map(|each| each["operationId"].as_str().unwrap());
    assert_eq!(seen.iter().map(String::as_str).collect::<BTreeSet<_>>(), ids.collect());
    for event in [stream.next().await, stream.next().await] {
        check(&document, &json!({"$ref": "#/components/schemas/Message"}), &event.json(), "an event");
    }
}

/// Checks an answer against what the operation says of its status.
fn judge(document: &Value, id: &str, answer: &Answer) {
    let paths = document["paths"].as_object().unwrap().values();
    let mut operations = paths.flat_map(|item| item.as_object().unwrap().values());
    let operation = operations.find(|operation| operation["operationId"] == id).unwrap_or_else(|| panic!("no {id}"));
    let name = format!("{id}, {}", answer.status);
    let response = &operation["responses"][answer.status.to_string()];
    assert!(response.is_object(), "{name} is not in the document: {answer:?}");
    let Some(content) = response.get("content") else {
        assert_eq!(answer.body, "", "{name} has no body in the document");
        return;
    };
    let kind = answer.header("content-type").unwrap();
    assert!(content[kind].is_object(), "{name}: {kind} is not in the document");
    check(document, &content[kind]["schema"], &answer.json(), &name);
}

/// A validator of the part of JSON Schema (2020-12) that the document uses; any other keyword fails the test. Objects may
/// not have members that their schema does not name, so that nothing is left undocumented.
fn check(document: &Value, schema: &Value, value: &Value, at: &str) {
    if let Err(fault) = fits(document, schema, value, at) {
        panic!("{fault}");
    }
}

fn fits(document: &Value, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    for (keyword, rule) in schema.as_object().ok_or("a schema is an object")? {
        let fits = match keyword.as_str() {
            "description" | "examples" | "format" | "default" => Ok(()),
            "$ref" => {
                let target = document.pointer(rule.as_str().unwrap().trim_start_matches('#'));
                fits(document, target.ok_or_else(|| format!("{at}: {rule} leads nowhere"))?, value, at)
            }
            "type" => is_of(rule, value).then_some(()).ok_or_else(|| format!("{at}: {value} is no {rule}")),
            "enum" => {
                let listed = rule.as_array().unwrap().contains(value);
                listed.then_some(()).ok_or_else(|| format!("{at}: {value} is none of {rule}"))
            }
            "minimum" => at_least(value, rule).then_some(()).ok_or_else(|| format!("{at}: {value} is under {rule}")),
            "maximum" => at_least(rule, value).then_some(()).ok_or_else(|| format!("{at}: {value} is over {rule}")),
            "minLength" | "maxLength" | "maxItems" => Ok(()), // On requests, which the server itself judges.
            "required" => {
                let mut missing =
                    rule.as_array().unwrap().iter().filter(|name| value.get(name.as_str().unwrap()).is_none());
                missing.next().map_or(Ok(()), |name| Err(format!("{at}: {name} is missing in {value}")))
            }
            "items" => {
                let mut items = value.as_array().into_iter().flatten().enumerate();
                items.try_for_each(|(n, item)| fits(document, rule, item, &format!("{at}[{n}]")))
            }
            "properties" => value.as_object().into_iter().flatten().try_for_each(|(name, value)| {
                let schema = rule.get(name).ok_or_else(|| format!("{at}.{name} is not in the document"))?;
                fits(document, schema, value, &format!("{at}.{name}"))
            }),
            "additionalProperties" => value
                .as_object()
                .into_iter()
                .flatten()
                .try_for_each(|(name, value)| fits(document, rule, value, &format!("{at}.{name}"))),
            "propertyNames" => Ok(()),
            "oneOf" => {
                let tries = rule.as_array().unwrap().iter().map(|one| fits(document, one, value, at));
                let faults: Vec<_> = tries.clone().filter_map(Result::err).collect();
                let fitting = tries.filter(Result::is_ok).count();
                (fitting == 1).then_some(()).ok_or_else(|| format!("{at}: {fitting} of oneOf fit {value}: {faults:?}"))
            }
            other => Err(format!("{at}: the keyword `{other}` is not known to this test")),
        };
        fits?;
    }
    Ok(())
}

fn at_least(value: &Value, least: &Value) -> bool {
    match (value.as_f64(), least.as_f64()) {
        (Some(value), Some(least)) => least <= value,
        _ => true,
    }
}

fn is_of(kind: &Value, value: &Value) -> bool {
    match kind.as_str().unwrap() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("the type {other}"),
    }
}

#[test]
fn the_judge_notices() {
    let document = json!({"components": {"schemas": {"Thing": {
        "type": "object", "required": ["a"],
        "properties": {"a": {"type": "string", "enum": ["x"]}, "b": {"type": "array", "items": {"type": "integer"}}},
    }}}});
    let schema = json!({"$ref": "#/components/schemas/Thing"});
    let judged = |value: Value| fits(&document, &schema, &value, "it").is_ok();
    assert!(judged(json!({"a": "x"})) && judged(json!({"a": "x", "b": [1]})));
    for wrong in [
        json!(1),
        json!({}),
        json!({"a": 1}),
        json!({"a": "y"}),
        json!({"a": "x", "b": ["1"]}),
        json!({"a": "x", "c": 1}),
    ] {
        assert!(!judged(wrong.clone()), "{wrong}");
    }
}
