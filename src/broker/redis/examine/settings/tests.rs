use super::{super::Verdict, *};

fn info(fields: &str) -> Info {
    Info::read(&fields.replace(' ', "\n"))
}

fn settings(fields: &[(&str, &str)]) -> Settings {
    Settings(Some(fields.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()))
}

fn verdicts(findings: impl IntoIterator<Item = Finding>) -> String {
    let mark = |finding: Finding| match finding.verdict {
        Verdict::Good => 'g',
        Verdict::Advice => 'a',
        Verdict::Bad => 'b',
    };
    findings.into_iter().map(mark).collect()
}

#[test]
fn old_versions_are_refused_and_valkey_is_known() {
    for (fields, expected) in [
        ("redis_version:5.0.14", "b"),
        ("redis_version:6.0.20", "b"),
        ("redis_version:6.2.0", "a"),
        ("redis_version:7.0.15", "g"),
        ("redis_version:10.1.0", "g"),
        ("redis_version:odd", ""),
        ("", ""),
    ] {
        assert_eq!(verdicts(version(&info(fields))), expected, "{fields}");
    }
    let valkey = version(&info("redis_version:7.2.4 server_name:valkey valkey_version:8.0.1")).unwrap();
    assert_eq!(valkey.text, "is Valkey 8.0.1");
}

#[test]
fn the_url_must_say_what_kind_of_server_it_is() {
    let (one, cluster) = ("redis://h".parse().unwrap(), "redis+cluster://h".parse().unwrap());
    for (fields, url, expected) in [
        ("redis_mode:standalone", &one, ""),
        ("redis_mode:cluster", &cluster, ""),
        ("redis_mode:cluster", &one, "b"),
        ("redis_mode:sentinel", &one, "b"),
        ("redis_mode:standalone", &cluster, "b"),
    ] {
        assert_eq!(verdicts(mode(&info(fields), url)), expected, "{fields} {url}");
    }
}

#[test]
fn nothing_can_be_published_to_a_replica() {
    let url = "redis://h".parse().unwrap();
    let replica = role(&info("role:slave master_host:::1 master_port:6379"), &url).unwrap();
    assert_eq!(replica.verdict, Verdict::Bad);
    assert!(replica.text.starts_with("is a replica of [::1]:6379"), "{}", replica.text);
    let url = "redis+sentinel://h/m".parse().unwrap();
    assert_eq!(verdicts(role(&info("role:slave"), &url)), "b");
    assert_eq!(verdicts(role(&info("role:master"), &url)), "g");
    assert_eq!(verdicts(role(&info("role:master loading:1"), &url)), "b");
}

#[test]
fn memory_must_be_bounded_and_nothing_evicted() {
    for (fields, expected) in [
        ("maxmemory:1000000000 maxmemory_policy:noeviction used_memory:1000", "g"),
        ("maxmemory:1000000000 maxmemory_policy:noeviction used_memory:950000000", "a"),
        ("maxmemory:0 maxmemory_policy:noeviction used_memory:1000", "a"),
        ("maxmemory:1000000000 maxmemory_policy:volatile-lru used_memory:1000", "a"),
        ("maxmemory:1000000000 maxmemory_policy:allkeys-lfu used_memory:1000", "b"),
        ("maxmemory:0 maxmemory_policy:allkeys-lru used_memory:1000", "ba"),
        ("used_memory:5", ""),
    ] {
        assert_eq!(verdicts(memory(&info(fields))), expected, "{fields}");
    }
}

#[test]
fn a_lagging_node_needs_room() {
    for (setting, expected) in [
        ("normal 0 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60", "a"),
        ("pubsub 268435456 67108864 60 normal 0 0 0", "g"),
        ("pubsub 268435456 8388608 60", "a"),
        ("pubsub 268435456 8388608 0", "g"),
        ("pubsub 0 0 0", "g"),
        ("pubsub 1 2", ""),
        ("normal 0 0 0", ""),
        ("pubsub a b c", ""),
    ] {
        assert_eq!(verdicts(relay_buffer(setting)), expected, "{setting}");
    }
    let default = relay_buffer("pubsub 33554432 8388608 60").unwrap().text;
    assert!(
        default.contains("32 MiB at once, 8 MiB for 60 s") && default.contains("\"pubsub 256mb 64mb 60\""),
        "{default}"
    );
}

#[test]
fn what_a_restart_costs_is_told() {
    for (fields, fsync, expected) in [
        ("aof_enabled:1 aof_last_write_status:ok rdb_last_bgsave_status:ok", Some("always"), "g"),
        ("aof_enabled:1", Some("everysec"), "g"),
        ("aof_enabled:1", None, "g"),
        ("aof_enabled:1", Some("no"), "a"),
        ("aof_enabled:0 rdb_last_save_time:1 rdb_changes_since_last_save:7", Some("everysec"), "a"),
        ("aof_enabled:1 aof_last_write_status:err", Some("always"), "bg"),
        ("aof_enabled:0 rdb_last_bgsave_status:err", None, "ba"),
        ("", None, ""),
    ] {
        assert_eq!(verdicts(persistence(&info(fields), fsync)), expected, "{fields} {fsync:?}");
    }
}

#[test]
fn replicas_must_be_as_many_as_are_asked_for() {
    let one = "connected_slaves:1 slave0:ip=h,port=1,state=online,offset=1,lag=0";
    let late = "connected_slaves:1 slave0:ip=h,port=1,state=wait_bgsave,offset=1,lag=0";
    for (fields, least, acks, expected) in [
        ("connected_slaves:0", Some("0"), 0, "g"),
        ("connected_slaves:0", Some("0"), 1, "b"),
        ("connected_slaves:0", Some("1"), 0, "b"),
        (one, Some("0"), 1, "a"),
        (one, Some("1"), 1, "g"),
        (one, None, 1, "g"),
        (one, Some("1"), 2, "b"),
        (late, None, 1, "b"),
        ("", None, 1, ""),
    ] {
        let read: Vec<_> = least.map(|least| ("min-replicas-to-write", least)).into_iter().collect();
        let config = BrokerConfig { replica_acks: acks, ..BrokerConfig::default() };
        assert_eq!(verdicts(replicas(&info(fields), &settings(&read), &config)), expected, "{fields} {least:?} {acks}");
    }
}

#[test]
fn clocks_and_clusters() {
    for (millis, expected) in [(0, "g"), (999, "g"), (1500, "a"), (29_000, "a"), (31_000, "b")] {
        assert_eq!(verdicts([clock(Duration::from_millis(millis))]), expected, "{millis}");
    }
    assert_eq!(verdicts([cluster(&info("cluster_state:ok"), 3)]), "g");
    assert_eq!(verdicts([cluster(&info("cluster_state:fail cluster_slots_ok:5461"), 3)]), "b");
}

#[test]
fn unreadable_settings_are_advice_and_no_fault() {
    let fields = "redis_version:7.2.4 role:master redis_mode:standalone connected_slaves:0 aof_enabled:1";
    let url = "redis://h".parse().unwrap();
    let found = judge(&info(fields), &Settings(None), &url, &BrokerConfig::default());
    assert!(found.iter().all(|finding| finding.verdict != Verdict::Bad), "{found:?}");
    let told = found.iter().find(|finding| finding.what == "redis settings").unwrap();
    assert!(told.verdict == Verdict::Advice && told.text.contains("CONFIG GET"), "{}", told.text);
    assert!(judge(&Info::default(), &settings(&[]), &url, &BrokerConfig::default()).is_empty());
}
