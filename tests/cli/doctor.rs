//! What `fanwire doctor` says of a real Redis.

use super::{Run, command};
use crate::support::redis::{RedisServer, RedisUser, cluster::RedisCluster, sentinel::RedisSentinel};

/// As the documents advise.
const ADVISED: &[&str] =
    &["maxmemory 1gb", "maxmemory-policy noeviction", "client-output-buffer-limit pubsub 256mb 64mb 60"];

/// Runs the doctor on a broker, with more variables. Other tests' servers go on meanwhile.
async fn doctor(url: &str, more: &[(&str, &str)]) -> Run {
    let env = [("FANWIRE_BROKER__URL", url), ("FANWIRE_LISTEN", "127.0.0.1:0"), ("FANWIRE_METRICS_LISTEN", "")];
    let mut doctor = command(&["doctor"], &[&env, more].concat());
    tokio::task::spawn_blocking(move || doctor.output().unwrap().into()).await.unwrap()
}

/// What about Redis was said at this level.
fn said<'a>(run: &'a Run, level: &str) -> Vec<&'a str> {
    let lines = run.out.lines().filter_map(|line| line.strip_prefix(level)?.trim().split_once(": "));
    lines.filter(|(what, _)| what.starts_with("redis")).map(|(what, _)| what).collect()
}

fn has(run: &Run, start: &str, part: &str) -> bool {
    run.out.lines().any(|line| line.starts_with(start) && line.contains(part))
}

#[tokio::test]
async fn a_redis_as_it_should_be_has_nothing_to_be_told_of() {
    let redis = RedisServer::with(|options| {
        options.append_only = true;
        options.lines = ADVISED.iter().map(|line| (*line).to_owned()).collect();
    })
    .await;
    let run = doctor(&redis.url(), &[]).await;
    assert_eq!((run.code, said(&run, "warn"), said(&run, "fail")), (0, vec![], vec![]), "{}", run.out);
    for what in
        ["redis version", "redis role", "redis memory", "redis relay buffer", "redis persistence", "redis replicas"]
    {
        assert!(said(&run, "ok").contains(&what), "{what}: {}", run.out);
    }
    for what in ["redis clock", "redis rights", "redis relay"] {
        assert!(said(&run, "ok").contains(&what), "{what}: {}", run.out);
    }
    assert_eq!(redis.cli(&["DBSIZE"]).await, "0", "the doctor leaves nothing behind");
}

#[tokio::test]
async fn what_is_wrong_with_a_redis_is_told_with_what_to_do() {
    let redis = RedisServer::with(|options| options.max_memory = Some((100 << 20, "allkeys-lru"))).await;
    let run = doctor(&redis.url(), &[("FANWIRE_BROKER__REPLICA_ACKS", "1")]).await;
    assert_eq!(run.code, 1);
    assert!(has(&run, "fail  redis memory", "set noeviction"), "{}", run.out);
    assert!(has(&run, "warn  redis relay buffer", "CONFIG SET client-output-buffer-limit"), "{}", run.out);
    assert!(has(&run, "warn  redis persistence", "set appendonly yes"), "{}", run.out);
    assert!(has(&run, "fail  redis replicas", "broker.replica_acks is 1"), "{}", run.out);
}

#[tokio::test]
async fn a_redis_that_is_gone_or_stands_still_is_a_failure() {
    let mut redis = RedisServer::start().await;
    redis.stop();
    let started = std::time::Instant::now();
    let run = doctor(&redis.url(), &[]).await;
    assert!(run.code == 1 && has(&run, "fail  redis", "does not answer within 5 s"), "{}", run.out);
    assert!(started.elapsed().as_secs() < 9, "{:?}", started.elapsed());
    redis.kill();
    let run = doctor(&redis.url(), &[]).await;
    assert!(run.code == 1 && has(&run, "fail  redis", "nothing listens there"), "{}", run.out);
}

#[tokio::test]
async fn a_replica_is_no_broker() {
    let (primary, replica) = (RedisServer::start().await, RedisServer::start().await);
    replica.replica_of(&primary).await;
    primary.until("the replica to be in sync", &["INFO", "replication"], |info| info.contains("state=online")).await;
    let run = doctor(&replica.url(), &[]).await;
    assert!(run.code == 1, "{}", run.out);
    assert!(has(&run, "fail  redis role", &format!("replica of 127.0.0.1:{}", primary.port())), "{}", run.out);
    let run = doctor(&primary.url(), &[("FANWIRE_BROKER__REPLICA_ACKS", "1")]).await;
    assert!(run.code == 0 && has(&run, "warn  redis replicas", "min-replicas-to-write 1"), "{}", run.out);
}

#[tokio::test]
async fn a_user_with_too_few_rights_is_told_which_are_missing() {
    let user = |rules: &str| RedisUser { name: "ann".into(), password: "hunter2".into(), rules: rules.into() };
    let with = async |rules: &str| {
        let ann = user(rules);
        let redis = RedisServer::with(|options| options.user = Some(ann)).await;
        doctor(&redis.url(), &[]).await
    };
    let narrow = with("~fanwire:* &fanwire:* +@all -xadd -function -hkeys -config").await;
    assert!(has(&narrow, "fail  redis rights", "ACL SETUSER ann +hkeys +xadd +function|load"), "{}", narrow.out);
    assert!(has(&narrow, "warn  redis settings", "CONFIG GET is not allowed"), "{}", narrow.out);
    let elsewhere = with("~other:* &other:* +@all").await;
    assert!(has(&elsewhere, "fail  redis rights", "~fanwire:*"), "{}", elsewhere.out);
    assert!(has(&elsewhere, "fail  redis rights", "&fanwire:*"), "{}", elsewhere.out);
    let redis = RedisServer::with(|options| options.user = Some(user("~* &* +@all"))).await;
    let stranger = doctor(&redis.url().replace("hunter2", "hunter3"), &[]).await;
    assert!(has(&stranger, "fail  redis", "user or password in broker.url"), "{}", stranger.out);
    for run in [narrow, elsewhere, stranger] {
        assert!(run.code == 1 && !run.out.contains("hunter") && !run.err.contains("hunter"), "{}{}", run.out, run.err);
    }
}

/// The rules of docs/operations.md.
#[tokio::test]
async fn the_user_of_the_documents_may_do_all_that_is_needed() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md")).unwrap();
    let line = text.lines().find_map(|line| line.trim().strip_prefix("ACL SETUSER fanwire on >")).unwrap();
    let (_, rules) = line.split_once(' ').unwrap();
    let ann = RedisUser { name: "fanwire".into(), password: "pw".into(), rules: rules.into() };
    let redis = RedisServer::with(|options| options.user = Some(ann)).await;
    let run = doctor(&redis.url(), &[]).await;
    assert!(run.code == 0 && has(&run, "ok    redis rights", "all that is needed"), "{}", run.out);
    assert!(!has(&run, "warn", "redis settings"), "{}", run.out);
    // No more than needed: neither other keys nor what is dangerous.
    for forbidden in [&["GET", "other"][..], &["FLUSHALL"], &["CONFIG", "SET", "appendonly", "no"], &["ACL", "LIST"]] {
        let mut connection = crate::support::redis::Resp::connect(redis.address(), None).await.unwrap();
        connection.command(&["AUTH", "fanwire", "pw"]).await.unwrap();
        let answer = connection.command(forbidden).await.unwrap().to_string();
        assert!(answer.starts_with("NOPERM"), "{forbidden:?}: {answer}");
    }
}

#[tokio::test]
async fn tls_needs_a_certificate_that_is_trusted() {
    let redis = RedisServer::with(|options| options.tls = true).await;
    let trusted = redis.certificate().unwrap().to_str().unwrap();
    let run = doctor(&redis.url(), &[("SSL_CERT_FILE", trusted)]).await;
    assert!(run.code == 0 && said(&run, "ok").contains(&"redis relay"), "{}", run.out);
    let run = doctor(&redis.url(), &[]).await;
    assert!(run.code == 1 && has(&run, "fail  redis", "SSL_CERT_FILE"), "{}", run.out);
    let plain = doctor(&redis.url().replace("rediss:", "redis:"), &[]).await;
    assert!(plain.code == 1 && has(&plain, "fail  redis", "rediss://"), "{}", plain.out);
    let other = RedisServer::start().await;
    let run = doctor(&other.url().replace("redis:", "rediss:"), &[("SSL_CERT_FILE", trusted)]).await;
    assert!(run.code == 1 && has(&run, "fail  redis", "one that does not speak TLS"), "{}", run.out);
}

#[tokio::test]
async fn sentinels_lead_to_the_primary() {
    let mut all = RedisSentinel::start(3).await;
    let url = all.url();
    let run = doctor(&url, &[]).await;
    let primary = format!("127.0.0.1:{}", all.primary().port());
    assert!(run.code == 0 && has(&run, "ok    redis sentinel", &format!("{primary}, say 3 of 3")), "{}", run.out);
    assert!(has(&run, "ok    redis role", &primary), "{}", run.out);
    all.sentinels()[0].kill();
    all.sentinels()[1].kill();
    let run = doctor(&url, &[]).await;
    assert!(run.code == 0 && has(&run, "ok    redis sentinel", "say 1 of 3"), "{}", run.out);
    assert!(said(&run, "warn").iter().filter(|what| **what == "redis sentinel").count() >= 2, "{}", run.out);
    let run = doctor(&url.replace("/main", "/mian"), &[]).await;
    assert!(run.code == 1 && has(&run, "fail  redis sentinel", "watches nothing called `mian`"), "{}", run.out);
}

#[tokio::test]
async fn every_primary_of_a_cluster_is_looked_at() {
    let mut cluster = RedisCluster::three_masters().await;
    let url = cluster.url();
    let run = doctor(&url, &[]).await;
    assert!(run.code == 0 && has(&run, "ok    redis cluster", "3 primaries"), "{}", run.out);
    for master in cluster.masters() {
        let address = format!("127.0.0.1:{} ", master.port());
        for what in ["redis rights", "redis relay", "redis role"] {
            assert!(has(&run, &format!("ok    {what}: {address}"), ""), "{what} {address}: {}", run.out);
        }
    }
    let alone = format!("redis://127.0.0.1:{}", cluster.masters()[0].port());
    let run = doctor(&alone, &[]).await;
    assert!(run.code == 1 && has(&run, "fail  redis mode", "redis+cluster://"), "{}", run.out);
    cluster.masters()[0].kill();
    let run = doctor(&url, &[]).await;
    assert!(run.code == 1 && has(&run, "warn  redis cluster", "nothing listens there"), "{}", run.out);
    let one = RedisServer::start().await;
    let run = doctor(&one.url().replace("redis:", "redis+cluster:").replace("/0", ""), &[]).await;
    assert!(run.code == 1 && has(&run, "warn  redis cluster", "it is no cluster"), "{}", run.out);
}
