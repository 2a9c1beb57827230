//! Who is in which channel, over all nodes.

use futures_util::future::BoxFuture;

use super::BrokerError;
use crate::domain::{Channel, ConnectionId, Member};

/// Keeps each channel's members. Part of the broker's contract:
/// - A member is one connection. Joining twice changes its entry and is no second join.
/// - Each join and each leave is relayed once, to every node that listens, in the order in which they happened.
pub trait PresenceStore: Send + Sync {
    /// Enters a connection.
    fn join<'a>(&'a self, channel: &'a Channel, member: Member) -> BoxFuture<'a, Result<(), BrokerError>>;

    /// Takes a connection out; nothing happens if it is not in.
    fn leave<'a>(&'a self, channel: &'a Channel, connection: ConnectionId) -> BoxFuture<'a, Result<(), BrokerError>>;

    /// All members, in the order in which they came.
    fn members<'a>(&'a self, channel: &'a Channel) -> BoxFuture<'a, Result<Vec<Member>, BrokerError>>;
}
