//! What a command does. The only place where hub, broker and gateway meet.
//!
//! A session, an HTTP handler or the admin page says who asks (a [`Caller`]) and what; the node checks, acts and answers.
//! The hot path begins in [`Node::publish`] (`publish.rs`) and ends in [`deliver::Deliver`].

mod control;
mod deliver;
mod history;
mod interest;
mod order;
mod presence;
mod publish;
mod recover;
mod subscribe;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

pub use self::{
    control::{ChannelStats, ConnectionInfo, NodeInfo},
    deliver::Deliver,
    recover::Lost,
    subscribe::{Begun, Missed},
};
use crate::{
    broker::{Broker, BrokerError, KeyScope, Retention},
    config::NamespaceConfig,
    domain::{Action, Actions, AppId, Channel, ChannelName, ConnectionId, ErrorCode, Identity, NodeId, Refusal},
    gateway::{Gateway, access},
    hub::Hub,
    telemetry::Metrics,
};

/// How long a channel that is cached without a history keeps its newest publication.
const CACHE_TTL: Duration = Duration::from_secs(30 * 60);
/// How long a publication waits for this node to have room before it is refused.
const ROOM_DEADLINE: Duration = Duration::from_secs(10);

/// This server process, as commands see it.
pub struct Node {
    id: NodeId,
    hub: Arc<Hub>,
    broker: Arc<dyn Broker>,
    gateway: Arc<Gateway>,
    metrics: Arc<Metrics>,
    max_subscriptions: usize,
    draining: AtomicBool,
    started: Instant,
}

/// Who asks.
#[derive(Clone, Copy)]
pub struct Caller<'a> {
    /// The app in which it acts.
    pub app: &'a AppId,
    /// What it is.
    pub kind: CallerKind<'a>,
}

/// What kind of caller it is, and what is known of it.
#[derive(Clone, Copy)]
pub enum CallerKind<'a> {
    /// One of the application's servers, by API key: it may do everything in its app.
    Server,
    /// The same, for a client: nothing is asked of the client's rights, but it is the client that others see.
    ServerFor {
        /// Who the client is; `None` for an anonymous one.
        identity: Option<&'a Identity>,
    },
    /// A client.
    Client {
        /// Who it is; `None` for an anonymous one.
        identity: Option<&'a Identity>,
        /// Its connection, where it has one.
        connection: Option<ConnectionId>,
        /// What a subscription token allows it in the channel in question.
        granted: Option<Actions>,
    },
}

impl Caller<'_> {
    fn key_scope(&self) -> KeyScope {
        match self.kind {
            CallerKind::Server | CallerKind::ServerFor { .. } => KeyScope::Server,
            CallerKind::Client { identity: Some(identity), .. } => KeyScope::User(identity.user.clone()),
            CallerKind::Client { identity: None, .. } => KeyScope::Anonymous,
        }
    }

    /// What logs and metrics call it.
    fn source(&self) -> &'static str {
        match self.kind {
            CallerKind::Server | CallerKind::ServerFor { .. } => "server",
            CallerKind::Client { .. } => "client",
        }
    }
}

impl Node {
    /// A node of these parts.
    pub fn new(
        id: NodeId,
        hub: Arc<Hub>,
        broker: Arc<dyn Broker>,
        gateway: Arc<Gateway>,
        metrics: Arc<Metrics>,
        max_subscriptions: usize,
    ) -> Arc<Self> {
        let draining = AtomicBool::new(false);
        let started = Instant::now();
        Arc::new(Self { id, hub, broker, gateway, metrics, max_subscriptions, draining, started })
    }

    /// Its id.
    pub fn id(&self) -> &NodeId {
        &self.id
    }

    /// Its connections.
    pub fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// The door.
    pub fn gateway(&self) -> &Arc<Gateway> {
        &self.gateway
    }

    /// Subscriptions that one connection may hold.
    pub fn max_subscriptions(&self) -> usize {
        self.max_subscriptions
    }

    /// The figures.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Notes that the process is ending: nobody new is let in.
    pub fn begin_drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether the process is ending.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Completes once a probe has gone through the broker and come back.
    ///
    /// # Errors
    /// What the broker says, or that it said nothing within 5 s.
    pub async fn probe(&self) -> Result<(), BrokerError> {
        let probe = tokio::time::timeout(Duration::from_secs(5), self.broker.probe()).await;
        probe.unwrap_or(Err(BrokerError::Unanswered))
    }

    fn namespace(&self, channel: &ChannelName) -> Result<Arc<NamespaceConfig>, Refusal> {
        self.gateway.namespace(channel).ok_or_else(|| {
            let message = format!("there is no namespace `{}`", channel.namespace());
            Refusal::new(ErrorCode::UnknownChannel, message).in_channel(channel)
        })
    }

    /// Checks that `caller` may do `action`, and returns the channel with its settings.
    fn admit(
        &self,
        caller: &Caller<'_>,
        action: Action,
        channel: &ChannelName,
    ) -> Result<(Channel, Arc<NamespaceConfig>), Refusal> {
        let namespace = self.namespace(channel)?;
        if let CallerKind::Client { identity, granted, .. } = caller.kind {
            access::check(action, channel, &namespace, identity, granted)
                .map_err(|refusal| refusal.in_channel(channel))?;
        }
        Ok((Channel::new(caller.app, channel), namespace))
    }
}

/// A channel's namespace, for an error's text.
fn described(channel: &ChannelName) -> String {
    match channel.namespace() {
        "" => "the namespace of channels without `:`".into(),
        namespace => format!("the namespace `{namespace}`"),
    }
}

/// What a namespace keeps of its channels.
fn retention(namespace: &NamespaceConfig) -> Option<Retention> {
    match namespace.history {
        Some(history) => Some(Retention { size: history.size, ttl: history.ttl.0 }),
        None if namespace.cache => Some(Retention { size: 1, ttl: CACHE_TTL }),
        None => None,
    }
}

/// A broker's failure as a command's answer.
fn broker_refusal(error: BrokerError, channel: &ChannelName) -> Refusal {
    refusal(error).in_channel(channel)
}

/// The same, where no channel is meant.
fn refusal(error: BrokerError) -> Refusal {
    match error {
        BrokerError::Unavailable(why) => Refusal::new(ErrorCode::Unavailable, why).retry_after(Duration::from_secs(1)),
        BrokerError::Unanswered => Refusal::new(
            ErrorCode::Timeout,
            "the broker did not answer in time; it may have been done, so retry with the same `key`",
        ),
    }
}
