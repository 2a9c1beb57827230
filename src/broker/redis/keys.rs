//! Every key and every relay channel in Redis: name, type, lifetime, hash slot.
//!
//! | name | type | lifetime | what |
//! | --- | --- | --- | --- |
//! | `fanwire:m:{app:name}` | hash | history's and [`NUMBERING`] | a channel's numbering: `e` epoch, `o` top offset, `g` the era it belongs to, `n…` what each node sent last: number, offset, when |
//! | `fanwire:s:{app:name}` | stream | history's | its history: entry `<offset>-0` with `t` (ms, Redis' clock) and `d` |
//! | `fanwire:i<bytes>:{app:name}…` | string | [`IDEMPOTENCY_WINDOW`](crate::broker::IDEMPOTENCY_WINDOW) | an idempotency key: what the first publication became |
//! | `fanwire:p:{app:name}` | hash | while there are members, then 1 h | its members, by connection: number, lease, entry; `#` the last number, `!…` ended leases |
//! | `fanwire:l:{<lease>}` | string | 10 s, renewed | a node's lease |
//! | `fanwire:x:{<lease>}` | set | until it is swept | the channels in which the lease may have members |
//! | `fanwire:f:{<lease>}` | string | 1 h | the mark that a lease has ended |
//! | `fanwire:era` | hash | for ever | `era` the present one, `run` the primary's replication id; see `lua/era.lua` |
//! | `fanwire:leases` | sorted set | for ever; small | all leases that are not known to have ended |
//! | `fanwire:o:{control}` | stream | 10 min after the last | orders to all nodes: entries with `d`, the order |
//! | `fanwire:v:{control}` | hash | until the last of them is over | revoked tokens: `u:<app>:<user>` or `t:<app>:<token>`, issued before when, and until when they would count (s) |
//! | `fanwire:w:{control}` | sorted set | likewise | when each of them is over (s) |
//! | `fanwire:r:{app:name}` | Pub/Sub channel | | the relay |
//! | `fanwire:b:<node>` | Pub/Sub channel | | a node's probes, to itself |
//! | `fanwire:c` | Pub/Sub channel | | says to all nodes that there is an order |
//!
//! What stands in braces is the hash tag, so all that belongs to a channel is in one slot of a cluster. A name may hold
//! braces itself; the tag then ends earlier, but for all of that channel's keys at the same place.

use std::time::Duration;

use crate::{
    broker::{KeyScope, ScopedKey},
    domain::Channel,
};

/// How much longer than its history a channel's numbering is kept, so that who returns resumes cleanly.
pub(super) const NUMBERING: Duration = Duration::from_secs(60 * 60);

/// Makes the names, all with the same prefix.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// A channel's numbering.
    pub fn numbering(&self, channel: &Channel) -> String {
        self.of(channel, "m")
    }

    /// A channel's history.
    pub fn stream(&self, channel: &Channel) -> String {
        self.of(channel, "s")
    }

    /// A channel's members.
    pub fn members(&self, channel: &Channel) -> String {
        self.of(channel, "p")
    }

    /// A channel's relay.
    pub fn relay(&self, channel: &Channel) -> String {
        self.of(channel, "r")
    }

    /// An idempotency key's entry. The lengths in it keep what clients choose from running into each other.
    pub fn idempotency(&self, channel: &Channel, scoped: &ScopedKey) -> String {
        let (name, key) = (channel.key(), scoped.key.as_str());
        let prefix = &self.prefix;
        match &scoped.scope {
            KeyScope::User(user) => {
                let user = user.as_str();
                format!("{prefix}:i{}:{{{name}}}u{}:{user}:{key}", name.len(), user.len())
            }
            KeyScope::Anonymous => format!("{prefix}:i{}:{{{name}}}a:{key}", name.len()),
            KeyScope::Server => format!("{prefix}:i{}:{{{name}}}s:{key}", name.len()),
        }
    }

    /// A node's lease.
    pub fn lease(&self, lease: &str) -> String {
        format!("{}:l:{{{lease}}}", self.prefix)
    }

    /// The mark that a lease has ended.
    pub fn ended(&self, lease: &str) -> String {
        format!("{}:f:{{{lease}}}", self.prefix)
    }

    /// The channels in which a lease may have members.
    pub fn channels_of(&self, lease: &str) -> String {
        format!("{}:x:{{{lease}}}", self.prefix)
    }

    /// All leases.
    pub fn leases(&self) -> String {
        format!("{}:leases", self.prefix)
    }

    /// The orders to all nodes.
    pub fn orders(&self) -> String {
        format!("{}:o:{{control}}", self.prefix)
    }

    /// Revoked tokens.
    pub fn revocations(&self) -> String {
        format!("{}:v:{{control}}", self.prefix)
    }

    /// When each of them is over.
    pub fn revocation_ends(&self) -> String {
        format!("{}:w:{{control}}", self.prefix)
    }

    /// Where all nodes hear that there is an order.
    pub fn control(&self) -> String {
        format!("{}:c", self.prefix)
    }

    /// The era that all nodes are in.
    pub fn era(&self) -> String {
        format!("{}:era", self.prefix)
    }

    /// Where a node hears its own probes.
    pub fn probe(&self, node: &str) -> String {
        format!("{}:b:{node}", self.prefix)
    }

    fn of(&self, channel: &Channel, kind: &str) -> String {
        format!("{}:{kind}:{{{}}}", self.prefix, channel.key())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::domain::IdempotencyKey;

    fn channel(name: &str) -> Channel {
        Channel::new(&"app".parse().unwrap(), &name.parse().unwrap())
    }

    #[test]
    fn no_two_idempotency_keys_are_one() {
        let keys = Keys::new("fanwire");
        let scopes = ["ann", "ann:a", "u3:ann"].map(|user| KeyScope::User(user.parse().unwrap()));
        let scopes = [KeyScope::Anonymous, KeyScope::Server].into_iter().chain(scopes);
        let mut seen = HashSet::new();
        let mut made = 0;
        for scope in scopes {
            for name in ["a", "a}s:k", "a}", "a}a", "{a}"] {
                for key in ["k", "}s:k", "k}s:x", ":k", "a:k"] {
                    let scoped = ScopedKey { scope: scope.clone(), key: IdempotencyKey::new(key).unwrap() };
                    seen.insert(keys.idempotency(&channel(name), &scoped));
                    made += 1;
                }
            }
        }
        assert_eq!(seen.len(), made);
    }
}
