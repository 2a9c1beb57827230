//! Revoked tokens, kept for as long as any of them would count: whoever starts, or was away, reads them all.
//!
//! A new one goes to all nodes among the orders (`orders.rs`). They stand in one hash; a sorted set of their ends says
//! which are over, and both keys end with the last of them.

use futures_util::future::{BoxFuture, FutureExt};
use redis::Value;
use tracing::warn;

use super::{
    orders::{MOST, Orders},
    outbox::millis,
    script::Script,
    server::Live,
    wire,
};
use crate::{
    broker::{BrokerError, ORDERS_KEPT, Relayed},
    domain::Revocation,
};

/// About how many are read at once.
const BATCH: usize = 1000;

impl Orders {
    /// Notes a revocation and tells all nodes.
    pub fn revoke(&self, revocation: Revocation) -> BoxFuture<'_, Result<(), BrokerError>> {
        async move {
            let keys = [self.keys.revocations(), self.keys.revocation_ends(), self.keys.orders()];
            let (which, before, until) = wire::write_revocation(&revocation);
            let revoke = |live: &Live| {
                let mut call = Script::Revoke.call(live.dialect, &keys);
                call.arg(&which).arg(before).arg(until).arg(millis(ORDERS_KEPT)).arg(MOST).arg(self.keys.control());
                call
            };
            self.server.ask(revoke).await.map(drop)
        }
        .boxed()
    }

    /// Hands on every revocation that is kept.
    pub async fn load(&self) -> Result<(), BrokerError> {
        let mut cursor = "0".to_owned();
        loop {
            let scan =
                |_: &Live| redis::cmd("HSCAN").arg(self.keys.revocations()).arg(&cursor).arg("COUNT").arg(BATCH).take();
            let Value::Array(mut answer) = self.server.ask(scan).await? else { return Ok(()) };
            let fields = answer.pop().map(texts).unwrap_or_default();
            for pair in fields.chunks_exact(2) {
                match wire::revocation(&pair[0], &pair[1]) {
                    Some(revocation) => self.listener.relayed(Relayed::Revoked(revocation)),
                    None => warn!("a revocation of another version cannot be read, and does not count here"),
                }
            }
            match answer.pop().map(|next| texts(Value::Array(vec![next]))).and_then(|next| next.into_iter().next()) {
                Some(next) if next != "0" => cursor = next,
                _ => return Ok(()),
            }
        }
    }
}

fn texts(value: Value) -> Vec<String> {
    let Value::Array(values) = value else { return Vec::new() };
    let text = |value| match value {
        // What is no text leaves an empty one, so that pairs stay pairs.
        Value::BulkString(bytes) => String::from_utf8(bytes).unwrap_or_default(),
        _ => String::new(),
    };
    values.into_iter().map(text).collect()
}
