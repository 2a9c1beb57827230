//! A slot: one connection's socket, format, send queue and subscriptions.
//!
//! Everything here happens on the connection's own shard, so there are cells and no locks. Pushes are written straight to
//! the socket; what it does not take waits in the send queue, which a short-lived task empties. Start at
//! [`Connection::write`].

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    rc::{Rc, Weak},
    sync::Arc,
    task::{Poll, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::net::TcpStream;

use super::{
    channels::{Local, Subscriber},
    outgoing::Outgoing,
    send_queue::SendQueue,
    shard::Shard,
};
use crate::domain::{AppId, Channel, ChannelName, ConnectionId, DisconnectReason, Format, Identity, Position, UserId};

/// The most pushes that a held subscription keeps; above that its channel's history is read again.
const MAX_HELD: usize = 4096;

/// One connection's slot. At most 300 bytes.
pub struct Connection {
    id: ConnectionId,
    app: AppId,
    shard: Weak<Shard>,
    slot: Cell<u32>,
    format: Format,
    socket: Socket,
    queue: RefCell<SendQueue>,
    subscriptions: RefCell<Vec<Subscription>>,
    identity: RefCell<Option<Arc<Identity>>>,
    task: RefCell<Option<Waker>>,
    control: RefCell<Vec<Control>>,
    flags: Cell<u16>,
    pub(super) check_at: Cell<u32>,
    pub(super) alarm_at: Cell<u32>,
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

struct Subscription {
    local: Rc<Local>,
    place: u32,
    apart: Option<Box<Apart>>,
}

/// A subscription that pushes do not reach just now.
#[derive(Default)]
struct Apart {
    /// Set where the connection fell behind: the last position that it was sent.
    behind: Option<Position>,
    /// What is held back.
    held: Vec<Arc<Outgoing>>,
    /// More came than is held back.
    overflowed: bool,
}

/// Something asked of a session from outside of it.
#[derive(Clone, Debug)]
pub enum Control {
    /// End it.
    Disconnect(DisconnectReason, Option<Duration>),
    /// Subscribe it.
    Subscribe(ChannelName),
    /// Unsubscribe it.
    Unsubscribe(ChannelName),
    /// A channel's history was lost or dropped: tell the client.
    Reset(Channel),
}

/// What woke a connection's task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// There may be bytes to read.
    Readable,
    /// The time asked for with [`Connection::wake_after`] has come.
    Alarm,
    /// [`Connection::next_control`] has something.
    Control,
    /// The send queue is empty again and some subscriptions are behind.
    CaughtUp,
    /// The connection must end.
    End(End),
}

/// Why the hub wants a connection to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The socket does not work any more.
    Broken,
    /// More waits than may wait.
    Slow,
    /// Nothing was heard after a ping.
    Silent,
}

/// What came of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// It is sent, or waits in the queue.
    Taken,
    /// The queue is full; nothing of it was taken.
    Full,
}

/// The other side has gone, or the connection is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the connection has ended")]
pub struct Gone;

const CORKED: u16 = 1;
const FLUSHING: u16 = 1 << 1;
const HEARD: u16 = 1 << 2;
const SENT: u16 = 1 << 3;
const PINGED: u16 = 1 << 4;
const BEHIND: u16 = 1 << 5;
const BROKEN: u16 = 1 << 6;
const SLOW: u16 = 1 << 7;
const SILENT: u16 = 1 << 8;
const ALARM: u16 = 1 << 9;
const CAUGHT_UP: u16 = 1 << 10;
const CLOSED: u16 = 1 << 11;

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

    // Sending.

    /// Sends a frame that is for this connection alone, after everything that waits.
    pub fn send(self: &Rc<Self>, frame: Bytes) {
        if self.write(&frame, 1) == Written::Full {
            self.end(End::Slow);
        }
    }

    /// From here on frames wait until [`Connection::uncork`], to go out in one write.
    pub fn cork(&self) {
        self.set(CORKED);
    }

    /// Sends what waited.
    pub fn uncork(self: &Rc<Self>) {
        if self.take(CORKED) && !self.queue.borrow().is_empty() && !self.has(FLUSHING) {
            self.flush();
        }
    }

    /// Writes to the socket, or queues what it does not take.
    pub(super) fn write(self: &Rc<Self>, frame: &Bytes, frames: u64) -> Written {
        if self.has(BROKEN | SLOW | CLOSED) {
            return Written::Taken; // It is ending; nobody reads this.
        }
        let mut queue = self.queue.borrow_mut();
        let waiting = queue.bytes();
        if waiting != 0 && self.shard().limits().send_queue < waiting + frame.len() {
            return Written::Full;
        }
        self.set(SENT);
        self.frames_sent.set(self.frames_sent.get() + frames);
        self.bytes_sent.set(self.bytes_sent.get() + frame.len() as u64);
        let mut taken = 0;
        if let (Socket::Tcp(socket), 0, false) = (&self.socket, waiting, self.has(CORKED)) {
            match socket.try_write(frame) {
                Ok(written) if written == frame.len() => return Written::Taken,
                Ok(written) => taken = written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => {
                    drop(queue);
                    self.end(End::Broken);
                    return Written::Taken;
                }
            }
        }
        queue.push(frame.slice(taken..));
        if taken != 0 {
            queue.begin();
        }
        drop(queue);
        if !self.has(CORKED | FLUSHING) {
            self.flush();
        }
        Written::Taken
    }

    /// Empties the queue as far as the socket takes it, and leaves the rest to a task.
    fn flush(self: &Rc<Self>) {
        self.wake_writer();
        if let Socket::Tcp(_) = self.socket
            && !self.try_flush()
            && !self.has(BROKEN)
        {
            self.set(FLUSHING);
            tokio::task::spawn_local(self.clone().flush_as_it_goes());
        }
    }

    async fn flush_as_it_goes(self: Rc<Self>) {
        let Socket::Tcp(socket) = &self.socket else { return };
        while !self.has(BROKEN) && socket.writable().await.is_ok() && !self.try_flush() {}
        self.take(FLUSHING);
    }

    /// True once the queue is empty.
    fn try_flush(&self) -> bool {
        let Socket::Tcp(socket) = &self.socket else { return false };
        let mut queue = self.queue.borrow_mut();
        while !queue.is_empty() {
            let written = socket.try_write_vectored(&queue.slices());
            match written {
                Ok(written) => queue.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    drop(queue);
                    self.wake_task(); // It may wait for less than an empty queue.
                    return false;
                }
                Err(_) => {
                    queue.clear();
                    drop(queue);
                    self.end(End::Broken);
                    return true;
                }
            }
        }
        drop(queue);
        self.emptied();
        true
    }

    fn emptied(&self) {
        if self.take(BEHIND) {
            self.signal(CAUGHT_UP);
        } else {
            self.wake_task();
        }
    }

    /// The next frame for a writer of one's own; `None` once the connection is closed and all is taken.
    pub async fn next_frame(&self) -> Option<Bytes> {
        poll_fn(|context| {
            if !self.has(CORKED)
                && let Some(frame) = self.queue.borrow_mut().pop()
            {
                return Poll::Ready(Some(frame));
            }
            if self.queue.borrow().is_empty() {
                if self.has(CLOSED | BROKEN) {
                    return Poll::Ready(None);
                }
                self.emptied();
            }
            if let Socket::Remote(Writer(writer)) = &self.socket {
                *writer.borrow_mut() = Some(context.waker().clone());
            }
            Poll::Pending
        })
        .await
    }

    /// Bytes that wait to be sent.
    pub fn queued_bytes(&self) -> usize {
        self.queue.borrow().bytes()
    }

    /// Makes room for a last word on a connection that was too slow: drops what waits, but for a frame that is out in
    /// part.
    pub fn make_room_for_last_word(&self) {
        self.queue.borrow_mut().keep_begun();
        self.take(SLOW);
    }

    /// Completes once nothing waits, or the socket is broken.
    pub async fn flushed(self: &Rc<Self>) {
        self.uncork();
        poll_fn(|context| {
            if self.has(BROKEN) || self.queue.borrow().is_empty() {
                return Poll::Ready(());
            }
            *self.task.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Completes once at most `bytes` wait.
    ///
    /// # Errors
    /// [`Gone`]: the connection is to end.
    pub async fn drained_to(self: &Rc<Self>, bytes: usize) -> Result<(), Gone> {
        self.uncork();
        poll_fn(|context| {
            if self.has(BROKEN | SLOW | SILENT | CLOSED) {
                return Poll::Ready(Err(Gone));
            }
            if self.queued_bytes() <= bytes {
                return Poll::Ready(Ok(()));
            }
            *self.task.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    // Hearing.

    /// Completes when there is something for the connection's task to do.
    pub async fn wake(&self) -> Wake {
        poll_fn(|context| {
            if let Some(wake) = self.next_wake() {
                return Poll::Ready(wake);
            }
            *self.task.borrow_mut() = Some(context.waker().clone());
            match &self.socket {
                Socket::Tcp(socket) => socket.poll_read_ready(context).map(|ready| match ready {
                    Ok(()) => Wake::Readable,
                    Err(_) => Wake::End(End::Broken),
                }),
                Socket::Remote(_) => Poll::Pending,
            }
        })
        .await
    }

    fn next_wake(&self) -> Option<Wake> {
        if self.has(BROKEN) {
            return Some(Wake::End(End::Broken));
        }
        if self.has(SLOW) {
            return Some(Wake::End(End::Slow));
        }
        if self.has(SILENT) {
            return Some(Wake::End(End::Silent));
        }
        if !self.control.borrow().is_empty() {
            return Some(Wake::Control);
        }
        if self.take(ALARM) {
            return Some(Wake::Alarm);
        }
        self.take(CAUGHT_UP).then_some(Wake::CaughtUp)
    }

    /// Reads what is there into `buffer`. `None`: nothing yet. 0 bytes: the other side has finished.
    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let Socket::Tcp(socket) = &self.socket else { return Ok(None) };
        match socket.try_read(buffer) {
            Ok(read) => {
                self.heard();
                Ok(Some(read))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Notes a sign of life.
    pub fn heard(&self) {
        self.set(HEARD);
    }

    /// The bare socket, where it has one.
    pub fn tcp(&self) -> Option<&TcpStream> {
        match &self.socket {
            Socket::Tcp(socket) => Some(socket),
            Socket::Remote(_) => None,
        }
    }

    /// What the ping wheel has to do about it: whether it was quiet in either direction since the last look.
    pub(super) fn was_quiet(&self) -> bool {
        let (heard, sent) = (self.take(HEARD), self.take(SENT));
        !(heard && sent)
    }

    /// Notes a ping, or takes the note back; says whether one was noted.
    pub(super) fn note_ping(&self, pinged: bool) -> bool {
        let before = self.take(PINGED);
        if pinged {
            self.set(PINGED);
            self.take(HEARD);
        }
        before
    }

    pub(super) fn heard_since(&self) -> bool {
        self.has(HEARD)
    }

    pub(super) fn ring(&self) {
        self.signal(ALARM);
    }

    /// Wakes the task with [`Wake::Alarm`] after `delay`; replaces an earlier wish.
    pub fn wake_after(&self, delay: Duration) {
        let shard = self.shard();
        self.alarm_at.set(shard.schedule(self.slot.get(), delay));
    }

    /// Has the connection's task end it.
    pub fn end(&self, end: End) {
        self.signal(match end {
            End::Broken => BROKEN,
            End::Slow => SLOW,
            End::Silent => SILENT,
        });
        self.wake_writer();
    }

    /// Asks something of the session.
    pub fn ask(&self, control: Control) {
        self.control.borrow_mut().push(control);
        self.wake_task();
    }

    /// What was asked first.
    pub fn next_control(&self) -> Option<Control> {
        let mut control = self.control.borrow_mut();
        if control.is_empty() {
            return None;
        }
        let next = control.remove(0);
        if control.is_empty() {
            *control = Vec::new();
        }
        Some(next)
    }

    // Subscriptions.

    /// Subscribes, with pushes held back until [`Connection::release`]. True: the node's first subscriber there.
    pub fn subscribe(self: &Rc<Self>, channel: &Channel, watches: bool) -> bool {
        let shard = self.shard();
        let (local, is_first) = shard.enter(channel);
        let place = local.add(Subscriber { connection: self.clone(), apart: true, watches });
        let mut subscriptions = self.subscriptions.borrow_mut();
        if subscriptions.is_empty() {
            subscriptions.reserve_exact(1);
        }
        subscriptions.push(Subscription { local, place, apart: Some(Box::default()) });
        shard.counters().subscriptions.add(1);
        is_first
    }

    /// Ends a subscription. True: it was the node's last one there.
    pub fn unsubscribe(&self, channel: &Channel) -> bool {
        let at = self.subscriptions.borrow().iter().position(|each| each.local.channel() == channel);
        let Some(at) = at else { return false };
        let Subscription { local, place, .. } = self.subscriptions.borrow_mut().swap_remove(at);
        local.take_out(self.format, place);
        let shard = self.shard();
        shard.counters().subscriptions.sub(1);
        local.subscribers() == 0 && shard.leave(channel)
    }

    /// How many subscriptions it holds.
    pub fn subscriptions(&self) -> usize {
        self.subscriptions.borrow().len()
    }

    /// The channels it is subscribed to.
    pub fn channels(&self) -> Vec<Channel> {
        self.subscriptions.borrow().iter().map(|each| each.local.channel().clone()).collect()
    }

    /// Holds a subscription's pushes back from now on.
    pub fn hold(&self, channel: &Channel) {
        self.with_subscription(channel, |each, format| {
            let apart = each.apart.get_or_insert_default();
            apart.behind = None;
            each.local.with(format, each.place, |subscriber| subscriber.apart = true);
        });
    }

    /// Takes what was held back; the subscription stays apart.
    ///
    /// # Errors
    /// [`Overflowed`]: more came than can be held, and it is gone: read history again.
    pub fn take_held(&self, channel: &Channel) -> Result<Vec<Arc<Outgoing>>, Overflowed> {
        let taken = self.with_subscription(channel, |each, _| {
            let apart = each.apart.as_deref_mut()?;
            let held = std::mem::take(&mut apart.held);
            Some(if std::mem::take(&mut apart.overflowed) { Err(Overflowed) } else { Ok(held) })
        });
        taken.flatten().unwrap_or_else(|| Ok(Vec::new()))
    }

    /// Lets pushes through again. Nothing may be held by then: call [`Connection::take_held`] just before.
    pub fn release(&self, channel: &Channel) {
        self.with_subscription(channel, |each, format| {
            each.apart = None;
            each.local.with(format, each.place, |subscriber| subscriber.apart = false);
        });
    }

    /// The subscriptions that fell behind, each with the last position that was sent.
    pub fn behind(&self) -> Vec<(Channel, Position)> {
        let behind = |each: &Subscription| Some((each.local.channel().clone(), each.apart.as_ref()?.behind?));
        self.subscriptions.borrow().iter().filter_map(behind).collect()
    }

    fn with_subscription<T>(
        &self,
        channel: &Channel,
        change: impl FnOnce(&mut Subscription, Format) -> T,
    ) -> Option<T> {
        let mut subscriptions = self.subscriptions.borrow_mut();
        let each = subscriptions.iter_mut().find(|each| each.local.channel() == channel)?;
        Some(change(each, self.format))
    }

    /// Notes that the shard's list has moved this connection.
    pub(super) fn moved(&self, channel: &Channel, place: u32) {
        let mut subscriptions = self.subscriptions.borrow_mut();
        if let Some(each) = subscriptions.iter_mut().find(|each| each.local.channel() == channel) {
            each.place = place;
        }
    }

    /// Keeps pushes for a subscription that stands apart.
    pub(super) fn keep_apart(&self, channel: &Channel, pushes: &[Arc<Outgoing>]) {
        let mut subscriptions = self.subscriptions.borrow_mut();
        let each = subscriptions.iter_mut().find(|each| each.local.channel() == channel);
        let Some(apart) = each.and_then(|each| each.apart.as_deref_mut()) else { return };
        // What a connection that fell behind misses of a history, it reads there.
        let wanted = |push: &&Arc<Outgoing>| apart.behind.is_none() || push.position().is_none();
        let wanted = pushes.iter().filter(wanted).filter(|push| push.exclude() != Some(self.id));
        let before = apart.held.len();
        apart.held.extend(wanted.cloned());
        if MAX_HELD < apart.held.len() {
            apart.held.truncate(before);
            apart.overflowed = true;
        }
    }

    /// Notes that a subscription fell behind after `last`.
    pub(super) fn fall_behind(&self, channel: &Channel, last: Position) {
        let mut subscriptions = self.subscriptions.borrow_mut();
        if let Some(each) = subscriptions.iter_mut().find(|each| each.local.channel() == channel) {
            each.apart = Some(Box::new(Apart { behind: Some(last), ..Apart::default() }));
            self.set(BEHIND);
        }
    }

    /// Whether it is subscribed to `channel`.
    pub fn is_subscribed(&self, channel: &Channel) -> bool {
        self.subscriptions.borrow().iter().any(|each| each.local.channel() == channel)
    }

    /// Nothing more is queued from here on.
    pub fn close_queue(&self) {
        self.set(CLOSED);
        self.wake_writer();
    }
}

/// More came than can be held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overflowed;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_small() {
        assert!(size_of::<Connection>() <= 300, "{} bytes", size_of::<Connection>());
        assert!(size_of::<Subscription>() <= 24);
    }
}
