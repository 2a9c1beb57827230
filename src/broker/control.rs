//! What the application's servers ask of connections, wherever these are, and which tokens count no more.

use std::time::Duration;

use futures_util::future::BoxFuture;

use super::BrokerError;
use crate::domain::{AppId, ChannelName, ConnectionId, DisconnectReason, Revocation, UserId};

/// For how long an order reaches a node that does not hear anything just now.
pub const ORDERS_KEPT: Duration = Duration::from_secs(10 * 60);

/// What each node is to do with those of its connections that are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// The app in which they are.
    pub app: AppId,
    /// Which of them.
    pub target: Target,
    /// What.
    pub deed: Deed,
}

/// Which connections are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// All of a user.
    User(UserId),
    /// One.
    Connection(ConnectionId),
}

/// What is to be done with a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deed {
    /// End it.
    Disconnect(Dismissal),
    /// Subscribe it to these.
    Subscribe(Vec<ChannelName>),
    /// Unsubscribe it from these.
    Unsubscribe(Vec<ChannelName>),
}

/// Why the application ends a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dismissal {
    /// It is not to come back by itself.
    Forbidden,
    /// It is to come back with another token.
    TokenRevoked,
}

impl From<Dismissal> for DisconnectReason {
    fn from(dismissal: Dismissal) -> Self {
        match dismissal {
            Dismissal::Forbidden => Self::Forbidden,
            Dismissal::TokenRevoked => Self::TokenRevoked,
        }
    }
}

/// Tells every node what the application wants. Part of the broker's contract:
/// - An order reaches every node once, the one that gives it too, as [`Relayed::Order`](super::Relayed::Order), in the
///   order in which they were given.
/// - A node that hears nothing for a while gets it afterwards, with its age, within [`ORDERS_KEPT`].
pub trait Commander: Send + Sync {
    /// Gives an order. Nobody waits until it is done.
    fn order(&self, order: Order) -> BoxFuture<'_, Result<(), BrokerError>>;

    /// Tells every node that tokens are revoked, as [`Relayed::Revoked`](super::Relayed::Revoked), and remembers it until
    /// none of them would count any more.
    fn revoke(&self, revocation: Revocation) -> BoxFuture<'_, Result<(), BrokerError>>;

    /// Tells this node of every revocation that is remembered: before it lets anybody in. It is told anew, by itself,
    /// whenever it may have missed some.
    fn load_revocations(&self) -> BoxFuture<'_, Result<(), BrokerError>>;
}
