//! Who is in a channel.

use std::collections::HashSet;

use super::{Caller, CallerKind, Node, broker_refusal, described};
use crate::{
    config::NamespaceConfig,
    domain::{Action, Channel, ChannelName, ConnectionId, ErrorCode, Member, Refusal},
    gateway::access,
};

impl Node {
    /// A channel's members, and how many distinct users they are.
    ///
    /// # Errors
    /// Not allowed, presence is off there, or the broker's failure.
    pub async fn members(&self, caller: &Caller<'_>, name: &ChannelName) -> Result<(Vec<Member>, usize), Refusal> {
        let (channel, namespace) = self.admit(caller, Action::Presence, name)?;
        self.check_presence(caller, name, &namespace)?;
        let members = self.broker.members(&channel).await.map_err(|error| broker_refusal(error, name))?;
        let users: HashSet<_> = members.iter().filter_map(|member| member.user.as_ref()).collect();
        let users = users.len();
        Ok((members, users))
    }

    /// Whether `caller` may see who is in a channel.
    pub(super) fn check_presence(
        &self,
        caller: &Caller<'_>,
        name: &ChannelName,
        namespace: &NamespaceConfig,
    ) -> Result<(), Refusal> {
        if let CallerKind::Client { identity, granted, .. } = caller.kind {
            access::check(Action::Presence, name, namespace, identity, granted)
                .map_err(|refusal| refusal.in_channel(name))?;
        }
        if !namespace.presence {
            let message = format!("{} keeps no presence", described(name));
            return Err(Refusal::new(ErrorCode::PresenceDisabled, message).in_channel(name));
        }
        Ok(())
    }

    /// Takes a connection out of a channel's presence.
    pub(super) async fn leave_presence(&self, connection: ConnectionId, channel: &Channel) {
        if let Err(error) = self.broker.leave(channel, connection).await {
            tracing::warn!(%error, channel = channel.key(), "a member could not be taken out");
        }
    }
}
