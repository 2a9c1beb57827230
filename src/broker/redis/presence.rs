//! Members in Redis.

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use redis::Value;

use super::{RedisBroker, script::Script, wire};
use crate::{
    broker::{BrokerError, PresenceStore},
    domain::{Channel, ConnectionId, Member},
};

impl PresenceStore for RedisBroker {
    fn join<'a>(&'a self, channel: &'a Channel, member: Member) -> BoxFuture<'a, Result<(), BrokerError>> {
        async move {
            let (connection, entry) = (member.connection.to_string(), wire::write_member(&member));
            let join = |live: &super::server::Live| {
                let mut call = Script::Join.call(live.dialect, &[self.keys.members(channel)]);
                call.arg(self.keys.relay(channel)).arg("PUBLISH").arg(&connection).arg(&entry);
                call
            };
            self.server.ask(join).await.map(drop)
        }
        .boxed()
    }

    fn leave<'a>(&'a self, channel: &'a Channel, connection: ConnectionId) -> BoxFuture<'a, Result<(), BrokerError>> {
        async move {
            let leave = |live: &super::server::Live| {
                let mut call = Script::Leave.call(live.dialect, &[self.keys.members(channel)]);
                call.arg(self.keys.relay(channel)).arg("PUBLISH").arg(connection.to_string());
                call
            };
            self.server.ask(leave).await.map(drop)
        }
        .boxed()
    }

    fn members<'a>(&'a self, channel: &'a Channel) -> BoxFuture<'a, Result<Vec<Member>, BrokerError>> {
        async move {
            let read = |_: &super::server::Live| redis::cmd("HVALS").arg(self.keys.members(channel)).take();
            Ok(members(self.server.ask(read).await?))
        }
        .boxed()
    }
}

/// The members in an answer, in the order of their numbers.
fn members(answer: Value) -> Vec<Member> {
    let Value::Array(values) = answer else { return Vec::new() };
    let mut numbered: Vec<(u64, Member)> = values.into_iter().filter_map(numbered).collect();
    numbered.sort_unstable_by_key(|(number, _)| *number);
    numbered.into_iter().map(|(_, member)| member).collect()
}

fn numbered(value: Value) -> Option<(u64, Member)> {
    let Value::BulkString(bytes) = value else { return None };
    let mut bytes = Bytes::from(bytes);
    let blank = bytes.iter().take(24).position(|byte| *byte == b' ')?;
    let number = std::str::from_utf8(&bytes.split_to(blank + 1)[..blank]).ok()?.parse().ok()?;
    Some((number, wire::member(bytes)?))
}
