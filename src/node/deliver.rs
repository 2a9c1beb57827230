//! What the broker relayed, to the hub.

use std::sync::Arc;

use crate::{
    broker::{Listener, Relayed},
    domain::{Channel, Epoch, Push},
    hub::{Control, Hub, Outgoing},
};

/// The end of the relay on this node: wraps each push once and hands it to the hub.
pub struct Deliver {
    hub: Arc<Hub>,
}

impl Deliver {
    /// Delivers to the connections of `hub`.
    pub fn new(hub: Arc<Hub>) -> Arc<Self> {
        Arc::new(Self { hub })
    }

    fn push(&self, channel: Channel, push: Push) {
        if self.hub.is_wanted(&channel) {
            self.hub.fan_out(Outgoing::new(channel, push));
        }
    }

    /// Has every subscriber told that its position is lost. Pushes that come after this one are held back until then.
    fn reset(&self, channel: Channel, epoch: Epoch) {
        for shard in 0..self.hub.shards() {
            let channel = channel.clone();
            self.hub.on_shard(shard, move |shard| {
                let Some(local) = shard.channel(&channel) else { return };
                let mut subscribers = Vec::new();
                local.for_each(|connection| subscribers.push(connection.clone()));
                for connection in subscribers {
                    // Who read the history after it was reset knows already.
                    if connection.told_epoch(&channel) != Some(epoch) {
                        connection.hold(&channel);
                        connection.ask(Control::Reset(channel.clone(), epoch));
                    }
                }
            });
        }
    }
}

impl Listener for Deliver {
    fn relayed(&self, relayed: Relayed) {
        match relayed {
            Relayed::Publication(publication) => self.push(publication.channel.clone(), Push::Publication(publication)),
            Relayed::Join(channel, member) => self.push(channel.clone(), Push::Join { channel, member }),
            Relayed::Leave(channel, member) => self.push(channel.clone(), Push::Leave { channel, member }),
            Relayed::Reset(channel, top) => self.reset(channel, top.epoch),
        }
    }
}
