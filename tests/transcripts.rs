//! Recorded conversations, replayed against the codecs; see `tests/transcripts/README.md` for the format.

use std::{fs, path::Path};

use fanwire::protocol::{Codec, native::Native};

/// One file, told what is wrong with it by line.
fn replay(path: &Path, codec: &dyn Codec) -> Result<usize, String> {
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    let (mut heard, mut replayed) = (Vec::<String>::new(), 0);
    for (number, line) in text.lines().enumerate() {
        let at = |problem: String| format!("{}:{}: {problem}", path.display(), number + 1);
        match line.split_once(' ').unwrap_or((line, "")) {
            ("" | "#", _) => {}
            (">", frame) => {
                if let Some(left) = heard.first() {
                    return Err(at(format!("nothing in the transcript says what came of `{left}`")));
                }
                let mut requests = Vec::new();
                codec.decode(frame, &mut requests);
                heard = requests.iter().map(described).collect();
                replayed += 1;
            }
            ("=", expected) if !heard.is_empty() => {
                let came = heard.remove(0);
                if came != expected {
                    return Err(at(format!("`{expected}` was recorded, `{came}` came")));
                }
            }
            (sign, _) => return Err(at(format!("`{sign}` does not fit here"))),
        }
    }
    match heard.first() {
        Some(left) => Err(format!("{}: nothing says what came of `{left}`", path.display())),
        None => Ok(replayed),
    }
}

/// A request as one line: its id, then the command or the refusal.
fn described(request: &fanwire::domain::Request) -> String {
    let id = match &request.id {
        None => "-".to_owned(),
        Some(fanwire::domain::CommandId::Number(number)) => number.to_string(),
        Some(fanwire::domain::CommandId::Text(text)) => format!("{text:?}"),
    };
    match &request.command {
        Ok(command) => format!("{id} {}", one_line(command)),
        Err(refusal) => format!("{id} refused {}: {}", refusal.code, refusal.message),
    }
}

fn one_line(command: &fanwire::domain::Command) -> String {
    use fanwire::domain::{Command, Start};
    match command {
        Command::Auth { token } => format!("auth {token}"),
        Command::Ping => "ping".into(),
        Command::Unsubscribe { channel } => format!("unsubscribe {channel}"),
        Command::Presence { channel } => format!("presence {channel}"),
        Command::History { channel, query } => {
            let offset = |name: &str, offset: Option<fanwire::domain::Offset>| {
                offset.map_or(String::new(), |offset| format!(" {name} {offset}"))
            };
            let reverse = if query.reverse { " reverse" } else { "" };
            let (after, before) = (offset("after", query.after), offset("before", query.before));
            format!("history {channel} limit {}{after}{before}{reverse}", query.limit)
        }
        Command::Subscribe(subscribe) => {
            let start = match subscribe.start {
                Start::Live => "live".to_owned(),
                Start::Last(last) => format!("last {last}"),
                Start::After(None) => "after a lost position".to_owned(),
                Start::After(Some(position)) => format!("after {}:{}", position.epoch, position.offset),
            };
            let token = subscribe.token.as_ref().map_or(String::new(), |token| format!(" token {token}"));
            let presence = if subscribe.presence { " presence" } else { "" };
            format!("subscribe {} {start}{token}{presence}", subscribe.channel)
        }
        Command::Publish(publish) => {
            let key = publish.key.as_ref().map_or(String::new(), |key| format!(" key {}", key.as_str()));
            let tags = publish.event.tags.as_ref().map_or(String::new(), |tags| format!(" tags {}", tags.as_str()));
            let echo = if publish.echo { "" } else { " silent" };
            format!(
                "publish {} {} {}{key}{tags}{echo}",
                publish.channel,
                publish.event.name(),
                publish.event.data.as_str()
            )
        }
    }
}

#[test]
fn recorded_conversations_are_understood_as_they_were() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/transcripts/native"));
    let (mut problems, mut replayed) = (Vec::new(), 0);
    for entry in fs::read_dir(folder).unwrap() {
        match replay(&entry.unwrap().path(), &Native) {
            Ok(frames) => replayed += frames,
            Err(problem) => problems.push(problem),
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert!(30 < replayed, "only {replayed} frames were found");
}
