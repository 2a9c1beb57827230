//! The machinery behind the stories: servers of our own, clients that read as people would say it, bare sockets for what
//! no well-behaved client sends.
//!
//! Nothing sleeps to wait: every wait is for a fact, has a deadline ([`within`]), and says what was awaited and what came
//! instead. Start at [`TestServer`], then [`Client`].

mod child;
mod client;
mod http;
pub mod port;
pub mod proxy;
mod raw;
pub mod redis;
mod server;
mod token;

use std::{sync::mpsc, time::Duration};

pub use self::{
    child::ChildServer,
    client::{Client, Connecting},
    http::{Answer, get, request},
    raw::{Frame, Opcode, RawSocket, deflate, inflate, masked},
    server::TestServer,
    token::{SECRET, now, subscription, token, user},
};

/// How long a fact may take to come about: long, since it is only waited for where something is broken.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Waits for a fact, and fails with its name where it does not come about in time.
pub async fn within<T>(what: impl std::fmt::Display, fact: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, fact).await {
        Ok(fact) => fact,
        Err(_) => panic!("waited {DEADLINE:?} for {what}"),
    }
}

/// Runs `work` on a thread and waits for it: for what cannot be awaited.
pub fn in_time<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (tx, rx) = mpsc::channel();
    std::thread::spawn(move || tx.send(work()));
    rx.recv_timeout(DEADLINE).unwrap_or_else(|_| panic!("waited {DEADLINE:?} for {what}"))
}
