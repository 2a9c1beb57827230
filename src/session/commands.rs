//! What the client asks for, a function for each kind of command that needs one.

use std::{sync::Arc, time::Instant};

use tracing::debug;

use super::{Failure, Flow, Session, state::Held};
use crate::{
    domain::{
        Actions, ChannelName, CommandId, DisconnectReason, ErrorCode, HistoryQuery, Identity, Payload, Publish,
        Refusal, Reply, Subscribe,
    },
    hub::Control,
};

impl Session {
    pub(super) async fn authenticate(&mut self, token: &str) -> Result<Reply, Failure> {
        let identity = match self.app.authenticate(token).await {
            Ok(identity) => identity,
            Err(error) => {
                debug!(connection = %self.connection.id(), %error, "token refused");
                let refusal = error.refusal();
                let too_often = !error.is_over() && !refusal.code.is_temporary() && self.state.refused_token().is_err();
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

    pub(super) fn identify(&mut self, identity: Identity) {
        let identity = Arc::new(identity);
        if self.node.gateway().is_revoked(&self.app.id, &identity) {
            // Since it was checked.
            self.connection.ask(Control::Disconnect(DisconnectReason::TokenRevoked, None));
        }
        self.connection.identify(identity.clone());
        self.state.identity = Some(identity);
        self.set_alarm();
    }

    pub(super) async fn publish(&mut self, id: Option<&CommandId>, publish: Publish) -> Flow {
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

    pub(super) async fn subscribe(&mut self, id: Option<&CommandId>, subscribe: Subscribe) -> Flow {
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
        let held = Held { name: name.clone(), channel, by_server: false, granted, expires, is_member };
        self.state.subscriptions.push(held);
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
                let too_often = !error.is_over() && !refusal.code.is_temporary() && self.state.refused_token().is_err();
                Err(match too_often {
                    true => Failure::Over(refusal, DisconnectReason::Unauthorized),
                    false => Failure::Refused(refusal),
                })
            }
        }
    }

    pub(super) async fn unsubscribe(&mut self, name: ChannelName) -> Result<Reply, Failure> {
        match self.let_go(&name).await {
            true => Ok(Reply::Unsubscribed { channel: name }),
            false => {
                let message = format!("not subscribed to `{name}`");
                Err(Failure::Refused(Refusal::new(ErrorCode::NotSubscribed, message).in_channel(&name)))
            }
        }
    }

    pub(super) async fn presence(&mut self, channel: ChannelName) -> Result<Reply, Failure> {
        let granted = self.state.granted(&channel);
        let (members, users) = self.node.members(&self.caller(granted), &channel).await.map_err(Failure::Refused)?;
        Ok(Reply::Presence { channel, members, users })
    }

    pub(super) async fn history(&mut self, channel: ChannelName, query: HistoryQuery) -> Result<Reply, Failure> {
        let granted = self.state.granted(&channel);
        let history = self.node.history(&self.caller(granted), &channel, query).await;
        history.map(Reply::History).map_err(Failure::Refused)
    }
}
