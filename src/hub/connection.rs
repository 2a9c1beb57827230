//! A slot: one connection's socket, format, send queue and subscriptions.
//!
//! Everything here happens on the connection's own shard, so there are cells and no locks. What goes out stands in
//! [`sending`], what comes in and what wakes the connection's task in [`hearing`].

mod hearing;
mod sending;

use std::{
    cell::{Cell, RefCell},
    rc::{Rc, Weak},
    sync::Arc,
    task::Waker,
    time::{Duration, Instant, SystemTime},
};

use tokio::net::TcpStream;

pub(super) use self::{hearing::Pong, sending::Written};
pub use self::{
    hearing::{Control, End, Wake},
    sending::Gone,
};
use super::{send_queue::SendQueue, shard::Shard, subscription::Subscription};
use crate::domain::{AppId, ConnectionId, Format, Identity, UserId};

/// One connection's slot. At most 304 bytes: with the two counts of its `Rc` that fills the allocator's class of 320.
pub struct Connection {
    id: ConnectionId,
    app: AppId,
    shard: Weak<Shard>,
    slot: Cell<u32>,
    format: Format,
    socket: Socket,
    queue: RefCell<SendQueue>,
    pub(super) subscriptions: RefCell<Vec<Subscription>>,
    identity: RefCell<Option<Arc<Identity>>>,
    task: RefCell<Option<Waker>>,
    control: RefCell<Vec<Control>>,
    flags: Cell<u16>,
    pub(super) check_at: Cell<u32>,
    /// 0: none is set.
    pub(super) alarm_at: Cell<u32>,
    /// Means something while `TIMED` is set.
    pub(super) message_at: Cell<u32>,
    started: Instant,
    frames_sent: Cell<u64>,
    bytes_sent: Cell<u64>,
}

/// Where frames go.
pub enum Socket {
    /// A bare socket, written to by the shard.
    Tcp(TcpStream),
    /// Something with a writer task of its own (TLS, event streams), which takes frames from the queue.
    Remote(Writer),
}

/// Who writes for a connection that has no bare socket.
#[derive(Default)]
pub struct Writer(RefCell<Option<Waker>>);

impl Socket {
    /// Frames are taken with [`Connection::next_frame`].
    pub fn remote() -> Self {
        Self::Remote(Writer::default())
    }
}

const CORKED: u16 = 1;
const FLUSHING: u16 = 1 << 1;
const HEARD: u16 = 1 << 2;
const PINGED: u16 = 1 << 3;
const BEHIND: u16 = 1 << 4;
const BROKEN: u16 = 1 << 5;
const SLOW: u16 = 1 << 6;
const SILENT: u16 = 1 << 7;
const ALARM: u16 = 1 << 8;
const CAUGHT_UP: u16 = 1 << 9;
const CLOSED: u16 = 1 << 10;
const LATE: u16 = 1 << 11;
const ENDING: u16 = 1 << 12;
const TIMED: u16 = 1 << 13;
const OVERDUE: u16 = 1 << 14;

impl Connection {
    pub(super) fn new(id: ConnectionId, app: AppId, shard: &Rc<Shard>, format: Format, socket: Socket) -> Self {
        Self {
            id,
            app,
            shard: Rc::downgrade(shard),
            slot: Cell::new(u32::MAX),
            format,
            socket,
            queue: RefCell::default(),
            subscriptions: RefCell::default(),
            identity: RefCell::default(),
            task: RefCell::default(),
            control: RefCell::default(),
            flags: Cell::new(0),
            check_at: Cell::new(0),
            alarm_at: Cell::new(0),
            message_at: Cell::new(0),
            started: Instant::now(),
            frames_sent: Cell::new(0),
            bytes_sent: Cell::new(0),
        }
    }

    /// Its id.
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// The app it belongs to.
    pub fn app(&self) -> &AppId {
        &self.app
    }

    /// The form in which it gets pushes.
    pub fn format(&self) -> Format {
        self.format
    }

    /// When it was adopted.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Frames and bytes sent or queued so far.
    pub fn sent(&self) -> (u64, u64) {
        (self.frames_sent.get(), self.bytes_sent.get())
    }

    /// Who it is.
    pub fn identity(&self) -> Option<Arc<Identity>> {
        self.identity.borrow().clone()
    }

    /// Its user, if it has one.
    pub fn user(&self) -> Option<UserId> {
        self.identity.borrow().as_ref().map(|identity| identity.user.clone())
    }

    /// For how long its token still counts; `None` where it does not end.
    pub fn token_left(&self) -> Option<Duration> {
        self.identity.borrow().as_ref()?.expires.map(until)
    }

    /// Says who it is.
    pub fn identify(&self, identity: Arc<Identity>) {
        *self.identity.borrow_mut() = Some(identity);
    }

    /// The shard that it lives on.
    pub fn shard(&self) -> Rc<Shard> {
        self.shard.upgrade().expect("a shard outlives its connections")
    }

    pub(super) fn slot(&self) -> u32 {
        self.slot.get()
    }

    pub(super) fn place_in(&self, slot: u32) {
        self.slot.set(slot);
    }

    fn has(&self, flag: u16) -> bool {
        self.flags.get() & flag != 0
    }

    fn set(&self, flag: u16) {
        self.flags.set(self.flags.get() | flag);
    }

    /// Clears a flag and says whether it was set.
    fn take(&self, flag: u16) -> bool {
        let had = self.has(flag);
        self.flags.set(self.flags.get() & !flag);
        had
    }

    fn signal(&self, flag: u16) {
        self.set(flag);
        self.wake_task();
    }

    fn wake_task(&self) {
        if let Some(waker) = self.task.borrow_mut().take() {
            waker.wake();
        }
    }

    fn wake_writer(&self) {
        if let Socket::Remote(Writer(writer)) = &self.socket
            && let Some(waker) = writer.borrow_mut().take()
        {
            waker.wake();
        }
    }
}

/// How long until a token that ends at `expires`, in seconds since 1970, counts no more.
pub fn until(expires: u64) -> Duration {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Duration::from_secs(expires).saturating_sub(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_small() {
        assert!(size_of::<Connection>() <= 304, "{} bytes", size_of::<Connection>());
    }
}
