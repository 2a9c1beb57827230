//! Server-Sent Events: a stream out, for clients that cannot have a WebSocket.
//!
//! A stream is a connection like any other: it has a session and a send queue, and every limit holds for it. Only its
//! writer differs: it takes frames from the queue, puts the stream's own position into each event's `id:` (see
//! [`position`]) and hands them to hyper as the body of the answer. All that can be refused is refused by status before
//! the stream begins ([`Stream::check`]), since an `EventSource` would come back for ever. Start at [`Stream::open`].

pub mod position;

use std::{convert::Infallible, panic::AssertUnwindSafe, rc::Rc, sync::Arc, time::Duration};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt, stream};
use tokio::{sync::mpsc, task::spawn_local, time::timeout};

use self::position::StreamPosition;
use super::Door;
use crate::{
    domain::{
        Channel, ChannelName, ConnectionId, DisconnectReason, ErrorCode, Format, Identity, Push, Refusal, Start,
        Subscribe,
    },
    gateway::App,
    hub::{Connection, Control, End, Shard, Socket},
    node::{Caller, CallerKind, Node},
    protocol::native::{NativeEvents, events},
    session::{Ending, Session},
    telemetry::Transport,
};

/// The most channels of one stream: each event names its position in all of them, and that comes back in a header.
pub const MAX_CHANNELS: usize = 256;
/// How long an `EventSource` waits before it connects again, unless it was told otherwise.
const RETRY: &[u8] = b"retry:2000\n\n";
/// Chunks that lie between the connection's queue and hyper. What more there is waits in the queue, where it is counted.
const CHUNKS: usize = 1;
/// How long the last events may take to leave.
const FLUSH_DEADLINE: Duration = Duration::from_secs(5);

static NATIVE_EVENTS: NativeEvents = NativeEvents;

/// What a stream is to be.
pub struct Stream {
    /// Whose channels are meant.
    pub app: Arc<App>,
    /// Who listens; `None` for an anonymous one.
    pub identity: Option<Identity>,
    /// To what.
    pub channels: Vec<ChannelName>,
    /// From where on, in channels of which `position` says nothing.
    pub start: Start,
    /// Where the client was before, by its `Last-Event-ID`.
    pub position: Option<String>,
    /// Whether members, joins and leaves are wanted.
    pub presence: bool,
}

impl Stream {
    /// Checks all that a subscription asks for and that can be known before the stream begins.
    ///
    /// # Errors
    /// What the first channel that is refused, is refused for; or `limit_exceeded`.
    pub fn check(&self, node: &Node) -> Result<(), Refusal> {
        let most = node.max_subscriptions().min(MAX_CHANNELS);
        if most < self.channels.len() {
            let message = format!("one event stream has at most {most} channels");
            return Err(Refusal::new(ErrorCode::LimitExceeded, message));
        }
        let kind = CallerKind::Client { identity: self.identity.as_ref(), connection: None, granted: None };
        let caller = Caller { app: &self.app.id, kind };
        self.channels.iter().try_for_each(|channel| node.may_subscribe(&caller, channel, self.presence))
    }

    /// Has the door's shard take the connection over; returns the body in which its events appear.
    pub fn open(self, door: &Door) -> Body {
        let (tx, rx) = mpsc::channel(CHUNKS);
        let node = door.node.clone();
        door.hub().on_shard(door.shard, move |shard| drop(spawn_local(Box::pin(self.serve(node, shard.clone(), tx)))));
        let chunks = stream::unfold(rx, async |mut rx| rx.recv().await.map(|chunk| (Ok::<_, Infallible>(chunk), rx)));
        Body::from_stream(chunks)
    }

    async fn serve(self, node: Arc<Node>, shard: Rc<Shard>, tx: mpsc::Sender<Bytes>) {
        let id = ConnectionId::from_bits(rand::random());
        let connection = shard.adopt(id, self.app.id.clone(), Format::NativeEvents, Socket::remote());
        let channels = self.channels.iter().map(|name| Channel::new(&self.app.id, name));
        let position = StreamPosition::new(channels.collect(), self.position.as_deref().unwrap_or_default());
        let is_draining = node.is_draining();
        let mut session = Session::new(node, self.app, connection.clone(), &NATIVE_EVENTS, Transport::Events);
        session.open_as(self.identity);
        let starts = position.starts(self.start);
        let subscribes = self.channels.into_iter().zip(starts);
        let subscribes =
            subscribes.map(|(channel, start)| Subscribe { channel, token: None, start, presence: self.presence });
        let mut subscribes: Vec<_> = subscribes.collect();
        if is_draining {
            // Who was let in just before the drain might have come too late to be told by it.
            subscribes.clear();
            connection.ask(Control::Disconnect(DisconnectReason::Draining, None));
        }
        let writer = spawn_local(write_out(connection.clone(), tx, position));
        let ending = AssertUnwindSafe(converse(&mut session, subscribes)).catch_unwind().await;
        let ending = ending.unwrap_or_else(|_| panicked(&connection));
        connection.uncork();
        connection.close_queue();
        session.close(name(ending)).await;
        // The queue is closed, so the writer ends with it; whoever does not read by then is let go.
        let abort = writer.abort_handle();
        if timeout(FLUSH_DEADLINE, writer).await.is_err() {
            abort.abort();
        }
    }
}

/// Subscribes, then does what the hub wakes the connection for, until the end.
async fn converse(session: &mut Session, subscribes: Vec<Subscribe>) -> Ending {
    for subscribe in subscribes {
        if let Err(ending) = Box::pin(session.listen(subscribe)).await {
            return ending;
        }
    }
    let connection = session.connection().clone();
    loop {
        let wake = connection.wake().await;
        if let Err(ending) = Box::pin(session.woken(wake)).await {
            return ending;
        }
    }
}

fn panicked(connection: &Rc<Connection>) -> Ending {
    tracing::error!(connection = %connection.id(), "a session panicked and was ended");
    let reason = DisconnectReason::Internal;
    connection.send(connection.shard().frame_push(Format::NativeEvents, &Push::Disconnect { reason, delay: None }));
    Ending::Disconnect(reason)
}

/// What logs call it.
fn name(ending: Ending) -> &'static str {
    match ending {
        Ending::Gone => "gone",
        Ending::Disconnect(reason) => reason.name(),
    }
}

/// Takes frames from the queue and passes them on as chunks of the body.
async fn write_out(connection: Rc<Connection>, tx: mpsc::Sender<Bytes>, mut position: StreamPosition) {
    let mut chunk = Bytes::from_static(RETRY);
    while tx.send(chunk).await.is_ok() {
        let frame = tokio::select! {
            frame = connection.next_frame() => frame,
            // The client is gone, though there is nothing to send.
            () = tx.closed() => break,
        };
        let Some(frame) = frame else { return };
        chunk = placed(&frame, &mut position);
    }
    connection.end(End::Broken);
}

/// The events of a frame, with the stream's position in place of each channel's own.
fn placed(frame: &[u8], position: &mut StreamPosition) -> Bytes {
    let mut chunk = BytesMut::with_capacity(frame.len() + 64);
    for (mark, event) in events::split(frame) {
        if let Some(mark) = mark {
            position.advance(mark);
            chunk.extend_from_slice(b"id:");
            position.write(&mut chunk);
            chunk.extend_from_slice(b"\n");
        }
        chunk.extend_from_slice(event);
    }
    chunk.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Epoch, Offset, Position};

    #[test]
    fn each_event_says_where_the_whole_stream_stands_after_it() {
        let app = "default".parse().unwrap();
        let channels = || ["a", "b"].map(|name| Channel::new(&app, &name.parse().unwrap())).to_vec();
        let mut position = StreamPosition::new(channels(), "");
        let frame =
            b"id:1 5 a\nevent:subscribed\ndata:{}\n\n:\n\nid:2 9 b\ndata:{}\n\ndata:{}\n\nid:1 6 a\ndata:{}\n\n";
        let text = String::from_utf8(placed(frame, &mut position).to_vec()).unwrap();
        let at = |bits, offset| Start::After(Some(Position { epoch: Epoch::from_bits(bits), offset: Offset(offset) }));
        let ids: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("id:")).collect();
        let starts: Vec<_> = ids.iter().map(|id| StreamPosition::new(channels(), id).starts(Start::Live)).collect();
        assert_eq!(starts, [vec![at(1, 5), Start::Live], vec![at(1, 5), at(2, 9)], vec![at(1, 6), at(2, 9)]]);
        let rest: Vec<_> = text.lines().filter(|line| !line.starts_with("id:")).collect();
        assert_eq!(rest, ["event:subscribed", "data:{}", "", ":", "", "data:{}", "", "data:{}", "", "data:{}", ""]);
    }
}
