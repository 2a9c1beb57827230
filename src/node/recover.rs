//! From a position to live: missed publications first, then what was held back, then pushes flow.
//!
//! A subscription's pushes are held back from before its history is read until all that was read is sent. What was held
//! and is older than what was sent is dropped, so that nothing falls between and nothing comes twice. All of it goes at
//! the client's own pace: while much waits in its send queue, nothing more is read.

use std::{
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{task::yield_now, time::sleep};

use super::{
    Begun, Node, broker_refusal,
    subscribe::{Missed, page, reaches_back_to},
};
use crate::{
    broker::Retention,
    domain::{Channel, ChannelName, HistoryQuery, Position, Publication, Push, Refusal, Subscribed},
    hub::{Connection, Gone, Outgoing},
};

/// Publications sent from history before others on the shard have their turn.
const TURN: usize = 64;
/// For how long reading is tried again where the broker is away.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often.
const RETRY: Duration = Duration::from_millis(200);

/// Why a subscription could not go live.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Lost {
    /// The connection is ending.
    #[error(transparent)]
    Gone(#[from] Gone),
    /// The broker failed.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// A subscription on its way to live.
struct Return<'a> {
    connection: &'a Rc<Connection>,
    channel: &'a Channel,
    name: &'a ChannelName,
    retention: Option<Retention>,
    /// What has been sent. `None` where no history is kept.
    at: Option<Position>,
    /// How many publications, so that others have their turn between.
    sent: usize,
    /// Whether joins and leaves that the client should have got are lost.
    lost_members: bool,
}

/// What came of sending what was held back.
enum Held {
    /// All of it is sent, and pushes flow.
    Live,
    /// A publication is missing between what was sent and what was held: history must be read again.
    Missing,
    /// All of it is sent, but joins and leaves are lost: before pushes flow the client needs its members anew.
    LostMembers,
}

impl Node {
    /// Sends what a subscription missed and lets its pushes through.
    ///
    /// # Errors
    /// [`Lost`]: the subscription did not go live and must be ended.
    pub async fn go_live(&self, connection: &Rc<Connection>, begun: Begun) -> Result<(), Lost> {
        let Begun { subscribed, channel, retention, missed, .. } = begun;
        let way = Return {
            connection,
            channel: &channel,
            name: &subscribed.channel,
            retention,
            at: subscribed.position,
            sent: 0,
            lost_members: false,
        };
        self.return_to_live(way, missed).await
    }

    /// Brings a subscription that fell behind after `last` back to live.
    ///
    /// # Errors
    /// As [`Node::go_live`].
    pub async fn catch_up(
        &self,
        connection: &Rc<Connection>,
        channel: &Channel,
        name: &ChannelName,
        last: Position,
    ) -> Result<(), Lost> {
        connection.hold(channel);
        let retention = super::retention(&*self.namespace(name)?);
        let mut way = Return { connection, channel, name, retention, at: Some(last), sent: 0, lost_members: false };
        let missed = match retention {
            Some(retention) => self.next_page(&mut way, retention).await?,
            None => Missed::default(),
        };
        self.return_to_live(way, missed).await
    }

    /// Tells a subscriber that its position is lost, sends what is kept and lets its pushes through.
    ///
    /// # Errors
    /// As [`Node::go_live`].
    pub async fn start_again(
        &self,
        connection: &Rc<Connection>,
        channel: &Channel,
        name: &ChannelName,
    ) -> Result<(), Lost> {
        connection.hold(channel);
        let retention = super::retention(&*self.namespace(name)?);
        let mut way = Return { connection, channel, name, retention, at: None, sent: 0, lost_members: false };
        let missed = self.announce_gap(&mut way).await?;
        self.return_to_live(way, missed).await
    }

    async fn return_to_live(&self, mut way: Return<'_>, mut missed: Missed) -> Result<(), Lost> {
        let Some(retention) = way.retention else { return self.release_all(way).await };
        loop {
            for publication in missed.publications {
                way.send(Push::Publication(publication.clone()), &publication).await?;
            }
            // A page ends where it has enough in number or in bytes; history is through when its top is sent.
            let is_through = way.at.map(|at| at.offset) >= missed.top.map(|top| top.offset);
            if is_through && self.release(&mut way).await? {
                return Ok(());
            }
            missed = self.next_page(&mut way, retention).await?;
        }
    }

    /// The next publications after what was sent; or, where they are gone, word of that and the newest ones.
    async fn next_page(&self, way: &mut Return<'_>, retention: Retention) -> Result<Missed, Lost> {
        let Some(at) = way.at else { return self.announce_gap(way).await };
        let query = HistoryQuery { after: Some(at.offset), ..page() };
        let read = async || {
            let history = self.broker.history(way.channel, retention, query).await;
            history.map_err(|error| broker_refusal(error, way.name))
        };
        let history = patiently(way.connection, read).await?;
        match reaches_back_to(&history, at) {
            true => Ok(history.into()),
            false => self.announce_gap(way).await,
        }
    }

    /// Sends what was held back and lets pushes through. False: history must be read again.
    async fn release(&self, way: &mut Return<'_>) -> Result<bool, Lost> {
        loop {
            match way.release_what_follows().await? {
                Held::Live => return Ok(true),
                Held::Missing => return Ok(false),
                Held::LostMembers => self.announce_members(way).await?,
            }
        }
    }

    /// Where no history is kept: what was held goes out, and what did not fit is lost, as promised (at most once).
    async fn release_all(&self, mut way: Return<'_>) -> Result<(), Lost> {
        while !self.release(&mut way).await? {
            way.at = None;
        }
        Ok(())
    }

    /// Tells a subscriber who is in the channel, where it goes on. Joins and leaves since are held and follow; one that the
    /// list already shows changes nothing there.
    async fn announce_members(&self, way: &mut Return<'_>) -> Result<(), Lost> {
        let members = self.broker.members(way.channel).await.map_err(|error| broker_refusal(error, way.name))?;
        way.lost_members = false;
        // Without history, publications may be lost just like the joins.
        let recovered = Some(way.retention.is_some());
        way.wait_for_room().await?;
        way.announce(Subscribed { channel: way.name.clone(), position: way.at, recovered, members: Some(members) });
        Ok(())
    }

    async fn announce_gap(&self, way: &mut Return<'_>) -> Result<Missed, Lost> {
        let again = async || self.begin_again(way.channel, way.name, way.retention).await;
        let (subscribed, missed) = patiently(way.connection, again).await?;
        way.at = subscribed.position;
        way.connection.tell_epoch(way.channel, subscribed.position.map(|position| position.epoch));
        way.announce(subscribed);
        self.metrics.position_lost();
        Ok(missed)
    }
}

/// Tries again what fails for a moment: a subscription that was live is not ended because Redis was just connected to
/// anew. Its client's commands wait meanwhile.
async fn patiently<T>(connection: &Rc<Connection>, attempt: impl AsyncFn() -> Result<T, Refusal>) -> Result<T, Lost> {
    let began = Instant::now();
    loop {
        match attempt().await {
            Err(refusal) if refusal.code.is_temporary() && began.elapsed() < PATIENCE => {
                connection.goes_on()?;
                sleep(RETRY).await;
            }
            result => return Ok(result?),
        }
    }
}

impl Return<'_> {
    fn announce(&self, subscribed: Subscribed) {
        let push = Push::Subscribed(subscribed);
        self.connection.send(self.connection.shard().frame_push(self.connection.format(), &push));
    }

    /// Sends one publication, unless the connection is one that does not get it.
    async fn send(&mut self, push: Push, publication: &Publication) -> Result<(), Gone> {
        self.at = publication.position;
        if publication.exclude == Some(self.connection.id()) {
            return Ok(());
        }
        self.sent += 1;
        if self.sent.is_multiple_of(TURN) {
            yield_now().await;
        }
        self.wait_for_room().await?;
        self.connection.send(self.connection.shard().frame_push(self.connection.format(), &push));
        Ok(())
    }

    /// Waits while more than half of what may wait in the send queue is waiting.
    async fn wait_for_room(&self) -> Result<(), Gone> {
        self.connection.goes_on()?;
        let half = self.connection.shard().limits().send_queue / 2;
        match self.connection.queued_bytes() <= half {
            true => Ok(()),
            false => self.connection.drained_to(half / 2).await,
        }
    }

    /// Sends what was held back until nothing is, then lets pushes through.
    async fn release_what_follows(&mut self) -> Result<Held, Gone> {
        loop {
            let Ok(held) = self.connection.take_held(self.channel) else {
                self.lost_members |= self.connection.watches(self.channel);
                return Ok(Held::Missing);
            };
            if held.is_empty() && self.lost_members {
                return Ok(Held::LostMembers);
            }
            if held.is_empty() {
                self.connection.release(self.channel, self.at);
                return Ok(Held::Live);
            }
            let mut held = held.into_iter();
            while let Some(push) = held.next() {
                if !self.send_held(push).await? {
                    // Publications are read again from history; joins and leaves are nowhere else.
                    let kept = held.filter(|push| push.position().is_none()).collect();
                    self.connection.hold_again(self.channel, kept);
                    return Ok(Held::Missing);
                }
            }
        }
    }

    /// False: a publication is missing before this one.
    async fn send_held(&mut self, push: Arc<Outgoing>) -> Result<bool, Gone> {
        if let (Some(next), Some(at)) = (push.position(), self.at) {
            if next.epoch == at.epoch && next.offset <= at.offset {
                return Ok(true);
            }
            if !at.is_followed_by(&next) {
                return Ok(false);
            }
            self.at = Some(next);
        }
        self.wait_for_room().await?;
        let shard = self.connection.shard();
        self.connection.send(shard.encoded(self.connection.format(), &push));
        Ok(true)
    }
}
