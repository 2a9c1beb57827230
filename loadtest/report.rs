//! What a run found, in three shapes: a table for the terminal, JSON for programs, and a page with plots.
//!
//! Several turns are summed up by their median and their best, and contestants compared by the ratios of both: single
//! runs on a shared machine differ by a third, medians of six by a few per cent.

use std::{fs, path::Path, process::Command};

use serde::Serialize;

use crate::scenarios::{Better, Turn};

/// The figures that tell of other work on the machine.
const KEPT_WAITING: [&str; 2] = ["server kept waiting", "client kept waiting"];

/// Everything about one run.
#[derive(Debug, Serialize)]
pub struct Report {
    pub scenario: String,
    /// The command line that gave it.
    pub command: String,
    pub machine: Machine,
    pub contestants: Vec<Record>,
}

/// Where and with what was measured.
#[derive(Debug, Serialize)]
pub struct Machine {
    pub processor: String,
    pub cores: usize,
    pub kernel: String,
    /// The commit of the sources, `-dirty` where they were changed.
    pub commit: String,
    /// Seconds since 1970 at the start.
    pub time: u64,
}

/// One contestant and its turns.
#[derive(Debug, Serialize)]
pub struct Record {
    pub label: String,
    /// What was done, in words.
    pub load: String,
    pub turns: Vec<Turn>,
}

/// One figure of all contestants.
#[derive(Debug, Serialize)]
pub struct Row {
    pub name: &'static str,
    pub unit: &'static str,
    pub better: Better,
    /// Per contestant; absent where it has no such figure.
    pub cells: Vec<Option<Cell>>,
}

/// One figure over the turns of one contestant.
#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    pub values: Vec<f64>,
    pub median: f64,
    pub best: f64,
    pub worst: f64,
}

impl Machine {
    /// Looks at this machine and at the sources that this program was built from.
    pub fn here() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let cpu = read("/proc/cpuinfo");
        let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        let describe = Command::new("git")
            .args(["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty", "--abbrev=10"])
            .output();
        let commit = describe.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
        let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self {
            processor: model.map_or_else(String::new, |(_, name)| name.trim().to_owned()),
            cores: cpu.lines().filter(|line| line.starts_with("processor")).count(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            commit: commit.unwrap_or_default(),
            time: time.as_secs(),
        }
    }
}

impl Report {
    /// Whether any turn lost, doubled or swapped something, or went wrong otherwise.
    pub fn is_failed(&self) -> bool {
        self.turns().any(|(_, turn)| turn.is_failed())
    }

    /// Every turn with its contestant's label.
    pub fn turns(&self) -> impl Iterator<Item = (&str, &Turn)> {
        self.contestants.iter().flat_map(|record| record.turns.iter().map(|turn| (record.label.as_str(), turn)))
    }

    /// All figures in the order in which they first appear.
    pub fn rows(&self) -> Vec<Row> {
        let mut rows: Vec<Row> = Vec::new();
        for figure in self.turns().flat_map(|(_, turn)| &turn.figures) {
            if !rows.iter().any(|row| row.name == figure.name && row.unit == figure.unit) {
                rows.push(Row { name: figure.name, unit: figure.unit, better: figure.better, cells: Vec::new() });
            }
        }
        for row in &mut rows {
            row.cells = self.contestants.iter().map(|record| Cell::of(record, row.name)).collect();
        }
        rows
    }

    /// The table for the terminal, followed by whatever was wrong.
    pub fn table(&self) -> String {
        let Machine { processor, cores, kernel, commit, .. } = &self.machine;
        let mut text = format!("\n{}  ·  {processor}, {cores} cores, Linux {kernel}  ·  {commit}\n", self.scenario);
        for record in &self.contestants {
            text.push_str(&format!("  {}: {}; turns: {}\n", record.label, record.load, record.turns.len()));
        }
        let mut heads: Vec<String> = vec![String::new()];
        heads.extend(self.contestants.iter().map(|record| format!("{}: median (best … worst)", record.label)));
        heads.extend(
            self.contestants.iter().skip(1).map(|record| format!("{} ÷ {}", record.label, self.contestants[0].label)),
        );
        let mut lines = vec![heads];
        for row in self.rows() {
            let mut line = vec![format!("{}, {}", row.name, row.unit)];
            line.extend(row.cells.iter().map(|cell| cell.as_ref().map_or_else(|| "–".into(), Cell::text)));
            line.extend((1..row.cells.len()).map(|contestant| row.ratios_text(contestant)));
            lines.push(line);
        }
        text.push_str(&align(&lines));
        for remark in self.remarks() {
            text.push_str(&format!("{remark}\n"));
        }
        text
    }

    /// What must be known besides the figures: notes, a generator at its limit, and everything that went wrong.
    pub fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        for (label, turn) in self.turns() {
            remarks.extend(turn.notes.iter().map(|note| format!("{label}: {note}")));
            if turn.is_client_bottleneck {
                remarks
                    .push(format!("{label}: the generator was busy for over 90 % of the time: it was the bottleneck"));
            }
            let audit = &turn.audit;
            if !audit.is_clean() {
                remarks.push(format!(
                    "{label}: AUDIT FAILED: of {} deliveries {} lost, {} doubled, {} out of order, {} phantom, {} wrong offsets",
                    audit.expected, audit.lost, audit.doubled, audit.out_of_order, audit.phantom, audit.wrong_offsets
                ));
                remarks.extend(audit.examples.iter().map(|example| format!("{label}:   {example}")));
            }
            if 0 < turn.problem_count {
                remarks.push(format!("{label}: {} problems: {}", turn.problem_count, turn.problems.join("; ")));
            }
        }
        let waited =
            |turn: &Turn| turn.figures.iter().any(|figure| KEPT_WAITING.contains(&figure.name) && 10.0 < figure.value);
        let disturbed = self.turns().filter(|(_, turn)| waited(turn)).count();
        if 0 < disturbed {
            let turns = self.turns().count();
            remarks.push(format!(
                "the machine was busy: in {disturbed} of {turns} turns others kept a processor for over 10 % of the time; \
                 do not believe the latencies"
            ));
        }
        let (expected, clean) = self.turns().fold((0, true), |(sum, clean), (_, turn)| {
            (sum + turn.audit.expected - turn.audit.announced, clean && turn.audit.is_clean())
        });
        if clean {
            remarks.push(format!("audit: all {} deliveries came once and in order", number(expected as f64)));
        }
        remarks.dedup();
        remarks
    }

    /// Writes the report, with its summary, as JSON.
    pub fn write_json(&self, path: &Path) -> std::io::Result<()> {
        #[derive(Serialize)]
        struct Whole<'a> {
            summary: Vec<Row>,
            #[serde(flatten)]
            report: &'a Report,
        }
        let whole = Whole { summary: self.rows(), report: self };
        fs::write(path, serde_json::to_vec_pretty(&whole).map_err(std::io::Error::from)?)
    }
}

impl Row {
    /// How a contestant compares with the first: the ratio of the medians and, of several turns, that of the best.
    pub fn ratios(&self, contestant: usize) -> Option<(f64, Option<f64>)> {
        let (first, other) = (self.cells.first()?.as_ref()?, self.cells.get(contestant)?.as_ref()?);
        if self.better == Better::Neither || first.median == 0.0 || first.best == 0.0 {
            return None;
        }
        Some((other.median / first.median, (1 < first.values.len()).then(|| other.best / first.best)))
    }

    /// Those ratios in words.
    pub fn ratios_text(&self, contestant: usize) -> String {
        match self.ratios(contestant) {
            Some((medians, Some(best))) => format!("{medians:.2}, best {best:.2}"),
            Some((medians, None)) => format!("{medians:.2}"),
            None => String::new(),
        }
    }
}

impl Cell {
    fn of(record: &Record, name: &str) -> Option<Self> {
        let figures = || record.turns.iter().flat_map(|turn| &turn.figures).filter(|figure| figure.name == name);
        let better = figures().next()?.better;
        let values: Vec<f64> = figures().map(|figure| figure.value).collect();
        let mut sorted = values.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
        let (least, most) = (sorted[0], sorted[sorted.len() - 1]);
        let (best, worst) = if better == Better::More { (most, least) } else { (least, most) };
        Some(Self { values, median, best, worst })
    }

    /// The cell in words: the median and the spread around it.
    pub fn text(&self) -> String {
        match self.values.len() {
            1 => number(self.median),
            _ => format!("{} ({} … {})", number(self.median), number(self.best), number(self.worst)),
        }
    }
}

/// A number with about three digits that say something, thousands apart.
pub fn number(value: f64) -> String {
    let digits = match value.abs() {
        small if small < 1.0 => 3,
        small if small < 10.0 => 2,
        small if small < 100.0 => 1,
        _ => 0,
    };
    let text = format!("{value:.digits$}");
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut grouped = String::new();
    for (place, digit) in whole.chars().enumerate() {
        let is_boundary = (whole.len() - place).is_multiple_of(3) && place != 0;
        if is_boundary && grouped.ends_with(|letter: char| letter.is_ascii_digit()) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + rest
}

/// Columns side by side: the first to the left, the others to the right.
fn align(lines: &[Vec<String>]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for line in lines {
        let mut row = String::from("  ");
        for (column, cell) in line.iter().enumerate() {
            let width = widths[column];
            row.push_str(&if column == 0 { format!("{cell:<width$}") } else { format!("   {cell:>width$}") });
        }
        text.push_str(row.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::{audit::Verdict, scenarios::Figure};

    /// A report with two contestants and made-up values.
    pub fn sample() -> Report {
        let turn = |cpu: f64, lost: u64| Turn {
            figures: vec![
                Figure { name: "server CPU each", unit: "µs", value: cpu, better: Better::Less },
                Figure { name: "deliveries", unit: "/s", value: 50_000.0 - cpu, better: Better::More },
            ],
            notes: vec!["a <note>".into()],
            latency: vec![(0.5, 0.2), (0.99, 1.5), (1.0, 9.0)],
            timeline: Vec::new(),
            audit: Verdict { expected: 1000, delivered: 1000 - lost, lost, ..Verdict::default() },
            problems: Vec::new(),
            problem_count: 0,
            is_client_bottleneck: false,
        };
        let record = |label: &str, values: &[f64]| Record {
            label: label.into(),
            load: "1 → 3".into(),
            turns: values.iter().map(|&cpu| turn(cpu, 0)).collect(),
        };
        Report {
            scenario: "fan-out".into(),
            command: "loadtest fan-out".into(),
            machine: Machine {
                processor: "Abacus <9>".into(),
                cores: 2,
                kernel: "6".into(),
                commit: "abc".into(),
                time: 0,
            },
            contestants: vec![record("floor", &[8.0, 10.0, 9.0]), record("fanwire", &[12.0, 9.0, 9.9, 9.0])],
        }
    }

    #[test]
    fn medians_and_best_are_compared() {
        let rows = sample().rows();
        let cells: Vec<_> = rows[0].cells.iter().flatten().map(|cell| (cell.median, cell.best, cell.worst)).collect();
        assert_eq!(cells, [(9.0, 8.0, 10.0), (9.45, 9.0, 12.0)]);
        assert_eq!(rows[1].cells[0].as_ref().unwrap().best, 49_992.0);
        assert_eq!(rows[0].ratios_text(1), "1.05, best 1.12");
    }

    #[test]
    fn a_failed_audit_is_told() {
        let mut report = sample();
        assert!(!report.is_failed() && report.table().contains("all 7,000 deliveries came once and in order"));
        report.contestants[1].turns[0].audit.lost = 1;
        assert!(report.is_failed() && report.table().contains("fanwire: AUDIT FAILED: of 1000 deliveries 1 lost"));
        assert!(!report.table().contains("came once"));
    }

    #[test]
    fn a_busy_machine_is_told() {
        let mut report = sample();
        assert!(!report.table().contains("busy"));
        let waiting = Figure { name: KEPT_WAITING[0], unit: "%", value: 25.0, better: Better::Neither };
        report.contestants[0].turns[1].figures.push(waiting);
        assert!(report.table().contains("in 1 of 7 turns"));
    }

    #[test]
    fn numbers_are_short() {
        let texts = [0.0, 0.1234, 8.951, 45.67, 123.4, 991_000.2, -1234.5].map(number);
        assert_eq!(texts, ["0.000", "0.123", "8.95", "45.7", "123", "991,000", "-1,234"]);
    }

    #[test]
    fn the_json_holds_summary_and_turns() {
        let file = tempfile::NamedTempFile::new().unwrap();
        sample().write_json(file.path()).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&fs::read(file.path()).unwrap()).unwrap();
        assert_eq!(json["summary"][0]["cells"][0]["median"], 9.0);
        assert_eq!(json["contestants"][1]["turns"].as_array().unwrap().len(), 4);
    }
}
