//! A run as a picture: what clients got, who led, what was hurt.

use std::fmt::Write as _;

use crate::ops::{History, Moment, Outcome};
use crate::recorder::Fault;

const WIDTH: f64 = 1600.0;
const MARGIN: f64 = 130.0;
const BARS: f64 = 160.0;
const ROW: f64 = 18.0;
/// Bars across the picture.
const COLUMNS: usize = 400;

/// Draws an SVG.
#[must_use]
pub fn draw(history: &History, faults: &[Fault]) -> String {
    let ends = history.writes.iter().map(|record| record.end);
    let end = ends
        .chain(faults.iter().map(|fault| fault.to))
        .max()
        .unwrap_or(1)
        .max(1);
    let x = |at: Moment| MARGIN + at as f64 / end as f64 * (WIDTH - MARGIN - 10.0);
    let mut names: Vec<&str> = faults.iter().map(|fault| fault.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let height = BARS + 70.0 + ROW * (names.len() as f64 + 1.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" \
         fill=\"white\"/>\n"
    );
    bars(&mut svg, history, end);
    leaders(&mut svg, history, &x);
    for (row, name) in names.iter().enumerate() {
        let y = BARS + 50.0 + ROW * row as f64;
        let _ = writeln!(svg, "<text x=\"4\" y=\"{:.0}\">{name}</text>", y + 12.0);
        for fault in faults.iter().filter(|fault| fault.name == *name) {
            let (from, to) = (x(fault.from), x(fault.to));
            let well = x(fault.recovered.unwrap_or(end));
            let detail = escape(&fault.detail);
            let _ = writeln!(
                svg,
                "<rect x=\"{from:.1}\" y=\"{y:.0}\" width=\"{:.1}\" height=\"14\" \
                 fill=\"#f4c7a1\"/><rect x=\"{from:.1}\" y=\"{y:.0}\" width=\"{:.1}\" \
                 height=\"14\" fill=\"#d1495b\"><title>{detail}</title></rect>",
                (well - from).max(1.0),
                (to - from).max(1.0)
            );
        }
    }
    axis(&mut svg, end, height, &x);
    svg.push_str("</svg>\n");
    svg
}

/// Writes per column: done below, unknown or not accepted on top.
fn bars(svg: &mut String, history: &History, end: Moment) {
    let mut columns = vec![(0_u32, 0_u32, 0_u32); COLUMNS];
    for record in &history.writes {
        let share = record.end as f64 / end as f64 * (COLUMNS - 1) as f64;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of the columns"
        )]
        let column = &mut columns[share as usize];
        match record.outcome {
            Outcome::Done { .. } => column.0 += 1,
            Outcome::Refused(_) => column.1 += 1,
            Outcome::Nothing | Outcome::Unknown => column.2 += 1,
        }
    }
    let most = columns
        .iter()
        .map(|(a, b, c)| a + b + c)
        .max()
        .unwrap_or(1)
        .max(1);
    let width = (WIDTH - MARGIN - 10.0) / COLUMNS as f64;
    for (index, (done, refused, unknown)) in columns.into_iter().enumerate() {
        let x = MARGIN + width * index as f64;
        let mut y = BARS;
        for (count, colour) in [
            (done, "#2a9d8f"),
            (refused, "#a8c5da"),
            (unknown, "#e76f51"),
        ] {
            let height = BARS * f64::from(count) / f64::from(most);
            y -= height;
            if count > 0 {
                let _ = writeln!(
                    svg,
                    "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" \
                     fill=\"{colour}\"/>"
                );
            }
        }
    }
    for (y, colour, text) in [
        (20.0, "#2a9d8f", "writes done"),
        (36.0, "#a8c5da", "refused"),
        (52.0, "#e76f51", "unknown, not accepted"),
    ] {
        let _ = writeln!(
            svg,
            "<text x=\"4\" y=\"{y}\" fill=\"{colour}\">{text}</text>"
        );
    }
}

/// A line where a term was first heard of.
fn leaders(svg: &mut String, history: &History, x: &impl Fn(Moment) -> f64) {
    let y = BARS + 24.0;
    let _ = writeln!(svg, "<text x=\"4\" y=\"{y}\">leader</text>");
    let mut term = 0;
    let mut led = history.led.clone();
    led.sort_by_key(|led| led.at);
    for led in led {
        if led.term > term {
            term = led.term;
            let at = x(led.at);
            let _ = writeln!(
                svg,
                "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"0\" y2=\"{y}\" stroke=\"#bbb\" \
                 stroke-dasharray=\"2\"/><text x=\"{:.1}\" y=\"{y}\">{}<title>term {}</title>\
                 </text>",
                at + 2.0,
                led.leader,
                led.term
            );
        }
    }
}

fn axis(svg: &mut String, end: Moment, height: f64, x: &impl Fn(Moment) -> f64) {
    let seconds = end / 1_000_000;
    let step = (seconds / 12).max(1);
    for second in (0..=seconds).step_by(usize::try_from(step).unwrap_or(1)) {
        let at = x(second * 1_000_000);
        let _ = writeln!(
            svg,
            "<text x=\"{at:.1}\" y=\"{:.0}\" fill=\"#555\">{second} s</text>",
            height - 6.0
        );
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
