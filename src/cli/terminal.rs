//! Writing to a terminal what others wrote: nothing in it may move the cursor, ring a bell or turn the text around.

use std::{
    fmt::Write as _,
    future::pending,
    io::{self, Write as _},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};
use tokio::sync::oneshot;

/// Writes one line to standard output, at once.
///
/// # Errors
/// As for any write; a reader that is gone is [`io::ErrorKind::BrokenPipe`].
pub(super) fn print(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(line.as_bytes())?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Comes back once standard output is a pipe that nobody reads any more; never for a file.
///
/// A thread waits for that, and ends with the process: an asynchronous wait would have to make the pipe non-blocking,
/// for everybody who shares it.
pub(super) async fn unread() {
    let (tx, rx) = oneshot::channel();
    std::thread::spawn(move || {
        let out = io::stdout();
        // Asking for nothing still tells of errors and of the end.
        let mut wanted = [PollFd::new(&out, PollFlags::empty())];
        while let Err(Errno::INTR) = poll(&mut wanted, None) {}
        if wanted[0].revents().intersects(PollFlags::ERR | PollFlags::HUP) {
            // The other side may have ended for another reason.
            let _ = tx.send(());
        }
    });
    if rx.await.is_err() {
        pending().await
    }
}

/// Writes one line to standard error. Whether anybody reads it is no concern of ours.
pub(super) fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{}", escape(line));
}

/// `text` with everything that a terminal acts on in place of showing it as `\u{…}`: control characters, ESC and the
/// C1 set among them, and those that change the direction of text.
pub(super) fn escape(text: &str) -> String {
    escape_with(text, |out, c| write!(out, "\\u{{{:x}}}", u32::from(c)))
}

/// The same for JSON, which stays the same JSON: such characters stand in strings only, where `\u009b` means the same,
/// and white space between tokens becomes a blank.
pub(super) fn escape_json(json: &str) -> String {
    escape_with(json, |out, c| match c {
        '\t' | '\n' | '\r' => out.write_char(' '),
        c => c.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(out, "\\u{unit:04x}")),
    })
}

fn escape_with(text: &str, replace: impl Fn(&mut String, char) -> std::fmt::Result) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_harmful(c) {
            // Writing to a `String` cannot fail.
            let _ = replace(&mut out, c);
        } else {
            out.push(c);
        }
    }
    out
}

fn is_harmful(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
        || matches!(c, '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_a_terminal_would_act_on_is_shown_instead() {
        assert_eq!(escape("a\u{1b}[2Jb\u{9b}c\r\n"), "a\\u{1b}[2Jb\\u{9b}c\\u{d}\\u{a}");
        assert_eq!(escape("größe 🎉"), "größe 🎉");
        assert_eq!(escape_json("{\n \"a\":\"\u{9b}\u{202e}\u{e0041}\"}"), "{  \"a\":\"\\u009b\\u202e\\udb40\\udc41\"}");
    }

    proptest! {
        #[test]
        fn escaped_json_is_the_same_json(text in "\\PC{0,20}|[\\x00-\\u{9f}\\u{2028}-\\u{202e}]{0,20}") {
            let json = serde_json::to_string_pretty(&serde_json::json!({ "text": text })).unwrap();
            let escaped = escape_json(&json);
            prop_assert!(!escaped.chars().any(is_harmful));
            prop_assert_eq!(
                serde_json::from_str::<serde_json::Value>(&escaped).unwrap(),
                serde_json::from_str::<serde_json::Value>(&json).unwrap()
            );
        }
    }
}
