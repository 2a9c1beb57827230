//! A primary, its replica, and the sentinels that promote the replica when the primary dies.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{RedisServer, Reply};
use crate::support::DEADLINE;

/// What the sentinels call what they watch.
pub const NAME: &str = "main";

/// A primary with a replica under sentinels, which think it dead after a second of silence.
pub struct RedisSentinel {
    primary: RedisServer,
    replica: RedisServer,
    sentinels: Vec<RedisServer>,
}

impl RedisSentinel {
    /// With this many sentinels, of which more than half must agree. All of them know each other and the replica.
    pub async fn start(sentinels: usize) -> Self {
        let primary = RedisServer::start().await;
        let replica = RedisServer::start().await;
        // A sentinel asks the primary for its replicas only every ten seconds, so they come first.
        replica.replica_of(&primary).await;
        let quorum = sentinels / 2 + 1;
        let mut watching = Vec::new();
        for _ in 0..sentinels {
            let sentinel = RedisServer::with(|options| {
                options.sentinel = true;
                options.lines = vec![
                    format!("sentinel monitor {NAME} 127.0.0.1 {} {quorum}", primary.port()),
                    format!("sentinel down-after-milliseconds {NAME} 1000"),
                    format!("sentinel failover-timeout {NAME} 3000"),
                ];
            })
            .await;
            watching.push(sentinel);
        }
        let all = Self { primary, replica, sentinels: watching };
        all.until_known().await;
        all
    }

    /// What `broker.url` is for it.
    pub fn url(&self) -> String {
        let hosts: Vec<_> = self.sentinels.iter().map(|sentinel| format!("127.0.0.1:{}", sentinel.port())).collect();
        format!("redis+sentinel://{}/{NAME}", hosts.join(","))
    }

    /// The primary of now.
    pub fn primary(&self) -> &RedisServer {
        &self.primary
    }

    /// What was the replica, or the primary that has died.
    pub fn replica(&self) -> &RedisServer {
        &self.replica
    }

    /// The sentinels.
    pub fn sentinels(&mut self) -> &mut [RedisServer] {
        &mut self.sentinels
    }

    /// Lets the replica stand still without its link to the primary: what the primary is told from now on is not in it,
    /// and is lost with a [`RedisSentinel::failover`], though answered. Within a second of standing still it counts as
    /// dead itself, which it is not any more once the failover has let it go on.
    pub async fn cut_off_replica(&self) {
        // In the middle of a first synchronisation it would have nothing.
        self.replica.until_linked().await;
        self.replica.stop();
        self.primary.cli(&["CLIENT", "KILL", "TYPE", "replica"]).await;
    }

    /// Kills the primary and completes once the replica is promoted and all sentinels say so. The dead one becomes
    /// [`RedisSentinel::replica`].
    pub async fn failover(&mut self) {
        self.primary.kill();
        self.replica.cont();
        let port = self.replica.port().to_string();
        for sentinel in &self.sentinels {
            let command = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME];
            sentinel.until("the failover", &command, |address| address.ends_with(&port)).await;
        }
        self.replica.until("the promotion", &["ROLE"], |role| role.starts_with("master")).await;
        std::mem::swap(&mut self.primary, &mut self.replica);
    }

    /// Lets the primary stand still until the replica is promoted, and then go on: until the sentinels have made it a
    /// replica, which completes this, there are two that take writes.
    pub async fn split(&mut self) {
        self.primary.stop();
        let port = self.replica.port().to_string();
        for sentinel in &self.sentinels {
            let command = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME];
            sentinel.until("the failover", &command, |address| address.ends_with(&port)).await;
        }
        self.replica.until("the promotion", &["ROLE"], |role| role.starts_with("master")).await;
        self.primary.cont();
        std::mem::swap(&mut self.primary, &mut self.replica);
        self.replica.until_linked().await;
    }

    /// Starts the dead one again, empty, as a replica of the primary.
    pub async fn revive(&mut self) {
        self.replica.restart_empty().await;
        self.replica.replica_of(&self.primary).await;
    }

    /// Completes once every sentinel knows the replica and all others, and thinks well of them.
    async fn until_known(&self) {
        let others = self.sentinels.len() - 1;
        let started = Instant::now();
        for sentinel in &self.sentinels {
            loop {
                let seen = async |what: &str| match sentinel.ask(&["SENTINEL", what, NAME]).await {
                    Ok(Reply::Several(peers)) => peers.iter().filter(|peer| !is_down(peer)).count(),
                    _ => 0,
                };
                if (seen("REPLICAS").await, seen("SENTINELS").await) == (1, others) {
                    break;
                }
                assert!(started.elapsed() < DEADLINE, "sentinels did not find each other: {}", sentinel.log());
                sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

/// Whether a sentinel thinks badly of one of its peers.
fn is_down(peer: &Reply) -> bool {
    peer.field("flags").is_none_or(|flags| flags.contains("down") || flags.contains("disconnected"))
}

mod tests {
    use super::*;

    #[tokio::test]
    async fn a_failover_promotes_the_replica() {
        let mut redis = RedisSentinel::start(3).await;
        let first = redis.primary().port();
        redis.primary().cli(&["SET", "n", "1"]).await;
        // WAIT would not do: it knows what its own connection wrote, and each command here has one of its own.
        redis.replica().until("n to arrive", &["GET", "n"], |n| n == "1").await;
        redis.failover().await;
        assert_ne!(redis.primary().port(), first);
        assert_eq!(redis.primary().cli(&["INCR", "n"]).await, "2");
        redis.revive().await;
        assert_eq!(redis.replica().port(), first);
        assert_eq!(redis.replica().cli(&["GET", "n"]).await, "2");
    }

    #[tokio::test]
    async fn what_the_replica_was_not_told_is_lost_with_the_primary() {
        let mut redis = RedisSentinel::start(1).await;
        redis.primary().cli(&["SET", "n", "1"]).await;
        // WAIT would not do: it knows what its own connection wrote, and each command here has one of its own.
        redis.replica().until("n to arrive", &["GET", "n"], |n| n == "1").await;
        redis.cut_off_replica().await;
        assert_eq!(redis.primary().cli(&["INCR", "n"]).await, "2", "it is answered");
        redis.failover().await;
        assert_eq!(redis.primary().cli(&["GET", "n"]).await, "1", "and lost");
    }
}
