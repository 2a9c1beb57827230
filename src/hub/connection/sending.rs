//! What goes out: pushes are written straight to the socket; what it does not take waits in the send queue, which a
//! short-lived task empties. Start at [`Connection::write`].

use std::{future::poll_fn, io, rc::Rc, task::Poll, time::Duration};

use bytes::Bytes;

use super::{
    ALARM, BEHIND, BROKEN, CAUGHT_UP, CLOSED, CORKED, Connection, ENDING, End, FLUSHING, SILENT, SLOW, Socket, Writer,
};

/// More than a `disconnect` and a close frame take in the kernel's buffer.
const LAST_WORD_BYTES: usize = 16 << 10;
/// What came of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::hub) enum Written {
    /// It is sent, or waits in the queue.
    Taken,
    /// The queue is full; nothing of it was taken.
    Full,
}

/// The other side has gone, or the connection is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the connection has ended")]
pub struct Gone;

impl Connection {
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
    pub(in crate::hub) fn write(self: &Rc<Self>, frame: &Bytes, frames: u64) -> Written {
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

    /// Has the task woken with [`super::Wake::CaughtUp`] once the queue is empty.
    pub(in crate::hub) fn note_behind(&self) {
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

    /// Nothing more is queued from here on.
    pub fn close_queue(&self) {
        self.set(CLOSED);
        self.wake_writer();
    }
}
