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
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use tokio::net::TcpStream;

use super::{send_queue::SendQueue, shard::Shard, subscription::Subscription};
use crate::domain::{AppId, Channel, ChannelName, ConnectionId, DisconnectReason, Epoch, Format, Identity, UserId};

/// More than a `disconnect` and a close frame take in the kernel's buffer.
const LAST_WORD_BYTES: usize = 16 << 10;
/// The longest alarm: entries of the wheel stay until they are due, even if their connection is gone by then.
const MAX_ALARM: Duration = Duration::from_secs(300);

/// One connection's slot. At most 300 bytes.
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

/// Something asked of a session from outside of it.
#[derive(Clone, Debug)]
pub enum Control {
    /// End it.
    Disconnect(DisconnectReason, Option<Duration>),
    /// Subscribe it.
    Subscribe(ChannelName),
    /// Unsubscribe it.
    Unsubscribe(ChannelName),
    /// A channel's history was lost or dropped and counts anew in this epoch: tell the client.
    Reset(Channel, Epoch),
}

/// What woke a connection's task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// There may be bytes to read.
    Readable,
    /// The time asked for with [`Connection::wake_after`] has come.
    Alarm,
    /// The time of [`Connection::time_message`] is over.
    Overdue,
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

/// Whether anything was heard since the last ping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pong {
    /// There was no ping since the last answer.
    Unasked,
    /// Something was heard.
    Answered {
        /// It had been looked for once before.
        late: bool,
    },
    /// Nothing was heard yet.
    Awaited {
        /// It was looked for once before.
        late: bool,
    },
}

/// The other side has gone, or the connection is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the connection has ended")]
pub struct Gone;

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

    // Sending.

    /// Sends a frame that is for this connection alone, after everything that waits.
    ///
    /// It may be larger than what may wait: whoever answers commands or reads history waits for room before the next one,
    /// so what is over the limit is one frame.
    pub fn send(self: &Rc<Self>, frame: Bytes) {
        match self.queued_bytes() <= self.shard().limits().send_queue {
            true => self.put(&frame, 1),
            false => self.end(End::Slow),
        }
    }

    /// Sends a frame after which nothing is said but the close, however much waits.
    pub fn send_last(self: &Rc<Self>, frame: Bytes) {
        self.take(SLOW);
        self.put(&frame, 1);
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
        let waiting = self.queued_bytes();
        let is_full = waiting != 0 && self.shard().limits().send_queue < waiting + frame.len();
        if is_full && !self.has(BROKEN | SLOW | CLOSED) {
            return Written::Full;
        }
        self.put(frame, frames);
        Written::Taken
    }

    fn put(self: &Rc<Self>, frame: &Bytes, frames: u64) {
        if self.has(BROKEN | SLOW | CLOSED) {
            return; // It is ending; nobody reads this.
        }
        let mut queue = self.queue.borrow_mut();
        let waiting = queue.bytes();
        self.frames_sent.set(self.frames_sent.get() + frames);
        self.bytes_sent.set(self.bytes_sent.get() + frame.len() as u64);
        let mut taken = 0;
        if let (Socket::Tcp(socket), 0, false) = (&self.socket, waiting, self.has(CORKED)) {
            match socket.try_write(frame) {
                Ok(written) if written == frame.len() => return,
                Ok(written) => taken = written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => {
                    drop(queue);
                    self.end(End::Broken);
                    return;
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
        while !self.has(BROKEN) && socket.writable().await.is_ok() {
            // There is room again, so the peer has taken something. Its pong may stand behind much that it still has to
            // read; one that is only slow is not silent.
            self.heard();
            if self.try_flush() {
                break;
            }
        }
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

    /// Has the task woken with [`Wake::CaughtUp`] once the queue is empty.
    pub(super) fn note_behind(&self) {
        self.set(BEHIND);
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
    /// part, and lets the kernel take the rest, so that the client finds it when it reads again.
    pub fn make_room_for_last_word(&self) {
        self.queue.borrow_mut().keep_begun();
        self.take(SLOW);
        self.make_room_in_kernel();
    }

    /// Makes room in the kernel for all that waits now, and a last word besides.
    fn make_room_in_kernel(&self) {
        let Socket::Tcp(socket) = &self.socket else { return };
        let socket = socket2::SockRef::from(socket);
        // The kernel sizes the buffer for a peer that reads; what is left of a large frame may not fit into that.
        let room = self.queued_bytes() + LAST_WORD_BYTES;
        if let Err(error) = socket.set_tcp_notsent_lowat(u32::MAX).and(socket.set_send_buffer_size(room)) {
            tracing::debug!(connection = %self.id, %error, "the last word may not leave");
        }
    }

    /// Gives up on a peer that did not take what waits: drops it, but for a frame that is out in part and the last one, the
    /// close, which the kernel keeps for when the peer reads again.
    pub fn leave_last_word(&self) {
        self.queue.borrow_mut().keep_ends();
        self.make_room_in_kernel();
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
            if let Err(gone) = self.goes_on() {
                return Poll::Ready(Err(gone));
            }
            if self.queued_bytes() <= bytes {
                return Poll::Ready(Ok(()));
            }
            *self.task.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Whether there is any use in sending more. To be asked by whoever has much to say: it hears of nothing else until it
    /// is through.
    ///
    /// # Errors
    /// [`Gone`]: the connection is to end; the next [`Connection::wake`] says why.
    pub fn goes_on(&self) -> Result<(), Gone> {
        if self.has(BROKEN | SLOW | SILENT | CLOSED | ENDING) {
            return Err(Gone);
        }
        if !self.has(ALARM) {
            return Ok(());
        }
        match self.token_left() {
            Some(Duration::ZERO) => Err(Gone),
            // It rang for something else, or up to a tick early; what it rang for is done once the task is back.
            Some(left) if self.alarm_at.get() == 0 => {
                self.wake_after(left);
                Ok(())
            }
            _ => Ok(()),
        }
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
        if self.take(OVERDUE) {
            return Some(Wake::Overdue);
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

    /// Notes that it was pinged: something must be heard now.
    pub(super) fn note_ping(&self) {
        self.take(LATE);
        self.take(HEARD);
        self.set(PINGED);
    }

    /// How it stands with the last ping; an answer is told once.
    pub(super) fn pong(&self) -> Pong {
        match (self.has(PINGED), self.has(HEARD)) {
            (false, _) => Pong::Unasked,
            (true, true) => {
                self.take(PINGED);
                Pong::Answered { late: self.take(LATE) }
            }
            (true, false) => Pong::Awaited { late: self.has(LATE) },
        }
    }

    /// Notes that an answer was looked for once already.
    pub(super) fn is_late(&self) {
        self.set(LATE);
    }

    pub(super) fn ring(&self) {
        self.alarm_at.set(0);
        self.signal(ALARM);
    }

    /// Wakes the task with [`Wake::Alarm`] after `delay`, or after [`MAX_ALARM`] if that is less; replaces an earlier
    /// wish.
    pub fn wake_after(&self, delay: Duration) {
        let shard = self.shard();
        self.alarm_at.set(shard.schedule_anew(self.slot.get(), delay.min(MAX_ALARM), self.alarm_at.get()));
    }

    /// Gives the message that the client has begun this much time from now on: it is over with [`Wake::Overdue`].
    pub fn time_message(&self, most: Duration) {
        self.take(OVERDUE);
        self.set(TIMED);
        self.message_at.set(self.shard().schedule_anew(self.slot.get(), most, self.message_at.get()));
    }

    /// Stops the time of a message, and says how much was left of it; `None`: none is under way.
    pub fn stop_message_time(&self) -> Option<Duration> {
        self.take(OVERDUE);
        self.take(TIMED).then(|| self.shard().time_until(self.message_at.get()))
    }

    pub(super) fn message_is_due(&self) {
        if self.take(TIMED) {
            self.signal(OVERDUE);
        }
    }

    /// Has the connection's task end it.
    pub fn end(&self, end: End) {
        if end == End::Slow && !self.has(SLOW) {
            self.shard().counters().slow_disconnected.add(1);
        }
        self.signal(match end {
            End::Broken => BROKEN,
            End::Slow => SLOW,
            End::Silent => SILENT,
        });
        self.wake_writer();
    }

    /// Asks something of the session.
    pub fn ask(&self, control: Control) {
        if let Control::Disconnect(..) = control {
            // It must not wait for a client that takes its time.
            self.set(ENDING);
        }
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

    /// Nothing more is queued from here on.
    pub fn close_queue(&self) {
        self.set(CLOSED);
        self.wake_writer();
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
        assert!(size_of::<Connection>() <= 300, "{} bytes", size_of::<Connection>());
    }
}
