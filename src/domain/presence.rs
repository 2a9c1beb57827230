//! Who is in a channel.

use super::{ConnectionId, Payload, UserId};

/// One connection in a channel's presence. A join or a leave names one of these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The subscribed connection.
    pub connection: ConnectionId,
    /// Its user; `None` for an anonymous one.
    pub user: Option<UserId>,
    /// What its token says about it, for others to see.
    pub info: Option<Payload>,
}

/// A channel's presence in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PresenceStats {
    /// Connections.
    pub members: usize,
    /// Distinct users; an anonymous connection counts as none.
    pub users: usize,
}
