//! What is to be thought of a server's settings and state: pure functions of what it says.

use std::time::Duration;

use super::{Finding, Info, Settings};
use crate::config::{BrokerConfig, BrokerKind, BrokerUrl};

/// What one lagging node may hold in Redis' output buffer, at once and for a minute: ten seconds of 20 MB/s and some.
const BUFFER: (u64, u64) = (256 << 20, 64 << 20);
/// Clocks that differ by more are told of.
const SKEW: Duration = Duration::from_secs(1);
/// Clocks that differ by more are a fault: tokens of that leeway are judged differently.
const MOST_SKEW: Duration = Duration::from_secs(30);

/// Judges everything that `INFO` and `CONFIG GET` tell.
pub(super) fn judge(info: &Info, settings: &Settings, url: &BrokerUrl, config: &BrokerConfig) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(version(info));
    findings.extend(mode(info, url));
    findings.extend(role(info, url));
    findings.extend(memory(info));
    findings.extend(settings.get("client-output-buffer-limit").and_then(relay_buffer));
    findings.extend(persistence(info, settings.get("appendfsync")));
    findings.extend(replicas(info, settings, config));
    if settings.0.is_none() {
        let text = "keeps its settings to itself (CONFIG GET is not allowed): client-output-buffer-limit, appendfsync and \
                    min-replicas-to-write could not be read; see to them where it is managed";
        findings.push(Finding::advice("redis settings", text));
    }
    findings
}

fn version(info: &Info) -> Option<Finding> {
    const WHAT: &str = "redis version";
    let shown = info.get("redis_version")?;
    if let Some(valkey) = info.get("valkey_version") {
        return Some(Finding::good(WHAT, format!("is Valkey {valkey}")));
    }
    Some(match info.version()? {
        version if version < (6, 2) => Finding::bad(
            WHAT,
            format!("is Redis {shown}: 6.2 is the oldest that can be used, 7.0 and newer are faster"),
        ),
        version if version < (7, 0) => Finding::advice(
            WHAT,
            format!("is Redis {shown}: it has scripts only; 7.0 has functions, which cost it less"),
        ),
        _ => Finding::good(WHAT, format!("is Redis {shown}")),
    })
}

/// Whether it is the kind of server that the URL says.
fn mode(info: &Info, url: &BrokerUrl) -> Option<Finding> {
    let wanted = if url.kind == BrokerKind::Cluster { "cluster" } else { "standalone" };
    let text = match info.get("redis_mode")? {
        mode if mode == wanted => return None,
        "cluster" => "is a node of a cluster: redis+cluster:// in broker.url",
        "sentinel" => "is a Sentinel: redis+sentinel://host:26379/mymaster in broker.url",
        _ => "is no node of a cluster",
    };
    Some(Finding::bad("redis mode", text))
}

fn role(info: &Info, url: &BrokerUrl) -> Option<Finding> {
    const WHAT: &str = "redis role";
    if info.get("loading") == Some("1") {
        return Some(Finding::bad(WHAT, "reads its data from disk and takes nothing until it has"));
    }
    match (info.get("role")?, &url.kind) {
        ("master", _) => Some(Finding::good(WHAT, "is a primary")),
        (_, BrokerKind::Standalone) => {
            let primary = info.get("master_host").zip(info.get("master_port"));
            let primary = primary.map(|(host, port)| super::address(host, port.parse().unwrap_or_default()));
            let primary = primary.unwrap_or_else(|| "another server".into());
            let text =
                format!("is a replica of {primary}, where nothing can be published: name that, or its Sentinels");
            Some(Finding::bad(WHAT, text))
        }
        _ => Some(Finding::bad(
            WHAT,
            "is a replica, though named as primary: a failover under way? look again in a minute",
        )),
    }
}

fn memory(info: &Info) -> Vec<Finding> {
    const WHAT: &str = "redis memory";
    let mut findings = Vec::new();
    let (Some(policy), Some(limit)) = (info.get("maxmemory_policy"), info.number("maxmemory")) else { return findings };
    if policy.starts_with("allkeys") {
        let text = format!(
            "has maxmemory-policy {policy}: when memory is full it throws away whatever it likes, numberings and idempotency \
             keys too: set noeviction"
        );
        findings.push(Finding::bad(WHAT, text));
    } else if policy.starts_with("volatile") {
        let text = format!(
            "has maxmemory-policy {policy}: all keys of ours have a lifetime, so when memory is full histories are thrown away, \
             and who returns is told of a gap: set noeviction, which refuses publications in place of that"
        );
        findings.push(Finding::advice(WHAT, text));
    }
    let used = info.number("used_memory").unwrap_or_default();
    if limit == 0 {
        let text = format!(
            "uses {} and has no maxmemory: it grows until the machine has none left, and is killed; set maxmemory to what it may \
             have, with noeviction",
            size(used)
        );
        findings.push(Finding::advice(WHAT, text));
    } else if limit / 10 * 9 < used {
        let text = format!(
            "uses {} of maxmemory {}: soon nothing more is taken; raise it or keep less",
            size(used),
            size(limit)
        );
        findings.push(Finding::advice(WHAT, text));
    } else if findings.is_empty() {
        findings
            .push(Finding::good(WHAT, format!("uses {} of {}, maxmemory-policy {policy}", size(used), size(limit))));
    }
    findings
}

/// Judges `client-output-buffer-limit`, such as `normal 0 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60`.
fn relay_buffer(setting: &str) -> Option<Finding> {
    const WHAT: &str = "redis relay buffer";
    let words: Vec<_> = setting.split_whitespace().collect();
    let class = words.chunks_exact(4).find(|class| class[0] == "pubsub")?;
    let number = |at: usize| class[at].parse::<u64>().ok();
    let (hard, soft, seconds) = (number(1)?, number(2)?, number(3)?);
    // 0 is no limit, and so is a soft limit without a time.
    let is_enough = |bytes: u64, enough: u64| bytes == 0 || enough <= bytes;
    let shown = format!("{} at once, {} for {seconds} s", size(hard), size(soft));
    if is_enough(hard, BUFFER.0) && (is_enough(soft, BUFFER.1) || seconds == 0) {
        let shown = if (hard, soft) == (0, 0) { "any amount".into() } else { shown };
        return Some(Finding::good(WHAT, format!("lets a node lag behind by {shown}")));
    }
    let text = format!(
        "cuts a node off that lags behind by more than {shown}: it reads up from history then, and channels without history lose \
         what they missed; CONFIG SET client-output-buffer-limit \"pubsub 256mb 64mb 60\""
    );
    Some(Finding::advice(WHAT, text))
}

fn persistence(info: &Info, fsync: Option<&str>) -> Vec<Finding> {
    const WHAT: &str = "redis persistence";
    let mut findings = Vec::new();
    let failed = |field: &str| info.get(field).is_some_and(|status| status != "ok");
    if failed("aof_last_write_status") || failed("rdb_last_bgsave_status") {
        let text = "cannot write its file, and refuses writes then: is its disk full? its log says more";
        findings.push(Finding::bad(WHAT, text));
    }
    let Some(aof) = info.get("aof_enabled") else { return findings };
    findings.push(match (aof, fsync) {
        ("1", Some("always")) => Finding::good(WHAT, "writes each publication to disk before it is acknowledged"),
        ("1", Some("no")) => Finding::advice(
            WHAT,
            "has appendonly, but appendfsync no: when its machine fails, up to half a minute of what was acknowledged is gone; set \
             appendfsync everysec",
        ),
        ("1", _) => Finding::good(
            WHAT,
            "has appendonly: a restart keeps what was acknowledged, a failure of its machine may cost the last second or two",
        ),
        _ => {
            let saved = info.number("rdb_last_save_time").zip(info.number("rdb_changes_since_last_save"));
            let changes = saved.map_or_else(String::new, |(_, changes)| format!(" ({changes} changes since the last one)"));
            let text = format!(
                "has no append-only file: a restart loses what was acknowledged since the last snapshot, or all without \
                 snapshots{changes}; clients are told, but set appendonly yes"
            );
            Finding::advice(WHAT, text)
        }
    });
    findings
}

fn replicas(info: &Info, settings: &Settings, config: &BrokerConfig) -> Vec<Finding> {
    const WHAT: &str = "redis replicas";
    let Some(connected) = info.number("connected_slaves") else { return Vec::new() };
    let online = (0..connected).filter(|at| {
        let line = info.get(&format!("slave{at}")).unwrap_or_default();
        line.contains("state=online")
    });
    let online = online.count() as u64;
    let demanded = settings.get("min-replicas-to-write").and_then(|text| text.parse::<u64>().ok());
    let wanted = config.replica_acks as u64;
    if online < demanded.unwrap_or_default() {
        let demanded = demanded.unwrap_or_default();
        let text = format!("has {online} in sync, and min-replicas-to-write is {demanded}: it refuses to write");
        return vec![Finding::bad(WHAT, text)];
    }
    if online < wanted {
        let text =
            format!("has {online} in sync, and broker.replica_acks is {wanted}: no publication would be acknowledged");
        return vec![Finding::bad(WHAT, text)];
    }
    vec![match (online, demanded) {
        (0, _) => Finding::good(
            WHAT,
            "has none: while it is away publications wait, and are refused after broker.queue_deadline",
        ),
        (_, Some(0)) => Finding::advice(
            WHAT,
            format!(
                "has {online} in sync, and would go on without them: what a primary takes that is cut off is lost in a failover; \
                 CONFIG SET min-replicas-to-write 1, and min-replicas-max-lag 10"
            ),
        ),
        (_, Some(least)) => {
            let lag = settings.get("min-replicas-max-lag").unwrap_or("?");
            Finding::good(
                WHAT,
                format!("has {online} in sync and refuses to write below {least} that lag {lag} s at most"),
            )
        }
        (_, None) => Finding::good(WHAT, format!("has {online} in sync")),
    }]
}

/// Judges by how much the clocks differ.
pub(super) fn clock(skew: Duration) -> Finding {
    const WHAT: &str = "redis clock";
    let text = format!("is {:.1} s from this machine's clock", skew.as_secs_f64());
    let advice = "histories age by its clock, tokens by ours: use NTP on both";
    match skew {
        skew if MOST_SKEW < skew => Finding::bad(WHAT, format!("{text}: {advice}")),
        skew if SKEW < skew => Finding::advice(WHAT, format!("{text}: {advice}")),
        _ => Finding::good(WHAT, text),
    }
}

/// Judges an answer to `CLUSTER INFO`.
pub(super) fn cluster(info: &Info, primaries: usize) -> Finding {
    const WHAT: &str = "redis cluster";
    let served = info.number("cluster_slots_ok").unwrap_or_default();
    match info.get("cluster_state") {
        Some("ok") => Finding::good(WHAT, format!("says the cluster is well: {primaries} primaries")),
        _ => Finding::bad(
            WHAT,
            format!("says the cluster is down: {served} of 16384 slots served; CLUSTER NODES shows by whom"),
        ),
    }
}

/// Bytes, readable.
fn size(bytes: u64) -> String {
    match bytes {
        0..0x10_0000 => format!("{} KiB", bytes >> 10),
        0x10_0000..0x2_8000_0000 => format!("{} MiB", bytes >> 20),
        _ => format!("{} GiB", bytes >> 30),
    }
}

#[cfg(test)]
mod tests;
