//! What can go wrong for a client: each code once, with what it means for trying again.

use std::{fmt, time::Duration};

use super::ChannelName;

/// Why a command was refused. Frames, HTTP problems, logs and metrics share the names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // The names are the documentation; each is explained in docs/protocol-native.md.
pub enum ErrorCode {
    BadRequest,
    Unauthorized,
    TokenExpired,
    TokenRevoked,
    Forbidden,
    UnknownChannel,
    AlreadySubscribed,
    NotSubscribed,
    HistoryDisabled,
    PresenceDisabled,
    LimitExceeded,
    RateLimited,
    TooLarge,
    UnknownMethod,
    UpstreamError,
    Timeout,
    Unavailable,
    Internal,
}

impl ErrorCode {
    /// Every code.
    pub const ALL: [Self; 18] = [
        Self::BadRequest,
        Self::Unauthorized,
        Self::TokenExpired,
        Self::TokenRevoked,
        Self::Forbidden,
        Self::UnknownChannel,
        Self::AlreadySubscribed,
        Self::NotSubscribed,
        Self::HistoryDisabled,
        Self::PresenceDisabled,
        Self::LimitExceeded,
        Self::RateLimited,
        Self::TooLarge,
        Self::UnknownMethod,
        Self::UpstreamError,
        Self::Timeout,
        Self::Unavailable,
        Self::Internal,
    ];

    /// The code's name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::Unauthorized => "unauthorized",
            Self::TokenExpired => "token_expired",
            Self::TokenRevoked => "token_revoked",
            Self::Forbidden => "forbidden",
            Self::UnknownChannel => "unknown_channel",
            Self::AlreadySubscribed => "already_subscribed",
            Self::NotSubscribed => "not_subscribed",
            Self::HistoryDisabled => "history_disabled",
            Self::PresenceDisabled => "presence_disabled",
            Self::LimitExceeded => "limit_exceeded",
            Self::RateLimited => "rate_limited",
            Self::TooLarge => "too_large",
            Self::UnknownMethod => "unknown_method",
            Self::UpstreamError => "upstream_error",
            Self::Timeout => "timeout",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        }
    }

    /// The HTTP status that says the same.
    pub fn http_status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Unauthorized | Self::TokenExpired | Self::TokenRevoked => 401,
            Self::Forbidden | Self::LimitExceeded => 403,
            Self::UnknownChannel | Self::UnknownMethod => 404,
            Self::AlreadySubscribed | Self::NotSubscribed | Self::HistoryDisabled | Self::PresenceDisabled => 409,
            Self::TooLarge => 413,
            Self::RateLimited => 429,
            Self::Internal => 500,
            Self::UpstreamError => 502,
            Self::Unavailable => 503,
            Self::Timeout => 504,
        }
    }

    /// Whether the same command may succeed later, unchanged.
    pub fn is_temporary(self) -> bool {
        matches!(self, Self::RateLimited | Self::UpstreamError | Self::Timeout | Self::Unavailable | Self::Internal)
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A command's failure; the connection stays.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Refusal {
    /// What kind of failure.
    pub code: ErrorCode,
    /// For the developer who reads it: lower case, without a full stop, and naming the value.
    pub message: String,
    /// The channel it is about.
    pub channel: Option<ChannelName>,
    /// How long to wait before the next try.
    pub retry_after: Option<Duration>,
}

impl Refusal {
    /// A refusal with `code`, explained by `message`.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), channel: None, retry_after: None }
    }

    /// The same, about `channel`.
    pub fn in_channel(mut self, channel: &ChannelName) -> Self {
        self.channel = Some(channel.clone());
        self
    }

    /// The same, to be tried again after `delay`.
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }
}

/// Why a connection ends by the server's will.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // The names are the documentation; each is explained in docs/protocol-native.md.
pub enum DisconnectReason {
    Draining,
    PingTimeout,
    Slow,
    BrokerLost,
    Internal,
    Unauthorized,
    Forbidden,
    Limits,
    UnknownApp,
    ConnectionLimit,
    TokenExpired,
    TokenRevoked,
}

impl DisconnectReason {
    /// The WebSocket close code.
    pub fn close_code(self) -> u16 {
        match self {
            Self::Draining => 1001,
            Self::PingTimeout => 4000,
            Self::Slow => 4001,
            Self::BrokerLost => 4002,
            Self::Internal => 4003,
            Self::Unauthorized => 4100,
            Self::Forbidden => 4101,
            Self::Limits => 4102,
            Self::UnknownApp => 4103,
            Self::ConnectionLimit => 4104,
            Self::TokenExpired => 4200,
            Self::TokenRevoked => 4201,
        }
    }

    /// The name, in `disconnect` frames and as close reason.
    pub fn name(self) -> &'static str {
        match self {
            Self::Draining => "draining",
            Self::PingTimeout => "ping_timeout",
            Self::Slow => "slow",
            Self::BrokerLost => "broker_lost",
            Self::Internal => "internal",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::Limits => "limits",
            Self::UnknownApp => "unknown_app",
            Self::ConnectionLimit => "connection_limit",
            Self::TokenExpired => "token_expired",
            Self::TokenRevoked => "token_revoked",
        }
    }

    /// What it means, for the developer who reads the frame.
    pub fn message(self) -> &'static str {
        match self {
            Self::Draining => "this node is shutting down, connect again",
            Self::PingTimeout => "nothing was heard after a ping",
            Self::Slow => "more was waiting to be sent than may wait, connect again and resume",
            Self::BrokerLost => "the broker cannot be reached",
            Self::Internal => "an error on our side, connect again",
            Self::Unauthorized => "the token was refused",
            Self::Forbidden => "disconnected by the operator",
            Self::Limits => "a limit was broken again and again",
            Self::UnknownApp => "no app has this key",
            Self::ConnectionLimit => "the app has as many connections as it may have",
            Self::TokenExpired => "the token has expired, connect again with a new one",
            Self::TokenRevoked => "the token was revoked, connect again with a new one",
        }
    }

    /// Whether a client should connect again (with a new token after 42xx).
    pub fn should_reconnect(self) -> bool {
        !matches!(self.close_code(), 4100..=4199)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reconnecting_follows_the_code_s_hundreds() {
        assert!(DisconnectReason::Slow.should_reconnect() && DisconnectReason::TokenExpired.should_reconnect());
        assert!(!DisconnectReason::UnknownApp.should_reconnect() && !DisconnectReason::Forbidden.should_reconnect());
    }

    #[test]
    fn every_code_has_a_name_of_its_own() {
        let mut names: Vec<_> = ErrorCode::ALL.iter().map(|code| code.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ErrorCode::ALL.len());
    }
}
