//! Which channels this node listens to: from its first subscriber there to its last. The broker counts them, so that
//! each waits until the channel is truly heard.

use std::rc::Rc;

use super::{Node, broker_refusal};
use crate::{
    domain::{Channel, ChannelName, Refusal},
    hub::Connection,
};

impl Node {
    /// Subscribes a connection in the hub, its pushes held back, and has the broker relay the channel to this node.
    pub(super) async fn enter(
        &self,
        connection: &Rc<Connection>,
        channel: &Channel,
        name: &ChannelName,
        watches: bool,
    ) -> Result<(), Refusal> {
        connection.subscribe(channel, watches);
        let listening = self.broker.listen(channel).await;
        listening.map_err(|error| {
            connection.unsubscribe(channel);
            broker_refusal(error, name)
        })
    }

    /// Takes a connection out of a channel again.
    pub(super) fn exit(&self, connection: &Rc<Connection>, channel: &Channel) {
        if connection.is_subscribed(channel) {
            connection.unsubscribe(channel);
            self.broker.ignore(channel);
        }
    }
}
