//! How far a channel has been read, and whether anything is missing.

use std::fmt;

/// A channel that is wanted.
pub(super) struct Channel {
    pub name: String,
    /// False once the server refused it for good.
    pub wanted: bool,
    /// The epoch, and the offset up to which everything has been seen; where history is kept.
    pub position: Option<(String, u64)>,
    /// How many of the newest to begin with, as long as there is no position.
    pub last: Option<u64>,
    begun: bool,
}

/// Something to tell about a channel.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Note {
    /// The history no longer reaches back to the position.
    Lost { after: u64 },
    /// Offsets were left out.
    Gap { from: u64, to: u64 },
    /// It keeps no history, so that nobody knows what a lost connection missed.
    Unknown,
    /// It had been printed already.
    Repeated,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost { after } => write!(f, "gap: the history no longer has everything after #{after}"),
            Self::Gap { from, to } => write!(f, "gap: #{from} to #{to} did not come"),
            Self::Unknown => f.write_str("perhaps a gap: it keeps no history, and the connection was lost"),
            Self::Repeated => f.write_str("came twice"),
        }
    }
}

impl Channel {
    pub fn new(name: &str, position: Option<(String, u64)>, last: Option<u64>) -> Self {
        Self { name: name.into(), wanted: true, position, last, begun: false }
    }

    /// A subscription begins at a position, or without one where no history is kept.
    pub fn begin(&mut self, epoch: Option<&str>, offset: Option<u64>, recovered: Option<bool>) -> Option<Note> {
        let again = std::mem::replace(&mut self.begun, true);
        self.last = None;
        let before = match (epoch, offset) {
            (Some(epoch), Some(offset)) => self.position.replace((epoch.into(), offset)),
            _ => self.position.take(),
        };
        match (recovered, before) {
            (Some(false), before) => Some(Note::Lost { after: before.map_or(0, |(_, offset)| offset) }),
            (None, None) if again && offset.is_none() => Some(Note::Unknown),
            _ => None,
        }
    }

    /// A message came.
    pub fn advance(&mut self, offset: Option<u64>) -> Option<Note> {
        let (Some(offset), Some((_, seen))) = (offset, &mut self.position) else { return None };
        if offset <= *seen {
            return Some(Note::Repeated);
        }
        let expected = std::mem::replace(seen, offset).saturating_add(1);
        (expected < offset).then_some(Note::Gap { from: expected, to: offset - 1 })
    }
}

/// Reads `EPOCH:OFFSET`. The epoch is opaque, the offset follows the last colon.
pub(super) fn position(text: &str) -> Option<(String, u64)> {
    let (epoch, offset) = text.rsplit_once(':')?;
    let digits = !offset.is_empty() && offset.bytes().all(|byte| byte.is_ascii_digit());
    (!epoch.is_empty() && digits).then(|| Some((epoch.into(), offset.parse().ok()?)))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_that_do_not_follow_are_noticed() {
        let mut channel = Channel::new("a", None, Some(5));
        assert_eq!(channel.begin(Some("e"), Some(4), None), None);
        assert_eq!(channel.last, None);
        assert_eq!(channel.advance(Some(5)), None);
        assert_eq!(channel.advance(Some(5)), Some(Note::Repeated));
        assert_eq!(channel.advance(Some(8)), Some(Note::Gap { from: 6, to: 7 }));
        assert_eq!(channel.begin(Some("e"), Some(8), Some(true)), None);
        assert_eq!(channel.begin(Some("f"), Some(100), Some(false)), Some(Note::Lost { after: 8 }));
        assert_eq!(channel.advance(Some(101)), None);
        assert_eq!(channel.position, Some(("f".into(), 101)));
        assert_eq!(channel.advance(Some(u64::MAX)), Some(Note::Gap { from: 102, to: u64::MAX - 1 }));
    }

    #[test]
    fn without_history_a_second_beginning_may_hide_a_gap() {
        let mut channel = Channel::new("a", None, None);
        assert_eq!(channel.begin(None, None, None), None);
        assert_eq!(channel.advance(None), None);
        assert_eq!(channel.begin(None, None, None), Some(Note::Unknown));
    }

    #[test]
    fn positions_are_read_as_they_are_printed() {
        assert_eq!(position("k3f9:42"), Some(("k3f9".into(), 42)));
        for bad in ["", "k3f9", ":1", "k3f9:", "k3f9:+1", "k3f9:x", "k:99999999999999999999"] {
            assert_eq!(position(bad), None, "{bad}");
        }
    }
}
