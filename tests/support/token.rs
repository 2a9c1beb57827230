//! Tokens, as an application's server would make them.

use std::time::{SystemTime, UNIX_EPOCH};

use fanwire::gateway::mint;
use serde_json::{Value, json};

/// The secret of the `default` app of every [`TestServer`](super::TestServer).
pub const SECRET: &str = "a secret of forty bytes, for tests only!";

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970").as_secs()
}

/// A token with these claims, signed with [`SECRET`].
pub fn token(claims: Value) -> String {
    mint(SECRET, &claims).expect("the claims are an object")
}

/// A token that says no more than who somebody is.
pub fn user(name: &str) -> String {
    token(json!({ "sub": name }))
}

/// A token that lets `user` into one channel.
pub fn subscription(user: &str, channel: &str) -> String {
    token(json!({ "sub": user, "channel": channel }))
}
