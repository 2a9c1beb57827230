//! `fanwire publish`: publishes one event, or one for each line of standard input, and waits until each is accepted.
//!
//! Each publication carries an idempotency key, so that one whose answer was lost is sent again without being stored
//! twice. A line is sent after the one before it was accepted: so order holds, whatever has to be repeated.

use std::{
    io::{self, BufRead},
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use serde_json::{json, value::RawValue};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

use super::{
    DONE, FAULT, UNREACHED, USAGE, block_on,
    client::{ANSWER_TIME, ClientArgs, Connection, Ended, back_off, parse, seconds},
    terminal,
};

#[derive(Args)]
#[command(after_help = "Each publication is acknowledged before the next is sent. Exit codes: 0 all were accepted, 1 \
                        one was refused, 2 wrong usage, 3 no server reached or no answer.")]
pub(super) struct PublishArgs {
    /// The channel.
    channel: String,
    /// JSON; what is not JSON is sent as a JSON string. `-`: each line of standard input is one publication.
    #[arg(allow_hyphen_values = true)]
    data: String,
    /// The event's name, `message` if left out.
    #[arg(long, value_name = "NAME")]
    event: Option<String>,
    /// An idempotency key: the same one is stored once. With `-`, each line's is KEY:number. Random if left out.
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Print the server's answers as they came.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: ClientArgs,
}

/// How often one publication is tried, in all.
const TRIES: u32 = 6;

/// Why a publication was not made.
enum Failure {
    /// The server does not want it.
    Refused(String),
    /// Nobody knows whether it was made.
    Unanswered(String),
    /// Nobody reads what we print.
    Unread,
}

pub(super) fn run(args: PublishArgs) -> ExitCode {
    if args.key.as_ref().is_some_and(|key| key.is_empty() || 64 < key.len()) {
        terminal::say("--key takes 1 to 64 bytes");
        return ExitCode::from(USAGE);
    }
    block_on(async move {
        let mut publisher = Publisher { args, connection: None, ever_connected: false, commands: 0 };
        let code = match publisher.args.data.as_str() {
            "-" => publisher.lines().await,
            data => {
                let (data, key) = (data.to_owned(), publisher.args.key.clone());
                let done = publisher.publish(&data, key).await;
                report(done, "")
            }
        };
        if let Some(connection) = publisher.connection {
            connection.close().await;
        }
        ExitCode::from(code)
    })
}

/// Tells how it went; the exit code.
fn report(done: Result<(), Failure>, place: &str) -> u8 {
    match done {
        Ok(()) | Err(Failure::Unread) => DONE,
        Err(Failure::Refused(problem)) => {
            terminal::say(&format!("{place}refused: {problem}"));
            FAULT
        }
        Err(Failure::Unanswered(problem)) => {
            terminal::say(&format!("{place}not acknowledged: {problem}"));
            UNREACHED
        }
    }
}

struct Publisher {
    args: PublishArgs,
    connection: Option<Connection>,
    ever_connected: bool,
    commands: u64,
}

impl Publisher {
    /// Publishes each line of standard input. A refused line is told and passed over.
    async fn lines(&mut self) -> u8 {
        let mut lines = standard_input();
        let mut code = DONE;
        let mut number = 0u64;
        while let Some(line) = self.next_line(&mut lines).await {
            number += 1;
            let key = self.args.key.as_ref().map(|key| format!("{key}:{number}"));
            let line = match line {
                Ok(line) => line,
                Err(error) => {
                    terminal::say(&format!("line {number}: {error}"));
                    return FAULT;
                }
            };
            let done = self.publish(&line, key).await;
            let unread = matches!(done, Err(Failure::Unread));
            match report(done, &format!("line {number}: ")) {
                DONE if unread => return code,
                DONE => {}
                UNREACHED => return UNREACHED,
                other => code = other,
            }
        }
        code
    }

    /// The next line. Meanwhile the connection is listened to, since the server's pings want an answer.
    async fn next_line(&mut self, lines: &mut mpsc::Receiver<io::Result<String>>) -> Option<io::Result<String>> {
        loop {
            let Some(connection) = &mut self.connection else { return lines.recv().await };
            tokio::select! {
                line = lines.recv() => return line,
                frame = connection.next() => if frame.is_err() {
                    self.connection = None; // Opened anew for the next line.
                }
            }
        }
    }

    /// Publishes `data`, in several tries where that helps.
    async fn publish(&mut self, data: &str, key: Option<String>) -> Result<(), Failure> {
        let key = key.unwrap_or_else(|| format!("{:032x}", rand::random::<u128>()));
        let data = as_json(data);
        let mut attempt = 0;
        loop {
            let (problem, delay) = match self.attempt(&data, &key).await {
                Ok(Answer::Published(line)) => return terminal::print(&line).map_err(|_| Failure::Unread),
                Ok(Answer::Refused(problem)) | Err(Ended::Refused(problem)) => return Err(Failure::Refused(problem)),
                Ok(Answer::Later(problem, delay)) => (problem, delay),
                Err(Ended::Lost { reason, delay }) => {
                    self.connection = None;
                    (reason, delay)
                }
            };
            if !self.ever_connected || TRIES <= attempt + 1 {
                return Err(Failure::Unanswered(problem));
            }
            sleep(delay + back_off(attempt)).await;
            attempt += 1;
        }
    }

    async fn attempt(&mut self, data: &RawValue, key: &str) -> Result<Answer, Ended> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            None => self.connection.insert(Connection::open(&self.args.client).await?),
        };
        self.ever_connected = true;
        self.commands += 1;
        let id = self.commands;
        let mut frame = json!({ "type": "publish", "id": id, "channel": self.args.channel, "key": key });
        if let Some(event) = &self.args.event {
            frame["event"] = json!(event);
        }
        // `data` goes out as the bytes that came in: a JSON value would round large numbers.
        let mut text = frame.to_string();
        text.pop();
        connection.send(format!("{text},\"data\":{data}}}")).await?;
        let answer = async {
            loop {
                let text = connection.next().await?;
                if let Some(answer) = answer(&text, id, self.args.json)? {
                    return Ok(answer);
                }
            }
        };
        timeout(ANSWER_TIME, answer).await.unwrap_or_else(|_| Err(Ended::lost("no answer in time")))
    }
}

enum Answer {
    /// The line to print.
    Published(String),
    Refused(String),
    /// The same may be taken after this time.
    Later(String, Duration),
}

/// What `text` says to the command `id`, if it is an answer to it.
fn answer(text: &str, id: u64, as_frame: bool) -> Result<Option<Answer>, Ended> {
    let frame = parse(text)?;
    Ok(match &*frame.kind {
        _ if !frame.answers(id) => None,
        "published" if as_frame => Some(Answer::Published(terminal::escape_json(text))),
        "published" => {
            let mut line = format!("published {}", frame.publication.as_deref().unwrap_or("it"));
            if let (Some(epoch), Some(offset)) = (&frame.epoch, frame.offset) {
                line.push_str(&format!(" at {epoch}:{offset}"));
            }
            Some(Answer::Published(terminal::escape(&line)))
        }
        "error" => Some(match frame.code.as_deref() {
            // With the same key a second time does no harm, even if the first was done after all.
            Some("rate_limited" | "unavailable" | "timeout" | "internal") => {
                Answer::Later(frame.reason(), seconds(frame.retry_after))
            }
            _ => Answer::Refused(frame.reason()),
        }),
        _ => None,
    })
}

/// `data` as it stands if it is JSON, else as a JSON string.
fn as_json(data: &str) -> Box<RawValue> {
    let string = || RawValue::from_string(json!(data).to_string()).expect("a JSON string is JSON");
    RawValue::from_string(data.trim().to_owned()).unwrap_or_else(|_| string())
}

/// The lines of standard input, read by a thread of its own, which ends with the process.
fn standard_input() -> mpsc::Receiver<io::Result<String>> {
    let (tx, rx) = mpsc::channel(64);
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines() {
            if tx.blocking_send(line).is_err() {
                break;
            }
        }
    });
    rx
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_json_is_a_string() {
        for (data, expected) in [
            ("hello", "\"hello\""),
            ("  {\"n\": 12345678901234567890123} ", "{\"n\": 12345678901234567890123}"),
            ("", "\"\""),
            ("say \"hi\"", "\"say \\\"hi\\\"\""),
            ("true", "true"),
            ("-1", "-1"),
            ("{\"a\":", "\"{\\\"a\\\":\""),
        ] {
            assert_eq!(as_json(data).get(), expected);
        }
    }
}
