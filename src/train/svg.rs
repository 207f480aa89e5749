//! A line chart as inline SVG: axes with round ticks, curves, points. Colours are left to the
//! style sheet of the page, by class.

use std::fmt::Write;

/// Size of a chart in SVG units, and what its margins take.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 72.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 40.0;
/// Curves with more points are thinned to about this many: two for each unit of width.
const MAX_POINTS: usize = 1440;

/// A curve.
pub struct Series {
    /// Name in the legend.
    pub name: &'static str,
    /// Class in the style sheet.
    pub class: &'static str,
    /// Whether each point is marked, with its values shown on hovering.
    pub marked: bool,
    /// x and y, x rising.
    pub points: Vec<(f64, f64)>,
}

/// A chart; series without points are left out.
pub struct Chart {
    /// Heading.
    pub title: String,
    /// What x counts.
    pub x_label: &'static str,
    /// What y is, with its unit.
    pub y_label: &'static str,
    /// The curves, drawn in this order.
    pub series: Vec<Series>,
}

impl Default for Chart {
    /// A chart over steps, without curves.
    fn default() -> Chart {
        Chart { title: String::new(), x_label: "step", y_label: "", series: vec![] }
    }
}

/// The chart as a `figure` element; empty where no series has a point.
pub fn chart(chart: &Chart) -> String {
    let series: Vec<&Series> = chart.series.iter().filter(|s| !s.points.is_empty()).collect();
    let all = || series.iter().flat_map(|s| s.points.iter());
    if series.is_empty() {
        return String::new();
    }
    let (x_ticks, x_low, x_high) = counts_axis(all().map(|p| p.0));
    let (y_ticks, y_low, y_high) = axis(all().map(|p| p.1), 5);
    let x_of = |x: f64| LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT);
    let y_of = |y: f64| HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM);

    let mut out = format!("<figure>\n<figcaption>{}", escape(&chart.title));
    for one in &series {
        let _ = write!(out, " <span class=\"key {}\">{}</span>", one.class, escape(one.name));
    }
    let _ = writeln!(
        out,
        "</figcaption>\n<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">",
        escape(&chart.title)
    );
    let (right, foot) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    for tick in &y_ticks {
        let (y, label) = (y_of(*tick), number(*tick));
        let _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            LEFT - 6.0,
            y + 4.0
        );
    }
    for tick in &x_ticks {
        let (x, label) = (x_of(*tick), number(*tick));
        let _ = writeln!(
            out,
            "<line class=\"axis\" x1=\"{x:.1}\" y1=\"{foot}\" x2=\"{x:.1}\" y2=\"{}\"/>\
             <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{label}</text>",
            foot + 4.0,
            foot + 17.0
        );
    }
    let _ = writeln!(
        out,
        "<path class=\"axis\" d=\"M{LEFT} {TOP}V{foot}H{right}\"/>\
         <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
         <text transform=\"translate(14 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
        (LEFT + right) / 2.0,
        HEIGHT - 6.0,
        escape(chart.x_label),
        (TOP + foot) / 2.0,
        escape(chart.y_label)
    );
    for one in &series {
        let points = thinned(&one.points);
        let path: Vec<String> =
            points.iter().map(|&(x, y)| format!("{:.1},{:.1}", x_of(x), y_of(y))).collect();
        let _ = writeln!(out, "<polyline class=\"{}\" points=\"{}\"/>", one.class, path.join(" "));
        if one.marked || points.len() == 1 {
            for &(x, y) in &points {
                let _ = writeln!(
                    out,
                    "<circle class=\"{}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\">\
                     <title>{} {}: {}</title></circle>",
                    one.class,
                    x_of(x),
                    y_of(y),
                    escape(chart.x_label),
                    number(x),
                    number(y)
                );
            }
        }
    }
    out + "</svg>\n</figure>\n"
}

/// Round ticks at steps of 1, 2 or 5 times a power of ten, about `wanted` of them, and the ends of
/// the axis: the outermost ticks that hold all values.
fn axis(values: impl Iterator<Item = f64>, wanted: usize) -> (Vec<f64>, f64, f64) {
    let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
    for value in values.filter(|value| value.is_finite()) {
        (low, high) = (low.min(value), high.max(value));
    }
    if low > high {
        (low, high) = (0.0, 1.0);
    }
    if high - low <= high.abs().max(low.abs()) * 1e-9 {
        // A flat curve runs through the middle.
        let room = if high == 0.0 { 1.0 } else { high.abs() * 0.5 };
        (low, high) = (low - room, high + room);
    }
    let rough = (high - low) / wanted as f64;
    let power = 10f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|f| f * power >= rough).unwrap_or(10.0);
    let step = factor * power;
    let (first, last) = ((low / step).floor() as i64, (high / step).ceil() as i64);
    let ticks: Vec<f64> = (first..=last).map(|i| i as f64 * step).collect();
    (ticks, first as f64 * step, last as f64 * step)
}

/// The axis of what is counted: round ticks too, but only whole ones, and it ends where the curves
/// end.
fn counts_axis(values: impl Iterator<Item = f64> + Clone) -> (Vec<f64>, f64, f64) {
    let (mut ticks, low, high) = axis(values.clone(), 8);
    ticks.retain(|tick| (tick - tick.round()).abs() < 1e-9);
    let first = values.clone().fold(f64::INFINITY, f64::min);
    let last = values.fold(f64::NEG_INFINITY, f64::max);
    if first >= last {
        return (ticks, low, high);
    }
    ticks.retain(|tick| (first..=last).contains(tick));
    (ticks, first, last)
}

/// At most about [`MAX_POINTS`] points: of every run of neighbours the lowest and the highest stay,
/// so that no peak is lost.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= MAX_POINTS {
        return points.to_vec();
    }
    let run = (2 * points.len()).div_ceil(MAX_POINTS);
    let mut out = Vec::with_capacity(MAX_POINTS + 2);
    for run in points.chunks(run) {
        let by_y = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let (low, high) = (run.iter().min_by(by_y), run.iter().max_by(by_y));
        let mut pair: Vec<(f64, f64)> = low.into_iter().chain(high).copied().collect();
        pair.sort_by(|a, b| a.0.total_cmp(&b.0));
        pair.dedup();
        out.extend(pair);
    }
    out
}

/// A number for a label: six digits, without trailing zeros, small and large ones with an exponent.
pub fn number(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 {
        return "0".to_owned();
    }
    if !(1e-3..1e6).contains(&size) {
        let text = format!("{value:.2e}");
        return match text.split_once('e') {
            Some((digits, power)) => {
                let digits = digits.trim_end_matches('0').trim_end_matches('.');
                format!("{digits}e{power}")
            }
            None => text,
        };
    }
    let places = (5.0 - size.log10().floor()).clamp(0.0, 8.0) as usize;
    let text = format!("{value:.places$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

/// Text as it may stand in HTML and in attributes.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_hold_all_values() {
        let (ticks, low, high) = axis([3.1, 6.9].into_iter(), 5);
        assert_eq!((low, high), (3.0, 7.0));
        assert_eq!(ticks, [3.0, 4.0, 5.0, 6.0, 7.0]);
        let (ticks, low, high) = axis([0.0, 5e-5].into_iter(), 5);
        assert_eq!((ticks.len(), low), (6, 0.0));
        assert!((high - 5e-5).abs() < 1e-12, "{high}");
        for flat in [0.0, 7.5, -2.0] {
            let (_, low, high) = axis([flat].into_iter(), 5);
            assert!(low < flat && flat < high, "{low} {flat} {high}");
        }
        assert_eq!(axis([f64::NAN].into_iter(), 5).1, 0.0);
        let (ticks, low, high) = counts_axis([1.0, 180.0, 360.0].into_iter());
        assert_eq!(
            (ticks, low, high),
            ((1..=7).map(|i| 50.0 * f64::from(i)).collect(), 1.0, 360.0)
        );
        let (ticks, low, high) = counts_axis([1.0, 2.0, 3.0].into_iter());
        assert_eq!((ticks, low, high), (vec![1.0, 2.0, 3.0], 1.0, 3.0));
        assert_eq!(counts_axis([1.0].into_iter()).0, [1.0]);
    }

    #[test]
    fn numbers_are_short() {
        let cases = [
            (0.0, "0"),
            (5e-5, "5e-5"),
            (1.25e-7, "1.25e-7"),
            (0.1 + 0.2, "0.3"),
            (1200.0, "1200"),
            (3.0, "3"),
            (-2.5, "-2.5"),
            (2e9, "2e9"),
            (100_000.0, "100000"),
        ];
        for (value, wanted) in cases {
            assert_eq!(number(value), wanted);
        }
    }

    #[test]
    fn thinning_keeps_the_peaks() {
        let mut points: Vec<_> = (0..10_000).map(|i| (f64::from(i), 1.0)).collect();
        points[4321].1 = 9.0;
        points[8000].1 = -9.0;
        let thin = thinned(&points);
        assert!(thin.len() <= MAX_POINTS + 2, "{}", thin.len());
        assert!(thin.contains(&(4321.0, 9.0)) && thin.contains(&(8000.0, -9.0)));
        assert!(thin.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert_eq!(thinned(&points[..10]), points[..10]);
    }

    #[test]
    fn a_chart_without_points_is_nothing() {
        let series = Series { name: "a", class: "a", marked: false, points: vec![] };
        let empty = Chart { title: "t".into(), series: vec![series], ..Chart::default() };
        assert_eq!(chart(&empty), "");
    }

    #[test]
    fn x_has_its_name_on_the_axis_and_at_each_point() {
        let series = || Series { name: "a", class: "a", marked: true, points: vec![(2.0, 0.5)] };
        let over = |x_label| Chart { x_label, series: vec![series()], ..Chart::default() };
        let text = chart(&over("iteration"));
        assert!(text.contains(">iteration</text>") && text.contains("<title>iteration 2: 0.5<"));
        let text = chart(&Chart { series: vec![series()], ..Chart::default() });
        assert!(text.contains(">step</text>") && text.contains("<title>step 2: 0.5<"));
    }
}
