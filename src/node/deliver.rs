//! What the broker relayed, to the hub.

use std::{
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use futures_util::future::{BoxFuture, FutureExt};

use super::{ROOM_DEADLINE, order};
use crate::{
    broker::{Listener, Relayed},
    domain::{Channel, DisconnectReason, Epoch, Position, Push, Revocation},
    gateway::Gateway,
    hub::{Connection, Control, Hub, Outgoing, Shard},
};

/// The end of the relay on this node: wraps each push once and hands it to the hub.
pub struct Deliver {
    hub: Arc<Hub>,
    gateway: Arc<Gateway>,
    /// The shards whose connections are about to be looked through for revoked tokens.
    looking: Arc<[AtomicBool]>,
}

impl Deliver {
    /// Delivers to the connections of `hub`, and tells `gateway` what tokens are revoked.
    pub fn new(hub: Arc<Hub>, gateway: Arc<Gateway>) -> Arc<Self> {
        let looking = (0..hub.shards()).map(|_| AtomicBool::new(false)).collect();
        Arc::new(Self { hub, gateway, looking })
    }

    /// Ends every connection whose token counts no more. However many are revoked at once, each shard looks once.
    fn revoke(&self, revocation: Revocation) {
        self.gateway.revoke(revocation);
        for shard in 0..self.hub.shards() {
            if self.looking[shard].swap(true, Ordering::AcqRel) {
                continue;
            }
            let (gateway, looking) = (self.gateway.clone(), self.looking.clone());
            self.hub.on_shard(shard, move |own| {
                // Before it looks: what is revoked from here on has it look again.
                looking[shard].swap(false, Ordering::AcqRel);
                for connection in own.connections() {
                    let identity = connection.identity();
                    if identity.is_some_and(|identity| gateway.is_revoked(connection.app(), &identity)) {
                        connection.ask(Control::Disconnect(DisconnectReason::TokenRevoked, None));
                    }
                }
            });
        }
    }

    fn push(&self, channel: Channel, push: Push) {
        if self.hub.is_wanted(&channel) {
            self.hub.fan_out(Outgoing::new(channel, push));
        }
    }

    /// Has every subscriber that stands at `last` read on from history, where it finds what is missing and is told of it.
    fn lost(&self, channel: Channel, last: Position) {
        for shard in 0..self.hub.shards() {
            let channel = channel.clone();
            self.hub.on_shard(shard, move |shard| {
                for connection in subscribers(shard, &channel) {
                    match connection.sent_until(&channel, last) {
                        Some(at) => {
                            connection.hold(&channel);
                            connection.ask(Control::CatchUp(channel.clone(), at));
                        }
                        // It reads history already, perhaps before what is lost was missed.
                        None => connection.read_again(&channel),
                    }
                }
            });
        }
    }

    /// Has every subscriber told that its position is lost. Pushes that come after this one are held back until then.
    fn reset(&self, channel: Channel, epoch: Epoch) {
        for shard in 0..self.hub.shards() {
            let channel = channel.clone();
            self.hub.on_shard(shard, move |shard| {
                for connection in subscribers(shard, &channel) {
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
            Relayed::Lost(channel, last) => self.lost(channel, last),
            Relayed::Revoked(revocation) => self.revoke(revocation),
            Relayed::Order(order, age) => order::carry_out(&self.hub, order, age),
        }
    }

    fn has_room(&self) -> bool {
        self.hub.has_room()
    }

    fn room(&self) -> BoxFuture<'_, ()> {
        // After its time the next publication tries again.
        self.hub.room(ROOM_DEADLINE).map(|room| room.unwrap_or_default()).boxed()
    }
}

fn subscribers(shard: &Shard, channel: &Channel) -> Vec<Rc<Connection>> {
    let mut subscribers = Vec::new();
    if let Some(local) = shard.channel(channel) {
        local.for_each(|connection| subscribers.push(connection.clone()));
    }
    subscribers
}
