//! `fanwire subscribe`: prints what is published, through lost connections, from where it left off.
//!
//! Standard output has one line for each message, join and leave; whatever else there is to know (where a subscription
//! begins, gaps, lost connections, the position to resume from) goes to standard error.

mod progress;

use std::{process::ExitCode, time::Duration};

use clap::Args;
use serde_json::json;
use tokio::time::sleep;

use self::progress::{Channel, Note};
use super::{
    DONE, FAULT, UNREACHED, USAGE, block_on,
    client::{ClientArgs, Connection, Ended, Frame, Member, back_off, parse, seconds},
    terminal,
};

#[derive(Args)]
#[command(after_help = "Ends with ctrl-c, which prints where to resume, or when nobody reads any more. Exit codes: 0 \
                        ended by the user, 1 refused by the server, 2 wrong usage, 3 no server reached at the start.")]
pub(super) struct SubscribeArgs {
    /// The channels.
    #[arg(required = true)]
    channel: Vec<String>,
    /// Where to resume: everything after this position; with several channels one for each, in their order.
    #[arg(long, value_name = "EPOCH:OFFSET", conflicts_with = "last")]
    after: Vec<String>,
    /// Begin with the newest this many.
    #[arg(long, value_name = "N")]
    last: Option<u64>,
    /// Show who is there, who joins and who leaves.
    #[arg(long)]
    presence: bool,
    /// End after this many messages.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Print the frames as they came.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: ClientArgs,
}

/// Why it is over.
enum End {
    /// By the user's will: enough messages, or nobody reads.
    Enough,
    /// By the server's.
    Refused(String),
    /// By accident: to be taken up again.
    Lost { reason: String, delay: Duration },
}

impl From<Ended> for End {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Refused(reason) => Self::Refused(reason),
            Ended::Lost { reason, delay } => Self::Lost { reason, delay },
        }
    }
}

pub(super) fn run(args: SubscribeArgs) -> ExitCode {
    let channels = match channels(&args) {
        Ok(channels) => channels,
        Err(problem) => {
            terminal::say(&problem);
            return ExitCode::from(USAGE);
        }
    };
    block_on(async move {
        let mut subscriber = Subscriber { args, channels, printed: 0, welcomed: false, attempt: 0 };
        let code = tokio::select! {
            code = subscriber.run() => code,
            _ = tokio::signal::ctrl_c() => DONE,
            () = terminal::unread() => DONE,
        };
        subscriber.say_where_to_resume();
        ExitCode::from(code)
    })
}

fn channels(args: &SubscribeArgs) -> Result<Vec<Channel>, String> {
    if !args.after.is_empty() && args.after.len() != args.channel.len() {
        return Err(format!(
            "--after: {} for {} channels; it takes one for each",
            args.after.len(),
            args.channel.len()
        ));
    }
    let mut channels: Vec<Channel> = Vec::new();
    for (at, name) in args.channel.iter().enumerate() {
        if channels.iter().any(|channel| channel.name == *name) {
            return Err(format!("channel {name} is named twice"));
        }
        let after = match args.after.get(at) {
            Some(text) => Some(
                progress::position(text)
                    .ok_or_else(|| format!("--after {text}: a position is written EPOCH:OFFSET, such as k3f9:42"))?,
            ),
            None => None,
        };
        channels.push(Channel::new(name, after, args.last));
    }
    Ok(channels)
}

struct Subscriber {
    args: SubscribeArgs,
    channels: Vec<Channel>,
    printed: u64,
    /// Whether there ever was a connection: without one a wrong address is more likely than a hiccup.
    welcomed: bool,
    /// Connections that were tried since a subscription last stood.
    attempt: u32,
}

impl Subscriber {
    async fn run(&mut self) -> u8 {
        loop {
            match self.session().await {
                End::Enough => return DONE,
                End::Refused(reason) => {
                    terminal::say(&format!("refused: {reason}"));
                    return FAULT;
                }
                End::Lost { reason, .. } if !self.welcomed => {
                    terminal::say(&format!("cannot connect: {reason}"));
                    return UNREACHED;
                }
                End::Lost { reason, delay } => {
                    let wait = delay + back_off(self.attempt);
                    self.attempt = self.attempt.saturating_add(1);
                    terminal::say(&format!("connection lost: {reason}; again in {:.1} s", wait.as_secs_f64()));
                    sleep(wait).await;
                }
            }
        }
    }

    /// One connection's life.
    async fn session(&mut self) -> End {
        let mut connection = match Connection::open(&self.args.client).await {
            Ok(connection) => connection,
            Err(ended) => return ended.into(),
        };
        self.welcomed = true;
        for (at, channel) in self.channels.iter().enumerate().filter(|(_, channel)| channel.wanted) {
            let mut frame = json!({ "type": "subscribe", "id": at, "channel": channel.name });
            if self.args.presence {
                frame["presence"] = json!(true);
            }
            if let Some((epoch, offset)) = &channel.position {
                frame["after"] = json!({ "epoch": epoch, "offset": offset });
            } else if let Some(last) = channel.last {
                frame["last"] = json!(last);
            }
            if let Err(ended) = connection.send(frame.to_string()).await {
                return ended.into();
            }
        }
        loop {
            let text = match connection.next().await {
                Ok(text) => text,
                Err(ended) => return ended.into(),
            };
            if let Err(end) = parse(&text).map_err(End::from).and_then(|frame| self.take(&text, &frame)) {
                connection.close().await;
                return end;
            }
        }
    }

    /// Acts on one frame. The error is a reason to end this connection.
    fn take(&mut self, text: &str, frame: &Frame<'_>) -> Result<(), End> {
        match &*frame.kind {
            "message" => self.message(text, frame),
            "join" | "leave" => self.print(text, || presence(frame)),
            "subscribed" => {
                self.subscribed(frame);
                Ok(())
            }
            "error" => self.refused(frame),
            "unsubscribed" => {
                let name = frame.channel.as_deref().unwrap_or_default().to_owned();
                self.give_up(|channel| channel.name == name, &frame.reason())
            }
            _ => Ok(()),
        }
    }

    fn message(&mut self, text: &str, frame: &Frame<'_>) -> Result<(), End> {
        let name = frame.channel.as_deref().unwrap_or_default();
        if let Some(channel) = self.channels.iter_mut().find(|channel| channel.name == name) {
            match channel.advance(frame.offset) {
                Some(Note::Repeated) => return Ok(()),
                Some(note) => terminal::say(&format!("{name}: {note}")),
                None => {}
            }
        }
        self.print(text, || message(frame))?;
        self.printed += 1;
        if self.args.count == Some(self.printed) { Err(End::Enough) } else { Ok(()) }
    }

    fn subscribed(&mut self, frame: &Frame<'_>) {
        self.attempt = 0;
        let name = frame.channel.as_deref().unwrap_or_default();
        let Some(channel) = self.channels.iter_mut().find(|channel| channel.name == name) else { return };
        let note = channel.begin(frame.epoch.as_deref(), frame.offset, frame.recovered);
        let place =
            channel.position.as_ref().map_or_else(String::new, |(epoch, offset)| format!(" after {epoch}:{offset}"));
        terminal::say(&format!("subscribed to {name}{place}"));
        if let Some(note) = note {
            terminal::say(&format!("{name}: {note}"));
        }
        if let Some(members) = &frame.members {
            let members: Vec<_> = members.iter().map(member).collect();
            terminal::say(&format!("{name}: here are {}", members.join(", ")));
        }
    }

    /// An `error` frame: to one of our subscriptions, whose id is its place in the list.
    fn refused(&mut self, frame: &Frame<'_>) -> Result<(), End> {
        let Some(at) = (0..self.channels.len()).find(|at| frame.answers(*at as u64)) else {
            terminal::say(&format!("error: {}", frame.reason()));
            return Ok(());
        };
        match frame.code.as_deref() {
            Some("rate_limited" | "unavailable" | "timeout" | "internal" | "upstream_error") => {
                Err(End::Lost { reason: frame.reason(), delay: seconds(frame.retry_after) })
            }
            _ => {
                let name = self.channels[at].name.clone();
                self.give_up(|channel| channel.name == name, &frame.reason())
            }
        }
    }

    /// Wants a channel no more; the end if it was the last one.
    fn give_up(&mut self, which: impl Fn(&Channel) -> bool, reason: &str) -> Result<(), End> {
        let mut names = Vec::new();
        for channel in self.channels.iter_mut().filter(|channel| which(channel)) {
            channel.wanted = false;
            names.push(channel.name.clone());
        }
        let names = names.join(", ");
        match self.channels.iter().any(|channel| channel.wanted) {
            true => {
                terminal::say(&format!("{names}: {reason}"));
                Ok(())
            }
            false => Err(End::Refused(format!("{names}: {reason}"))),
        }
    }

    fn print(&self, text: &str, line: impl FnOnce() -> String) -> Result<(), End> {
        let line = if self.args.json { terminal::escape_json(text) } else { terminal::escape(&line()) };
        // Whatever the fault of the pipe or the disk behind it, there is no place left to print to.
        terminal::print(&line).map_err(|_| End::Enough)
    }

    fn say_where_to_resume(&self) {
        for channel in &self.channels {
            if let Some((epoch, offset)) = &channel.position {
                terminal::say(&format!("resume {} with --after {epoch}:{offset}", channel.name));
            }
        }
    }
}

/// A message as a line: channel, offset, event, data.
fn message(frame: &Frame<'_>) -> String {
    let channel = frame.channel.as_deref().unwrap_or_default();
    let offset = frame.offset.map_or_else(String::new, |offset| format!(" #{offset}"));
    let event = frame.event.as_deref().unwrap_or("message");
    let data = frame.data.map_or("null", |data| data.get());
    format!("{channel}{offset} {event} {}", terminal::escape_json(data))
}

fn presence(frame: &Frame<'_>) -> String {
    let channel = frame.channel.as_deref().unwrap_or_default();
    let who = frame.member.as_ref().map_or_else(String::new, member);
    format!("{channel} {} {who}", frame.kind)
}

fn member(member: &Member) -> String {
    let connection = member.connection.as_deref().unwrap_or("?");
    member.user.as_ref().map_or_else(|| connection.to_owned(), |user| format!("{user} ({connection})"))
}
