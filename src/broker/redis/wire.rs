//! What one node sends another, and what stands in a history's entries.
//!
//! A relayed message begins with a letter: `P` a publication, `R` a reset, `J` a join, `L` a leave. A publication's is
//! `P<epoch>:<offset>:<body>`, without both where no history is kept; scripts put the position before the body, which is
//! the same in the stream. Bodies are ours in both directions, but Redis is outside: what cannot be read is `None`.
//!
//! Body: version, flags, id (16 bytes), time (8 bytes, ms), then as flags say: excluded connection (16), publishing user
//! (length 2, bytes), publishing connection (16), name (length 2), tags (length 4); the rest is the data. Numbers are
//! big-endian.
//!
//! An order to all nodes: version, a letter for what (`D` and why, a byte; `S`, `U` and the channels), one for whom (`u`
//! user, `c` connection), the app, whom, and the rest of what. Among them `V<before> <until> <which>`, as text: tokens are
//! revoked.

use bytes::{Buf, Bytes};

use crate::{
    broker::{Deed, Dismissal, Order, Submission, Target},
    domain::{
        Channel, ChannelName, ConnectionId, Event, Member, Offset, Payload, Position, Publication, PublicationId,
        Publisher, Revocation, Revoked, Tags, TokenId, UnixMillis, UserId,
    },
};

const VERSION: u8 = 1;
const EXCLUDE: u8 = 1;
const FROM: u8 = 2;
const USER: u8 = 4;
const CONNECTION: u8 = 8;
const NAME: u8 = 16;
const TAGS: u8 = 32;
const INFO: u8 = 64;

/// What one node sent to all.
#[derive(Debug, PartialEq)]
pub(super) enum Message {
    /// A publication.
    Publication(Publication),
    /// The channel's history was lost or dropped: its next publication is the first of this epoch.
    Reset(Position),
    /// Somebody came.
    Join(Member),
    /// Somebody left.
    Leave(Member),
}

impl Message {
    /// What a relayed message says.
    pub fn read(channel: &Channel, mut bytes: Bytes) -> Option<Self> {
        match bytes.try_get_u8().ok()? {
            b'P' => {
                let epoch = until_colon(&mut bytes)?;
                let offset = until_colon(&mut bytes)?;
                let position = match epoch.is_empty() {
                    true => None,
                    false => Some(position(&epoch, &offset)?),
                };
                publication(channel, position, bytes).map(Self::Publication)
            }
            b'R' => Some(Self::Reset(position(&bytes, b"0")?)),
            b'J' => member(bytes).map(Self::Join),
            b'L' => member(bytes).map(Self::Leave),
            _ => None,
        }
    }
}

/// A position as scripts write it.
pub(super) fn position(epoch: &[u8], offset: &[u8]) -> Option<Position> {
    let epoch = std::str::from_utf8(epoch).ok()?.parse().ok()?;
    Some(Position { epoch, offset: Offset(std::str::from_utf8(offset).ok()?.parse().ok()?) })
}

/// The whole message of a publication without a position.
pub(super) fn passing(submission: &Submission) -> Vec<u8> {
    let mut message = b"P::".to_vec();
    write_body(submission, &mut message);
    message
}

/// A publication's body.
pub(super) fn body(submission: &Submission) -> Vec<u8> {
    let mut body = Vec::with_capacity(64 + submission.event.data.as_bytes().len());
    write_body(submission, &mut body);
    body
}

fn write_body(submission: &Submission, out: &mut Vec<u8>) {
    let Submission { event, id, time, from, exclude, .. } = submission;
    let user = from.as_ref().and_then(|from| from.user.as_ref());
    let connection = from.as_ref().and_then(|from| from.connection);
    let flag = |is: bool, flag| if is { flag } else { 0 };
    let flags = flag(exclude.is_some(), EXCLUDE)
        | flag(from.is_some(), FROM)
        | flag(user.is_some(), USER)
        | flag(connection.is_some(), CONNECTION)
        | flag(event.name.is_some(), NAME)
        | flag(event.tags.is_some(), TAGS);
    out.extend([VERSION, flags]);
    out.extend(id.to_bits().to_be_bytes());
    out.extend(time.0.to_be_bytes());
    if let Some(exclude) = exclude {
        out.extend(exclude.to_bits().to_be_bytes());
    }
    if let Some(user) = user {
        short(user.as_str(), out);
    }
    if let Some(connection) = connection {
        out.extend(connection.to_bits().to_be_bytes());
    }
    if let Some(name) = &event.name {
        short(name, out);
    }
    if let Some(tags) = &event.tags {
        // A body has at most some megabytes: `http.max_body` and `connection.max_frame` are its bounds.
        out.extend((tags.as_str().len() as u32).to_be_bytes());
        out.extend(tags.as_str().as_bytes());
    }
    out.extend(event.data.as_bytes());
}

/// A publication from its body.
pub(super) fn publication(channel: &Channel, position: Option<Position>, mut body: Bytes) -> Option<Publication> {
    if body.try_get_u8().ok()? != VERSION {
        return None;
    }
    let flags = body.try_get_u8().ok()?;
    let has = |flag| flags & flag != 0;
    let id = PublicationId::from_bits(body.try_get_u128().ok()?);
    let time = UnixMillis(body.try_get_u64().ok()?);
    let exclude = optional(has(EXCLUDE), || connection(&mut body))?;
    let user = optional(has(USER), || user(&mut body))?;
    let connection = optional(has(CONNECTION), || connection(&mut body))?;
    let name = optional(has(NAME), || Some(take_short(&mut body)?.into_boxed_str()))?;
    let tags = optional(has(TAGS), || {
        let bytes = body.try_get_u32().ok()? as usize;
        Tags::restore(take(&mut body, bytes)?)
    })?;
    let event = Event { name, data: Payload::restore(body)?, tags };
    let from = has(FROM).then_some(Publisher { user, connection });
    Some(Publication { id, channel: channel.clone(), event, time, position, from, exclude })
}

/// A member, as it stands in Redis and, after a letter, in a relayed message.
pub(super) fn write_member(member: &Member) -> Vec<u8> {
    let Member { connection, user, info } = member;
    let flags = if user.is_some() { USER } else { 0 } | if info.is_some() { INFO } else { 0 };
    let mut out = vec![VERSION, flags];
    out.extend(connection.to_bits().to_be_bytes());
    if let Some(user) = user {
        short(user.as_str(), &mut out);
    }
    if let Some(info) = info {
        out.extend(info.as_bytes());
    }
    out
}

/// A member from what [`write_member`] wrote.
pub(super) fn member(mut bytes: Bytes) -> Option<Member> {
    if bytes.try_get_u8().ok()? != VERSION {
        return None;
    }
    let flags = bytes.try_get_u8().ok()?;
    let connection = connection(&mut bytes)?;
    let user = optional(flags & USER != 0, || user(&mut bytes))?;
    let info = optional(flags & INFO != 0, || Payload::restore(bytes))?;
    Some(Member { connection, user, info })
}

/// An order, as it stands in the stream that all nodes read.
pub(super) fn write_order(order: &Order) -> Vec<u8> {
    let Order { app, target, deed } = order;
    let what = match deed {
        Deed::Disconnect(_) => b'D',
        Deed::Subscribe(_) => b'S',
        Deed::Unsubscribe(_) => b'U',
    };
    let mut out = vec![VERSION, what];
    match target {
        Target::User(user) => {
            out.push(b'u');
            short(app.as_str(), &mut out);
            short(user.as_str(), &mut out);
        }
        Target::Connection(connection) => {
            out.push(b'c');
            short(app.as_str(), &mut out);
            out.extend(connection.to_bits().to_be_bytes());
        }
    }
    match deed {
        Deed::Disconnect(Dismissal::Forbidden) => out.push(b'f'),
        Deed::Disconnect(Dismissal::TokenRevoked) => out.push(b'r'),
        Deed::Subscribe(channels) | Deed::Unsubscribe(channels) => {
            channels.iter().for_each(|channel| short(channel.as_str(), &mut out));
        }
    }
    out
}

/// What all nodes are told.
#[derive(Debug, PartialEq)]
pub(super) enum Told {
    /// What they are to do.
    Order(Order),
    /// Tokens count no more.
    Revoked(Revocation),
}

/// What an entry of the stream says that all nodes read.
pub(super) fn told(bytes: Bytes) -> Option<Told> {
    let Some(text) = bytes.strip_prefix(b"V") else { return order(bytes).map(Told::Order) };
    let text = std::str::from_utf8(text).ok()?;
    let at = text.match_indices(' ').nth(1)?.0;
    revocation(&text[at + 1..], &text[..at]).map(Told::Revoked)
}

/// Which tokens are revoked, as one text; those issued before when, and until when they would count.
pub(super) fn write_revocation(revocation: &Revocation) -> (String, u64, u64) {
    let Revocation { app, tokens, until } = revocation;
    let app = app.as_str();
    match tokens {
        Revoked::User(user, before) => (format!("u:{app}:{user}"), *before, *until),
        Revoked::Token(id) => (format!("t:{app}:{:032x}", id.to_bits()), 0, *until),
    }
}

/// A revocation from what [`write_revocation`] wrote, `times` with a blank between them.
pub(super) fn revocation(which: &str, times: &str) -> Option<Revocation> {
    let (before, until) = times.split_once(' ')?;
    let (kind, rest) = which.split_once(':')?;
    let (app, whose) = rest.split_once(':')?;
    let tokens = match kind {
        "u" => Revoked::User(whose.parse().ok()?, before.parse().ok()?),
        "t" => Revoked::Token(TokenId::from_bits(u128::from_str_radix(whose, 16).ok()?)),
        _ => return None,
    };
    Some(Revocation { app: app.parse().ok()?, tokens, until: until.parse().ok()? })
}

/// An order from what [`write_order`] wrote.
fn order(mut bytes: Bytes) -> Option<Order> {
    if bytes.try_get_u8().ok()? != VERSION {
        return None;
    }
    let (what, whom) = (bytes.try_get_u8().ok()?, bytes.try_get_u8().ok()?);
    let app = take_short(&mut bytes)?.parse().ok()?;
    let target = match whom {
        b'u' => Target::User(user(&mut bytes)?),
        b'c' => Target::Connection(connection(&mut bytes)?),
        _ => return None,
    };
    let deed = match what {
        b'D' => Deed::Disconnect(match bytes.try_get_u8().ok()? {
            b'f' => Dismissal::Forbidden,
            b'r' => Dismissal::TokenRevoked,
            _ => return None,
        }),
        b'S' => Deed::Subscribe(channels(bytes)?),
        b'U' => Deed::Unsubscribe(channels(bytes)?),
        _ => return None,
    };
    Some(Order { app, target, deed })
}

fn channels(mut bytes: Bytes) -> Option<Vec<ChannelName>> {
    let mut channels = Vec::new();
    while !bytes.is_empty() {
        channels.push(take_short(&mut bytes)?.parse().ok()?);
    }
    Some(channels)
}

/// `Some(None)` where nothing is said, `None` where what is said cannot be read.
fn optional<T>(is_there: bool, read: impl FnOnce() -> Option<T>) -> Option<Option<T>> {
    match is_there {
        true => read().map(Some),
        false => Some(None),
    }
}

fn short(text: &str, out: &mut Vec<u8>) {
    // Names and user ids have at most 255 bytes.
    out.extend((text.len() as u16).to_be_bytes());
    out.extend(text.as_bytes());
}

fn take_short(bytes: &mut Bytes) -> Option<String> {
    let length = usize::from(bytes.try_get_u16().ok()?);
    String::from_utf8(take(bytes, length)?.into()).ok()
}

fn take(bytes: &mut Bytes, count: usize) -> Option<Bytes> {
    (count <= bytes.len()).then(|| bytes.split_to(count))
}

fn connection(bytes: &mut Bytes) -> Option<ConnectionId> {
    bytes.try_get_u128().ok().map(ConnectionId::from_bits)
}

fn user(bytes: &mut Bytes) -> Option<UserId> {
    take_short(bytes)?.parse().ok()
}

fn until_colon(bytes: &mut Bytes) -> Option<Bytes> {
    let colon = bytes.iter().take(32).position(|byte| *byte == b':')?;
    let text = bytes.split_to(colon);
    bytes.advance(1);
    Some(text)
}

#[cfg(test)]
mod tests {
    use proptest::{option, prelude::*};

    use super::*;

    fn channel() -> Channel {
        Channel::new(&"app".parse().unwrap(), &"room:1".parse().unwrap())
    }

    prop_compose! {
        fn submissions()(
            (id, time) in any::<(u128, u64)>(),
            exclude in option::of(any::<u128>()),
            from in option::of((option::of("[a-z]{1,40}"), option::of(any::<u128>()))),
            name in option::of("\\PC{0,200}"),
            tags in any::<bool>(),
            data in "\\PC{0,100}",
        ) -> Submission {
            let user = |user: String| user.parse().unwrap();
            let publisher = |(name, connection): (Option<String>, Option<u128>)| Publisher {
                user: name.map(user),
                connection: connection.map(ConnectionId::from_bits),
            };
            Submission {
                channel: channel(),
                event: Event {
                    name: name.map(String::into_boxed_str),
                    data: Payload::from_json(&format!("\"{data}\"")),
                    tags: tags.then(|| Tags::from_json("{\"a\":\"é\"}")),
                },
                id: PublicationId::from_bits(id),
                time: UnixMillis(time),
                from: from.map(publisher),
                exclude: exclude.map(ConnectionId::from_bits),
                key: None,
                retention: None,
            }
        }
    }

    proptest! {
        #[test]
        fn a_publication_survives_its_way(submission in submissions(), offset: u64) {
            let position = Position { epoch: crate::domain::Epoch::from_bits(7), offset: Offset(offset) };
            let Submission { channel, event, id, time, from, exclude, .. } = submission.clone();
            let expected = Publication { id, channel: channel.clone(), event, time, position: None, from, exclude };
            let message = Message::read(&channel, passing(&submission).into());
            prop_assert_eq!(message, Some(Message::Publication(expected.clone())));
            let mut relayed = format!("P{}:{}:", position.epoch, position.offset).into_bytes();
            relayed.extend(body(&submission));
            let expected = Publication { position: Some(position), ..expected };
            prop_assert_eq!(Message::read(&channel, relayed.into()), Some(Message::Publication(expected)));
        }

        #[test]
        fn an_order_survives_its_way_and_half_of_it_is_none(
            is_user: bool,
            deed in 0..4,
            names in prop::collection::vec("[a-z]{1,9}:[a-z]{1,9}", 0..4),
            cut in 0usize..60,
        ) {
            let target = match is_user {
                true => Target::User("ann".parse().unwrap()),
                false => Target::Connection(ConnectionId::from_bits(7)),
            };
            let channels: Vec<ChannelName> = names.iter().map(|name| name.parse().unwrap()).collect();
            let deed = match deed {
                0 => Deed::Disconnect(Dismissal::Forbidden),
                1 => Deed::Disconnect(Dismissal::TokenRevoked),
                2 => Deed::Subscribe(channels),
                _ => Deed::Unsubscribe(channels),
            };
            let order = Order { app: "app".parse().unwrap(), target, deed };
            let written = write_order(&order);
            prop_assert_eq!(told(written.clone().into()), Some(Told::Order(order.clone())));
            let cut = cut.min(written.len() - 1);
            prop_assert_ne!(told(written[..cut].to_vec().into()), Some(Told::Order(order)));
        }

        #[test]
        fn a_revocation_survives_its_way(user in "[a-z: ]{1,20}", id: u128, before: u64, until: u64, is_user: bool) {
            let tokens = match is_user {
                true => Revoked::User(user.parse().unwrap(), before),
                false => Revoked::Token(TokenId::from_bits(id)),
            };
            let revocation = Revocation { app: "app".parse().unwrap(), tokens, until };
            let (which, before, until) = write_revocation(&revocation);
            let entry = format!("V{before} {until} {which}");
            prop_assert_eq!(told(entry.into()), Some(Told::Revoked(revocation)));
            let _ = told(format!("V{which}").into());
        }

        #[test]
        fn anything_else_is_nothing(bytes: Vec<u8>, cut in 0usize..60) {
            let _ = told(bytes.clone().into());
            let _ = Message::read(&channel(), bytes.into());
            let member = Member {
                connection: ConnectionId::from_bits(1),
                user: Some("ann".parse().unwrap()),
                info: Some(Payload::from_json("{}")),
            };
            let written = write_member(&member);
            prop_assert_eq!(self::member(written.clone().into()), Some(member));
            if cut < written.len() {
                prop_assert!(self::member(written[..cut].to_vec().into()).is_none_or(|read| read.info.is_none() || cut == written.len() - 1));
            }
        }
    }
}
