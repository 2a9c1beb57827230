//! What our user may do: each command is tried, on a key that lives for seconds, and what Redis refuses is named.
//!
//! Trying is the only way that every version has and that needs no rights of its own (`ACL DRYRUN` is new, and an
//! administrator's).

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use redis::{Cmd, PushInfo, PushKind, RedisError, RedisResult, Value, aio::MultiplexedConnection};
use tokio::{sync::mpsc::UnboundedReceiver, time::timeout};

use super::Finding;
use crate::config::{BrokerKind, BrokerUrl};

const WHAT: &str = "redis rights";
const RELAY: &str = "redis relay";

/// Stands for the key.
const KEY: &str = "<key>";
/// Stands for the relay channel.
const CHANNEL: &str = "<channel>";
/// How long a publication may take to come back.
const WAY: Duration = Duration::from_secs(2);

/// Every command of ours, in a form without effect: on a key that holds a text, most are answered with WRONGTYPE. What
/// could nevertheless make a key, because SET was refused, is given an end by what follows.
const COMMANDS: &[&[&str]] = &[
    &["SET", KEY, "doctor", "PX", "5000"],
    &["GET", KEY],
    &["HSET", KEY, "f", "v"],
    &["HGET", KEY, "f"],
    &["HMGET", KEY, "f"],
    &["HGETALL", KEY],
    &["HKEYS", KEY],
    &["HLEN", KEY],
    &["HDEL", KEY, "f"],
    &["HEXISTS", KEY, "f"],
    &["HVALS", KEY],
    &["HSCAN", KEY, "0"],
    &["HINCRBY", KEY, "n", "1"],
    &["PERSIST", KEY],
    &["EXISTS", KEY],
    &["SADD", KEY, "m"],
    &["SMEMBERS", KEY],
    &["SREM", KEY, "m"],
    &["ZADD", KEY, "0", "m"],
    &["ZRANGE", KEY, "0", "-1"],
    &["ZREM", KEY, "m"],
    &["XADD", KEY, "*", "f", "v"],
    &["XRANGE", KEY, "-", "+", "COUNT", "1"],
    &["XREVRANGE", KEY, "+", "-", "COUNT", "1"],
    &["XLEN", KEY],
    &["XTRIM", KEY, "MAXLEN", "1"],
    &["PTTL", KEY],
    &["PEXPIRE", KEY, "5000"],
    &["DEL", KEY],
    &["INFO", "server"],
    &["TIME"],
    &["WAIT", "0", "1"],
    &["PUBLISH", CHANNEL, ""],
];
/// Those besides, where there are functions: a library without a name is refused, but not for the want of a right.
const FUNCTIONS: &[&[&str]] = &[&["FUNCTION", "LOAD", ""], &["FCALL", "fanwire_doctor", "0"]];
/// Those besides, where there are none.
const SCRIPTS: &[&[&str]] =
    &[&["SCRIPT", "LOAD", "return 1"], &["EVALSHA", "0000000000000000000000000000000000000000", "0"]];
/// Those besides, in a cluster.
const CLUSTER: &[&[&str]] = &[&["CLUSTER", "SLOTS"]];
/// Those besides, in a cluster from 7.0 on.
const SHARDED: &[&[&str]] = &[&["SPUBLISH", CHANNEL, ""]];

/// What is to be tried, and where.
pub(super) struct Rights<'a> {
    pub url: &'a BrokerUrl,
    pub prefix: &'a str,
    /// Whether the server has functions, and sharded Pub/Sub with them.
    pub functions: bool,
}

impl Rights<'_> {
    /// Tries everything, the relay last; `pushes` is what the connection hears.
    pub async fn look(
        &self,
        connection: &mut MultiplexedConnection,
        mut pushes: UnboundedReceiver<PushInfo>,
    ) -> RedisResult<Vec<Finding>> {
        let name = format!("{}:doctor:{{{:016x}}}", self.prefix, rand::random::<u64>());
        let tried = self.commands().map(|words| {
            let (mut connection, command) = (connection.clone(), command(words, &name));
            async move { connection.send_packed_command(&command).await.and_then(Value::extract_error) }
        });
        let mut missing = Missing::default();
        // They go out in this order: a future is polled for the first time in its turn, and then written.
        for (words, answer) in self.commands().zip(join_all(tried).await) {
            match answer {
                Err(error) if error.is_io_error() => return Err(error),
                Err(error) => missing.note(words, &error),
                Ok(_) => {}
            }
        }
        let relay = self.relay(connection, &name, &mut pushes, &mut missing).await?;
        let mut findings = missing.findings(self.url, self.prefix);
        if findings.is_empty() {
            findings.push(Finding::good(WHAT, "lets us do all that is needed"));
        }
        findings.extend(relay);
        Ok(findings)
    }

    fn commands(&self) -> impl Iterator<Item = &'static [&'static str]> {
        let is_cluster = self.url.kind == BrokerKind::Cluster;
        let scripts = if self.functions { FUNCTIONS } else { SCRIPTS };
        let cluster = if is_cluster { CLUSTER } else { &[] };
        let sharded = if is_cluster && self.functions { SHARDED } else { &[] };
        [COMMANDS, scripts, cluster, sharded].into_iter().flatten().copied()
    }

    /// Whether what is published comes back to who listens. `None` where a right is missing for that.
    async fn relay(
        &self,
        connection: &mut MultiplexedConnection,
        name: &str,
        pushes: &mut UnboundedReceiver<PushInfo>,
        missing: &mut Missing,
    ) -> RedisResult<Option<Finding>> {
        match connection.subscribe(name).await {
            Ok(()) => {}
            Err(error) if error.is_io_error() => return Err(error),
            Err(error) => {
                missing.note(&["SUBSCRIBE"], &error);
                return Ok(None);
            }
        }
        let sent = Instant::now();
        match redis::cmd("PUBLISH").arg(name).arg("doctor").exec_async(connection).await {
            Ok(()) => {}
            Err(error) if error.is_io_error() => return Err(error),
            // Noted above.
            Err(_) => return Ok(None),
        }
        let came = async {
            while let Some(push) = pushes.recv().await {
                if push.kind == PushKind::Message {
                    return true;
                }
            }
            false
        };
        let came = timeout(WAY, came).await.unwrap_or(false);
        let took = sent.elapsed().as_secs_f64() * 1000.0;
        Ok(Some(match came {
            true => Finding::good(RELAY, format!("hands on what is published: {took:.2} ms there and back")),
            false => Finding::bad(RELAY, format!("hands on nothing that is published, not in {} s", WAY.as_secs())),
        }))
    }
}

fn command(words: &[&str], name: &str) -> Cmd {
    let mut command = Cmd::new();
    for word in words {
        command.arg(if [KEY, CHANNEL].contains(word) { name } else { word });
    }
    command
}

/// What is not allowed, or not there.
#[derive(Default)]
struct Missing {
    commands: Vec<String>,
    unknown: Vec<String>,
    keys: bool,
    channels: bool,
}

impl Missing {
    /// Notes what an error says of a right. All others are of no interest: the command was understood and allowed.
    fn note(&mut self, words: &[&str], error: &RedisError) {
        let text = error.to_string().to_lowercase();
        let name = match words {
            // The subcommand has a right of its own.
            [container @ ("FUNCTION" | "SCRIPT" | "CLUSTER"), subcommand, ..] => format!("{container}|{subcommand}"),
            [name, ..] => (*name).into(),
            [] => return,
        };
        if error.code() == Some("NOPERM") {
            match text {
                // `run the 'hkeys' command` holds "key" too.
                text if text.contains("run the") => self.commands.push(name.to_lowercase()),
                text if text.contains("channel") => self.channels = true,
                _ => self.keys = true,
            }
        } else if text.contains("unknown command") || text.contains("unknown subcommand") {
            self.unknown.push(name.to_lowercase());
        }
    }

    fn findings(&self, url: &BrokerUrl, prefix: &str) -> Vec<Finding> {
        let user = url.username.as_deref().unwrap_or("default");
        let mut findings = Vec::new();
        if !self.commands.is_empty() {
            let (names, rules) = (self.commands.join(", "), self.commands.join(" +"));
            let text = format!("forbids `{user}` {names}: ACL SETUSER {user} +{rules}");
            findings.push(Finding::bad(WHAT, text));
        }
        if !self.unknown.is_empty() {
            let text = format!("does not know {}: renamed or switched off there?", self.unknown.join(", "));
            findings.push(Finding::bad(WHAT, text));
        }
        if self.keys {
            let text = format!("keeps `{user}` from keys that begin with {prefix}: ACL SETUSER {user} ~{prefix}:*");
            findings.push(Finding::bad(WHAT, text));
        }
        if self.channels {
            let text = format!("keeps `{user}` from Pub/Sub that begins with {prefix}: ACL SETUSER {user} &{prefix}:*");
            findings.push(Finding::bad(WHAT, text));
        }
        findings
    }
}
