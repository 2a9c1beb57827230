//! Our frames as events of an event stream (WHATWG HTML, 9.2).
//!
//! The `id:` of an event says where the whole stream stands, in all of its channels, so it differs from stream to stream
//! though all else is the same for everybody. What is encoded here, once for all subscribers, therefore has only a
//! [`Mark`] in that line: the channel's own position. Whoever writes a stream reads it with [`split`] and puts the
//! stream's position there. Start at [`push`].

use std::{io::Write, time::Duration};

use super::encode;
use crate::domain::{DisconnectReason, Epoch, Offset, Position, Push, Refusal, Reply, Subscribed};

/// Sent while there is nothing to say.
pub const KEEP_ALIVE: &[u8] = b":\n\n";

const ID: &[u8] = b"id:";

/// What an event says of one channel's position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark<'a> {
    /// Which channel, as clients write it.
    pub channel: &'a str,
    /// Where it stands after this event.
    pub position: Position,
}

/// Writes the event that says `push`; nothing for what a stream does not tell.
pub(super) fn push(push: &Push, out: &mut Vec<u8>) {
    let name = match push {
        // Whom a stream belongs to, and when its token ends, is known to who opened it.
        Push::Welcome(_) => return,
        Push::Publication(publication) => {
            mark(publication.channel.name(), publication.position, out);
            None
        }
        Push::Subscribed(subscribed) => {
            mark(subscribed.channel.as_str(), subscribed.position, out);
            Some("subscribed")
        }
        Push::Unsubscribed { .. } => Some("unsubscribed"),
        Push::Join { .. } => Some("join"),
        Push::Leave { .. } => Some("leave"),
        Push::Disconnect { reason, delay } => {
            retry(*reason, *delay, out);
            Some("disconnect")
        }
    };
    event(name, out, |out| encode::push(push, out));
}

/// Writes what a stream is told of its own subscriptions; every other reply answers a command, of which it has none.
pub(super) fn reply(reply: &Reply, out: &mut Vec<u8>) {
    match reply {
        Reply::Subscribed(subscribed) => push(&Push::Subscribed(Subscribed::clone(subscribed)), out),
        Reply::Refused(refusal @ Refusal { channel: Some(channel), .. }) => {
            push(&Push::Unsubscribed { channel: channel.clone(), refusal: refusal.clone() }, out);
        }
        _ => {}
    }
}

fn mark(channel: &str, position: Option<Position>, out: &mut Vec<u8>) {
    if let Some(Position { epoch, offset }) = position {
        out.extend_from_slice(ID);
        writeln!(out, "{epoch} {offset} {channel}").expect("writing to memory does not fail");
    }
}

/// How long an `EventSource`, which knows nothing of our frames, waits before it connects again.
fn retry(reason: DisconnectReason, delay: Option<Duration>, out: &mut Vec<u8>) {
    if let Some(delay) = delay.filter(|_| reason.should_reconnect()) {
        writeln!(out, "retry:{}", delay.as_millis()).expect("writing to memory does not fail");
    }
}

fn event(name: Option<&str>, out: &mut Vec<u8>, frame: impl FnOnce(&mut Vec<u8>)) {
    if let Some(name) = name {
        writeln!(out, "event:{name}").expect("writing to memory does not fail");
    }
    out.extend_from_slice(b"data:");
    // One line: JSON text has line breaks only between tokens, and a payload has none there either.
    frame(out);
    out.extend_from_slice(b"\n\n");
}

/// The events in `bytes`, each with its mark and with all of its text but the line that had it.
pub fn split(bytes: &[u8]) -> impl Iterator<Item = (Option<Mark<'_>>, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let end = rest.windows(2).position(|pair| pair == b"\n\n").map_or(rest.len(), |end| end + 2);
        let (event, later) = rest.split_at(end);
        rest = later;
        match marked(event) {
            _ if event.is_empty() => None,
            Some((mark, event)) => Some((Some(mark), event)),
            None => Some((None, event)),
        }
    })
}

fn marked(event: &[u8]) -> Option<(Mark<'_>, &[u8])> {
    let line = event.strip_prefix(ID)?;
    let (line, event) = line.split_at(line.iter().position(|byte| *byte == b'\n')? + 1);
    let mut words = std::str::from_utf8(line).ok()?.trim_end().split(' ');
    let (epoch, offset, channel) = (words.next()?, words.next()?, words.next()?);
    let position = Position { epoch: epoch.parse::<Epoch>().ok()?, offset: Offset(offset.parse().ok()?) };
    Some((Mark { channel, position }, event))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::domain::{Channel, ErrorCode, Event, Payload, Publication, PublicationId, UnixMillis};

    fn publication(position: Option<Position>) -> Push {
        Push::Publication(Arc::new(Publication {
            id: PublicationId::new(0, 1),
            channel: Channel::new(&"default".parse().unwrap(), &"räume:größe".parse().unwrap()),
            event: Event { name: None, data: Payload::from_json("\"a\\n\\nb\""), tags: None },
            time: UnixMillis(5),
            position,
            from: None,
            exclude: None,
        }))
    }

    fn pushed(each: &Push) -> String {
        let mut out = Vec::new();
        push(each, &mut out);
        String::from_utf8(out).unwrap()
    }

    fn position(offset: u64) -> Position {
        Position { epoch: Epoch::from_bits(71), offset: Offset(offset) }
    }

    #[test]
    fn a_publication_is_one_event_without_a_name() {
        let frame = concat!(
            r#"{"type":"message","channel":"räume:größe","event":"message","data":"a\n\nb","#,
            r#""id":"00000000000000000000000001","time":5}"#
        );
        assert_eq!(pushed(&publication(None)), format!("data:{frame}\n\n"));
    }

    #[test]
    fn joined_events_come_apart_again_with_their_marks() {
        let mut bytes = Vec::new();
        push(&publication(Some(position(7))), &mut bytes);
        bytes.extend_from_slice(KEEP_ALIVE);
        push(&publication(None), &mut bytes);
        push(&publication(Some(position(8))), &mut bytes);
        let apart: Vec<_> = split(&bytes).collect();
        let mark = |offset| Some(Mark { channel: "räume:größe", position: position(offset) });
        let marks: Vec<_> = apart.iter().map(|(mark, _)| *mark).collect();
        assert_eq!(marks, [mark(7), None, None, mark(8)]);
        assert!(apart[0].1.starts_with(b"data:{") && apart[3].1.ends_with(b"}\n\n"));
        assert_eq!(apart[1].1, KEEP_ALIVE);
    }

    #[test]
    fn the_end_says_when_to_come_back_only_where_one_should() {
        let end = |reason| pushed(&Push::Disconnect { reason, delay: Some(Duration::from_millis(2400)) });
        assert!(end(DisconnectReason::Draining).starts_with("retry:2400\nevent:disconnect\ndata:{"));
        assert!(end(DisconnectReason::Forbidden).starts_with("event:disconnect\ndata:{"));
    }

    #[test]
    fn a_refused_subscription_is_told_and_nothing_else_is_answered() {
        let mut out = Vec::new();
        reply(&Reply::Pong, &mut out);
        reply(&Reply::Refused(Refusal::new(ErrorCode::Internal, "of no channel")), &mut out);
        assert!(out.is_empty());
        reply(
            &Reply::Refused(Refusal::new(ErrorCode::Unavailable, "away").in_channel(&"a".parse().unwrap())),
            &mut out,
        );
        let expected = concat!(
            "event:unsubscribed\n",
            r#"data:{"type":"unsubscribed","channel":"a","code":"unavailable","message":"away"}"#,
            "\n\n"
        );
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
