//! What comes in, and what wakes a connection's task: bytes to read, pongs, alarms, the time of a message, and what others
//! ask of its session. Start at [`Connection::wake`].

use std::{future::poll_fn, io, task::Poll, time::Duration};

use tokio::net::TcpStream;

use super::{ALARM, BROKEN, CAUGHT_UP, Connection, ENDING, HEARD, LATE, OVERDUE, PINGED, SILENT, SLOW, Socket, TIMED};
use crate::domain::{Channel, ChannelName, DisconnectReason, Epoch};

/// The longest alarm: entries of the wheel stay until they are due, even if their connection is gone by then.
const MAX_ALARM: Duration = Duration::from_secs(300);

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

/// Whether anything was heard since the last ping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::hub) enum Pong {
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

impl Connection {
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
    pub(in crate::hub) fn note_ping(&self) {
        self.take(LATE);
        self.take(HEARD);
        self.set(PINGED);
    }

    /// How it stands with the last ping; an answer is told once.
    pub(in crate::hub) fn pong(&self) -> Pong {
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
    pub(in crate::hub) fn is_late(&self) {
        self.set(LATE);
    }

    pub(in crate::hub) fn ring(&self) {
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

    pub(in crate::hub) fn message_is_due(&self) {
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
}
