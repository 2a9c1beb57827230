//! What the machine allows: descriptors, memory, the kernel's settings, the clock.

use std::{fs, time::SystemTime};

use rustix::process::{Resource, getrlimit};

use super::Finding;
use crate::config::{ByteSize, Config};

/// Descriptors that the server keeps for itself: listeners, files, connections to others.
const RESERVED: u64 = 64;
/// The memory of an idle connection with one subscription, in bytes: what `docs/benchmarks.md` holds the server to,
/// rounded up. The kernel's buffers come on top.
const PER_CONNECTION: u64 = 4 << 10;

/// Looks at everything that needs no network.
pub(super) fn look(config: &Config) -> Vec<Finding> {
    let mut findings = vec![descriptors(config)];
    findings.extend(memory(config, &|path| fs::read_to_string(path).ok()));
    findings.extend(kernel(&|path| fs::read_to_string(path).ok()));
    findings.push(clock(SystemTime::now()));
    findings
}

fn descriptors(config: &Config) -> Finding {
    let limit = getrlimit(Resource::Nofile);
    // Absent: unlimited. The server raises the soft limit to the hard one by itself.
    descriptor_finding(limit.maximum.unwrap_or(u64::MAX), config.limits.connections as u64)
}

fn descriptor_finding(hard: u64, wanted: u64) -> Finding {
    const WHAT: &str = "descriptors";
    const ADVICE: &str = "raise it: LimitNOFILE= in systemd, --ulimit nofile= in Docker";
    let room = hard.saturating_sub(RESERVED);
    match hard {
        _ if room < wanted => {
            Finding::fail(WHAT, format!("room for {room} connections, limits.connections says {wanted}; {ADVICE}"))
        }
        u64::MAX => Finding::ok(WHAT, "no limit"),
        _ if hard < 1024 => Finding::fail(WHAT, format!("room for {room} connections only; {ADVICE}")),
        _ if hard < 16_384 => Finding::warn(WHAT, format!("room for {room} connections; for more, {ADVICE}")),
        _ => Finding::ok(WHAT, format!("room for {room} connections")),
    }
}

type Read<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The memory that is there, by the machine and by the control group, which containers are limited by.
fn memory(config: &Config, read: Read<'_>) -> Option<Finding> {
    const WHAT: &str = "memory";
    let available = read("/proc/meminfo").and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?.trim().to_owned();
        line.strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    })?;
    let number = |path: &str| read(path).and_then(|text| text.trim().parse::<u64>().ok());
    let group = number("/sys/fs/cgroup/memory.max")
        .map(|most| most.saturating_sub(number("/sys/fs/cgroup/memory.current").unwrap_or_default()));
    let bytes = group.map_or(available, |group| group.min(available));
    let mebibytes = bytes >> 20;
    let text = format!("{mebibytes} MiB free, enough for at most {} idle connections", bytes / PER_CONNECTION);
    let wanted = (config.limits.connections as u64).saturating_mul(PER_CONNECTION);
    Some(if bytes < wanted {
        let limit = config.limits.connections;
        Finding::fail(WHAT, format!("{text}; limits.connections says {limit}: lower it or add memory"))
    } else if bytes < config.broker.max_memory.0 as u64 {
        let most = config.broker.max_memory;
        Finding::warn(WHAT, format!("{text}; broker.max_memory lets history take {most}: lower it or add memory"))
    } else if mebibytes < 256 {
        Finding::warn(WHAT, format!("{text}; {} send queues of slow readers would fill it", queues(config, bytes)))
    } else {
        Finding::ok(WHAT, text)
    })
}

fn queues(config: &Config, bytes: u64) -> u64 {
    let ByteSize(queue) = config.connection.send_queue;
    (bytes / (queue as u64).max(1)).max(1)
}

/// The kernel's settings that a server with many connections meets. What cannot be read is left out: another system.
fn kernel(read: Read<'_>) -> Vec<Finding> {
    let number = |path: &str| read(path).and_then(|text| text.trim().parse::<u64>().ok());
    let mut findings = Vec::new();
    let mut at_least = |what, path: &str, least: u64, effect: &str| {
        let Some(value) = number(path) else { return };
        let name = path.trim_start_matches("/proc/sys/").replace('/', ".");
        findings.push(match value < least {
            true => Finding::warn(what, format!("{name} is {value}: {effect}; sysctl -w {name}={least}")),
            false => Finding::ok(what, format!("{name} is {value}")),
        });
    };
    let storm = "when many connect at once, some have to try again";
    at_least("accept queue", "/proc/sys/net/core/somaxconn", 1024, storm);
    at_least("handshakes", "/proc/sys/net/ipv4/tcp_max_syn_backlog", 1024, storm);
    at_least("files of all processes", "/proc/sys/fs/file-max", 100_000, "connections may be refused");
    if let Some(ports) = read("/proc/sys/net/ipv4/ip_local_port_range") {
        let bounds: Vec<u64> = ports.split_whitespace().filter_map(|port| port.parse().ok()).collect();
        if let [first, last] = bounds[..] {
            let count = (last + 1).saturating_sub(first);
            let text = format!("{count} ports for outgoing connections");
            findings.push(match count < 20_000 {
                true => Finding::warn(
                    "local ports",
                    format!("{text}: a proxy on this machine reaches no more clients than that; widen net.ipv4.ip_local_port_range"),
                ),
                false => Finding::ok("local ports", text),
            });
        }
    }
    findings
}

/// Tokens are judged by the clock: one that is years off refuses all of them, or none.
fn clock(now: SystemTime) -> Finding {
    const WHAT: &str = "clock";
    /// 2026-01-01: before this program was written.
    const EARLIEST: u64 = 1_767_225_600;
    /// 2100-01-01.
    const LATEST: u64 = 4_102_444_800;
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    match (EARLIEST..LATEST).contains(&seconds) {
        true => Finding::ok(WHAT, format!("{seconds} s since 1970, which is plausible")),
        false => {
            Finding::fail(WHAT, format!("{seconds} s since 1970 cannot be: tokens are judged by it; set it, use NTP"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{super::Level, *};

    #[test]
    fn descriptors_are_weighed_against_what_is_wanted() {
        for (hard, wanted, level) in [
            (256, 0, Level::Fail),
            (4096, 0, Level::Warn),
            (20_000, 0, Level::Ok),
            (20_000, 20_000, Level::Fail),
            (u64::MAX, 1_000_000, Level::Ok),
        ] {
            assert_eq!(descriptor_finding(hard, wanted).level, level, "{hard} {wanted}");
        }
    }

    #[test]
    fn the_tighter_of_machine_and_container_counts() {
        let read = |path: &str| match path {
            "/proc/meminfo" => Some("MemTotal: 9 kB\nMemAvailable:   8388608 kB\n".into()),
            "/sys/fs/cgroup/memory.max" => Some("134217728\n".to_owned()),
            "/sys/fs/cgroup/memory.current" => Some("34217728\n".into()),
            _ => None,
        };
        let finding = memory(&Config::default(), &read).unwrap();
        assert_eq!((finding.level, finding.text.starts_with("95 MiB")), (Level::Warn, true), "{finding}");
        assert!(finding.text.contains("broker.max_memory"), "{finding}");
        let mut config = Config::default();
        config.broker.max_memory = ByteSize::mebibytes(1);
        assert!(memory(&config, &read).unwrap().text.contains("95 send queues of slow readers"));
        config.limits.connections = 1_000_000;
        assert_eq!(memory(&config, &read).unwrap().level, Level::Fail);
        assert!(memory(&config, &|_| None).is_none());
    }

    #[test]
    fn small_queues_of_the_kernel_are_warned_of() {
        let findings = kernel(&|path| match path {
            "/proc/sys/net/core/somaxconn" => Some("128\n".into()),
            "/proc/sys/net/ipv4/ip_local_port_range" => Some("32768\t60999\n".into()),
            "/proc/sys/fs/file-max" => Some("garbage".into()),
            _ => None,
        });
        let levels: Vec<_> = findings.iter().map(|finding| finding.level).collect();
        assert_eq!(levels, [Level::Warn, Level::Ok]);
        assert!(findings[0].text.contains("sysctl -w net.core.somaxconn=1024"));
    }

    #[test]
    fn a_clock_of_1970_fails() {
        assert_eq!(clock(SystemTime::UNIX_EPOCH + Duration::from_secs(60)).level, Level::Fail);
        assert_eq!(clock(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)).level, Level::Ok);
    }
}
