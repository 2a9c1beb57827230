use proptest::prelude::*;

use super::*;

fn parse(raw: &str) -> Result<BrokerUrl, InvalidBrokerUrl> {
    raw.parse()
}

#[test]
fn each_form_is_read() {
    let sentinel = || BrokerKind::Sentinel { master: "mymaster".into() };
    for (raw, kind, tls, user, password, hosts, database) in [
        ("memory:", BrokerKind::Memory, false, None, None, "", 0),
        ("redis://h", BrokerKind::Standalone, false, None, None, "h:6379", 0),
        ("redis://h/", BrokerKind::Standalone, false, None, None, "h:6379", 0),
        ("redis://:pw@h:1/15", BrokerKind::Standalone, false, None, Some("pw"), "h:1", 15),
        (
            "rediss://ann:pw@h.example:6380/4294967295",
            BrokerKind::Standalone,
            true,
            Some("ann"),
            Some("pw"),
            "h.example:6380",
            u32::MAX,
        ),
        ("redis://ann@h", BrokerKind::Standalone, false, Some("ann"), None, "h:6379", 0),
        ("redis://ann:@h", BrokerKind::Standalone, false, Some("ann"), Some(""), "h:6379", 0),
        ("redis://:@h", BrokerKind::Standalone, false, None, None, "h:6379", 0),
        ("redis://@h", BrokerKind::Standalone, false, None, None, "h:6379", 0),
        ("redis://a%40b:p%2Fw%3a:%25@h", BrokerKind::Standalone, false, Some("a@b"), Some("p/w::%"), "h:6379", 0),
        ("redis://[::1]", BrokerKind::Standalone, false, None, None, "::1:6379", 0),
        ("redis://u:p@[FD00::1]:7/2", BrokerKind::Standalone, false, Some("u"), Some("p"), "fd00::1:7", 2),
        ("redis+sentinel://h1,h2:9/mymaster", sentinel(), false, None, None, "h1:26379 h2:9", 0),
        (
            "rediss+sentinel://u:p@h1:26379,[::2]/mymaster/3",
            sentinel(),
            true,
            Some("u"),
            Some("p"),
            "h1:26379 ::2:26379",
            3,
        ),
        ("redis+cluster://h1:6379,h2:6380", BrokerKind::Cluster, false, None, None, "h1:6379 h2:6380", 0),
        ("rediss+cluster://:p@10.0.0.1/", BrokerKind::Cluster, true, None, Some("p"), "10.0.0.1:6379", 0),
    ] {
        let url = parse(raw).unwrap_or_else(|error| panic!("{raw}: {error}"));
        let found: Vec<_> = url.hosts.iter().map(|(host, port)| format!("{host}:{port}")).collect();
        assert_eq!(
            (&url.kind, url.tls, url.database, found.join(" ").as_str()),
            (&kind, tls, database, hosts),
            "{raw}"
        );
        assert_eq!((url.username.as_deref(), url.password.as_deref()), (user, password), "{raw}");
    }
}

#[test]
fn what_is_no_url_is_refused_and_never_shown() {
    use InvalidBrokerUrl::{
        ClusterDatabase, Database, Encoding, Host, Ipv6, Memory, NoHost, NoMaster, Port, Query, Scheme, SeveralHosts,
        Unencoded,
    };
    for (raw, expected) in [
        ("", Scheme),
        ("hunter2", Scheme),
        ("redis:hunter2@h", Scheme),
        ("nats://u:hunter2@h", Scheme),
        ("Redis://h", Scheme),
        ("redis+unix://h", Scheme),
        ("redis+cluster+sentinel://h", Scheme),
        ("memory", Scheme),
        ("memory://h", Memory),
        ("redis://", NoHost),
        ("redis://u:hunter2@", NoHost),
        ("redis://:6379", NoHost),
        ("redis+cluster://h1,,h2", NoHost),
        ("redis://h1,h2", SeveralHosts),
        ("redis://u:hunter2/x@h", Unencoded),
        ("redis://u:hunter2?x@h", Unencoded),
        ("redis://u:hunter2#x@h", Unencoded),
        ("redis://u:hunter2@x@h", Unencoded),
        ("redis+cluster://u:hunter2@h1,u:hunter2@h2", Unencoded),
        ("redis://u:hunter2%@h", Encoding),
        ("redis://u:hunter2%4@h", Encoding),
        ("redis://u:hunter2%zz@h", Encoding),
        ("redis://u:hunter2%ff@h", Encoding),
        ("redis://h?password=hunter2", Query),
        ("redis://h/0#x", Query),
        ("redis://u:hunter2@h h", Host),
        ("redis://hé", Host),
        ("redis://::1", Ipv6),
        ("redis://[::1", Ipv6),
        ("redis://[h]", Ipv6),
        ("redis://[::1]6379", Ipv6),
        ("redis://[fe80::1%25eth0]", Ipv6),
        ("redis://user:hunter2", Port { host: 1 }),
        ("redis://h:0", Port { host: 1 }),
        ("redis://h:", Port { host: 1 }),
        ("redis://h:+1", Port { host: 1 }),
        ("redis://h:65536", Port { host: 1 }),
        ("redis+sentinel://h1,h2:x/m", Port { host: 2 }),
        ("redis+sentinel://h", NoMaster),
        ("redis+sentinel://h/", NoMaster),
        ("redis+sentinel://h/a b", NoMaster),
        ("redis+sentinel://h/m/x", Database),
        ("redis+sentinel://h/m/0/0", Database),
        ("redis://h/x", Database),
        ("redis://h/+1", Database),
        ("redis://h/-1", Database),
        ("redis://h/4294967296", Database),
        ("redis+cluster://h/0", ClusterDatabase),
    ] {
        let error = parse(raw).expect_err(raw);
        assert_eq!(error, expected, "{raw}");
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{raw}: {error}");
    }
}

#[test]
fn nothing_that_is_shown_holds_the_password() {
    for (raw, shown) in [
        ("memory:", "memory:"),
        ("redis://:hunter2@h", "redis://:********@h:6379/0"),
        ("rediss://a%40b:hunter2@[::1]/2", "rediss://a%40b:********@[::1]:6379/2"),
        ("redis+sentinel://ann@h1,h2/m", "redis+sentinel://ann@h1:26379,h2:26379/m/0"),
        ("rediss+cluster://h1,h2:1", "rediss+cluster://h1:6379,h2:1"),
    ] {
        let url = parse(raw).unwrap();
        assert_eq!((url.to_string(), format!("{url:?}")), (shown.into(), format!("BrokerUrl({shown})")));
    }
}

#[test]
fn a_password_in_the_clear_is_told_of_where_the_way_may_be_anybodys() {
    for (raw, exposed) in [
        ("redis://:pw@8.8.8.8", "8.8.8.8"),
        ("redis://:pw@redis.example", "redis.example"),
        ("redis+cluster://:pw@10.0.0.1,[2a00::1]", "2a00::1"),
        ("rediss://:pw@redis.example", ""),
        ("redis://redis.example", ""),
        ("redis://:pw@127.0.0.1", ""),
        ("redis://:pw@192.168.0.1", ""),
        ("redis://:pw@100.64.0.1", ""),
        ("redis://:pw@[::ffff:10.0.0.1]", ""),
        ("redis://:pw@[fd00::1]", ""),
        ("redis://:pw@redis", ""),
        ("redis://:pw@redis.prod.svc.cluster.local", ""),
        ("redis://:pw@redis.fly.Internal", ""),
    ] {
        assert_eq!(parse(raw).unwrap().exposed().collect::<Vec<_>>().join(" "), exposed, "{raw}");
    }
}

proptest! {
    #[test]
    fn no_text_panics(raw in "\\PC{0,60}|(memory:|rediss?(\\+sentinel|\\+cluster)?://)[a-z0-9:@%,/?#\\[\\].é-]{0,40}") {
        if let Ok(url) = parse(&raw) {
            prop_assert_eq!(url.hosts.is_empty(), url.kind == BrokerKind::Memory);
            prop_assert!(url.kind != BrokerKind::Standalone || url.hosts.len() == 1);
        }
    }

    /// What is shown can be read again, and is the same but for the password.
    #[test]
    fn what_is_shown_is_a_url(
        scheme in "rediss?(\\+sentinel|\\+cluster)?",
        user in "(\\PC{1,8})?",
        password in proptest::option::of("\\PC{1,8}"),
        port in 1u16..,
        database in 0u32..,
    ) {
        let encode = |text: &str| utf8_percent_encode(text, ENCODED).to_string();
        let colon = password.as_deref().map(|password| format!(":{}", encode(password))).unwrap_or_default();
        let path = match scheme.split_once('+') {
            Some((_, "cluster")) => String::new(),
            Some(_) => format!("/m/{database}"),
            None => format!("/{database}"),
        };
        let url = parse(&format!("{scheme}://{}{colon}@h:{port}{path}", encode(&user))).unwrap();
        prop_assert_eq!(url.username.as_deref().unwrap_or_default(), user.as_str());
        prop_assert_eq!(&url.password, &password);
        let again = parse(&url.to_string()).unwrap();
        prop_assert_eq!(again.password.as_deref(), password.as_ref().map(|_| MASK));
        prop_assert_eq!(BrokerUrl { password: url.password.clone(), ..again }, url);
    }
}
