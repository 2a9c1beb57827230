//! All that passes between a client and us: commands, their replies, and pushes.

use std::{sync::Arc, time::Duration};

use super::{
    Channel, ChannelName, CommandId, ConnectionId, DisconnectReason, Event, IdempotencyKey, Member, NodeId, Offset,
    Position, Publication, PublicationId, Refusal, UserId,
};

/// One command as it came in, with what the client called it; or why it could not be understood.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Comes back in the reply.
    pub id: Option<CommandId>,
    /// What is asked.
    pub command: Result<Command, Refusal>,
}

/// A client's request.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Says who the session is, or renews its token.
    Auth {
        /// A JWT.
        token: Box<str>,
    },
    /// Asks for a channel's publications.
    Subscribe(Subscribe),
    /// Ends that.
    Unsubscribe {
        /// Which channel.
        channel: ChannelName,
    },
    /// Publishes an event.
    Publish(Publish),
    /// Lists a channel's members.
    Presence {
        /// Which channel.
        channel: ChannelName,
    },
    /// Reads a channel's history.
    History {
        /// Which channel.
        channel: ChannelName,
        /// Which part of it.
        query: HistoryQuery,
    },
    /// Asks for a sign of life.
    Ping,
}

/// Where a subscription starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// With what comes next.
    #[default]
    Live,
    /// After this position. `None`: the client named an epoch that never was ours, so its position is lost.
    After(Option<Position>),
    /// With the newest this many.
    Last(usize),
}

/// What a subscription asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Subscribe {
    /// Which channel.
    pub channel: ChannelName,
    /// A token for this channel alone.
    pub token: Option<Box<str>>,
    /// From where on.
    pub start: Start,
    /// Whether members, joins and leaves are wanted.
    pub presence: bool,
}

/// What a publication asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Publish {
    /// To which channel.
    pub channel: ChannelName,
    /// What.
    pub event: Event,
    /// Repeated by a retry, so that it is stored once.
    pub key: Option<IdempotencyKey>,
    /// Whether the publishing connection gets it too.
    pub echo: bool,
}

/// Which part of a history is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryQuery {
    /// At most this many, and never more than [`HistoryQuery::MAX_LIMIT`].
    pub limit: usize,
    /// Only offsets above this one.
    pub after: Option<Offset>,
    /// Only offsets below this one.
    pub before: Option<Offset>,
    /// Newest first.
    pub reverse: bool,
}

impl HistoryQuery {
    /// The most publications that one answer holds.
    pub const MAX_LIMIT: usize = 1000;
    /// How many come if the client names no number.
    pub const DEFAULT_LIMIT: usize = 100;
}

impl Default for HistoryQuery {
    fn default() -> Self {
        Self { limit: Self::DEFAULT_LIMIT, after: None, before: None, reverse: false }
    }
}

/// The one answer to a command.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// The token was taken.
    Authenticated {
        /// Whose it is.
        user: UserId,
        /// When it ends, in seconds since 1970.
        expires: Option<u64>,
    },
    /// The subscription stands; missed publications follow as pushes.
    Subscribed(Subscribed),
    /// The subscription has ended.
    Unsubscribed {
        /// Which channel.
        channel: ChannelName,
    },
    /// The broker has it.
    Published(Published),
    /// Who is in a channel.
    Presence {
        /// Which channel.
        channel: ChannelName,
        /// Its members.
        members: Vec<Member>,
        /// How many distinct users they are.
        users: usize,
    },
    /// A part of a channel's history.
    History(HistoryReply),
    /// The sign of life.
    Pong,
    /// It failed.
    Refused(Refusal),
}

/// How a subscription begins.
#[derive(Clone, Debug, PartialEq)]
pub struct Subscribed {
    /// Which channel.
    pub channel: ChannelName,
    /// The position just before the first publication that follows; `None` where no history is kept.
    pub position: Option<Position>,
    /// Whether nothing is missing since the position that the client named; `None` if it named none.
    pub recovered: Option<bool>,
    /// The members, where they were asked for.
    pub members: Option<Vec<Member>>,
}

/// An accepted publication, as its publisher is told.
#[derive(Clone, Debug, PartialEq)]
pub struct Published {
    /// Which channel.
    pub channel: ChannelName,
    /// The publication's id.
    pub publication: PublicationId,
    /// Its place in history, where that is kept.
    pub position: Option<Position>,
}

/// A part of a channel's history.
#[derive(Clone, Debug, PartialEq)]
pub struct HistoryReply {
    /// Which channel.
    pub channel: ChannelName,
    /// The newest position.
    pub position: Position,
    /// What was asked for.
    pub publications: Vec<Arc<Publication>>,
}

/// Anything sent to a client unasked.
#[derive(Clone, Debug, PartialEq)]
pub enum Push {
    /// The first word to a new connection.
    Welcome(Welcome),
    /// A publication.
    Publication(Arc<Publication>),
    /// Somebody came.
    Join {
        /// Where.
        channel: Channel,
        /// Who.
        member: Member,
    },
    /// Somebody left.
    Leave {
        /// Where.
        channel: Channel,
        /// Who.
        member: Member,
    },
    /// A subscription begins anew, at another position: the server subscribed the client, or lost its position.
    Subscribed(Subscribed),
    /// A subscription ended by the server's will.
    Unsubscribed {
        /// Which channel.
        channel: ChannelName,
        /// Why.
        refusal: Refusal,
    },
    /// The last word before a close.
    Disconnect {
        /// Why.
        reason: DisconnectReason,
        /// How long to wait before connecting again.
        delay: Option<Duration>,
    },
}

/// What a new connection is told.
#[derive(Clone, Debug, PartialEq)]
pub struct Welcome {
    /// Its own id.
    pub connection: ConnectionId,
    /// Its user, if it has one.
    pub user: Option<UserId>,
    /// The node that serves it.
    pub node: NodeId,
    /// The interval between the server's pings.
    pub ping: Duration,
    /// When its token ends, in seconds since 1970.
    pub expires: Option<u64>,
}
