//! The report as one self-contained page: no script, no outside resource, light and dark.
//!
//! Every turn stays visible, as a dot or a thin line, since a median alone hides how steady it is. Plots are plain SVG
//! drawn here; start at [`render`].

use std::fmt::Write as _;

use crate::{
    monitor::Second,
    report::{Report, Row, number},
};

const STYLE: &str = include_str!("page.css");
/// The plots' own units; the page scales them.
const WIDTH: f64 = 400.0;
const HEIGHT: f64 = 190.0;
/// Room for the labels to the left of and below a plot.
const LEFT: f64 = 46.0;
const BELOW: f64 = 26.0;
/// Figures that get a plot of their own, if they were measured.
const PLOTTED: [&str; 8] = [
    "server CPU each",
    "deliveries",
    "acknowledged",
    "latency p99",
    "server CPU per handshake",
    "memory per connection",
    "handshakes",
    "bytes on the wire each",
];

/// The page.
pub fn render(report: &Report) -> String {
    let title = escape(&report.scenario);
    let verdict = if report.is_failed() { r#"<span class="bad">failed</span>"# } else { "passed" };
    let machine = &report.machine;
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>Load test: {title}</title><style>{STYLE}</style></head><body><main>\
         <h1>{title}</h1><p>Audit {verdict} · {}, {} cores, Linux {} · commit <code>{}</code> · {}</p>\
         <p class=\"soft\"><code>{}</code></p>{}",
        escape(&machine.processor),
        machine.cores,
        escape(&machine.kernel),
        escape(&machine.commit),
        date(machine.time),
        escape(&report.command),
        legend(report),
    );
    let rows = report.rows();
    let plotted = || PLOTTED.iter().filter_map(|name| rows.iter().find(|row| row.name == *name && is_telling(row)));
    page.push_str(r#"<div class="grid tiles">"#);
    plotted().for_each(|row| page.push_str(&tile(report, row)));
    page.push_str(r#"</div><div class="grid">"#);
    page.push_str(&latency_card(report));
    page.push_str(&timeline_card(report, "Per second", |second| second.count));
    page.push_str(&timeline_card(report, "Server CPU, %", |second| second.server_cpu));
    page.push_str(&timeline_card(report, "Generator CPU, %", |second| second.client_cpu));
    page.push_str(&timeline_card(report, "Server memory, MiB", |second| second.resident_mib));
    page.push_str(&table(report, &rows));
    page.push_str("</div></main></body></html>\n");
    page
}

fn legend(report: &Report) -> String {
    let items = report.contestants.iter().enumerate().map(|(index, record)| {
        let (label, load, turns) = (escape(&record.label), escape(&record.load), record.turns.len());
        format!(r#"<li class="c{}"><span><b>{label}</b> {load}; turns: {turns}</span></li>"#, index % 4)
    });
    format!(r#"<ul class="legend">{}</ul>"#, items.collect::<String>())
}

/// Whether a figure differs enough between turns or contestants to deserve a plot.
fn is_telling(row: &Row) -> bool {
    let values = || row.cells.iter().flatten().flat_map(|cell| &cell.values).copied();
    let (least, most) = (values().fold(f64::MAX, f64::min), values().fold(0.0, f64::max));
    least < 0.98 * most || row.cells.len() == 1
}

/// One figure: how the last contestant compares with the first, in large, and the turns of all.
fn tile(report: &Report, row: &Row) -> String {
    let last = row.cells.len() - 1;
    let (large, hint) = match (row.ratios(last), report.contestants.first()) {
        (Some((medians, _)), Some(first)) if 0 < last => {
            (format!("{medians:.2} ×"), format!("{} as a multiple of {}", report.contestants[last].label, first.label))
        }
        _ => (row.cells[0].as_ref().map_or_else(String::new, |cell| number(cell.median)), row.unit.to_owned()),
    };
    format!(
        r#"<section class="card"><h2>{} <small>{}</small></h2><p class="large">{large}</p><p class="soft">{}</p>{}</section>"#,
        escape(row.name),
        escape(row.unit),
        escape(&hint),
        dots(row)
    )
}

fn card(title: &str, hint: &str, plot: &str) -> String {
    format!(r#"<section class="card"><h2>{}</h2><p class="soft">{hint}</p>{plot}</section>"#, escape(title))
}

fn table(report: &Report, rows: &[Row]) -> String {
    let mut html =
        String::from(r#"<section class="card wide"><h2>All figures</h2><div class="scroll"><table><tr><th></th>"#);
    for record in &report.contestants {
        let _ = write!(html, "<th>{}</th>", escape(&record.label));
    }
    for record in report.contestants.iter().skip(1) {
        let _ = write!(html, "<th>{} ÷ {}</th>", escape(&record.label), escape(&report.contestants[0].label));
    }
    html.push_str("</tr>");
    for row in rows {
        let _ = write!(html, "<tr><td>{} <small>{}</small></td>", escape(row.name), escape(row.unit));
        for cell in &row.cells {
            match cell {
                Some(cell) if cell.values.len() == 1 => _ = write!(html, "<td>{}</td>", number(cell.median)),
                Some(cell) => {
                    let (median, best, worst) = (number(cell.median), number(cell.best), number(cell.worst));
                    let _ = write!(html, "<td>{median} <small>{best} … {worst}</small></td>");
                }
                None => html.push_str("<td>–</td>"),
            }
        }
        for contestant in 1..row.cells.len() {
            let _ = write!(html, "<td>{}</td>", row.ratios_text(contestant));
        }
        html.push_str("</tr>");
    }
    html.push_str("</table></div>");
    for remark in report.remarks() {
        let class = if report.is_failed() { "bad" } else { "soft" };
        let _ = write!(html, r#"<p class="{class}">{}</p>"#, escape(&remark));
    }
    html.push_str("</section>");
    html
}

/// One row of dots for each contestant, on a scale that starts at zero.
fn dots(row: &Row) -> String {
    let most = row.cells.iter().flatten().flat_map(|cell| &cell.values).copied().fold(0.0, f64::max);
    let scale = Scale::linear(0.0, most);
    let height = 34.0 * row.cells.len() as f64;
    let mut svg = begin(height + BELOW, row.name);
    let across = |value: f64| LEFT + scale.place(value) * (WIDTH - LEFT - 60.0);
    for tick in scale.ticks() {
        let x = across(tick);
        let _ = write!(svg, r#"<line class="axis" x1="{x:.1}" x2="{x:.1}" y1="0" y2="{height}"/>"#);
        let _ = write!(svg, r#"<text x="{x:.1}" y="{:.0}" text-anchor="middle">{}</text>"#, height + 16.0, short(tick));
    }
    for (index, cell) in row.cells.iter().enumerate() {
        let Some(cell) = cell else { continue };
        let y = 34.0 * index as f64 + 17.0;
        let _ = write!(svg, r#"<g class="c{}">"#, index % 4);
        for &value in &cell.values {
            let (x, text) = (across(value), number(value));
            let _ = write!(svg, r#"<circle class="dot" cx="{x:.1}" cy="{y}" r="4.5"><title>{text}</title></circle>"#);
        }
        let x = across(cell.median);
        let _ = write!(svg, r#"<line class="median" x1="{x:.1}" x2="{x:.1}" y1="{}" y2="{}"/>"#, y - 11.0, y + 11.0);
        let _ =
            write!(svg, r#"</g><text x="{}" y="{}" text-anchor="end">{}</text>"#, WIDTH, y + 4.0, number(cell.median));
    }
    svg + "</svg>"
}

/// Latency by quantile: each step to the right is one nine more.
fn latency_card(report: &Report) -> String {
    let points = || report.turns().flat_map(|(_, turn)| &turn.latency).filter(|(_, latency)| 0.0 < *latency);
    let (least, most) =
        points().fold((f64::MAX, 0.0f64), |(low, high), (_, value)| (low.min(*value), high.max(*value)));
    if most == 0.0 {
        return String::new();
    }
    let up = Scale::logarithmic(least, most);
    let nines = |quantile: f64| -(1.0 - quantile).max(1e-6).log10();
    let along = |quantile: f64| LEFT + nines(quantile) / 6.0 * (WIDTH - LEFT - 8.0);
    let mut svg = begin(HEIGHT + BELOW, "latency by quantile");
    axis(&mut svg, &up);
    for (quantile, label) in
        [(0.0, "0"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %"), (0.9999, "99.99 %"), (1.0, "max")]
    {
        let anchor = if quantile == 1.0 { "end" } else { "middle" };
        let (x, y) = (along(quantile), HEIGHT + 18.0);
        let _ = write!(svg, r#"<text x="{x:.1}" y="{y}" text-anchor="{anchor}">{label}</text>"#);
    }
    for (index, record) in report.contestants.iter().enumerate() {
        for turn in &record.turns {
            let curve = turn.latency.iter().map(|&(quantile, value)| (along(quantile), up.height(value)));
            line(&mut svg, index, curve, &record.label);
        }
    }
    card("Latency, ms", "from publishing to reading, by share of deliveries; each line a turn", &(svg + "</svg>"))
}

fn timeline_card(report: &Report, title: &str, value: fn(&Second) -> f64) -> String {
    let seconds = || report.turns().flat_map(|(_, turn)| &turn.timeline);
    let most = seconds().map(value).fold(0.0, f64::max);
    let last = seconds().map(|second| second.at).fold(0.0, f64::max);
    if most == 0.0 || last < 2.0 {
        return String::new();
    }
    let up = Scale::linear(0.0, most);
    let time = Scale::linear(0.0, last);
    let along = |at: f64| LEFT + time.place(at) * (WIDTH - LEFT - 8.0);
    let mut svg = begin(HEIGHT + BELOW, title);
    axis(&mut svg, &up);
    for tick in time.ticks() {
        let (x, y) = (along(tick), HEIGHT + 18.0);
        let _ = write!(svg, r#"<text x="{x:.1}" y="{y}" text-anchor="middle">{} s</text>"#, short(tick));
    }
    for (index, record) in report.contestants.iter().enumerate() {
        for turn in &record.turns {
            let curve = turn.timeline.iter().map(|second| (along(second.at), up.height(value(second))));
            line(&mut svg, index, curve, &record.label);
        }
    }
    card(title, "over the time of a turn, warm-up included; each line a turn", &(svg + "</svg>"))
}

fn begin(height: f64, label: &str) -> String {
    format!(r#"<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{}">"#, escape(label))
}

/// Lines across the plot with their values to the left.
fn axis(svg: &mut String, up: &Scale) {
    for tick in up.ticks() {
        let y = up.height(tick);
        let _ = write!(svg, r#"<line class="axis" x1="{LEFT}" x2="{WIDTH}" y1="{y:.1}" y2="{y:.1}"/>"#);
        let _ = write!(svg, r#"<text x="{}" y="{:.1}" text-anchor="end">{}</text>"#, LEFT - 6.0, y + 4.0, short(tick));
    }
}

fn line(svg: &mut String, contestant: usize, points: impl Iterator<Item = (f64, f64)>, label: &str) {
    let path: Vec<String> = points.map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let (class, path, label) = (contestant % 4, path.join(" "), escape(label));
    let _ = write!(svg, r#"<polyline class="curve c{class}" points="{path}"><title>{label}</title></polyline>"#);
}

/// From values to places between 0 and 1.
struct Scale {
    low: f64,
    high: f64,
    is_logarithmic: bool,
}

impl Scale {
    /// A scale whose ends are round numbers.
    fn linear(low: f64, high: f64) -> Self {
        let step = Self::step(high - low);
        Self { low, high: (high / step).ceil().max(1.0) * step, is_logarithmic: false }
    }

    /// A scale from one power of ten to another.
    fn logarithmic(low: f64, high: f64) -> Self {
        let (low, high) = (low.log10().floor(), high.log10().ceil());
        Self { low: 10f64.powf(low), high: 10f64.powf(high.max(low + 1.0)), is_logarithmic: true }
    }

    /// About five steps of 1, 2 or 5 times a power of ten.
    fn step(range: f64) -> f64 {
        let rough = (range / 5.0).max(1e-9);
        let power = 10f64.powf(rough.log10().floor());
        [1.0, 2.0, 5.0, 10.0]
            .map(|factor| factor * power)
            .into_iter()
            .find(|&step| rough <= step)
            .unwrap_or(power * 10.0)
    }

    fn place(&self, value: f64) -> f64 {
        let place = match self.is_logarithmic {
            true => (value.max(self.low) / self.low).ln() / (self.high / self.low).ln(),
            false => (value - self.low) / (self.high - self.low),
        };
        place.clamp(0.0, 1.0)
    }

    /// How far down in a plot.
    fn height(&self, value: f64) -> f64 {
        6.0 + (1.0 - self.place(value)) * (HEIGHT - 6.0)
    }

    fn ticks(&self) -> Vec<f64> {
        let step = Self::step(self.high - self.low);
        match self.is_logarithmic {
            true => {
                let decades = (self.high / self.low).log10().round() as i32;
                (0..=decades).map(|decade| self.low * 10f64.powi(decade)).collect()
            }
            false => {
                (0..=((self.high - self.low) / step).round() as u32).map(|i| self.low + step * f64::from(i)).collect()
            }
        }
    }
}

/// A round number as an axis has it: `50 k`.
fn short(value: f64) -> String {
    let (value, unit) = match value.abs() {
        large if 1e6 <= large => (value / 1e6, " M"),
        large if 1e4 <= large => (value / 1e3, " k"),
        _ => (value, ""),
    };
    let text = format!("{value:.3}");
    format!("{}{unit}", text.trim_end_matches('0').trim_end_matches('.'))
}

/// Seconds since 1970 as a date and time in UTC. Source: H. Hinnant, "chrono-compatible low-level date algorithms".
fn date(seconds: u64) -> String {
    let days = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute) = (seconds / 3600 % 24, seconds / 60 % 60);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02} UTC")
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::sample;

    #[test]
    fn the_page_stands_alone_and_escapes_what_it_is_given() {
        let page = render(&sample());
        assert!(page.contains("Abacus &lt;9&gt;") && page.contains("a &lt;note&gt;"));
        for outside in ["http:", "https:", "<script", "<link", "url(", "@import"] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert!(!page.contains("NaN") && !page.contains("inf,") && page.contains("<polyline"));
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    }

    #[test]
    fn scales_end_at_round_numbers() {
        let scale = Scale::linear(0.0, 93.0);
        assert_eq!((scale.high, scale.ticks().len(), scale.place(50.0)), (100.0, 6, 0.5));
        let scale = Scale::logarithmic(0.03, 7.0);
        assert_eq!(scale.ticks().iter().map(|&tick| short(tick)).collect::<Vec<_>>(), ["0.01", "0.1", "1", "10"]);
        assert!(Scale::linear(0.0, 0.0).place(0.0).is_finite());
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        assert_eq!(date(951_827_696), "2000-02-29 12:34 UTC");
        assert_eq!(date(1_764_000_000), "2025-11-24 16:00 UTC");
    }
}
