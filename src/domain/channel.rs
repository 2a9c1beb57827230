//! Names of channels and of the apps that own them.

use std::{fmt, str::FromStr, sync::Arc};

/// A channel's name as clients write it, such as `chat:lobby`.
///
/// Invariant: 1 to [`ChannelName::MAX_BYTES`] bytes, without control characters or white space.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelName(Arc<str>);

/// Why a text is no channel name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidChannelName {
    /// Nothing at all.
    #[error("a channel name has at least one byte")]
    Empty,
    /// More than [`ChannelName::MAX_BYTES`].
    #[error("a channel name has at most {} bytes, this one has {bytes}", ChannelName::MAX_BYTES)]
    TooLong {
        /// How long it is.
        bytes: usize,
    },
    /// A character that would break logs, keys or terminals.
    #[error("a channel name has no white space and no control characters")]
    Character,
}

impl ChannelName {
    /// The longest name, in bytes: Centrifugo's default; Pusher's own HTTP library stops at 200.
    pub const MAX_BYTES: usize = 255;

    /// The name's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part before the first `:`; `""` where there is none.
    pub fn namespace(&self) -> &str {
        namespace(&self.0)
    }
}

impl FromStr for ChannelName {
    type Err = InvalidChannelName;

    fn from_str(raw: &str) -> Result<Self, Self::Err> {
        match raw.len() {
            0 => Err(InvalidChannelName::Empty),
            bytes if Self::MAX_BYTES < bytes => Err(InvalidChannelName::TooLong { bytes }),
            _ if !raw.is_ascii() && raw.contains(|c: char| c.is_control() || c.is_whitespace()) => {
                Err(InvalidChannelName::Character)
            }
            _ if raw.bytes().any(|byte| byte <= b' ' || byte == 0x7f) => Err(InvalidChannelName::Character),
            _ => Ok(Self(raw.into())),
        }
    }
}

impl fmt::Display for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An app's id, such as `default`: a tenant with its own keys, secret and channels.
///
/// Invariant: 1 to 64 bytes of ASCII letters, digits, `_`, `-` and `.`; never a `:`, which ends it in keys.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AppId(Arc<str>);

/// A text that is no app id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an app id has 1 to 64 letters, digits, `_`, `-` or `.`")]
pub struct InvalidAppId;

impl AppId {
    /// The id's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for AppId {
    type Err = InvalidAppId;

    fn from_str(raw: &str) -> Result<Self, Self::Err> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
        match (1..=64).contains(&raw.len()) && raw.bytes().all(allowed) {
            true => Ok(Self(raw.into())),
            false => Err(InvalidAppId),
        }
    }
}

impl fmt::Display for AppId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One app's channel: what hub and broker key their tables by, so that no tenant can reach another's.
#[derive(Clone)]
pub struct Channel {
    /// `app:name`; an app id has no `:`.
    key: Arc<str>,
    name_at: u8,
}

impl Channel {
    /// The channel `name` of `app`.
    pub fn new(app: &AppId, name: &ChannelName) -> Self {
        let (app, name) = (app.as_str(), name.as_str());
        let mut key = String::with_capacity(app.len() + 1 + name.len());
        key.push_str(app);
        key.push(':');
        key.push_str(name);
        Self { key: key.into(), name_at: u8::try_from(app.len() + 1).expect("an app id has at most 64 bytes") }
    }

    /// `app:name`, unique over all apps.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The owning app's id.
    pub fn app(&self) -> &str {
        &self.key[..usize::from(self.name_at) - 1]
    }

    /// The name as clients write it.
    pub fn name(&self) -> &str {
        &self.key[usize::from(self.name_at)..]
    }

    /// The part of the name before its first `:`; `""` where there is none.
    pub fn namespace(&self) -> &str {
        namespace(self.name())
    }
}

impl PartialEq for Channel {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Eq for Channel {}

impl std::hash::Hash for Channel {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.key.hash(state);
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key)
    }
}

fn namespace(name: &str) -> &str {
    name.split_once(':').map_or("", |(namespace, _)| namespace)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_from_outside_are_checked_once() {
        assert_eq!("".parse::<ChannelName>(), Err(InvalidChannelName::Empty));
        assert_eq!("x".repeat(256).parse::<ChannelName>(), Err(InvalidChannelName::TooLong { bytes: 256 }));
        assert!("x".repeat(255).parse::<ChannelName>().is_ok());
        for bad in ["a b", "a\n", "\u{7f}", "a\u{a0}b", "\u{85}", "\u{2028}", "a\0"] {
            assert_eq!(bad.parse::<ChannelName>(), Err(InvalidChannelName::Character), "{bad:?}");
        }
        assert_eq!("räume:größe🎉".parse::<ChannelName>().unwrap().namespace(), "räume");
        assert_eq!("plain".parse::<ChannelName>().unwrap().namespace(), "");
    }

    #[test]
    fn a_channel_knows_its_parts() {
        let channel = Channel::new(&"shop".parse().unwrap(), &"room:1:2".parse().unwrap());
        assert_eq!(
            (channel.app(), channel.name(), channel.namespace(), channel.key()),
            ("shop", "room:1:2", "room", "shop:room:1:2")
        );
        assert!("a:b".parse::<AppId>().is_err());
    }

    proptest! {
        #[test]
        fn a_name_is_valid_exactly_when_the_definition_says_so(raw in "\\PC{0,80}|[\\x00-\\x7f]{0,12}|.{0,300}") {
            let valid = (1..=255).contains(&raw.len()) && !raw.chars().any(|c| c.is_control() || c.is_whitespace());
            prop_assert_eq!(raw.parse::<ChannelName>().is_ok(), valid);
        }
    }
}
