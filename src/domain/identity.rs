//! Who a session is, and what it may do.

use std::{fmt, str::FromStr, sync::Arc};

use super::{ChannelName, Payload, Stamp};

/// A user's id: the `sub` of its token, or the name of an API key's owner.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserId(Arc<str>);

impl UserId {
    /// The longest id, in bytes.
    pub const MAX_BYTES: usize = 255;

    /// The id's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for UserId {
    type Err = super::InvalidId;

    fn from_str(raw: &str) -> Result<Self, Self::Err> {
        match (1..=Self::MAX_BYTES).contains(&raw.len()) && !raw.contains(char::is_control) {
            true => Ok(Self(raw.into())),
            false => Err(super::InvalidId),
        }
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Something a token can allow on a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Action {
    /// Receive publications; covers `after` and `last`.
    Subscribe,
    /// Publish.
    Publish,
    /// List members and watch joins and leaves.
    Presence,
    /// Read history beyond what a subscription brings.
    History,
    /// Call upstreams.
    Call,
    /// Take deliveries of a consumer group.
    Consume,
}

impl Action {
    /// Every action, in the order of their numbers.
    pub const ALL: [Self; 6] =
        [Self::Subscribe, Self::Publish, Self::Presence, Self::History, Self::Call, Self::Consume];

    /// The word that tokens use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Subscribe => "subscribe",
            Self::Publish => "publish",
            Self::Presence => "presence",
            Self::History => "history",
            Self::Call => "call",
            Self::Consume => "consume",
        }
    }

    /// The action that tokens call `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.name() == name)
    }
}

/// A set of actions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Actions(u8);

impl Actions {
    /// Whether `action` is in the set.
    pub fn contains(self, action: Action) -> bool {
        self.0 & 1 << action as u8 != 0
    }

    /// The set with `action` added.
    pub fn with(self, action: Action) -> Self {
        Self(self.0 | 1 << action as u8)
    }
}

impl FromIterator<Action> for Actions {
    fn from_iter<I: IntoIterator<Item = Action>>(actions: I) -> Self {
        actions.into_iter().fold(Self::default(), Self::with)
    }
}

/// Which channels a grant is for: `*` matches any text without `:`, `**` any text, everything else itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(Box<str>);

/// A text that is no pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a channel pattern has 1 to {} bytes and at most {} wildcards", Pattern::MAX_BYTES, Pattern::MAX_WILDCARDS)]
pub struct InvalidPattern;

impl Pattern {
    /// The longest pattern, in bytes.
    pub const MAX_BYTES: usize = 255;
    /// The most wildcards: matching takes time in proportion to name × pattern, and no sensible pattern has more.
    pub const MAX_WILDCARDS: usize = 8;

    /// The pattern's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the whole of `name` matches. Takes at most name × pattern steps, whatever the two are.
    pub fn matches(&self, name: &str) -> bool {
        let (pattern, name) = (self.0.as_bytes(), name.as_bytes());
        // `reached[n]`: the pattern up to here can match the first `n` bytes of the name.
        let mut reached = vec![false; name.len() + 1];
        reached[0] = true;
        let mut at = 0;
        while let Some(byte) = pattern.get(at) {
            let any = *byte == b'*' && pattern.get(at + 1) == Some(&b'*');
            if *byte == b'*' {
                for n in 0..name.len() {
                    reached[n + 1] |= reached[n] && (any || name[n] != b':');
                }
            } else {
                for n in (0..name.len()).rev() {
                    reached[n + 1] = reached[n] && name[n] == *byte;
                }
                reached[0] = false;
            }
            at += if any { 2 } else { 1 };
        }
        reached[name.len()]
    }
}

impl FromStr for Pattern {
    type Err = InvalidPattern;

    fn from_str(raw: &str) -> Result<Self, Self::Err> {
        let wildcards = raw.bytes().filter(|byte| *byte == b'*').count();
        match (1..=Self::MAX_BYTES).contains(&raw.len()) && wildcards <= 2 * Self::MAX_WILDCARDS {
            true => Ok(Self(raw.into())),
            false => Err(InvalidPattern),
        }
    }
}

/// One capability: these actions on channels that match any of these patterns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Which channels.
    pub channels: Vec<Pattern>,
    /// What may be done there.
    pub actions: Actions,
}

/// Who a session is: the user's id and what its token allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The user.
    pub user: UserId,
    /// What others may see of it.
    pub info: Option<Payload>,
    /// When its token ends, in seconds since 1970.
    pub expires: Option<u64>,
    /// What its token allows.
    pub grants: Vec<Grant>,
    /// By which its token may be revoked.
    pub stamp: Stamp,
}

impl Identity {
    /// Whether a capability names `action` for `channel`.
    pub fn allows(&self, action: Action, channel: &ChannelName) -> bool {
        let matches = |grant: &Grant| grant.channels.iter().any(|pattern| pattern.matches(channel.as_str()));
        self.grants.iter().any(|grant| grant.actions.contains(action) && matches(grant))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, name: &str) -> bool {
        pattern.parse::<Pattern>().unwrap().matches(name)
    }

    #[test]
    fn one_star_stops_at_a_colon_and_two_do_not() {
        for (pattern, name, expected) in [
            ("news", "news", true),
            ("news", "newsletter", false),
            ("news", "new", false),
            ("room:*", "room:1", true),
            ("room:*", "room:", true),
            ("room:*", "room:1:2", false),
            ("room:**", "room:1:2", true),
            ("room:**", "rooms:1", false),
            ("*", "plain", true),
            ("*", "a:b", false),
            ("**", "a:b:c", true),
            ("*:log", "app:log", true),
            ("*:log", "a:b:log", false),
            ("a*b*c", "aXXbYYc", true),
            ("a*b*c", "aXXbYY", false),
            ("a**c", "abc:abc", true),
            ("***", "a:b", true),
            ("größe:*", "größe:1", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} on {name}");
        }
        assert!("".parse::<Pattern>().is_err() && "*".repeat(17).parse::<Pattern>().is_err());
    }

    /// The definition, word for word, in exponential time.
    fn by_definition(pattern: &[u8], name: &[u8]) -> bool {
        match pattern {
            [] => name.is_empty(),
            [b'*', b'*', rest @ ..] => (0..=name.len()).any(|n| by_definition(rest, &name[n..])),
            [b'*', rest @ ..] => {
                (0..=name.len()).take_while(|n| !name[..*n].contains(&b':')).any(|n| by_definition(rest, &name[n..]))
            }
            [byte, rest @ ..] => name.first() == Some(byte) && by_definition(rest, &name[1..]),
        }
    }

    proptest! {
        #[test]
        fn matching_agrees_with_the_definition(pattern in "[ab:*]{1,8}", name in "[ab:]{0,8}") {
            prop_assert_eq!(matches(&pattern, &name), by_definition(pattern.as_bytes(), name.as_bytes()));
        }
    }
}
