//! What a namespace may set for its channels.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{ByteSize, Rate, Span};

/// Settings of all channels of one namespace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NamespaceConfig {
    /// Who may subscribe.
    pub subscribe: Access,
    /// Who may publish.
    pub publish: Access,
    /// What is kept; absent for nothing.
    pub history: Option<HistoryConfig>,
    /// Whether members may be listed and watched.
    pub presence: bool,
    /// Whether publications say who published them.
    pub show_publisher: bool,
    /// Whether the newest publication is sent to each new subscriber.
    pub cache: bool,
    /// The largest `data`.
    pub max_data: ByteSize,
    /// Publications per connection.
    pub publish_rate: Rate,
}

impl Default for NamespaceConfig {
    fn default() -> Self {
        Self {
            subscribe: Access::Token,
            publish: Access::Token,
            history: None,
            presence: false,
            show_publisher: false,
            cache: false,
            max_data: ByteSize::kibibytes(64),
            publish_rate: Rate::NONE,
        }
    }
}

impl NamespaceConfig {
    /// What every namespace is in development mode: open; `room` with history and presence besides.
    pub fn development(namespace: &str) -> Self {
        let room = namespace == "room";
        Self {
            subscribe: Access::Anyone,
            publish: Access::Anyone,
            history: room.then(|| HistoryConfig { size: 100, ttl: Span(Duration::from_secs(3600)) }),
            presence: room,
            show_publisher: room,
            ..Self::default()
        }
    }
}

/// Who may do something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Anonymous connections too.
    Anyone,
    /// Whoever has a valid token.
    User,
    /// Whose token allows it.
    Token,
    /// Only the application's servers.
    Nobody,
}

/// How much a channel keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HistoryConfig {
    /// The newest this many.
    pub size: usize,
    /// And none older than this.
    pub ttl: Span,
}
