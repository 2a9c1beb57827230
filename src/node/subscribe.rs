//! Subscribing and unsubscribing.

use std::{rc::Rc, sync::Arc};

use super::{Caller, CallerKind, Node, broker_refusal, retention};
use crate::{
    broker::{History, Retention},
    config::NamespaceConfig,
    domain::{
        Action, Channel, ChannelName, ErrorCode, HistoryQuery, Identity, Member, Payload, Position, Publication,
        Refusal, Start, Subscribe, Subscribed,
    },
    gateway::access,
    hub::Connection,
};

/// A subscription that has begun: its pushes are held back until [`Node::go_live`].
pub struct Begun {
    /// What the client is told first.
    pub subscribed: Subscribed,
    /// The channel.
    pub channel: Channel,
    /// What its history keeps.
    pub retention: Option<Retention>,
    /// What the client missed, or its beginning.
    pub missed: Missed,
    /// Whether the connection is a member of the channel's presence now.
    pub is_member: bool,
}

/// A part of a history, oldest first, on its way to a subscriber.
#[derive(Default)]
pub struct Missed {
    /// The publications.
    pub publications: Vec<Arc<Publication>>,
    /// Where the history stood when they were read: it has more if the last of them is before this.
    pub top: Option<Position>,
}

/// How a subscription starts in a history.
#[derive(Default)]
struct Beginning {
    position: Option<Position>,
    recovered: Option<bool>,
    missed: Missed,
}

impl Node {
    /// Begins a subscription. Its pushes are held back; the caller sends the answer, then calls [`Node::go_live`].
    ///
    /// `info` is what others may see of the connection in the channel.
    ///
    /// # Errors
    /// Not allowed, one too many, already there, or the broker's failure; then nothing has changed.
    pub async fn subscribe(
        &self,
        caller: &Caller<'_>,
        connection: &Rc<Connection>,
        subscribe: &Subscribe,
        info: Option<Payload>,
    ) -> Result<Begun, Refusal> {
        let name = &subscribe.channel;
        let (channel, namespace) = self.admit(caller, Action::Subscribe, name)?;
        if subscribe.presence {
            self.check_presence(caller, name, &namespace)?;
        }
        if connection.is_subscribed(&channel) {
            let message = format!("already subscribed to `{name}`");
            return Err(Refusal::new(ErrorCode::AlreadySubscribed, message).in_channel(name));
        }
        if self.max_subscriptions <= connection.subscriptions() {
            let message = format!("one connection holds at most {} subscriptions", self.max_subscriptions);
            return Err(Refusal::new(ErrorCode::LimitExceeded, message).in_channel(name));
        }
        self.enter(connection, &channel, name, subscribe.presence).await?;
        match self.begin(caller, connection, subscribe, &channel, &namespace, info).await {
            Ok(begun) => Ok(begun),
            Err(refusal) => {
                self.leave(connection, &channel, namespace.presence).await;
                Err(refusal)
            }
        }
    }

    /// Everything that can fail after the hub has the subscription.
    async fn begin(
        &self,
        caller: &Caller<'_>,
        connection: &Rc<Connection>,
        subscribe: &Subscribe,
        channel: &Channel,
        namespace: &NamespaceConfig,
        info: Option<Payload>,
    ) -> Result<Begun, Refusal> {
        let name = &subscribe.channel;
        let retention = retention(namespace);
        let start = match subscribe.start {
            Start::Live if namespace.cache => Start::Last(1),
            start => start,
        };
        let beginning = match retention {
            Some(retention) => self.beginning(channel, name, retention, start).await?,
            None => Beginning { recovered: matches!(start, Start::After(_)).then_some(false), ..Beginning::default() },
        };
        if namespace.presence {
            let member = Member { connection: connection.id(), user: user(caller), info };
            self.broker.join(channel, member).await.map_err(|error| broker_refusal(error, name))?;
        }
        let members = match subscribe.presence {
            true => Some(self.broker.members(channel).await.map_err(|error| broker_refusal(error, name))?),
            false => None,
        };
        let Beginning { position, recovered, missed } = beginning;
        connection.tell_epoch(channel, position.map(|position| position.epoch));
        let subscribed = Subscribed { channel: name.clone(), position, recovered, members };
        Ok(Begun { subscribed, channel: channel.clone(), retention, missed, is_member: namespace.presence })
    }

    /// Where in its history a subscription starts.
    async fn beginning(
        &self,
        channel: &Channel,
        name: &ChannelName,
        retention: Retention,
        start: Start,
    ) -> Result<Beginning, Refusal> {
        let read = async |query| {
            self.broker.history(channel, retention, query).await.map_err(|error| broker_refusal(error, name))
        };
        if let Start::After(Some(position)) = start {
            let query = HistoryQuery { after: Some(position.offset), ..page() };
            let history = read(query).await?;
            if reaches_back_to(&history, position) {
                let missed = history.into();
                return Ok(Beginning { position: Some(position), recovered: Some(true), missed });
            }
        }
        let newest = match start {
            Start::Live => 0,
            Start::Last(newest) => newest,
            Start::After(_) => HistoryQuery::MAX_LIMIT,
        };
        let history = read(HistoryQuery { limit: newest, reverse: true, ..page() }).await?;
        let recovered = matches!(start, Start::After(_)).then_some(false);
        Ok(from_newest(history, recovered))
    }

    /// Starts a subscription anew after its position was lost: what to tell the client, and what to send then.
    pub(super) async fn begin_again(
        &self,
        channel: &Channel,
        name: &ChannelName,
        retention: Option<Retention>,
    ) -> Result<(Subscribed, Missed), Refusal> {
        let Beginning { position, missed, .. } = match retention {
            Some(retention) => self.beginning(channel, name, retention, Start::After(None)).await?,
            None => Beginning::default(),
        };
        Ok((Subscribed { channel: name.clone(), position, recovered: Some(false), members: None }, missed))
    }

    /// Ends a subscription.
    pub async fn leave(&self, connection: &Rc<Connection>, channel: &Channel, is_member: bool) {
        self.exit(connection, channel);
        if is_member {
            self.leave_presence(connection.id(), channel).await;
        }
    }

    /// Whether a subscription would be allowed, and with `presence` the list of members too.
    ///
    /// # Errors
    /// Why not.
    pub fn may_subscribe(&self, caller: &Caller<'_>, name: &ChannelName, presence: bool) -> Result<(), Refusal> {
        let (_, namespace) = self.admit(caller, Action::Subscribe, name)?;
        match presence {
            true => self.check_presence(caller, name, &namespace),
            false => Ok(()),
        }
    }

    /// Whether a subscription may go on after the identity, or what its token granted, has changed.
    ///
    /// # Errors
    /// Why not.
    pub fn may_stay(&self, caller: &Caller<'_>, channel: &ChannelName) -> Result<(), Refusal> {
        let namespace = self.namespace(channel)?;
        match caller.kind {
            CallerKind::Server | CallerKind::ServerFor { .. } => Ok(()),
            CallerKind::Client { identity, granted, .. } => {
                access::check(Action::Subscribe, channel, &namespace, identity, granted)
            }
        }
    }
}

/// Whether nothing is missing between `position` and what the history still has.
pub(super) fn reaches_back_to(history: &History, position: Position) -> bool {
    position.epoch == history.top.epoch && history.trimmed <= position.offset && position.offset <= history.top.offset
}

/// A whole page, oldest first.
pub(super) fn page() -> HistoryQuery {
    HistoryQuery { limit: HistoryQuery::MAX_LIMIT, ..HistoryQuery::default() }
}

impl From<History> for Missed {
    fn from(history: History) -> Self {
        Self { publications: history.publications, top: Some(history.top) }
    }
}

/// A beginning with the newest publications, which come newest first.
fn from_newest(history: History, recovered: Option<bool>) -> Beginning {
    let (top, mut missed) = (history.top, Missed::from(history));
    missed.publications.reverse();
    let offset = match missed.publications.first().and_then(|first| first.position) {
        Some(first) => first.offset.previous(),
        None => top.offset,
    };
    Beginning { position: Some(Position { epoch: top.epoch, offset }), recovered, missed }
}

fn user(caller: &Caller<'_>) -> Option<crate::domain::UserId> {
    match caller.kind {
        CallerKind::Server => None,
        CallerKind::Client { identity, .. } | CallerKind::ServerFor { identity } => {
            identity.map(|identity: &Identity| identity.user.clone())
        }
    }
}
