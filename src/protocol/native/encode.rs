//! Replies and pushes to frames.
//!
//! Written by hand rather than derived: a publication is encoded once for all its subscribers, on the hot path, and its
//! data passes as the bytes it came as. Start at [`Json`], the writer that all of it uses.

use std::fmt::Display;

use crate::domain::{CommandId, Member, Position, Publication, Publisher, Push, Refusal, Reply, Subscribed, Welcome};

/// What the server calls itself in its first frame.
const SERVER: &str = concat!("fanwire/", env!("CARGO_PKG_VERSION"));

/// Writes JSON text into a buffer; commas come by themselves.
pub struct Json<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> Json<'a> {
    /// Writes one object, whose members `members` adds.
    pub fn object(out: &'a mut Vec<u8>, members: impl FnOnce(&mut Json<'_>)) {
        out.push(b'{');
        members(&mut Json { out });
        out.push(b'}');
    }

    fn key(&mut self, key: &str) {
        if !matches!(self.out.last(), Some(b'{' | b'[')) {
            self.out.push(b',');
        }
        self.out.push(b'"');
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    /// A member whose value is text, escaped as needed.
    pub fn text(&mut self, key: &str, value: &str) -> &mut Self {
        self.key(key);
        string(self.out, value);
        self
    }

    /// A member whose value is text that needs no escapes: an id, an epoch, a code.
    pub fn word(&mut self, key: &str, value: impl Display) -> &mut Self {
        self.key(key);
        self.display(format_args!("\"{value}\""))
    }

    /// A member whose value is a number or a truth value.
    pub fn value(&mut self, key: &str, value: impl Display) -> &mut Self {
        self.key(key);
        self.display(value)
    }

    /// A member whose value is JSON text already.
    pub fn raw(&mut self, key: &str, value: &str) -> &mut Self {
        self.key(key);
        self.out.extend_from_slice(value.as_bytes());
        self
    }

    /// A member whose value is an object.
    pub fn nested(&mut self, key: &str, members: impl FnOnce(&mut Json<'_>)) -> &mut Self {
        self.key(key);
        Json::object(self.out, members);
        self
    }

    /// A member whose value is an array; `each` writes one item.
    pub fn list<T>(
        &mut self,
        key: &str,
        items: impl IntoIterator<Item = T>,
        mut each: impl FnMut(T, &mut Vec<u8>),
    ) -> &mut Self {
        self.key(key);
        self.out.push(b'[');
        for (at, item) in items.into_iter().enumerate() {
            if at != 0 {
                self.out.push(b',');
            }
            each(item, self.out);
        }
        self.out.push(b']');
        self
    }

    fn display(&mut self, value: impl Display) -> &mut Self {
        use std::io::Write;
        write!(self.out, "{value}").expect("writing to memory does not fail");
        self
    }
}

/// A JSON string (RFC 8259, 7).
fn string(out: &mut Vec<u8>, text: &str) {
    let plain = |byte: &u8| b' ' <= *byte && *byte != b'"' && *byte != b'\\';
    out.push(b'"');
    if text.as_bytes().iter().all(plain) {
        out.extend_from_slice(text.as_bytes());
    } else {
        let start = out.len();
        serde_json::to_writer(&mut *out, text).expect("a string is always JSON");
        out.remove(start);
        out.pop();
    }
    out.push(b'"');
}

/// The frame that answers the command called `id`.
pub(super) fn reply(id: Option<&CommandId>, reply: &Reply, out: &mut Vec<u8>) {
    // Without an id nobody waits for this acknowledgement.
    if let (Reply::Published(_), None) = (reply, id) {
        return;
    }
    Json::object(out, |json| match reply {
        Reply::Authenticated { user, expires } => {
            head(json, "authenticated", id).text("user", user.as_str());
            if let Some(expires) = expires {
                json.value("expires", expires);
            }
        }
        Reply::Subscribed(subscribed) => subscribed_members(head(json, "subscribed", id), subscribed),
        Reply::Unsubscribed { channel } => {
            head(json, "unsubscribed", id).text("channel", channel.as_str());
        }
        Reply::Published(published) => {
            head(json, "published", id).text("channel", published.channel.as_str());
            json.word("publication", published.publication);
            position(json, published.position.as_ref());
        }
        Reply::Presence { channel, members, users } => {
            head(json, "presence", id).text("channel", channel.as_str());
            json.list("members", members, member).value("users", users);
        }
        Reply::History(history) => {
            head(json, "history", id).text("channel", history.channel.as_str());
            position(json, Some(&history.position));
            json.list("messages", &history.publications, |each, out| publication(each, out));
        }
        Reply::Pong => {
            head(json, "pong", id);
        }
        Reply::Refused(refused) => refusal(head(json, "error", id), refused),
    });
}

/// The frame that says `push`.
pub(super) fn push(push: &Push, out: &mut Vec<u8>) {
    match push {
        Push::Publication(each) => publication(each, out),
        Push::Join { channel, member } => presence_change("join", channel.name(), member, out),
        Push::Leave { channel, member } => presence_change("leave", channel.name(), member, out),
        Push::Welcome(each) => welcome(each, out),
        Push::Subscribed(each) => Json::object(out, |json| subscribed_members(head(json, "subscribed", None), each)),
        Push::Unsubscribed { channel, refusal } => Json::object(out, |json| {
            head(json, "unsubscribed", None).text("channel", channel.as_str());
            json.word("code", refusal.code).text("message", &refusal.message);
        }),
        Push::Disconnect { reason, delay } => Json::object(out, |json| {
            head(json, "disconnect", None).word("code", reason.name()).text("message", reason.message());
            json.value("reconnect", reason.should_reconnect());
            if let Some(delay) = delay {
                json.value("delay", seconds(*delay));
            }
        }),
    }
}

fn head<'a, 'b>(json: &'a mut Json<'b>, kind: &str, id: Option<&CommandId>) -> &'a mut Json<'b> {
    json.word("type", kind);
    match id {
        None => json,
        Some(CommandId::Number(number)) => json.value("id", number),
        Some(CommandId::Text(text)) => json.text("id", text),
    }
}

/// One publication as its `message` frame.
pub fn publication(publication: &Publication, out: &mut Vec<u8>) {
    let event = &publication.event;
    out.reserve(event.data.as_bytes().len() + 160 + publication.channel.name().len());
    out.extend_from_slice(b"{\"type\":\"message\"");
    let mut json = Json { out };
    json.text("channel", publication.channel.name()).text("event", event.name()).raw("data", event.data.as_str());
    json.key("id");
    json.out.push(b'"');
    json.out.extend_from_slice(&publication.id.encode());
    json.out.push(b'"');
    if let Some(position) = publication.position {
        json.value("offset", position.offset);
    }
    json.value("time", publication.time.0);
    if let Some(from) = &publication.from {
        json.nested("from", |json| publisher(from, json));
    }
    if let Some(tags) = &event.tags {
        json.raw("tags", tags.as_str());
    }
    out.push(b'}');
}

fn publisher(from: &Publisher, json: &mut Json<'_>) {
    if let Some(user) = &from.user {
        json.text("user", user.as_str());
    }
    if let Some(connection) = from.connection {
        json.word("connection", connection);
    }
}

/// One member of a channel's presence, as an object.
pub fn member(member: &Member, out: &mut Vec<u8>) {
    Json::object(out, |json| {
        json.word("connection", member.connection);
        if let Some(user) = &member.user {
            json.text("user", user.as_str());
        }
        if let Some(info) = &member.info {
            json.raw("info", info.as_str());
        }
    });
}

/// A refusal's members: code, message, channel and when to come back.
pub fn refusal(json: &mut Json<'_>, refusal: &Refusal) {
    json.word("code", refusal.code).text("message", &refusal.message);
    if let Some(channel) = &refusal.channel {
        json.text("channel", channel.as_str());
    }
    if let Some(delay) = refusal.retry_after {
        json.value("retry_after", seconds(delay));
    }
}

fn presence_change(kind: &str, channel: &str, each: &Member, out: &mut Vec<u8>) {
    Json::object(out, |json| {
        head(json, kind, None).text("channel", channel).key("member");
        member(each, json.out);
    });
}

fn welcome(welcome: &Welcome, out: &mut Vec<u8>) {
    Json::object(out, |json| {
        head(json, "welcome", None).word("connection", welcome.connection);
        if let Some(user) = &welcome.user {
            json.text("user", user.as_str());
        }
        json.text("node", welcome.node.as_str()).value("ping", seconds(welcome.ping));
        if let Some(expires) = welcome.expires {
            json.value("expires", expires);
        }
        json.word("server", SERVER);
    });
}

fn subscribed_members(json: &mut Json<'_>, subscribed: &Subscribed) {
    json.text("channel", subscribed.channel.as_str());
    position(json, subscribed.position.as_ref());
    if let Some(recovered) = subscribed.recovered {
        json.value("recovered", recovered);
    }
    if let Some(members) = &subscribed.members {
        json.list("members", members, member);
    }
}

fn position(json: &mut Json<'_>, position: Option<&Position>) {
    if let Some(Position { epoch, offset }) = position {
        json.word("epoch", epoch).value("offset", offset);
    }
}

/// Seconds with at most three decimals, and never less than asked for.
fn seconds(delay: std::time::Duration) -> f64 {
    (delay.as_micros() as f64 / 1000.0).ceil() / 1000.0
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;
    use crate::domain::{
        Channel, ConnectionId, DisconnectReason, Epoch, ErrorCode, Event, Offset, Payload, PublicationId, Tags,
        UnixMillis,
    };

    fn pushed(each: &Push) -> String {
        let mut out = Vec::new();
        push(each, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_publication_is_the_frame_of_the_specification() {
        let name = "room:1".parse().unwrap();
        let publication = Publication {
            id: PublicationId::new(0, 1),
            channel: Channel::new(&"default".parse().unwrap(), &name),
            event: Event {
                name: Some("chat".into()),
                data: Payload::from_json(r#"{"text":"hi"}"#),
                tags: Some(Tags::from_json(r#"{"lang":"en"}"#)),
            },
            time: UnixMillis(1_764_000_000_123),
            position: Some(Position { epoch: Epoch::from_bits(5), offset: Offset(43) }),
            from: Some(Publisher { user: "alice \"A\"".parse().ok(), connection: None }),
            exclude: None,
        };
        assert_eq!(
            pushed(&Push::Publication(Arc::new(publication))),
            concat!(
                r#"{"type":"message","channel":"room:1","event":"chat","data":{"text":"hi"},"#,
                r#""id":"00000000000000000000000001","offset":43,"time":1764000000123,"#,
                r#""from":{"user":"alice \"A\""},"tags":{"lang":"en"}}"#
            )
        );
    }

    #[test]
    fn a_disconnect_says_whether_to_come_back_and_when() {
        let push = Push::Disconnect { reason: DisconnectReason::Draining, delay: Some(Duration::from_millis(2400)) };
        assert_eq!(
            pushed(&push),
            concat!(
                r#"{"type":"disconnect","code":"draining","message":"this node is shutting down, connect again","#,
                r#""reconnect":true,"delay":2.4}"#
            )
        );
    }

    #[test]
    fn a_publication_is_acknowledged_only_to_who_asked() {
        let published = Reply::Published(crate::domain::Published {
            channel: "a".parse().unwrap(),
            publication: PublicationId::new(0, 1),
            position: None,
        });
        let mut out = Vec::new();
        reply(None, &published, &mut out);
        assert!(out.is_empty());
        reply(Some(&CommandId::Text("q\"".into())), &published, &mut out);
        let expected = r#"{"type":"published","id":"q\"","channel":"a","publication":"00000000000000000000000001"}"#;
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn an_error_names_channel_and_delay() {
        let refused = Refusal::new(ErrorCode::RateLimited, "too fast")
            .in_channel(&"a\u{1F600}".parse().unwrap())
            .retry_after(Duration::from_millis(1500));
        let mut out = Vec::new();
        reply(Some(&CommandId::Number(6)), &Reply::Refused(refused), &mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            r#"{"type":"error","id":6,"code":"rate_limited","message":"too fast","channel":"a😀","retry_after":1.5}"#
        );
    }

    #[test]
    fn members_are_listed_with_what_is_known() {
        let bob = Member {
            connection: ConnectionId::from_bits(1),
            user: "bob".parse().ok(),
            info: Some(Payload::from_json(r#"{"name":"Bob"}"#)),
        };
        let stranger = Member { connection: ConnectionId::from_bits(2), user: None, info: None };
        let mut out = Vec::new();
        let listed = Reply::Presence { channel: "a".parse().unwrap(), members: vec![bob, stranger], users: 1 };
        reply(None, &listed, &mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            concat!(
                r#"{"type":"presence","channel":"a","members":["#,
                r#"{"connection":"c_0000000000000000000001","user":"bob","info":{"name":"Bob"}},"#,
                r#"{"connection":"c_0000000000000000000002"}],"users":1}"#
            )
        );
    }
}
