//! One connection's conversation: a frame came, a command is done, a token ended, the end.
//!
//! A session runs on its connection's shard and does one thing after the other, so a client's commands are done in the
//! order in which it sent them. It knows its codec and nothing of sockets: the transport brings frames and ends. Start at
//! [`Session::open`], then [`Session::request`].

mod state;

use std::{
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use tracing::{debug, info};

use self::state::{Held, State};
use crate::{
    domain::{
        Actions, ChannelName, Command, CommandId, DisconnectReason, ErrorCode, HistoryQuery, Identity, Payload,
        Publish, Push, Refusal, Reply, Request, Start, Subscribe, Welcome,
    },
    gateway::App,
    hub::{Connection, Control, End, Wake, until},
    node::{Caller, CallerKind, Lost, Node},
    protocol::Codec,
    telemetry::Transport,
};

/// How a conversation ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The client left, or its socket broke; nothing more can be said.
    Gone,
    /// By the server's will: a `disconnect` frame has been sent, a close has to follow.
    Disconnect(DisconnectReason),
}

/// Whether a conversation goes on.
pub type Flow = Result<(), Ending>;

/// One connection's conversation.
pub struct Session {
    node: Arc<Node>,
    app: Arc<App>,
    connection: Rc<Connection>,
    codec: &'static dyn Codec,
    transport: Transport,
    state: State,
}

impl Session {
    /// A session of `connection`; nothing is said yet.
    pub fn new(
        node: Arc<Node>,
        app: Arc<App>,
        connection: Rc<Connection>,
        codec: &'static dyn Codec,
        transport: Transport,
    ) -> Self {
        node.metrics().connection(codec.name(), transport, 1);
        debug!(connection = %connection.id(), protocol = codec.name(), app = %app.id, "session started");
        Self { node, app, connection, codec, transport, state: State::new(Instant::now()) }
    }

    /// The connection.
    pub fn connection(&self) -> &Rc<Connection> {
        &self.connection
    }

    /// The codec.
    pub fn codec(&self) -> &'static dyn Codec {
        self.codec
    }

    /// Checks the token that the connection came with, and says welcome.
    ///
    /// # Errors
    /// The token was refused.
    pub async fn open(&mut self, token: Option<&str>) -> Flow {
        if let Some(token) = token {
            match self.app.authenticate(token).await {
                Ok(identity) => self.identify(identity),
                Err(error) => {
                    debug!(connection = %self.connection.id(), %error, "token refused");
                    self.node.metrics().refusal(error.refusal().code);
                    return match (error.is_expired(), error.refusal().code) {
                        (true, _) => self.disconnect(DisconnectReason::TokenExpired),
                        // The keys cannot be had just now; the token may be good.
                        (_, ErrorCode::Unavailable | ErrorCode::Timeout) => self.disconnect(DisconnectReason::Internal),
                        _ => self.disconnect(DisconnectReason::Unauthorized),
                    };
                }
            }
        }
        self.welcome();
        Ok(())
    }

    /// Says welcome to a connection whose token the transport has had checked already.
    pub fn open_as(&mut self, identity: Option<Identity>) {
        if let Some(identity) = identity {
            self.identify(identity);
        }
        self.welcome();
    }

    fn welcome(&self) {
        let identity = self.state.identity.as_deref();
        self.push(&Push::Welcome(Welcome {
            connection: self.connection.id(),
            user: identity.map(|identity| identity.user.clone()),
            node: self.node.id().clone(),
            ping: self.node.hub().limits().ping,
            expires: identity.and_then(|identity| identity.expires),
        }));
    }

    /// Subscribes a connection that exists for this channel, as an event stream does: no command is counted, and where
    /// it does not succeed the connection ends, so that the client tries again and is told why by its status.
    ///
    /// # Errors
    /// The conversation is over.
    pub async fn listen(&mut self, subscribe: Subscribe) -> Flow {
        let name = subscribe.channel.clone();
        self.subscribe(None, subscribe).await?;
        match self.state.held(&name) {
            Some(_) => Ok(()),
            None => self.disconnect(DisconnectReason::BrokerLost),
        }
    }

    /// Does one command and answers it.
    ///
    /// # Errors
    /// The conversation is over.
    pub async fn request(&mut self, request: Request) -> Flow {
        let Request { id, command } = request;
        let rate = self.node.gateway().frames_per_connection();
        if let Err(wait) = self.state.take_frame(rate, Instant::now()) {
            return self.refuse_rate(id.as_ref(), "frames_per_connection", "too many commands", None, wait);
        }
        let result = match command {
            Err(refusal) => Err(Failure::Refused(refusal)),
            Ok(Command::Ping) => Ok(Reply::Pong),
            Ok(Command::Auth { token }) => self.authenticate(&token).await,
            Ok(Command::Publish(publish)) => return self.publish(id.as_ref(), publish).await,
            Ok(Command::Subscribe(subscribe)) => return self.subscribe(id.as_ref(), subscribe).await,
            Ok(Command::Unsubscribe { channel }) => self.unsubscribe(channel).await,
            Ok(Command::Presence { channel }) => self.presence(channel).await,
            Ok(Command::History { channel, query }) => self.history(channel, query).await,
        };
        self.answer(id.as_ref(), result)
    }

    /// Does what the hub woke the connection for. [`Wake::Readable`] and [`Wake::Overdue`] are the transport's affair.
    ///
    /// # Errors
    /// The conversation is over.
    pub async fn woken(&mut self, wake: Wake) -> Flow {
        match wake {
            Wake::Readable | Wake::Overdue => Ok(()),
            Wake::Alarm => self.token_ended().await,
            Wake::Control => match self.connection.next_control() {
                Some(control) => self.control(control).await,
                None => Ok(()),
            },
            Wake::CaughtUp => self.catch_up().await,
            Wake::End(End::Broken) => Err(Ending::Gone),
            Wake::End(End::Slow) => {
                self.connection.make_room_for_last_word();
                self.disconnect(DisconnectReason::Slow)
            }
            Wake::End(End::Silent) => self.disconnect(DisconnectReason::PingTimeout),
        }
    }

    /// Leaves all channels. To be called once, at the end.
    pub async fn close(mut self, reason: &str) {
        for held in std::mem::take(&mut self.state.subscriptions) {
            self.node.leave(&self.connection, &held.channel, held.is_member).await;
        }
        // What a panic in the middle of a subscription has left.
        for channel in self.connection.channels() {
            self.node.leave(&self.connection, &channel, true).await;
        }
        self.connection.shard().release(&self.connection);
        self.node.metrics().connection(self.codec.name(), self.transport, -1);
        let (frames, bytes) = self.connection.sent();
        info!(
            connection = %self.connection.id(),
            protocol = self.codec.name(),
            transport = self.transport.name(),
            app = %self.app.id,
            user = self.state.identity.as_ref().map(|identity| identity.user.as_str()),
            reason,
            seconds = self.connection.started().elapsed().as_secs(),
            frames_sent = frames,
            bytes_sent = bytes,
            "session ended"
        );
    }

    fn caller(&self, granted: Option<Actions>) -> Caller<'_> {
        Caller {
            app: &self.app.id,
            kind: CallerKind::Client {
                identity: self.state.identity.as_deref(),
                connection: Some(self.connection.id()),
                granted,
            },
        }
    }

    // Commands.

    async fn authenticate(&mut self, token: &str) -> Result<Reply, Failure> {
        let identity = match self.app.authenticate(token).await {
            Ok(identity) => identity,
            Err(error) => {
                debug!(connection = %self.connection.id(), %error, "token refused");
                let refusal = error.refusal();
                let too_often =
                    !error.is_expired() && !refusal.code.is_temporary() && self.state.refused_token().is_err();
                return Err(match too_often {
                    true => Failure::Over(refusal, DisconnectReason::Unauthorized),
                    false => Failure::Refused(refusal),
                });
            }
        };
        if let Some(known) = &self.state.identity
            && known.user != identity.user
        {
            let message = format!("this connection belongs to `{}`, the token to somebody else", known.user);
            return Err(Failure::Refused(Refusal::new(ErrorCode::Forbidden, message)));
        }
        self.state.accepted_token();
        let reply = Reply::Authenticated { user: identity.user.clone(), expires: identity.expires };
        self.identify(identity);
        self.drop_what_is_not_allowed_any_more().await;
        Ok(reply)
    }

    fn identify(&mut self, identity: Identity) {
        let identity = Arc::new(identity);
        self.connection.identify(identity.clone());
        self.state.identity = Some(identity);
        self.set_alarm();
    }

    async fn publish(&mut self, id: Option<&CommandId>, publish: Publish) -> Flow {
        let name = publish.channel.clone();
        let rate = self.node.gateway().namespace(&name).map(|namespace| namespace.publish_rate);
        if let Some(rate) = rate
            && let Err(wait) = self.state.take_publish(name.namespace(), rate, Instant::now())
        {
            return self.refuse_rate(id, "publish_rate", "too many publications", Some(&name), wait);
        }
        let granted = self.state.granted(&name);
        let result = self.node.publish(&self.caller(granted), publish, None).await;
        self.answer(id, result.map(Reply::Published).map_err(Failure::Refused))
    }

    async fn subscribe(&mut self, id: Option<&CommandId>, subscribe: Subscribe) -> Flow {
        let (granted, info, expires) = match self.grant(&subscribe).await {
            Ok(grant) => grant,
            Err(failure) => return self.answer(id, Err(failure)),
        };
        let begun = self.node.subscribe(&self.caller(granted), &self.connection, &subscribe, info).await;
        let begun = match begun {
            Ok(begun) => begun,
            Err(refusal) => return self.answer(id, Err(Failure::Refused(refusal))),
        };
        let (name, channel) = (subscribe.channel, begun.channel.clone());
        let is_member = begun.is_member;
        self.state.subscriptions.push(Held { name: name.clone(), channel, granted, expires, is_member });
        self.set_alarm();
        self.reply(id, &Reply::Subscribed(begun.subscribed.clone()));
        let lived = self.node.go_live(&self.connection, begun).await;
        self.unless_lost(&name, lived).await
    }

    /// What a subscription token allows, says of the connection, and when it ends.
    async fn grant(
        &mut self,
        subscribe: &Subscribe,
    ) -> Result<(Option<Actions>, Option<Payload>, Option<u64>), Failure> {
        let identity = self.state.identity.clone();
        let own_info = || identity.as_ref().and_then(|identity| identity.info.clone());
        let Some(token) = &subscribe.token else { return Ok((None, own_info(), None)) };
        let user = identity.as_ref().map(|identity| &identity.user);
        match self.app.authorize(token, &subscribe.channel, user).await {
            Ok(grant) => {
                self.state.accepted_token();
                Ok((Some(grant.actions), grant.info.or_else(own_info), grant.expires))
            }
            Err(error) => {
                debug!(connection = %self.connection.id(), %error, "subscription token refused");
                let refusal = error.refusal().in_channel(&subscribe.channel);
                let too_often =
                    !error.is_expired() && !refusal.code.is_temporary() && self.state.refused_token().is_err();
                Err(match too_often {
                    true => Failure::Over(refusal, DisconnectReason::Unauthorized),
                    false => Failure::Refused(refusal),
                })
            }
        }
    }

    async fn unsubscribe(&mut self, name: ChannelName) -> Result<Reply, Failure> {
        match self.let_go(&name).await {
            true => Ok(Reply::Unsubscribed { channel: name }),
            false => {
                let message = format!("not subscribed to `{name}`");
                Err(Failure::Refused(Refusal::new(ErrorCode::NotSubscribed, message).in_channel(&name)))
            }
        }
    }

    async fn presence(&mut self, channel: ChannelName) -> Result<Reply, Failure> {
        let granted = self.state.granted(&channel);
        let (members, users) = self.node.members(&self.caller(granted), &channel).await.map_err(Failure::Refused)?;
        Ok(Reply::Presence { channel, members, users })
    }

    async fn history(&mut self, channel: ChannelName, query: HistoryQuery) -> Result<Reply, Failure> {
        let granted = self.state.granted(&channel);
        let history = self.node.history(&self.caller(granted), &channel, query).await;
        history.map(Reply::History).map_err(Failure::Refused)
    }

    // What comes unasked.

    async fn control(&mut self, control: Control) -> Flow {
        match control {
            Control::Disconnect(reason, delay) => self.disconnect_after(reason, delay),
            Control::Subscribe(name) => self.subscribe_by_server(name).await,
            Control::Unsubscribe(name) => {
                let message = "unsubscribed by the application";
                self.drop_subscription(&name, Refusal::new(ErrorCode::Forbidden, message)).await;
                Ok(())
            }
            // It may have found out by itself meanwhile.
            Control::Reset(channel, epoch) if self.connection.told_epoch(&channel) == Some(epoch) => Ok(()),
            Control::Reset(channel, _) => {
                let held = self.state.subscriptions.iter().find(|held| held.channel == channel);
                let Some(name) = held.map(|held| held.name.clone()) else { return Ok(()) };
                let lived = self.node.start_again(&self.connection, &channel, &name).await;
                self.unless_lost(&name, lived).await
            }
        }
    }

    async fn subscribe_by_server(&mut self, name: ChannelName) -> Flow {
        if self.state.held(&name).is_some() {
            return Ok(());
        }
        let subscribe = Subscribe { channel: name.clone(), token: None, start: Start::Live, presence: false };
        let info = self.state.identity.as_ref().and_then(|identity| identity.info.clone());
        let identity = self.state.identity.clone();
        let granted = Some(Actions::default().with(crate::domain::Action::Subscribe));
        let caller = Caller {
            app: &self.app.id,
            kind: CallerKind::Client { identity: identity.as_deref(), connection: Some(self.connection.id()), granted },
        };
        match self.node.subscribe(&caller, &self.connection, &subscribe, info).await {
            Err(refusal) => {
                debug!(connection = %self.connection.id(), %refusal, "could not subscribe for the application");
                Ok(())
            }
            Ok(begun) => {
                let (channel, is_member) = (begun.channel.clone(), begun.is_member);
                self.state.subscriptions.push(Held { name: name.clone(), channel, granted, expires: None, is_member });
                self.push(&Push::Subscribed(begun.subscribed.clone()));
                let lived = self.node.go_live(&self.connection, begun).await;
                self.unless_lost(&name, lived).await
            }
        }
    }

    async fn catch_up(&mut self) -> Flow {
        for (channel, last) in self.connection.behind() {
            let held = self.state.subscriptions.iter().find(|held| held.channel == channel);
            let Some(name) = held.map(|held| held.name.clone()) else { continue };
            let lived = self.node.catch_up(&self.connection, &channel, &name, last).await;
            self.unless_lost(&name, lived).await?;
        }
        Ok(())
    }

    async fn token_ended(&mut self) -> Flow {
        if self.connection.token_left().is_some_and(|left| left.is_zero()) {
            return self.disconnect(DisconnectReason::TokenExpired);
        }
        let ended = |expires: u64| until(expires).is_zero();
        let over = self.state.subscriptions.iter().filter(|held| held.expires.is_some_and(ended));
        let over: Vec<_> = over.map(|held| held.name.clone()).collect();
        for name in over {
            let message = "the subscription's token has expired";
            self.drop_subscription(&name, Refusal::new(ErrorCode::TokenExpired, message)).await;
        }
        self.set_alarm();
        Ok(())
    }

    async fn drop_what_is_not_allowed_any_more(&mut self) {
        let refused = |held: &Held| {
            let refusal = self.node.may_stay(&self.caller(held.granted), &held.name).err()?;
            Some((held.name.clone(), refusal))
        };
        let refused: Vec<_> = self.state.subscriptions.iter().filter_map(refused).collect();
        for (name, refusal) in refused {
            self.drop_subscription(&name, refusal).await;
        }
    }

    async fn drop_subscription(&mut self, name: &ChannelName, refusal: Refusal) {
        if self.let_go(name).await {
            self.push(&Push::Unsubscribed { channel: name.clone(), refusal });
        }
    }

    /// False: there was no such subscription.
    async fn let_go(&mut self, name: &ChannelName) -> bool {
        let Some(at) = self.state.subscriptions.iter().position(|held| held.name == *name) else { return false };
        let held = self.state.subscriptions.swap_remove(at);
        self.node.leave(&self.connection, &held.channel, held.is_member).await;
        true
    }

    /// Ends a subscription that could not go live.
    async fn unless_lost(&mut self, name: &ChannelName, lived: Result<(), Lost>) -> Flow {
        match lived {
            Ok(()) => Ok(()),
            // The connection's next wake says why.
            Err(Lost::Gone(_)) => Ok(()),
            Err(Lost::Refused(refusal)) => {
                self.drop_subscription(name, refusal).await;
                Ok(())
            }
        }
    }

    fn set_alarm(&self) {
        if let Some(end) = self.state.next_end() {
            self.connection.wake_after(end.max(Duration::from_millis(1)));
        }
    }

    // Answers.

    fn answer(&mut self, id: Option<&CommandId>, result: Result<Reply, Failure>) -> Flow {
        match result {
            Ok(reply) => self.reply(id, &reply),
            Err(Failure::Refused(refusal)) => self.refuse(id, refusal),
            Err(Failure::Over(refusal, reason)) => {
                self.refuse(id, refusal);
                return self.disconnect(reason);
            }
        }
        Ok(())
    }

    fn refuse(&self, id: Option<&CommandId>, refusal: Refusal) {
        self.node.metrics().refusal(refusal.code);
        self.reply(id, &Reply::Refused(refusal));
    }

    fn refuse_rate(
        &mut self,
        id: Option<&CommandId>,
        limit: &'static str,
        message: &str,
        channel: Option<&ChannelName>,
        wait: Duration,
    ) -> Flow {
        self.node.metrics().rate_limited(limit);
        let mut refusal = Refusal::new(ErrorCode::RateLimited, message).retry_after(wait);
        refusal.channel = channel.cloned();
        self.refuse(id, refusal);
        match self.state.broke_a_limit(Instant::now()) {
            Ok(()) => Ok(()),
            Err(_) => self.disconnect(DisconnectReason::Limits),
        }
    }

    fn reply(&self, id: Option<&CommandId>, reply: &Reply) {
        let encode = |out: &mut Vec<u8>| self.codec.encode_reply(id, reply, out);
        let frame = self.connection.shard().frame(self.connection.format(), encode);
        if !frame.is_empty() {
            self.connection.send(frame);
        }
    }

    fn push(&self, push: &Push) {
        let frame = self.connection.shard().frame_push(self.connection.format(), push);
        if !frame.is_empty() {
            self.connection.send(frame);
        }
    }

    fn disconnect(&self, reason: DisconnectReason) -> Flow {
        self.disconnect_after(reason, None)
    }

    fn disconnect_after(&self, reason: DisconnectReason, delay: Option<Duration>) -> Flow {
        let frame = self.connection.shard().frame_push(self.connection.format(), &Push::Disconnect { reason, delay });
        self.connection.send_last(frame);
        Err(Ending::Disconnect(reason))
    }
}

/// Why a command failed.
enum Failure {
    /// It is refused, and the conversation goes on.
    Refused(Refusal),
    /// It is refused, and this was once too often.
    Over(Refusal, DisconnectReason),
}
