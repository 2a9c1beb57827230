//! One shard's channels: for each, a dense list of subscribers per format.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
};

use foldhash::fast::RandomState;

use super::connection::Connection;
use crate::domain::{Channel, Format, Position};

/// The channels that this shard's connections are subscribed to.
#[derive(Default)]
pub(super) struct Channels {
    by_name: HashMap<Channel, Rc<Local>, RandomState>,
}

/// One channel on one shard.
pub struct Local {
    channel: Channel,
    pub(super) lists: RefCell<[List; Format::COUNT]>,
    /// While a walk is under way, places in the lists must not move.
    walking: Cell<bool>,
}

/// The subscribers of one format, dense but for those that left during a walk.
#[derive(Default)]
pub(super) struct List {
    pub subscribers: Vec<Option<Subscriber>>,
    left: usize,
}

/// One connection's subscription, as the walk sees it.
pub(super) struct Subscriber {
    pub connection: Rc<Connection>,
    /// Pushes are held back, or not sent at all until the connection has caught up.
    pub apart: bool,
    /// It went live a moment ago, and no newer publication has come since: older ones may still be on their way here.
    pub settling: bool,
    /// Then, the lower half of the last offset that it was sent.
    pub sent_to: u32,
    /// Joins and leaves are wanted.
    pub watches: bool,
}

impl Subscriber {
    /// Whether it was sent what is at `position` before it went live. Offsets here are less than 2³¹ apart.
    pub fn was_sent(&self, position: Position) -> bool {
        self.settling && self.sent_to.wrapping_sub(position.offset.0 as u32) < 1 << 31
    }
}

impl Channels {
    pub fn get(&self, channel: &Channel) -> Option<&Rc<Local>> {
        self.by_name.get(channel)
    }

    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Rc<Local>> {
        self.by_name.values()
    }

    /// The channel's entry, and whether it is new.
    pub fn enter(&mut self, channel: &Channel) -> (Rc<Local>, bool) {
        if let Some(local) = self.by_name.get(channel) {
            return (local.clone(), false);
        }
        let local = Rc::new(Local { channel: channel.clone(), lists: Default::default(), walking: Cell::new(false) });
        self.by_name.insert(channel.clone(), local.clone());
        (local, true)
    }

    pub fn remove(&mut self, channel: &Channel) {
        self.by_name.remove(channel);
        if self.by_name.capacity() > 1024 && self.by_name.len() < self.by_name.capacity() / 4 {
            self.by_name.shrink_to_fit();
        }
    }
}

impl Local {
    /// Which channel it is.
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// How many subscribers it has.
    pub fn subscribers(&self) -> usize {
        self.lists.borrow().iter().map(|list| list.subscribers.len() - list.left).sum()
    }

    /// Calls `each` with every subscribed connection.
    pub fn for_each(&self, mut each: impl FnMut(&Rc<Connection>)) {
        for list in self.lists.borrow().iter() {
            list.subscribers.iter().flatten().for_each(|subscriber| each(&subscriber.connection));
        }
    }

    /// Adds a subscriber and returns its place.
    pub(super) fn add(&self, subscriber: Subscriber) -> u32 {
        let list = &mut self.lists.borrow_mut()[subscriber.connection.format() as usize];
        list.subscribers.push(Some(subscriber));
        (list.subscribers.len() - 1) as u32
    }

    /// Takes out the subscriber at `place`; whoever stands last moves there.
    pub(super) fn take_out(&self, format: Format, place: u32) {
        let list = &mut self.lists.borrow_mut()[format as usize];
        if self.walking.get() {
            list.subscribers[place as usize] = None;
            list.left += 1;
            return;
        }
        list.subscribers.swap_remove(place as usize);
        if let Some(Some(moved)) = list.subscribers.get(place as usize) {
            moved.connection.moved(&self.channel, place);
        }
        if list.subscribers.len() < list.subscribers.capacity() / 4 {
            let room = list.subscribers.len() * 2;
            list.subscribers.shrink_to(room);
        }
    }

    /// Lets `change` work on the subscriber at `place`.
    pub(super) fn with<T>(&self, format: Format, place: u32, change: impl FnOnce(&mut Subscriber) -> T) -> Option<T> {
        let lists = &mut self.lists.borrow_mut();
        lists[format as usize].subscribers.get_mut(place as usize)?.as_mut().map(change)
    }

    /// Keeps places in the lists from moving until what is returned is dropped.
    pub(super) fn walk(&self) -> Walking<'_> {
        self.walking.set(true);
        Walking(self)
    }

    /// Closes the holes that those left behind who went during the walk.
    fn end_walk(&self) {
        self.walking.set(false);
        for list in self.lists.borrow_mut().iter_mut().filter(|list| list.left != 0) {
            list.left = 0;
            let mut place = 0;
            while place < list.subscribers.len() {
                if list.subscribers[place].is_some() {
                    place += 1;
                    continue;
                }
                list.subscribers.swap_remove(place);
                if let Some(Some(moved)) = list.subscribers.get(place) {
                    moved.connection.moved(&self.channel, place as u32);
                }
            }
        }
    }
}

/// A walk through a channel's lists that is under way.
pub(super) struct Walking<'a>(&'a Local);

impl Drop for Walking<'_> {
    fn drop(&mut self) {
        self.0.end_walk();
    }
}
