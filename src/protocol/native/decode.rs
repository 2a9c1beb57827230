//! Frames to commands.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::domain::{
    ChannelName, Command, CommandId, ErrorCode, Event, HistoryQuery, IdempotencyKey, Offset, Payload, Position,
    Publish, Refusal, Request, Start, Subscribe, Tags,
};

/// How deep arrays and objects may stand in each other, the frame's own counted.
pub const MAX_DEPTH: usize = 32;
/// The longest text of `tags`, in bytes.
const MAX_TAGS_BYTES: usize = 4096;

/// Appends the commands of one frame: an object, or an array of them, done in order.
pub(super) fn frame(text: &str, requests: &mut Vec<Request>) {
    let bad = |message: String| Request { id: None, command: Err(Refusal::new(ErrorCode::BadRequest, message)) };
    if depth_exceeds(text, MAX_DEPTH) {
        requests.push(bad(format!("arrays and objects stand more than {MAX_DEPTH} deep in each other")));
        return;
    }
    if !text.trim_start().starts_with('[') {
        requests.push(request(text));
        return;
    }
    match serde_json::from_str::<Vec<&RawValue>>(text) {
        Ok(frames) if frames.is_empty() => requests.push(bad("an empty array asks for nothing".into())),
        Ok(frames) => requests.extend(frames.into_iter().map(|frame| request(frame.get()))),
        Err(error) => requests.push(bad(format!("not JSON: {error}"))),
    }
}

/// Whether arrays and objects stand more than `limit` deep in each other. Text that is no JSON may get either answer.
pub fn depth_exceeds(text: &str, limit: usize) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for byte in text.bytes() {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'[' | b'{' => {
                depth += 1;
                if limit < depth {
                    return true;
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

fn request(text: &str) -> Request {
    // serde's structs would take an array of their members' values too.
    if text.trim_start().starts_with('[') {
        return Request { id: None, command: Err(bad_request("a command is a JSON object")) };
    }
    match serde_json::from_str::<Frame<'_>>(text) {
        Ok(frame) => match command_id(frame.id) {
            Ok(id) => {
                let channel = frame.channel.as_ref().and_then(|channel| channel.0.parse().ok());
                let command = command(frame).map_err(|refusal| Refusal { channel, ..refusal });
                Request { id, command }
            }
            Err(refusal) => Request { id: None, command: Err(refusal) },
        },
        Err(error) => {
            let id =
                serde_json::from_str::<IdOnly<'_>>(text).ok().and_then(|frame| command_id(frame.id).ok().flatten());
            Request { id, command: Err(bad_request(json_fault(&error))) }
        }
    }
}

/// What was wrong, without the place where serde_json's own text repeats input.
fn json_fault(error: &serde_json::Error) -> String {
    match error.classify() {
        serde_json::error::Category::Data => format!("not a command: {error}"),
        _ => format!("not JSON: {error}"),
    }
}

fn bad_request(message: impl Into<String>) -> Refusal {
    Refusal::new(ErrorCode::BadRequest, message)
}

/// Every member that any frame has. Duplicates are refused by serde, unknown ones ignored.
#[derive(Deserialize)]
struct Frame<'a> {
    #[serde(rename = "type", borrow)]
    kind: Text<'a>,
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    channel: Option<Text<'a>>,
    #[serde(borrow, default)]
    token: Option<Text<'a>>,
    #[serde(borrow, default)]
    event: Option<Text<'a>>,
    #[serde(borrow, default)]
    key: Option<Text<'a>>,
    #[serde(borrow, default, deserialize_with = "present")]
    data: Option<&'a RawValue>,
    #[serde(borrow, default)]
    tags: Option<&'a RawValue>,
    #[serde(borrow, default)]
    after: Option<&'a RawValue>,
    before: Option<u64>,
    limit: Option<u64>,
    last: Option<u64>,
    reverse: Option<bool>,
    presence: Option<bool>,
    echo: Option<bool>,
}

#[derive(Deserialize)]
struct IdOnly<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct After<'a> {
    #[serde(borrow)]
    epoch: Text<'a>,
    offset: u64,
}

fn command(frame: Frame<'_>) -> Result<Command, Refusal> {
    Ok(match &*frame.kind.0 {
        "auth" => Command::Auth { token: frame.token.ok_or_else(|| missing("token"))?.0.into() },
        "subscribe" => Command::Subscribe(subscribe(frame)?),
        "unsubscribe" => Command::Unsubscribe { channel: channel(&frame)? },
        "publish" => Command::Publish(publish(frame)?),
        "presence" => Command::Presence { channel: channel(&frame)? },
        "history" => history(frame)?,
        "ping" => Command::Ping,
        other => return Err(bad_request(format!("unknown type `{}`", other.chars().take(32).collect::<String>()))),
    })
}

fn channel(frame: &Frame<'_>) -> Result<ChannelName, Refusal> {
    let raw = frame.channel.as_ref().ok_or_else(|| missing("channel"))?;
    raw.0.parse().map_err(|error| bad_request(format!("`channel`: {error}")))
}

fn missing(member: &str) -> Refusal {
    bad_request(format!("`{member}` is missing"))
}

fn subscribe(frame: Frame<'_>) -> Result<Subscribe, Refusal> {
    let start = match (frame.after, frame.last) {
        (Some(_), Some(_)) => return Err(bad_request("`after` and `last` exclude each other")),
        (Some(after), None) => {
            let fault =
                |error: &dyn fmt::Display| bad_request(format!("`after` is {{\"epoch\":\"…\",\"offset\":n}}: {error}"));
            if !after.get().starts_with('{') {
                return Err(fault(&"not an object"));
            }
            let After { epoch, offset } = serde_json::from_str(after.get()).map_err(|error| fault(&error))?;
            Start::After(epoch.0.parse().ok().map(|epoch| Position { epoch, offset: Offset(offset) }))
        }
        (None, Some(last)) if last <= HistoryQuery::MAX_LIMIT as u64 => Start::Last(last as usize),
        (None, Some(_)) => return Err(bad_request(format!("`last` is at most {}", HistoryQuery::MAX_LIMIT))),
        (None, None) => Start::Live,
    };
    Ok(Subscribe {
        channel: channel(&frame)?,
        token: frame.token.map(|token| token.0.into()),
        start,
        presence: frame.presence.unwrap_or(false),
    })
}

fn publish(frame: Frame<'_>) -> Result<Publish, Refusal> {
    let channel = channel(&frame)?;
    let echo = frame.echo.unwrap_or(true);
    let body = PublishBody { event: frame.event, data: frame.data, key: frame.key, tags: frame.tags };
    let (event, key) = parse_publish(body)?;
    Ok(Publish { channel, event, key, echo })
}

/// What a publication consists of, in a frame and in the HTTP API alike.
#[derive(Debug, Default, Deserialize)]
pub struct PublishBody<'a> {
    /// The event's name.
    #[serde(borrow, default)]
    pub event: Option<Text<'a>>,
    /// Its content, any JSON.
    #[serde(borrow, default, deserialize_with = "present")]
    pub data: Option<&'a RawValue>,
    /// The idempotency key.
    #[serde(borrow, default)]
    pub key: Option<Text<'a>>,
    /// A flat object of strings.
    #[serde(borrow, default)]
    pub tags: Option<&'a RawValue>,
}

/// Checks what a publication consists of.
///
/// # Errors
/// `bad_request`, naming the member.
pub fn parse_publish(body: PublishBody<'_>) -> Result<(Event, Option<IdempotencyKey>), Refusal> {
    let data = Payload::from_json(body.data.ok_or_else(|| missing("data"))?.get());
    let name = match body.event {
        Some(Text(name)) if name.is_empty() || Event::MAX_NAME_BYTES < name.len() => {
            return Err(bad_request(format!("`event` has 1 to {} bytes", Event::MAX_NAME_BYTES)));
        }
        name => name.map(|name| name.0.into()),
    };
    let key = body.key.map(|key| IdempotencyKey::new(&key.0)).transpose();
    let key = key.map_err(|error| bad_request(error.to_string()))?;
    let tags = body.tags.map(|raw| tags(raw.get())).transpose()?;
    Ok((Event { name, data, tags }, key))
}

fn tags(raw: &str) -> Result<Tags, Refusal> {
    match serde_json::from_str::<FlatStrings>(raw) {
        Ok(_) if raw.len() <= MAX_TAGS_BYTES => Ok(Tags::from_json(raw)),
        Ok(_) => Err(bad_request(format!("`tags` has at most {MAX_TAGS_BYTES} bytes"))),
        Err(error) => Err(bad_request(format!("`tags` is a flat object of strings: {error}"))),
    }
}

fn history(frame: Frame<'_>) -> Result<Command, Refusal> {
    let offset = |raw: &RawValue| match serde_json::from_str(raw.get()) {
        Ok(offset) => Ok(Offset(offset)),
        Err(_) => Err(bad_request("`after` is an offset here, a whole number")),
    };
    let limit = match frame.limit {
        None => HistoryQuery::DEFAULT_LIMIT,
        Some(limit) if limit <= HistoryQuery::MAX_LIMIT as u64 => limit as usize,
        Some(_) => return Err(bad_request(format!("`limit` is at most {}", HistoryQuery::MAX_LIMIT))),
    };
    let query = HistoryQuery {
        limit,
        after: frame.after.map(offset).transpose()?,
        before: frame.before.map(Offset),
        reverse: frame.reverse.unwrap_or(false),
    };
    Ok(Command::History { channel: channel(&frame)?, query })
}

fn command_id(raw: Option<&RawValue>) -> Result<Option<CommandId>, Refusal> {
    let Some(raw) = raw else { return Ok(None) };
    if let Ok(number) = serde_json::from_str(raw.get()) {
        return Ok(Some(CommandId::Number(number)));
    }
    match serde_json::from_str::<Text<'_>>(raw.get()) {
        Ok(Text(text)) if text.len() <= CommandId::MAX_BYTES => Ok(Some(CommandId::Text(text.into()))),
        _ => Err(bad_request(format!("`id` is an integer, or a string of at most {} bytes", CommandId::MAX_BYTES))),
    }
}

/// A member that is there even if it is `null`.
///
/// # Errors
/// The deserializer's.
pub fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// A string that borrows from the frame where it has no escapes. (serde's `Cow` copies inside an `Option`.)
#[derive(Debug)]
pub struct Text<'a>(pub Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;

        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }

        deserializer.deserialize_str(TextVisitor)
    }
}

/// An object whose values are strings; checked and thrown away.
struct FlatStrings;

impl<'de> Deserialize<'de> for FlatStrings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FlatVisitor;

        impl<'de> Visitor<'de> for FlatVisitor {
            type Value = FlatStrings;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                while map.next_entry::<Text<'_>, Text<'_>>()?.is_some() {}
                Ok(FlatStrings)
            }
        }

        deserializer.deserialize_map(FlatVisitor)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decoded(text: &str) -> Vec<Request> {
        let mut requests = Vec::new();
        frame(text, &mut requests);
        requests
    }

    fn refused(text: &str) -> Refusal {
        decoded(text).remove(0).command.unwrap_err()
    }

    #[test]
    fn data_keeps_its_bytes() {
        let data = r#"{"n":9007199254740993,"b":1,"a":2,"a":3,"s":"\u00e9\n","f":1.0e400}"#;
        let text = format!(r#"{{"type":"publish","id":"x","channel":"a","data":{data}}}"#);
        let Ok(Command::Publish(publish)) = decoded(&text).remove(0).command else { panic!("a publication") };
        assert_eq!(publish.event.data.as_str(), data);
    }

    #[test]
    fn line_breaks_between_tokens_become_blanks() {
        let text = "{\"type\":\"publish\",\"channel\":\"a\",\"data\":{\r\n\"a\":\n1}}";
        let Ok(Command::Publish(publish)) = decoded(text).remove(0).command else { panic!("a publication") };
        assert_eq!(publish.event.data.as_str(), "{  \"a\": 1}");
    }

    #[test]
    fn null_is_data_and_absence_is_not() {
        assert!(decoded(r#"{"type":"publish","channel":"a","data":null}"#)[0].command.is_ok());
        assert_eq!(refused(r#"{"type":"publish","channel":"a"}"#).message, "`data` is missing");
    }

    #[test]
    fn an_array_is_done_in_order() {
        let requests = decoded(r#" [{"type":"ping","id":1},{"type":"nonsense","id":2},{"type":"ping","id":"c"}]"#);
        let ids: Vec<_> = requests.iter().map(|request| request.id.clone().unwrap()).collect();
        assert_eq!(ids, [CommandId::Number(1), CommandId::Number(2), CommandId::Text("c".into())]);
        assert_eq!(requests[1].command.as_ref().unwrap_err().message, "unknown type `nonsense`");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, message) in [
            ("", "not JSON"),
            ("nonsense", "not JSON"),
            ("[]", "empty array"),
            ("[1]", "not a command"),
            (r#"[["ping",1,null,null,null,null,null,null,null,null,null,null,null,null,null]]"#, "JSON object"),
            (r#"{"type":"subscribe","channel":"a","after":["k",1]}"#, "not an object"),
            ("{}", "missing field `type`"),
            (r#"{"type":"ping","type":"ping"}"#, "duplicate field `type`"),
            (r#"{"type":"subscribe"}"#, "`channel` is missing"),
            (r#"{"type":"subscribe","channel":"a b"}"#, "white space"),
            (r#"{"type":"subscribe","channel":"a","last":1001}"#, "`last` is at most 1000"),
            (r#"{"type":"subscribe","channel":"a","last":1,"after":{"epoch":"x","offset":1}}"#, "exclude each other"),
            (r#"{"type":"subscribe","channel":"a","after":7}"#, "`after` is"),
            (r#"{"type":"publish","channel":"a","data":1,"tags":{"a":1}}"#, "`tags`"),
            (r#"{"type":"publish","channel":"a","data":1,"key":""}"#, "`key`"),
            (r#"{"type":"publish","channel":"a","data":1,"event":""}"#, "`event`"),
            (r#"{"type":"history","channel":"a","limit":1001}"#, "`limit`"),
            (r#"{"type":"ping","id":1.5}"#, "`id`"),
        ] {
            let refusal = refused(text);
            assert_eq!(refusal.code, ErrorCode::BadRequest, "{text}");
            assert!(refusal.message.contains(message), "{text}: {}", refusal.message);
        }
    }

    #[test]
    fn an_error_finds_its_command_s_id() {
        let request = decoded(r#"{"type":"subscribe","id":7,"channel":3}"#).remove(0);
        assert_eq!(request.id, Some(CommandId::Number(7)));
        assert!(request.command.is_err());
    }

    #[test]
    fn depth_is_bounded_and_brackets_in_strings_do_not_count() {
        assert!(refused(&"[".repeat(100_000)).message.contains("32 deep"));
        let deep = |n| format!(r#"{{"type":"publish","channel":"a","data":{}{}}}"#, "[".repeat(n), "]".repeat(n));
        assert!(decoded(&deep(31))[0].command.is_ok());
        assert!(decoded(&deep(32))[0].command.is_err());
        let text = format!(r#"{{"type":"publish","channel":"a","data":"{}\"["}}"#, "[{".repeat(100));
        assert!(decoded(&text)[0].command.is_ok());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_decoder_panic(text in "\\PC{0,60}|[\\[\\]{}\",:a-z0-9 ]{0,80}") {
            prop_assert!(!decoded(&text).is_empty());
        }
    }
}
