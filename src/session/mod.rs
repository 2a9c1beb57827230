//! One connection's conversation: a frame came, a command is done, a token ended, the end.
//!
//! A session runs on its connection's shard and does one thing after the other, so a client's commands are done in the
//! order in which it sent them. It knows its codec and nothing of sockets: the transport brings frames and ends. Start at
//! [`Session::open`], then [`Session::request`].

mod commands;
mod state;
mod unasked;

use std::{
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use tracing::{debug, info};

use self::state::State;
use crate::{
    domain::{
        Actions, ChannelName, Command, CommandId, DisconnectReason, ErrorCode, Identity, Push, Refusal, Reply, Request,
        Subscribe, Welcome,
    },
    gateway::App,
    hub::{Connection, End, Wake},
    node::{Caller, CallerKind, Node},
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
                    return match error.refusal().code {
                        ErrorCode::TokenExpired => self.disconnect(DisconnectReason::TokenExpired),
                        ErrorCode::TokenRevoked => self.disconnect(DisconnectReason::TokenRevoked),
                        // The keys cannot be had just now; the token may be good.
                        ErrorCode::Unavailable | ErrorCode::Timeout => self.disconnect(DisconnectReason::Internal),
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

    /// The application's servers, where they ask for something on this connection's behalf.
    fn server_for_client(&self) -> Caller<'_> {
        Caller { app: &self.app.id, kind: CallerKind::ServerFor { identity: self.state.identity.as_deref() } }
    }

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
