//! Publishers and subscribers of a fleet, which behave as good clients do and write down what they do and see.
//!
//! - Publishers over HTTP wait for each answer and repeat what was not answered, under the same key, wherever a node
//!   lives. Publishers over a socket have several events under way; what was not answered before the connection was lost
//!   they send again, in order, over the next one.
//! - Others over HTTP send each event once, without a key: whatever is sent again then, nodes do by themselves.
//! - Subscribers go to any living node when theirs is lost or silent, and resume after the position at which they stand.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use rand::Rng;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    task::JoinSet,
    time::{Instant, interval, sleep, timeout},
};

use super::{
    Directory, Fleet,
    link::{Gone, Link},
};
use crate::support::{
    Answer, Call,
    checker::{
        EventId, Floor, Position, Report,
        recorder::{Publishing, Recorder, Watching},
    },
    user, within,
};

/// How long an answer over HTTP is waited for before the event is sent again.
const ANSWER: Duration = Duration::from_secs(3);

/// How long a publisher tries to get an event in.
const PERSISTENCE: Duration = Duration::from_secs(15);

/// How long after the last publication everybody may take to see it.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long a client waits before it tries another node: any time up to this.
const PAUSE: Duration = Duration::from_millis(300);

/// Who there is, and how much they do.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// Channels with history: `chat:0`, `chat:1`, …
    pub channels: usize,
    /// Channels without: `plain:0`, …
    pub plain_channels: usize,
    /// Subscribers of each channel.
    pub subscribers: usize,
    /// Publishers that use HTTP.
    pub http: usize,
    /// Publishers that use a socket.
    pub sockets: usize,
    /// Publishers that use HTTP and send each event once, to channels with history.
    pub once: usize,
    /// How often each publisher publishes, to any channel.
    pub every: Duration,
}

impl Default for Workload {
    fn default() -> Self {
        Self {
            channels: 3,
            plain_channels: 1,
            subscribers: 4,
            http: 2,
            sockets: 2,
            once: 1,
            every: Duration::from_millis(20),
        }
    }
}

impl Workload {
    /// How many publishers there are in all.
    pub fn publishers(&self) -> usize {
        self.http + self.sockets + self.once
    }

    /// How many subscribers there are in all.
    pub fn subscribers(&self) -> usize {
        (self.channels + self.plain_channels) * self.subscribers
    }
}

/// Everybody, at work until [`Crowd::disperse`].
pub struct Crowd {
    recorder: Recorder,
    working: watch::Sender<bool>,
    slow: watch::Sender<Option<usize>>,
    publishers: JoinSet<()>,
    subscribers: JoinSet<()>,
}

/// What each of them needs.
#[derive(Clone)]
struct Scene {
    directory: Directory,
    recorder: Recorder,
    channels: Arc<[Arc<str>]>,
    /// How many of them, the first ones, have history.
    kept: usize,
    every: Duration,
    /// Whether publishers go on.
    working: watch::Receiver<bool>,
    /// The subscriber that does not read.
    slow: watch::Receiver<Option<usize>>,
}

impl Crowd {
    /// Completes once everybody is subscribed and publishers have begun.
    pub async fn gather(fleet: &Fleet, workload: Workload) -> Self {
        let kept = (0..workload.channels).map(|n| format!("chat:{n}"));
        let plain = (0..workload.plain_channels).map(|n| format!("plain:{n}"));
        let (working, working_rx) = watch::channel(true);
        let (slow, slow_rx) = watch::channel(None);
        let scene = Scene {
            directory: fleet.directory(),
            recorder: Recorder::start(),
            channels: kept.chain(plain).map(Arc::from).collect(),
            kept: workload.channels,
            every: workload.every,
            working: working_rx,
            slow: slow_rx,
        };
        let (mut publishers, mut subscribers) = (JoinSet::new(), JoinSet::new());
        for n in 0..workload.subscribers() {
            let channel = scene.channels[n % scene.channels.len()].clone();
            let watching = scene.recorder.subscribes(format!("subscriber{n}"), &channel);
            subscribers.spawn(subscribe(scene.clone(), n, channel, watching));
        }
        let recorder = scene.recorder.clone();
        let crowd_is_there = async {
            while recorder.check(Floor::default()).live < workload.subscribers() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        within("everybody to be subscribed", crowd_is_there).await;
        let count = u32::try_from(workload.publishers()).expect("a small crowd");
        for publisher in 1..=count {
            match publisher as usize {
                n if n <= workload.http => publishers.spawn(publish_over_http(scene.clone(), publisher)),
                n if n <= workload.http + workload.sockets => {
                    publishers.spawn(publish_over_socket(scene.clone(), publisher))
                }
                _ => publishers.spawn(publish_once(scene.clone(), publisher)),
            };
        }
        Self { recorder, working, slow, publishers, subscribers }
    }

    /// What has happened so far.
    pub fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// Lets this subscriber, and no other, not read; with `None`, lets all read.
    pub fn slow(&self, subscriber: Option<usize>) {
        self.slow.send_replace(subscriber);
    }

    /// Completes once there were this many deliveries.
    pub async fn until_deliveries(&self, count: usize) {
        let enough = async {
            while self.recorder.check(Floor::default()).deliveries < count {
                sleep(Duration::from_millis(50)).await;
            }
        };
        within(format!("{count} deliveries"), enough).await;
    }

    /// Lets publishers come to an end and subscribers catch up, and judges it all.
    pub async fn disperse(self) -> Report {
        self.disperse_within(PATIENCE).await
    }

    /// The same with less patience for what is still missing.
    pub async fn disperse_within(mut self, patience: Duration) -> Report {
        self.working.send_replace(false);
        self.slow.send_replace(None);
        let deadline = Instant::now() + PERSISTENCE + 2 * ANSWER;
        while let Ok(Some(ended)) = tokio::time::timeout_at(deadline, self.publishers.join_next()).await {
            ended.expect("publishers do not panic");
        }
        assert!(self.publishers.is_empty(), "publishers come to an end");
        self.recorder.settle(patience).await;
        self.subscribers.abort_all();
        while let Some(ended) = self.subscribers.join_next().await {
            assert!(!ended.is_err_and(|error| error.is_panic()), "subscribers do not panic");
        }
        self.recorder.check(Floor::default())
    }
}

impl Scene {
    /// A connection to any living node, sooner or later.
    async fn connect(&self, name: &str, receive_buffer: Option<u32>) -> Link {
        loop {
            if let Some(address) = self.directory.any()
                && let Ok(link) = Link::connect(address, name, receive_buffer).await
            {
                return link;
            }
            pause().await;
        }
    }

    fn any_channel(&self) -> Arc<str> {
        self.any_of(self.channels.len())
    }

    /// Any of the first `count` channels.
    fn any_of(&self, count: usize) -> Arc<str> {
        self.channels[rand::rng().random_range(0..count)].clone()
    }

    fn works(&self) -> bool {
        *self.working.borrow()
    }
}

async fn pause() {
    let share = rand::random();
    sleep(PAUSE.mul_f64(share)).await;
}

// Subscribers.

/// A subscriber's life: one connection after another.
async fn subscribe(scene: Scene, n: usize, channel: Arc<str>, mut watching: Watching) {
    loop {
        let mut link = scene.connect(&format!("subscriber{n}"), Some(16 * 1024)).await;
        let Err(Gone) = follow(&mut link, &scene, n, &channel, &mut watching).await;
        watching.disconnected();
        pause().await;
    }
}

/// One connection's life.
async fn follow(
    link: &mut Link,
    scene: &Scene,
    n: usize,
    channel: &str,
    watching: &mut Watching,
) -> Result<std::convert::Infallible, Gone> {
    let mut subscribe = json!({ "type": "subscribe", "id": 1, "channel": channel });
    if let Some(Position { epoch, offset }) = watching.position() {
        subscribe["after"] = json!({ "epoch": **epoch, "offset": offset });
    }
    link.send(&subscribe).await?;
    let mut slow = scene.slow.clone();
    loop {
        let _ = slow.wait_for(|slow| *slow != Some(n)).await;
        let frame = link.next().await?;
        let offset = frame["offset"].as_u64();
        match frame["type"].as_str() {
            Some("subscribed") => {
                let epoch = frame["epoch"].as_str().map(Arc::from);
                let position = epoch.zip(offset).map(|(epoch, offset)| Position { epoch, offset });
                watching.subscribed(position, frame["recovered"] == true);
            }
            Some("message") => watching.message(offset, event_in(&frame["data"])),
            // `unavailable` and the like: another node may do better. An `unsubscribed` is as good as an end.
            Some("error" | "disconnect" | "unsubscribed") => return Err(Gone),
            _ => {}
        }
    }
}

fn event_in(data: &Value) -> EventId {
    let event = data.as_str().and_then(|text| text.parse().ok());
    event.unwrap_or_else(|| panic!("a subscriber got data that nobody published: {data}"))
}

// Publishers.

/// Publishes one event after the other.
async fn publish_over_http(scene: Scene, publisher: u32) {
    let mut turns = interval(scene.every);
    let token = user(&format!("publisher{publisher}"));
    let mut seq = 0;
    while scene.works() {
        turns.tick().await;
        seq += 1;
        let (event, channel) = (EventId { publisher, seq }, scene.any_channel());
        let publishing = scene.recorder.publishes(event, &channel);
        insist(&scene, &token, event, &channel, publishing).await;
    }
}

/// Sends an event until it is in, or patience has an end.
async fn insist(scene: &Scene, token: &str, event: EventId, channel: &str, mut publishing: Publishing) {
    let body = json!({ "data": event.to_string(), "key": event.to_string() }).to_string();
    let until = Instant::now() + PERSISTENCE;
    while Instant::now() < until {
        match post(scene, token, channel, &body).await {
            Some(Ok((200, answer))) => return publishing.accepted(position_in(&answer)),
            // Not in: a node that could not be reached, or says that it could not do it.
            None => {}
            Some(Ok((429 | 503, _))) => {}
            // A 504, another failure, or no answer at all: it may be in.
            Some(_) => publishing.unanswered(),
        }
        pause().await;
    }
    publishing.refused();
}

/// Publishes one event after the other, each sent once and without a key.
async fn publish_once(scene: Scene, publisher: u32) {
    let mut turns = interval(scene.every);
    let token = user(&format!("publisher{publisher}"));
    let mut seq = 0;
    while scene.works() {
        turns.tick().await;
        seq += 1;
        let (event, channel) = (EventId { publisher, seq }, scene.any_of(scene.kept));
        let publishing = scene.recorder.publishes(event, &channel);
        match post(&scene, &token, &channel, &json!({ "data": event.to_string() }).to_string()).await {
            Some(Ok((200, answer))) => publishing.accepted(position_in(&answer)),
            None | Some(Ok((429 | 503, _))) => publishing.refused(),
            // It may be in.
            Some(_) => {}
        }
    }
}

/// Asks any living node: the status and what it answered. `None` where it could not even be sent.
async fn post(scene: &Scene, token: &str, channel: &str, body: &str) -> Option<Result<(u16, Value), Gone>> {
    let address = scene.directory.any()?;
    let mut socket = timeout(ANSWER, TcpStream::connect(address)).await.ok()?.ok()?;
    let call = Call::new(address, "POST", &format!("/v1/channels/{channel}/publish")).key(token).body(body);
    let bytes = call.header("Content-Type", "application/json").bytes();
    let exchange = async {
        socket.write_all(&bytes).await?;
        let mut bytes = Vec::new();
        socket.read_to_end(&mut bytes).await?;
        std::io::Result::Ok(bytes)
    };
    let whole = |bytes: &Vec<u8>| bytes.windows(4).any(|four| four == b"\r\n\r\n");
    let answer = match timeout(ANSWER, exchange).await {
        Ok(Ok(bytes)) if whole(&bytes) => Answer::parse(&bytes),
        _ => return Some(Err(Gone)),
    };
    // It may have been cut off in the middle.
    Some(serde_json::from_str(&answer.body).map(|body| (answer.status, body)).map_err(|_| Gone))
}

fn position_in(answer: &Value) -> Option<Position> {
    let epoch = answer["epoch"].as_str().map(Arc::from);
    epoch.zip(answer["offset"].as_u64()).map(|(epoch, offset)| Position { epoch, offset })
}

/// How many events a publisher with a socket may have under way.
const UNDER_WAY: usize = 16;

/// An event that was sent and not answered.
struct Sent {
    event: EventId,
    channel: Arc<str>,
    publishing: Publishing,
    until: Instant,
}

/// Publishes without waiting for answers, over one connection after another.
async fn publish_over_socket(scene: Scene, publisher: u32) {
    let mut waiting = VecDeque::<Sent>::new();
    let (mut seq, mut connection) = (0, 0);
    while scene.works() || !waiting.is_empty() {
        let mut link = scene.connect(&format!("publisher{publisher}"), None).await;
        connection += 1;
        // What was not answered is sent again; whoever has waited too long is given up.
        waiting.iter_mut().for_each(|sent| sent.publishing.unanswered());
        waiting.retain(|sent| Instant::now() < sent.until);
        let Err(Gone) = pump(&scene, publisher, &mut link, connection, &mut seq, &mut waiting).await else { return };
        pause().await;
    }
}

/// One connection's life; ends well when there is nothing more to do.
async fn pump(
    scene: &Scene,
    publisher: u32,
    link: &mut Link,
    connection: u64,
    seq: &mut u32,
    waiting: &mut VecDeque<Sent>,
) -> Result<(), Gone> {
    for sent in waiting.iter() {
        link.send(&frame(sent)).await?;
    }
    let mut turns = interval(scene.every);
    loop {
        if !scene.works() && waiting.is_empty() {
            return Ok(());
        }
        tokio::select! {
            _ = turns.tick(), if scene.works() && waiting.len() < UNDER_WAY => {
                *seq += 1;
                let (event, channel) = (EventId { publisher, seq: *seq }, scene.any_channel());
                let mut publishing = scene.recorder.publishes(event, &channel);
                publishing.over(connection);
                let sent = Sent { event, channel, publishing, until: Instant::now() + PERSISTENCE };
                let frame = frame(&sent);
                waiting.push_back(sent);
                link.send(&frame).await?;
            }
            frame = link.next() => answered(&frame?, waiting)?,
        }
    }
}

fn frame(sent: &Sent) -> Value {
    let (text, seq) = (sent.event.to_string(), sent.event.seq);
    json!({ "type": "publish", "id": seq, "channel": *sent.channel, "data": text, "key": text })
}

/// Takes an answer, if it is one.
fn answered(frame: &Value, waiting: &mut VecDeque<Sent>) -> Result<(), Gone> {
    if frame["type"] == "disconnect" {
        return Err(Gone);
    }
    let Some(at) = waiting.iter().position(|sent| frame["id"] == sent.event.seq) else { return Ok(()) };
    let Some(mut sent) = waiting.remove(at) else { return Ok(()) };
    match (frame["type"].as_str(), frame["code"].as_str()) {
        (Some("published"), _) => sent.publishing.accepted(position_in(frame)),
        (_, Some("unavailable" | "rate_limited")) => sent.publishing.refused(),
        // `timeout`: it may be in, and this one does not ask again.
        _ => sent.publishing.unanswered(),
    }
    Ok(())
}
