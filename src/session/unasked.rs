//! What happens without the client's asking: the application's wishes, a token's end, catching up.

use std::time::Duration;

use tracing::debug;

use super::{Flow, Session, state::Held};
use crate::{
    domain::{ChannelName, DisconnectReason, ErrorCode, Push, Refusal, Start, Subscribe},
    hub::{Control, until},
    node::Lost,
};

impl Session {
    pub(super) async fn control(&mut self, control: Control) -> Flow {
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
        if let Some(held) = self.state.held_mut(&name) {
            // From here on it is theirs: it does not end with the client's right or token.
            (held.by_server, held.expires) = (true, None);
            return Ok(());
        }
        let subscribe = Subscribe { channel: name.clone(), token: None, start: Start::Live, presence: false };
        let info = self.state.identity.as_ref().and_then(|identity| identity.info.clone());
        match self.node.subscribe(&self.server_for_client(), &self.connection, &subscribe, info).await {
            Err(refusal) => {
                debug!(connection = %self.connection.id(), %refusal, "could not subscribe for the application");
                Ok(())
            }
            Ok(begun) => {
                let (channel, is_member) = (begun.channel.clone(), begun.is_member);
                let (granted, expires) = (None, None);
                let held = Held { name: name.clone(), channel, by_server: true, granted, expires, is_member };
                self.state.subscriptions.push(held);
                self.push(&Push::Subscribed(begun.subscribed.clone()));
                let lived = self.node.go_live(&self.connection, begun).await;
                self.unless_lost(&name, lived).await
            }
        }
    }

    pub(super) async fn catch_up(&mut self) -> Flow {
        for (channel, last) in self.connection.behind() {
            let held = self.state.subscriptions.iter().find(|held| held.channel == channel);
            let Some(name) = held.map(|held| held.name.clone()) else { continue };
            let lived = self.node.catch_up(&self.connection, &channel, &name, last).await;
            self.unless_lost(&name, lived).await?;
        }
        Ok(())
    }

    pub(super) async fn token_ended(&mut self) -> Flow {
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

    pub(super) async fn drop_what_is_not_allowed_any_more(&mut self) {
        let refused = |held: &Held| {
            let caller = if held.by_server { self.server_for_client() } else { self.caller(held.granted) };
            let refusal = self.node.may_stay(&caller, &held.name).err()?;
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
    pub(super) async fn let_go(&mut self, name: &ChannelName) -> bool {
        let Some(at) = self.state.subscriptions.iter().position(|held| held.name == *name) else { return false };
        let held = self.state.subscriptions.swap_remove(at);
        self.node.leave(&self.connection, &held.channel, held.is_member).await;
        true
    }

    /// Ends a subscription that could not go live.
    pub(super) async fn unless_lost(&mut self, name: &ChannelName, lived: Result<(), Lost>) -> Flow {
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

    pub(super) fn set_alarm(&self) {
        if let Some(end) = self.state.next_end() {
            self.connection.wake_after(end.max(Duration::from_millis(1)));
        }
    }
}
