//! The process's own figures, under the names that every Prometheus client uses.
//!
//! Source: "Process metrics", <https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics>; read from
//! `/proc/self` (proc(5)).

use std::fs;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
};

/// Reads `/proc/self` when somebody asks. Where there is none, there are no figures.
#[derive(Debug)]
pub(super) struct Process;

/// What `/proc/self/stat` and its neighbours say.
struct Figures {
    cpu_seconds: f64,
    start_seconds: f64,
    resident_bytes: i64,
    virtual_bytes: i64,
    open_descriptors: i64,
    max_descriptors: i64,
    threads: i64,
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Some(figures) = Figures::read() else { return Ok(()) };
        let cpu = ConstCounter::new(figures.cpu_seconds);
        let help = "User and system time used, in seconds";
        cpu.encode(encoder.encode_descriptor("process_cpu_seconds", help, None, cpu.metric_type())?)?;
        let start = ConstGauge::new(figures.start_seconds);
        let help = "When the process began, in seconds since 1970";
        start.encode(encoder.encode_descriptor("process_start_time_seconds", help, None, start.metric_type())?)?;
        for (name, help, value) in [
            ("process_resident_memory_bytes", "Resident memory", figures.resident_bytes),
            ("process_virtual_memory_bytes", "Virtual memory", figures.virtual_bytes),
            ("process_open_fds", "Open file descriptors", figures.open_descriptors),
            ("process_max_fds", "The most file descriptors that may be open", figures.max_descriptors),
            ("process_threads", "Threads", figures.threads),
        ] {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

impl Figures {
    fn read() -> Option<Self> {
        use rustix::{
            param::{clock_ticks_per_second, page_size},
            process::{Resource, getrlimit},
        };
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        // The second field is the name in parentheses and may hold blanks: count from behind it. The first of these is
        // the third of proc(5).
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
        let ticks = clock_ticks_per_second() as f64;
        let boot = fs::read_to_string("/proc/stat").ok()?;
        let boot = boot.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse::<f64>().ok()?;
        let max = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        Some(Self {
            cpu_seconds: (field(14)? + field(15)?) / ticks,
            start_seconds: boot + field(22)? / ticks,
            resident_bytes: field(24)? as i64 * i64::try_from(page_size()).ok()?,
            virtual_bytes: field(23)? as i64,
            open_descriptors: fs::read_dir("/proc/self/fd").ok()?.count() as i64,
            max_descriptors: i64::try_from(max).unwrap_or(i64::MAX),
            threads: field(20)? as i64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_are_those_of_this_process() {
        let figures = Figures::read().unwrap();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        assert!((now - 3600.0..now + 1.0).contains(&figures.start_seconds), "{}", figures.start_seconds);
        assert!(1 << 20 < figures.resident_bytes && figures.resident_bytes < figures.virtual_bytes);
        assert!(2 < figures.open_descriptors && figures.open_descriptors < figures.max_descriptors);
        assert!(1 <= figures.threads && 0.0 <= figures.cpu_seconds);
    }
}
