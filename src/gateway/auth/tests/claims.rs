//! What a token says: the rows of the table that have a good signature.

use super::*;
use crate::domain::Action;

#[tokio::test]
async fn a_good_token_says_who_somebody_is_and_what_it_allows() {
    let token = hs256(
        r#"{"sub":"alice","exp":1764003600,"aud":"x","iss":"y","jti":"z","info":{"name": "Alice", "n": 1e400},
            "allow":[{"channels":["room:*","news"],"do":["subscribe","publish"]},{"channels":["log"],"do":[]}]}"#,
    );
    let Verified::Connection(identity) = secret_app().verify_at(&token, NOW).await.unwrap() else { panic!() };
    assert_eq!((identity.user.as_str(), identity.expires), ("alice", Some(1_764_003_600)));
    assert_eq!(identity.info.as_ref().unwrap().as_str(), r#"{"name": "Alice", "n": 1e400}"#, "the bytes as they came");
    let allows = |action, channel: &str| identity.allows(action, &channel.parse().unwrap());
    assert!(allows(Action::Subscribe, "room:1") && allows(Action::Publish, "news"));
    assert!(!allows(Action::Presence, "room:1") && !allows(Action::Subscribe, "log"));
}

#[tokio::test]
async fn what_a_token_may_leave_out_or_vary() {
    let app = secret_app();
    for (name, token) in [
        ("no exp", hs256(r#"{"sub":"a"}"#)),
        ("the last second", hs256(&json!({"sub": "a", "exp": NOW + 1}).to_string())),
        ("a clock ahead by 30 s", hs256(&json!({"sub": "a", "nbf": NOW + 30, "iat": NOW + 30}).to_string())),
        ("a sub of 255 bytes", hs256(&json!({"sub": "s".repeat(255)}).to_string())),
        ("a sub with blanks and an umlaut", hs256(r#"{"sub":"Jörg B\u00e4r"}"#)),
        ("no info", hs256(r#"{"sub":"a","info":null}"#)),
        ("info of 4 KiB", hs256(&json!({"sub": "a", "info": "i".repeat(4094)}).to_string())),
        ("info 32 deep", hs256(&format!(r#"{{"sub":"a","info":{}{}}}"#, "[".repeat(32), "]".repeat(32)))),
        ("info with brackets in a text", hs256(&json!({"sub": "a", "info": "\"[".repeat(100)}).to_string())),
        ("other claims", hs256(r#"{"sub":"a","roles":["x"],"do":["anything"],"roles":2}"#)),
        ("allow for nothing", hs256(r#"{"sub":"a","allow":[]}"#)),
        ("an audience that nobody asks for", hs256(r#"{"sub":"a","aud":7}"#)),
        ("no typ", with_header(r#"{"alg":"HS256"}"#)),
        ("typ in lower case", with_header(r#"{"alg":"HS256","typ":"jwt"}"#)),
        ("an access token", with_header(r#"{"alg":"HS256","typ":"application/at+jwt"}"#)),
        ("blanks in the header", with_header(" {\n\"alg\" : \"HS256\" } ")),
    ] {
        assert!(app.verify_at(&token, NOW).await.is_ok(), "{name}: {:?}", app.verify_at(&token, NOW).await);
    }
}

#[tokio::test]
async fn headers_are_read_strictly() {
    let app = secret_app();
    let no_object = "not a JSON object with `alg`";
    for (name, header, why) in [
        ("no alg", r#"{"typ":"JWT"}"#, no_object),
        ("alg null", r#"{"alg":null}"#, no_object),
        ("alg a list", r#"{"alg":["HS256"]}"#, no_object),
        ("alg a number", r#"{"alg":256}"#, no_object),
        ("alg twice", r#"{"alg":"HS256","alg":"HS256"}"#, no_object),
        ("alg twice, in two spellings", r#"{"alg":"none","\u0061lg":"HS256"}"#, no_object),
        ("kid twice", r#"{"alg":"HS256","kid":"a","kid":"b"}"#, no_object),
        ("a list", r#"["HS256"]"#, no_object),
        ("a text", r#""HS256""#, no_object),
        ("nothing", "", no_object),
        ("broken off", r#"{"alg":"HS256""#, no_object),
        ("more after it", r#"{"alg":"HS256"}{}"#, no_object),
        ("too deep", &format!(r#"{{"alg":"HS256","x":{}"#, "[".repeat(500)), no_object),
        ("crit", r#"{"alg":"HS256","crit":["exp"]}"#, "crit"),
        ("crit with nothing in it", r#"{"alg":"HS256","crit":[]}"#, "crit"),
        ("crit null", r#"{"alg":"HS256","crit":null}"#, "crit"),
        ("unencoded payload", r#"{"alg":"HS256","b64":false,"crit":["b64"]}"#, "crit"),
        ("a logout token", r#"{"alg":"HS256","typ":"logout+jwt"}"#, "typ"),
        ("a proof of possession", r#"{"alg":"HS256","typ":"dpop+jwt"}"#, "typ"),
        ("an empty typ", r#"{"alg":"HS256","typ":""}"#, "typ"),
        ("a typ that is no text", r#"{"alg":"HS256","typ":1}"#, no_object),
        ("kid a path", r#"{"alg":"HS256","kid":"../../dev/null"}"#, "no key has"),
        ("kid a device", r#"{"alg":"HS256","kid":"/dev/null"}"#, "no key has"),
        ("kid a file", r#"{"alg":"HS256","kid":"file:///proc/self/environ"}"#, "no key has"),
        ("kid SQL", r#"{"alg":"HS256","kid":"x' UNION SELECT 'secret' -- "}"#, "no key has"),
        ("kid a command", r#"{"alg":"HS256","kid":"|/usr/bin/id"}"#, "no key has"),
        ("kid a URL", r#"{"alg":"HS256","kid":"http://127.0.0.1:1/key"}"#, "no key has"),
        ("kid a NUL", r#"{"alg":"HS256","kid":"\u0000"}"#, "no key has"),
        ("kid empty", r#"{"alg":"HS256","kid":""}"#, "no key has"),
        ("kid null", r#"{"alg":"HS256","kid":null}"#, no_object),
        ("kid a number", r#"{"alg":"HS256","kid":0}"#, no_object),
        ("kid an object", r#"{"alg":"HS256","kid":{}}"#, no_object),
        ("kid of 128 bytes", &json!({"alg": "HS256", "kid": "k".repeat(128)}).to_string(), "no key has"),
        ("kid of 129 bytes", &json!({"alg": "HS256", "kid": "k".repeat(129)}).to_string(), "`kid` has 129 bytes"),
        ("kid of 64 KiB", &json!({"alg": "HS256", "kid": "k".repeat(65_536)}).to_string(), "bytes, more than 8192"),
    ] {
        refused(&app, name, &with_header(header), why).await;
    }
    let invalid = |bytes: &[u8]| format!("{}.e30.x", base64url(bytes));
    refused(&app, "a header that is no UTF-8", &invalid(b"{\"alg\":\"\xff\"}"), "UTF-8").await;
    refused(&app, "a byte order mark", &invalid("\u{feff}{\"alg\":\"HS256\"}".as_bytes()), no_object).await;
}

#[tokio::test]
async fn claims_are_read_strictly() {
    let app = secret_app();
    let (time, text, sub) = ("is no whole number of seconds", "is no text", "is not 1 to 255 bytes");
    for (name, claims, why) in [
        ("expired a second ago", &*json!({"sub": "a", "exp": NOW - 1}).to_string(), "it expired at 1763999999"),
        ("expired now", &json!({"sub": "a", "exp": NOW}).to_string(), "it expired"),
        ("expired in 1970", r#"{"sub":"a","exp":0}"#, "it expired"),
        ("exp a text", r#"{"sub":"a","exp":"1999999999"}"#, time),
        ("exp null", r#"{"sub":"a","exp":null}"#, time),
        ("exp true", r#"{"sub":"a","exp":true}"#, time),
        ("exp a list", r#"{"sub":"a","exp":[1999999999]}"#, time),
        ("exp an object", r#"{"sub":"a","exp":{}}"#, time),
        ("exp not whole", r#"{"sub":"a","exp":1999999999.5}"#, time),
        ("exp with a point", r#"{"sub":"a","exp":1999999999.0}"#, time),
        ("exp with an exponent", r#"{"sub":"a","exp":2e9}"#, time),
        ("exp negative", r#"{"sub":"a","exp":-1}"#, time),
        ("exp minus zero", r#"{"sub":"a","exp":-0}"#, time),
        ("exp 1e308", r#"{"sub":"a","exp":1e308}"#, time),
        ("exp 1e999", r#"{"sub":"a","exp":1e999}"#, time),
        ("exp 2^63", r#"{"sub":"a","exp":9223372036854775808}"#, time),
        ("exp 2^64", r#"{"sub":"a","exp":18446744073709551616}"#, time),
        ("exp in milliseconds", r#"{"sub":"a","exp":1764003600000000}"#, time),
        ("exp twice", r#"{"sub":"a","exp":1,"exp":1999999999}"#, "each claim once"),
        ("exp twice, in two spellings", r#"{"sub":"a","exp":1999999999,"\u0065xp":1}"#, "each claim once"),
        ("nbf in 31 s", &json!({"sub": "a", "nbf": NOW + 31}).to_string(), "`nbf` is 1764000031"),
        ("nbf a text", r#"{"sub":"a","nbf":"0"}"#, time),
        ("nbf negative", r#"{"sub":"a","nbf":-1}"#, time),
        ("nbf 1e308", r#"{"sub":"a","nbf":1e308}"#, time),
        ("nbf null", r#"{"sub":"a","nbf":null}"#, time),
        ("iat in 31 s", &json!({"sub": "a", "iat": NOW + 31}).to_string(), "`iat` is 1764000031"),
        ("iat not whole", r#"{"sub":"a","iat":1.5}"#, time),
        ("iat 2^64 - 1", r#"{"sub":"a","iat":18446744073709551615}"#, time),
        ("no sub", r#"{"exp":1999999999}"#, "`sub` is missing"),
        ("sub null", r#"{"sub":null}"#, text),
        ("sub a number", r#"{"sub":1}"#, text),
        ("sub a list", r#"{"sub":["a"]}"#, text),
        ("sub an object", r#"{"sub":{}}"#, text),
        ("sub empty", r#"{"sub":""}"#, sub),
        ("sub of 256 bytes", &json!({"sub": "s".repeat(256)}).to_string(), sub),
        ("sub with a line break", r#"{"sub":"a\nb"}"#, sub),
        ("sub with a NUL", r#"{"sub":"a\u0000"}"#, sub),
        ("sub with an escape", r#"{"sub":"\u001b[2J"}"#, sub),
        ("sub with half a surrogate", r#"{"sub":"\ud800"}"#, text),
        ("sub twice", r#"{"sub":"a","sub":"root"}"#, "each claim once"),
        ("a list", r#"["a",1999999999]"#, "not a JSON object"),
        ("a text", r#""a""#, "not a JSON object"),
        ("null", "null", "not a JSON object"),
        ("nothing", "", "not a JSON object"),
        ("broken off", r#"{"sub":"a""#, "not a JSON object"),
        ("more after it", r#"{"sub":"a"} x"#, "not a JSON object"),
        ("NaN", r#"{"sub":"a","exp":NaN}"#, "not a JSON object"),
        ("info of more than 4 KiB", &json!({"sub": "a", "info": "i".repeat(4095)}).to_string(), "`info` is too long"),
        (
            "info 33 deep",
            &format!(r#"{{"sub":"a","info":{}{}}}"#, "[".repeat(33), "]".repeat(33)),
            "`info` is too deep",
        ),
        ("info twice", r#"{"sub":"a","info":1,"info":2}"#, "each claim once"),
    ] {
        refused(&app, name, &hs256(claims), why).await;
    }
    let message = format!("{}.{}", base64url(r#"{"alg":"HS256"}"#), base64url(b"{\"sub\":\"\xff\"}"));
    let tag = aws_lc_rs::hmac::sign(
        &aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, SECRET.as_bytes()),
        message.as_bytes(),
    );
    refused(&app, "a payload that is no UTF-8", &format!("{message}.{}", base64url(tag)), "UTF-8").await;
}

#[tokio::test]
async fn capabilities_are_read_strictly() {
    let app = secret_app();
    let (list, word) = ("is no list of objects", "names an action that does not exist");
    let grants = |count: usize, patterns: usize| {
        let grant = json!({"channels": vec!["a"; patterns], "do": []});
        json!({"sub": "a", "allow": vec![grant; count]}).to_string()
    };
    for (name, claims, why) in [
        ("an object", r#"{"sub":"a","allow":{"channels":["a"],"do":[]}}"#, list),
        ("null", r#"{"sub":"a","allow":null}"#, list),
        ("a text", r#"{"sub":"a","allow":"**"}"#, list),
        ("a list of texts", r#"{"sub":"a","allow":["**"]}"#, list),
        ("a list of lists", r#"{"sub":"a","allow":[[["**"],["subscribe"]]]}"#, list),
        ("no channels", r#"{"sub":"a","allow":[{"do":["subscribe"]}]}"#, list),
        ("channels a text", r#"{"sub":"a","allow":[{"channels":"a","do":[]}]}"#, list),
        ("channels null", r#"{"sub":"a","allow":[{"channels":null,"do":[]}]}"#, list),
        ("no do", r#"{"sub":"a","allow":[{"channels":["a"]}]}"#, list),
        ("a member that might narrow it", r#"{"sub":"a","allow":[{"channels":["a"],"do":[],"until":1}]}"#, list),
        ("channels twice", r#"{"sub":"a","allow":[{"channels":["a"],"channels":["**"],"do":[]}]}"#, list),
        ("an unknown word", r#"{"sub":"a","allow":[{"channels":["a"],"do":["subscribe","delete"]}]}"#, word),
        ("a word in capitals", r#"{"sub":"a","allow":[{"channels":["a"],"do":["Subscribe"]}]}"#, word),
        ("a star as word", r#"{"sub":"a","allow":[{"channels":["a"],"do":["*"]}]}"#, word),
        ("do a text", r#"{"sub":"a","allow":[{"channels":["a"],"do":"subscribe"}]}"#, "no list of words"),
        ("do null", r#"{"sub":"a","allow":[{"channels":["a"],"do":null}]}"#, "no list of words"),
        ("an empty pattern", r#"{"sub":"a","allow":[{"channels":[""],"do":[]}]}"#, "no channel pattern"),
        (
            "a pattern of stars",
            &json!({"sub": "a", "allow": [{"channels": ["*".repeat(17)], "do": []}]}).to_string(),
            "no channel pattern",
        ),
        ("65 entries", &grants(65, 1), "more than 64 entries"),
        ("257 patterns", &grants(1, 257), "more than 256 channel patterns"),
        ("allow twice", r#"{"sub":"a","allow":[],"allow":[{"channels":["**"],"do":["publish"]}]}"#, "each claim once"),
    ] {
        refused(&app, name, &hs256(claims), why).await;
    }
    for claims in [grants(64, 4), grants(1, 256)] {
        assert!(app.verify_at(&hs256(&claims), NOW).await.is_ok());
    }
}

#[tokio::test]
async fn audience_and_issuer_are_what_the_app_asks_for() {
    let rules = TokenRules { audience: Some("fanwire".into()), issuer: Some("me".into()), ..secret_rules(&["HS256"]) };
    let app = app(rules);
    let many: Vec<String> = (0..65).map(|n| if n == 0 { "fanwire".into() } else { n.to_string() }).collect();
    for aud in [json!("fanwire"), json!(["fanwire"]), json!(["other", "fanwire"])] {
        let token = hs256(&claims(json!({"aud": aud, "iss": "me"})).to_string());
        assert!(app.verify_at(&token, NOW).await.is_ok(), "{aud}");
    }
    for (name, changes, why) in [
        ("no aud", json!({"iss": "me"}), "`aud` is missing"),
        ("another aud", json!({"aud": "other", "iss": "me"}), "`aud` does not name"),
        ("a longer aud", json!({"aud": "fanwire2", "iss": "me"}), "`aud` does not name"),
        ("aud in capitals", json!({"aud": "Fanwire", "iss": "me"}), "`aud` does not name"),
        ("aud empty", json!({"aud": "", "iss": "me"}), "`aud` does not name"),
        ("aud for nobody", json!({"aud": [], "iss": "me"}), "`aud` does not name"),
        ("aud for others", json!({"aud": ["a", "b"], "iss": "me"}), "`aud` does not name"),
        ("aud a number", json!({"aud": 1, "iss": "me"}), "`aud` is neither"),
        ("aud an object", json!({"aud": {"fanwire": true}, "iss": "me"}), "`aud` is neither"),
        ("aud with a number in it", json!({"aud": ["fanwire", 1], "iss": "me"}), "`aud` is neither"),
        ("65 audiences", json!({"aud": many, "iss": "me"}), "`aud` is neither"),
        ("no iss", json!({"aud": "fanwire"}), "`iss` is missing"),
        ("another iss", json!({"aud": "fanwire", "iss": "you"}), "`iss` is not"),
        ("iss a list", json!({"aud": "fanwire", "iss": ["me"]}), "`iss` is no text"),
        ("iss a longer one", json!({"aud": "fanwire", "iss": "me/"}), "`iss` is not"),
    ] {
        refused(&app, name, &hs256(&claims(changes).to_string()), why).await;
    }
    let null = hs256(r#"{"sub":"a","aud":null,"iss":"me"}"#);
    refused(&app, "aud null", &null, "`aud` is neither").await;
}

#[tokio::test]
async fn a_subscription_token_is_for_one_channel_and_one_user() {
    let app = secret_app();
    let (room, news, ann): (ChannelName, ChannelName, UserId) =
        ("room:1".parse().unwrap(), "news".parse().unwrap(), "ann".parse().unwrap());
    let token = |claims: Value| mint(SECRET, &claims).unwrap();
    let plain = token(json!({"sub": "ann", "channel": "room:1", "exp": 99_999_999_999_u64}));
    let grant = app.authorize(&plain, &room, Some(&ann)).await.unwrap();
    assert_eq!(grant.actions, [Action::Subscribe].into_iter().collect());
    assert_eq!((grant.info, grant.expires), (None, Some(99_999_999_999)));
    let more = token(json!({"sub": "ann", "channel": "room:1", "do": ["publish", "history"], "info": {"x": 1}}));
    let grant = app.authorize(&more, &room, Some(&ann)).await.unwrap();
    assert_eq!(grant.actions, [Action::Publish, Action::History].into_iter().collect());
    assert_eq!(grant.info.unwrap().as_str(), r#"{"x":1}"#);
    let nothing = token(json!({"sub": "ann", "channel": "room:1", "do": []}));
    assert_eq!(app.authorize(&nothing, &room, Some(&ann)).await.unwrap().actions, Actions::default());
    let anonymous = token(json!({"channel": "room:1"}));
    assert!(app.authorize(&anonymous, &room, None).await.is_ok());

    let bob = "bob".parse().unwrap();
    assert_eq!(app.authorize(&plain, &news, Some(&ann)).await, Err(TokenError::OtherChannel));
    assert_eq!(app.authorize(&plain, &room, Some(&bob)).await, Err(TokenError::OtherUser));
    assert_eq!(app.authorize(&plain, &room, None).await, Err(TokenError::OtherUser));
    assert_eq!(app.authorize(&anonymous, &room, Some(&ann)).await, Err(TokenError::OtherUser));
    assert_eq!(app.authenticate(&plain).await, Err(TokenError::ForSubscription));
    assert_eq!(app.authenticate(&anonymous).await, Err(TokenError::ForSubscription));
    let connection = token(json!({"sub": "ann", "allow": [{"channels": ["**"], "do": ["subscribe"]}]}));
    assert_eq!(app.authorize(&connection, &room, Some(&ann)).await, Err(TokenError::ForConnection));
    let expired = app.authorize(&token(json!({"channel": "room:1", "exp": 1})), &room, None).await.unwrap_err();
    assert!(expired.is_over());
    assert_eq!(expired.refusal().code, ErrorCode::TokenExpired);

    for (name, claims, why) in [
        ("channel null", r#"{"sub":"a","channel":null}"#, "`channel` is no text"),
        ("channel a list", r#"{"sub":"a","channel":["room:1"]}"#, "`channel` is no text"),
        ("channel empty", r#"{"sub":"a","channel":""}"#, "`channel` is no channel name"),
        ("channel with a blank", r#"{"sub":"a","channel":"room: 1"}"#, "`channel` is no channel name"),
        ("channel twice", r#"{"sub":"a","channel":"x","channel":"room:1"}"#, "each claim once"),
        ("sub empty", r#"{"sub":"","channel":"room:1"}"#, "is not 1 to 255 bytes"),
        ("sub null", r#"{"sub":null,"channel":"room:1"}"#, "`sub` is no text"),
        ("do null", r#"{"channel":"room:1","do":null}"#, "no list of words"),
        ("do a text", r#"{"channel":"room:1","do":"subscribe"}"#, "no list of words"),
        ("do an unknown word", r#"{"channel":"room:1","do":["subscribe","all"]}"#, "names an action"),
        ("do twice", r#"{"channel":"room:1","do":[],"do":["publish"]}"#, "each claim once"),
        ("not yet", r#"{"channel":"room:1","nbf":1764000031}"#, "in the future"),
    ] {
        refused(&app, name, &hs256(claims), why).await;
    }
    let pattern = token(json!({"sub": "ann", "channel": "room:*"}));
    assert_eq!(app.authorize(&pattern, &room, Some(&ann)).await, Err(TokenError::OtherChannel), "it is no pattern");
}

#[tokio::test]
async fn an_error_quotes_nothing_of_a_token_but_a_short_piece_of_its_algorithm() {
    let marker = "PRIVATE-MARKER";
    let app = secret_app();
    for claims in [
        json!({"sub": 1, "info": marker}),
        json!({"sub": [marker]}),
        json!({"sub": "a", "exp": marker}),
        json!({"sub": "a", "allow": marker}),
        json!({"sub": "a", "allow": [{"channels": [marker], "do": [marker]}]}),
        json!({"sub": "a", "allow": [{marker: 1}]}),
        json!({"sub": "a", "channel": format!("{marker} ")}),
        json!(marker),
    ] {
        let error = app.verify_at(&hs256(&claims.to_string()), NOW).await.unwrap_err();
        assert!(!format!("{error} {error:?} {}", error.refusal()).contains(marker), "{error:?}");
    }
    let long = with_header(&json!({"alg": format!("\u{1b}[2J\n{}", "x".repeat(4000))}).to_string());
    let text = app.verify_at(&long, NOW).await.unwrap_err().to_string();
    assert!(text.len() < 150 && !text.contains(['\u{1b}', '\n']), "{text}");
}
