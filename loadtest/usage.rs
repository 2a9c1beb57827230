//! What a process takes of its machine, read from `/proc`.
//!
//! Processor time comes from the scheduler's own count (`schedstat`, in nanoseconds, over all threads); how it divides
//! into user and system time from `stat`, whose ticks are too coarse for the sum but good enough for a share.

use std::{fs, io, time::Duration};

/// What a process has used since its start, and what it holds now.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Time on a processor.
    pub cpu: Duration,
    /// Time runnable, but kept waiting by others for its processor.
    pub waited: Duration,
    /// Clock ticks in user and in system mode.
    user_ticks: u64,
    system_ticks: u64,
    /// Resident memory (VmRSS).
    pub resident_bytes: u64,
}

/// What was used between two readings.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    pub user: Duration,
    pub system: Duration,
    pub waited: Duration,
}

impl Usage {
    /// The usage of all threads of process `pid`.
    pub fn of_process(pid: u32) -> io::Result<Self> {
        let mut usage = Self::default();
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            // A thread may end while we look.
            if let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) {
                usage.add_schedstat(&text);
            }
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        (usage.user_ticks, usage.system_ticks) = ticks(&stat).unwrap_or_default();
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        usage.resident_bytes = resident_bytes(&status).unwrap_or_default();
        Ok(usage)
    }

    /// The usage of the calling thread alone, without memory.
    pub fn of_this_thread() -> io::Result<Self> {
        let mut usage = Self::default();
        usage.add_schedstat(&fs::read_to_string("/proc/thread-self/schedstat")?);
        Ok(usage)
    }

    /// What was used since `before`.
    pub fn since(&self, before: &Self) -> Spent {
        let cpu = self.cpu.saturating_sub(before.cpu);
        let user = self.user_ticks.saturating_sub(before.user_ticks) as f64;
        let system = self.system_ticks.saturating_sub(before.system_ticks) as f64;
        let user = if user + system == 0.0 { cpu } else { cpu.mul_f64(user / (user + system)) };
        Spent { user, system: cpu.saturating_sub(user), waited: self.waited.saturating_sub(before.waited) }
    }

    fn add_schedstat(&mut self, text: &str) {
        let mut numbers = text.split_ascii_whitespace().map(|number| number.parse().map_or(0, |number: u64| number));
        self.cpu += Duration::from_nanos(numbers.next().unwrap_or(0));
        self.waited += Duration::from_nanos(numbers.next().unwrap_or(0));
    }
}

impl Spent {
    /// User and system time together.
    pub fn cpu(&self) -> Duration {
        self.user + self.system
    }
}

/// Fields 14 and 15 of `/proc/<pid>/stat`; the second, the name in brackets, may hold blanks.
fn ticks(stat: &str) -> Option<(u64, u64)> {
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace().skip(11);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

fn resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_a_strange_name_is_read() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 123 45 0 0 20 0 1 0 9 1 2";
        assert_eq!(ticks(stat), Some((123, 45)));
        assert_eq!(resident_bytes("Name:\tx\nVmRSS:\t    5120 kB\n"), Some(5 << 20));
    }

    #[test]
    fn this_process_uses_what_it_burns() {
        let before = Usage::of_process(std::process::id()).unwrap();
        let mut sum = 0u64;
        while Usage::of_this_thread().unwrap().cpu < Duration::from_millis(30) {
            sum = std::hint::black_box((0..100_000).fold(sum, u64::wrapping_add));
        }
        let spent = Usage::of_process(std::process::id()).unwrap().since(&before);
        assert!(Duration::from_millis(10) < spent.cpu(), "{spent:?}");
        assert!(0 < before.resident_bytes);
    }
}
